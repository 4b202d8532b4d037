"""Crashes: what nobody expected leaves one line and a file beside the run with all that a report needs."""

import platform
from pathlib import Path

import pytest
import torch

import mimkit as package
from commandline import SMALL, TINY, mimkit
from mimkit.cli import crash
from mimkit.train.run_folder import RunFolder

LATER = TINY.split(SMALL)[1]


@pytest.fixture
def begun(forty, tmp_path, monkeypatch) -> Path:
    """A working folder with a run that has done two steps."""
    monkeypatch.chdir(tmp_path)
    command = f"pretrain mae_mini_28 --data {forty} --run run $TINY --machine.log-every 1"
    said = mimkit(f"{command} --max-steps 2")
    assert said.status == 0, said
    return tmp_path


def fail(*_, **__):
    """What nobody expected, in two lines."""
    raise ZeroDivisionError("a number is\nzero")


def test_a_crash_while_training_leaves_a_report_in_the_run_folder(begun, monkeypatch):
    monkeypatch.setattr("mimkit.api.pretrain.pretrain", fail)
    said = mimkit("pretrain --run run")
    report = "run/crash.txt holds the details; please report it"
    assert said.status == 1 and said.err == f"mimkit: ZeroDivisionError: a number is zero (not expected: {report})\n"
    text = Path("run/crash.txt").read_text()
    for line in (
        "command   mimkit pretrain --run run",
        f"mimkit    {package.__version__}",
        f"python    {platform.python_version()}",
        f"torch     {torch.__version__.split('+')[0]}",
        "timm ",
        "run       run",
        "step      2",
        "Traceback (most recent call last)",
        "in fail",
        '"recipe": "mae_mini_28"',
        '"batch_size": 8',
    ):
        assert line in text, line
    assert not Path("crash.txt").exists()
    assert RunFolder(Path("run")).exists and mimkit("diff run run").status == 0


def test_a_chosen_run_folder_is_known_too(forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = f"pretrain mae_mini_28 --data {forty} $TINY"
    assert mimkit(f"{command} --max-steps 1").status == 0
    monkeypatch.setattr("mimkit.api.pretrain.pretrain", fail)
    assert "runs/mae_mini_28-forty/crash.txt holds the details" in mimkit(command).err
    monkeypatch.setattr("mimkit.cli.recipes.run", fail)
    assert "--debug shows where" in mimkit("recipes").err, "another command, which has no run"


@pytest.mark.parametrize(
    "command", ["report run", "export run --out model", "evaluate knn run --data photos", "diff run run"]
)
def test_commands_that_read_a_run_report_beside_it(begun, monkeypatch, command):
    monkeypatch.setattr(f"mimkit.cli.{command.split()[0]}.run", fail)
    assert "run/crash.txt holds the details" in mimkit(command).err
    assert f"command   mimkit {command}" in Path("run/crash.txt").read_text()


def test_without_a_run_only_debug_leaves_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mimkit.cli.recipes.run", fail)
    said = mimkit("recipes")
    assert said.status == 1 and said.err.count("\n") == 1 and not any(tmp_path.iterdir())
    assert "--debug shows where, and leaves a report in crash.txt" in said.err
    with pytest.raises(ZeroDivisionError):
        mimkit("recipes --debug")
    text = Path("crash.txt").read_text()
    assert "command   mimkit recipes --debug" in text and "step" not in text and "in fail" in text


def test_other_processes_leave_reports_of_their_own(begun, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert (
        crash.write_report(ZeroDivisionError(), ["diff", "run", "run"], debug=False)
        == "run/crash-1.txt holds the details"
    )


def test_a_report_that_cannot_be_written_is_no_second_crash(begun, monkeypatch):
    monkeypatch.setattr("mimkit.cli.diff.run", fail)
    Path("run/crash.txt").mkdir()
    said = mimkit("diff run run")
    assert said.status == 1 and "no report could be written to run/crash.txt" in said.err


def test_the_last_record_skips_half_a_line(tmp_path):
    assert crash.last_record(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert crash.last_record(tmp_path) == {"step": 2}
