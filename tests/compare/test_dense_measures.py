"""Comparisons by dense tasks: which commands run, what they are called, and which way is better."""

import json
import shlex

import pytest

from commandline import TINY, mimkit, refused
from mimkit.compare import processes
from mimkit.compare.table import comparison_rows, verdict
from mimkit.compare.transfer import dense_words, lower_is_better, titled
from transfers import write

SETTINGS = TINY.replace("--epochs 1 ", "")


@pytest.fixture
def here(monkeypatch):
    """Runs happen in this process; returns the commands that ran."""
    ran: list[list[str]] = []

    def run(self, words, log):
        ran.append(list(words))
        said = mimkit(shlex.join(words))
        assert said.status == 0, said

    monkeypatch.setattr(processes.Children, "run", run)
    return ran


def test_words_are_completed():
    assert dense_words("segment --void 3", ["pets"]) == ("segment", ["--void", "3", "--data", "pets"])
    assert dense_words("depth --data rooms", ["pets"]) == ("depth", ["--data", "rooms"])
    assert dense_words("detect", ["cars"]) == ("detect", ["--train", "detect_mini", "--data", "cars"])
    assert (
        titled("segment --data sets/pets --void 3 --train segment_mini") == "segment pets --void 3 --train segment_mini"
    )


def test_a_smaller_error_is_better():
    measure = {"difference": -0.05, "p": 0.01}
    assert verdict(measure, "depth rooms linear RMSE") == "-0.050, better (p 0.010)"
    assert verdict(measure, "segment linear mIoU") == "-5.0, worse (p 0.010)"
    assert lower_is_better("depth RMSE") and not lower_is_better("detect AP")


def test_frozen_and_fine_tuned_tasks_stand_in_the_table(tmp_path, monkeypatch, here):
    masks, rooms = write("segment", tmp_path / "masks", 8, 4), write("depth", tmp_path / "rooms", 8, 4)
    monkeypatch.chdir(tmp_path)
    tuned = f"depth --data {rooms} --train depth_mini --epochs 1 --images.size 28 --machine.threads 1"
    line = f"mae_mini_28 {SETTINGS}"
    command = (
        f"compare '{line}' '{line} --method.masker.ratio 0.5' --data {masks} --epochs 1 --seeds 1 "
        f"--measure segment --transfer '{tuned}'"
    )
    said = mimkit(f"{command} --json out.json")
    assert said.status == 0, said.err
    result = json.loads((tmp_path / "out.json").read_text())
    names = list(result["contenders"][0]["measures"])
    assert names[:2] == ["segment kNN mIoU", "segment linear mIoU"] and names[2].startswith("depth rooms --train")
    heads, first, second = comparison_rows(result)
    assert len(heads) == len(first) == len(second) == 9
    assert float(first[7].partition(" ")[0]) < 20 and "." in second[3]
    before = len(here)
    assert mimkit(command).status == 0 and len(here) == before  # all of it is there


def test_what_belongs_to_the_comparison_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    masks = write("segment", tmp_path / "masks", 8, 4)
    said = refused(f"compare mae_mini_28 mae_mini_32 --data {masks} --measure segment --transfer 'depth --seed 1'")
    assert "leave --seed to the comparison" in said
    said = refused(f"compare mae_mini_28 mae_mini_32 --data {masks} --measure segment --transfer 'detect --train no'")
    assert "there is no recipe 'no'" in said
