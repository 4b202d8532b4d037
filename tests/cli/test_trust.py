"""Trust: run folders that name a class of a foreign package run none of its code, unless the person says so."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from commandline import SMALL, TINY, mimkit, refused
from mimkit.compare.processes import Children
from mimkit.core import names
from mimkit.train.checkpoint import checkpoints
from mimkit.train.identity import identity_of

FOREIGN = '''"""Enters: nothing. Leaves: a file that tells that this was imported."""

from dataclasses import dataclass
from pathlib import Path

from mimkit.masks import RandomMasker

Path("imported.txt").write_text("imported")


@dataclass(frozen=True, kw_only=True)
class StrangeMasker(RandomMasker):
    """Like the random one."""
'''
LATER = TINY.split(SMALL)[1]  # flags of the machine
COMMON = f"--common='{SMALL}'"
COMMANDS = {
    "pretrain": "pretrain --run begun",
    "pretrain again": "pretrain mae_mini_28 --data pictures --run begun $TINY",
    "knn": "evaluate knn done --data pictures --workers 0 --device cpu",
    "attentive": "evaluate attentive done --data pictures --workers 0 --device cpu",
    "finetune": f"evaluate finetune done finetune_mini_32 --data pictures --run tuned --epochs 1 {LATER}",
    "finetune again": "evaluate finetune tuning",
    "analyze": "analyze done --data pictures --pictures 8 --metrics rank --device cpu --workers 0",
    "decoder": "analyze done --data pictures --pictures 8 --metrics decoder --device cpu --workers 0",
    "report": "report done --out page.html --metrics none --pictures 2 --device cpu",
    "export": "export done --out model",
    "huggingface": "export done --to huggingface --out model",
    "diff": "diff done begun",
    "check": "check done",
    "masks": "masks random --from done --data pictures --show 1",
    "compare": f"compare mae_mini_28 mae_mini_32 --data pictures --seeds 1 --epochs 1 --out compared {COMMON}",
}
READ_CLASSES = ("pretrain", "pretrain again", "finetune again", "huggingface")
"""Those that cannot do their work without the classes of the run; the other ones read numbers alone."""


def name_foreign_class(folder: Path) -> None:
    """Let a run's config.json name the class of FOREIGN."""
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    method = config["config"]["method"]
    if "masker" in method:
        method["masker"]["class"] = "strange.maskers:StrangeMasker"
    else:
        method["class"] = "strange.maskers:StrangeMasker"
    (folder / "config.json").write_text(json.dumps(config))
    for path in checkpoints(folder):  # as if a run with this class had written them
        state = torch.load(path, weights_only=True)
        torch.save(state | {"identity": identity_of(folder)}, path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, forty) -> Path:
    """A finished, a begun and a fine-tuned run whose config.json names a class of a package in the working folder."""
    place = tmp_path_factory.mktemp("trust")
    for number, path in enumerate(sorted(forty.iterdir())):
        folder = place / "pictures" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    before = Path.cwd()
    os.chdir(place)
    try:
        for name, more in (("done", ""), ("begun", "--max-steps 2")):
            said = mimkit(f"pretrain mae_mini_28 --data pictures --run {name} $TINY {more}")
            assert said.status == 0, said
        tuning = f"finetune_mini_32 --data pictures --run tuning --epochs 9 --batch-size 8 {LATER} --max-steps 1"
        said = mimkit(f"evaluate finetune done {tuning}")
        assert said.status == 0, said
    finally:
        os.chdir(before)
    for name in ("done", "begun", "tuning"):
        name_foreign_class(place / name)
    (place / "strange").mkdir()
    (place / "strange" / "maskers.py").write_text(FOREIGN)
    return place


@pytest.fixture
def working_folder(prepared, tmp_path, monkeypatch) -> Path:
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(names, "_trusted", set())
    for module in [module for module in sys.modules if module.partition(".")[0] == "strange"]:
        monkeypatch.delitem(sys.modules, module)
    return tmp_path / "here"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "compare"])
def test_no_command_runs_foreign_code_of_a_run_folder(working_folder, name):
    if name in READ_CLASSES:
        assert "--trust strange" in refused(COMMANDS[name])
    else:
        said = mimkit(COMMANDS[name])
        assert said.status in (0, 2) and "Traceback" not in said.err, said
    assert not Path("imported.txt").exists()


@pytest.mark.parametrize("name", ["pretrain", "huggingface"])
def test_a_package_that_is_trusted_is_imported(working_folder, name):
    said = mimkit(f"{COMMANDS[name]} --trust strange")
    assert said.status == 0, said
    assert Path("imported.txt").exists()


def test_trust_may_stand_anywhere_and_names_a_package(working_folder):
    said = mimkit("pretrain --trust=strange --run begun --max-steps 3")
    assert said.status == 0, said
    assert said.out.splitlines()[1].strip() == "mimkit pretrain --run begun --trust strange"
    assert "--trust takes the name of a package" in refused("pretrain --run begun --trust")
    assert "--trust takes the name of a package" in refused("pretrain --run begun --trust ../strange")


def test_view_serves_a_run_without_its_code(working_folder, monkeypatch):
    from mimkit.report import serve

    monkeypatch.setattr(serve.Server, "serve_forever", lambda server: server.follower.page())
    said = mimkit("view done --metrics none --pictures 2 --device cpu")
    assert said.status in (0, 2), said
    assert not Path("imported.txt").exists()


def test_a_comparison_goes_on_without_foreign_code(working_folder):
    shutil.copytree("begun", "compared/mae-mini-28-1-epochs/seed-0")  # where a comparison looks for its baseline
    said = mimkit(COMMANDS["compare"])
    assert said.status == 2 and "--trust strange" in said.err.splitlines()[-1]
    assert not Path("imported.txt").exists()


def test_children_take_no_code_from_the_working_folder_and_trust_what_the_parent_does(working_folder):
    Path("timm.py").write_text("from pathlib import Path\nPath('taken.txt').write_text('timm')\n")
    names.trust("strange")
    with Children(lambda line: None) as children:
        children.run(["export", "done", "--to", "huggingface", "--out", "model"], Path("export.log"))
    assert Path("model/config.json").exists() and Path("imported.txt").exists()
    assert not Path("taken.txt").exists()
