"""Damage drills: run folders with a damaged file are read by every command, which works or is refused in a line."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from commandline import mimkit
from mimkit.report import serve

COMMON = "--data pictures --device cpu"
COMMANDS = (
    "pretrain --run run --max-steps 3",
    f"evaluate knn run {COMMON} --workers 0",
    f"analyze run {COMMON} --pictures 8 --metrics rank --workers 0",
    "report run --out page.html --metrics none --pictures 2 --device cpu",
    "view run --metrics none --pictures 2 --device cpu",
    "export run --out model",
    "export run --to huggingface --out model",
    "diff run whole",
    "masks random --from run --data pictures --show 1 --out masks.png",
    "evaluate finetune run finetune_mini_32 --data pictures --run tuned --epochs 1 --max-steps 1 --batch-size 8",
)
LONGEST = 60  # seconds of a command
VALUES = (None, "x", "", -1, 0, 2.5, [], {}, [1, "x"], True, math.nan, 2**70)
VALUES += ("a\0b", "\ud800", "x" * 300, {"class": "x"})
KINDS = ("leaf", "leaf", "leaf", "drop", "flip", "cut", "delete", "folder", "pipe", "text")


class Hangs(BaseException):
    """A command has taken too long."""


def _hangs(number: int, frame: Any) -> None:
    raise Hangs


def leaves(data: Any) -> list[tuple[Any, Any]]:
    """Each entry of JSON with what holds it."""
    entries = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [(data, key) for key, _ in entries] + [place for _, value in entries for place in leaves(value)]


def damage(file: Path, kind: str, draw: Random) -> str:
    """Damage a file; what was done."""
    data = file.read_bytes()
    if kind in ("leaf", "drop") and file.suffix in (".json", ".jsonl"):
        lines = data.splitlines() if file.suffix == ".jsonl" else [data]
        number = draw.randrange(len(lines))
        content = json.loads(lines[number])
        holder, key = draw.choice(leaves(content))
        if kind == "drop":
            del holder[key]
        else:
            holder[key] = draw.choice(VALUES)
        lines[number] = json.dumps(content).encode()
        file.write_bytes(b"\n".join(lines))
        return f"{file}: {key} {kind} {holder.get(key) if isinstance(holder, dict) else ''!r}"
    if kind == "flip":
        place = draw.randrange(len(data))
        file.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :])
    elif kind in ("cut", "leaf", "drop"):
        file.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "text":
        file.write_bytes(draw.choice((b"", b"null", b"[]", b"{}", b"[" * 9999, b"\xff\xfe\0", b"3\n3\n")))
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
    return f"{file}: {kind}"


@pytest.fixture(scope="module")
def prepared(forty, tmp_path_factory) -> Path:
    """Pictures of two classes and a run that has begun, with an export and the result of an evaluation."""
    place = tmp_path_factory.mktemp("damage")
    for number, path in enumerate(sorted(forty.iterdir())):
        folder = place / "pictures" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        flags = "--machine.evals 2 --max-steps 2"
        assert mimkit(f"pretrain mae_mini_28 --data pictures --run whole $TINY {flags}").status == 0
        assert mimkit(f"evaluate knn whole {COMMON} --workers 0 --json whole/knn.json").status == 0
    return place


@pytest.fixture
def attempt(prepared, monkeypatch, capsys) -> Callable[[int], list[str]]:
    """Damages so many copies of the run, each read by a command; what went wrong."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(serve.Server, "serve_forever", lambda server: server.follower.page())
    files = sorted(path.relative_to("whole") for path in Path("whole").rglob("*") if path.is_file())
    files = [path for path in files if path.name != ".lock" and path.parts[0] != "tensorboard"]
    often = [path for path in files if path.suffix in (".json", ".jsonl")]

    def tries(count: int) -> list[str]:
        statuses, wrong = [], []

        @seed(int(os.environ.get("MIMKIT_SEED", "0")))
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from(COMMANDS), st.sampled_from(KINDS), st.integers(0, 2**32))
        def once(command: str, kind: str, number: int) -> None:
            for name in ("run", "model", "tuned"):
                shutil.rmtree(name, ignore_errors=True)
            shutil.copytree("whole", "run")
            draw = Random(number)
            change = damage("run" / draw.choice(files + 3 * often), kind, draw)
            status, answer = answered(command)
            statuses.append(status)
            lines = [line for line in answer.splitlines() if line.startswith("mimkit: ")]
            if status not in (0, 2) or (status == 2 and len(lines) != 1):
                wrong.append(f"{command} [{change}] -> {status} {answer[-300:]}")

        once()
        with capsys.disabled():
            print(f"\n{len(statuses)} tries, {statuses.count(2)} refused, {len(wrong)} wrong", *wrong, sep="\n")
        return wrong

    return tries


def answered(command: str) -> tuple[int | str, str]:
    """The status of a command and what it printed; `hangs` where it does."""
    before = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(LONGEST)
    try:
        answer = mimkit(command)
        return answer.status, answer.err
    except Hangs:
        return "hangs", ""
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_damaged_run_folders_are_refused_in_a_line(attempt):
    wrong = attempt(40)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_many_damaged_run_folders_are_refused_in_a_line(attempt):
    wrong = attempt(int(os.environ.get("MIMKIT_TRIES", "600")))
    assert not wrong, "\n".join(wrong)


FLAGS = ["--epochs", "--batch-size", "--seed", "--images.size", "--encoder.patch", "--method.masker.ratio"]
FLAGS += ["--machine.threads", "--machine.save-minutes", "--machine.log-every", "--machine.keep"]
FLAGS += ["--optimizer.base-lr", "--schedule.warmup"]
WORDS = ("-1", "0", "nan", "inf", "-inf", "1e400", "9" * 30, "x", "", "None", "True", "1.5", "0x10", "x" * 300, "é")


@settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FLAGS), st.sampled_from(WORDS))
def test_values_of_flags_are_taken_or_refused_in_a_line(prepared, flag, word):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared)
        shutil.rmtree("new", ignore_errors=True)
        common = "pretrain mae_mini_28 --data pictures --run new $TINY --max-steps 1"
        status, answer = answered(f"{common} '{flag}={word}'")
    assert status in (0, 2), (flag, word, status, answer)
