"""Workers that are spawned: a script without a guard works, and one that cannot is told about the guard."""

import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.spawn import get_preparation_data
from types import ModuleType

import pytest

from mimkit.data import spawn
from mimkit.data.views import CenterCrop
from places import ROOT

OF_MAIN = {"init_main_from_name", "init_main_from_path"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A main module that was started as a file."""
    main = ModuleType("__main__")
    main.__file__, main.__spec__ = "/somewhere/script.py", None
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    return main


def handed_to_workers() -> set[str]:
    return OF_MAIN & get_preparation_data("worker").keys()


def test_workers_leave_the_script_alone(script):
    assert handed_to_workers()
    with spawn.main_hidden(CenterCrop()):
        assert not handed_to_workers()
    assert script.__file__ == "/somewhere/script.py" and handed_to_workers()


def test_what_the_script_defines_brings_it_along(script):
    @dataclass(frozen=True, kw_only=True)
    class Mine(CenterCrop):
        pass

    Mine.__module__ = "__main__"
    for handed in (Mine(), (CenterCrop(), Mine()), [(Mine(),)]):
        with spawn.main_hidden(handed):
            assert handed_to_workers()


def test_forked_workers_have_it_anyway(script, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    with spawn.main_hidden(CenterCrop()):
        assert handed_to_workers()


SCRIPT = """
import multiprocessing, sys
multiprocessing.set_start_method("spawn", force=True)
import mimkit
from mimkit.data.views import RandomResizedCrop
class Mine(RandomResizedCrop): pass
run = mimkit.recipe("mae_mini_28")
run.data, run.epochs, run.batch_size = (sys.argv[1],), 1, 20
run.machine.evals, run.machine.workers, run.machine.resident = 0, 1, False
run.machine.precision, run.machine.attention, run.machine.threads = "float32", "fused", 1
if sys.argv[2] == "own": run.images.view = Mine()
print(mimkit.pretrain(run, run="run").finished)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "own"])
def test_a_script_without_a_guard(kind, forty, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py", str(forty), kind]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    if kind == "plain":
        assert ended.returncode == 0 and ended.stdout.endswith("True\n") and "Traceback" not in ended.stderr
    else:
        last = ended.stderr.splitlines()[-1]
        assert ended.returncode != 0 and last.endswith(spawn.GUARD) and "ended as it started" in last
