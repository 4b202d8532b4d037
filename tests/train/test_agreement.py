"""Several processes go on from one file with the same pictures and settings, or say in one line who differs."""

import re
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drills import ranks, the_line, tiny
from mimkit.core.errors import UserError
from mimkit.train import agreement
from mimkit.train.agreement import ending
from mimkit.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mimkit.train.pretrain import pretrain
from shares import write_shares

HERE = socket.gethostname()
LIMIT = 60  # seconds in which all processes must have ended


def config(data, **machine):
    run = tiny(data, log_every=1, evals=0, **machine)
    run.epochs = 2  # ten steps
    return run


@pytest.fixture(scope="module")
def stopped(forty, tmp_path_factory) -> Path:
    """A run that stopped after 7 of 10 steps, with checkpoints of steps 6 and 7."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    pretrain(config(forty), folder, max_steps=7, log=lambda line: None)
    assert [load_checkpoint(path)["step"] for path in checkpoints(folder)] == [6, 7]
    return folder


@pytest.fixture
def resumed(stopped, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    return folder


def refused(*arguments, world: int = 2) -> str:
    start = time.monotonic()
    line = the_line(ranks(*arguments, world=world))
    assert time.monotonic() - start < LIMIT
    return line


def test_a_stale_listing_changes_nothing(stopped, resumed, forty, tmp_path):
    """The first process says which checkpoint it is, whatever the others see."""
    whole = tmp_path / "whole"
    shutil.copytree(stopped, whole)
    for folder, faults in ((resumed, [("on_rank", 1, "stale_listing")]), (whole, [])):
        for status, said in ranks(tmp_path / "log", config(forty), folder, *faults):
            assert status == 0, said
    states = [load_checkpoint(checkpoints(folder)[-1]) for folder in (resumed, whole)]
    assert states[0]["step"] == 10
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)


def test_a_stale_listing_of_the_first_process_is_followed_by_all(resumed, forty, tmp_path):
    for status, said in ranks(tmp_path / "log", config(forty), resumed, ("on_rank", 0, "stale_listing")):
        assert status == 0, said
        assert "goes on" not in said or "after step 6" in said


@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_a_run_folder_that_one_host_does_not_see_is_said(place, resumed, forty, tmp_path):
    fault = ("on_rank", 1, "hidden", str(resumed / place).rstrip("/"))
    line = refused(tmp_path / "log", config(forty), resumed, fault)
    name = f"the checkpoint {resumed}/checkpoints/step-000000007.pt" if place else f"the run folder {resumed}"
    assert line.startswith(f"mimkit: rank 1 (host {HERE}): {name} cannot be read here") and "hosts share" in line
    assert load_checkpoint(checkpoints(resumed)[-1])["step"] == 7


def test_a_new_run_needs_no_disk_in_common(forty, tmp_path):
    fault = ("on_rank", 1, "hidden", str(tmp_path / "run"))
    for status, said in ranks(tmp_path / "log", config(forty), tmp_path / "run", fault):
        assert status == 0, said


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            ("other_setting", "batch_size", 16),
            "config.batch_size is 8 in rank 0 (host H) and 16 in ranks 1, 2 (host H)",
        ),
        (("fewer_pictures",), "the number of pictures is 40 in rank 0 (host H) and 33 in ranks 1, 2 (host H)"),
        (("other_files",), r"the fingerprint of the pictures is \w+ in rank 0 (host H) and \w+ in ranks 1, 2 (host H)"),
        (("no_pictures",), "ranks 1, 2 (host H): there is no folder /data"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_differs_is_named_with_rank_and_host(fault, words, forty, tmp_path):
    faults = [("on_rank", rank, *fault) for rank in (1, 2)]
    run = config(forty)
    run.batch_size = 9 if fault[0] != "other_setting" else 8
    line = refused(tmp_path / "log", run, tmp_path / "run", *faults, world=3)
    pattern = re.escape(words).replace(re.escape(r"\w+"), r"\w+").replace("host\\ H", f"host\\ {re.escape(HERE)}")
    assert re.search(pattern, line), line
    assert not (tmp_path / "run").exists(), "nothing is begun"


def test_a_setting_of_the_host_may_differ(forty, tmp_path):
    run = config(forty, resident=False)
    other = replace(run.machine, workers=1)
    for status, said in ranks(
        tmp_path / "log", run, tmp_path / "run", ("on_rank", 1, "other_setting", "machine", other)
    ):
        assert status == 0, said
    other = replace(run.machine, log_every=2)
    line = refused(tmp_path / "log", run, tmp_path / "other", ("on_rank", 1, "other_setting", "machine", other))
    assert "config.machine.log_every is 1 in rank 0" in line, "lines of metrics are written together"


def test_what_nobody_expects_on_one_rank_stops_all_with_one_line(forty, tmp_path):
    (status, said), (second, more) = ranks(tmp_path / "log", config(forty), tmp_path / "run", ("on_rank", 1, "broken"))
    assert (status, second) == (2, 1)
    lines = [line for line in (said + more).splitlines() if line.startswith("mimkit: ")]
    assert len(lines) == 1 and "RuntimeError" in lines[0] and "boom" in lines[0], lines


def test_one_that_fails_before_they_meet_is_not_waited_for(forty, tmp_path):
    line = refused(tmp_path / "log", config(forty), tmp_path / "run", ("on_rank", 1, "no_device"), world=3)
    assert line == "mimkit: this torch sees no GPU"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_is_one_line_with_the_last_good_checkpoint(rank, forty, tmp_path):
    folder = tmp_path / "run"
    run = config(forty)
    run.batch_size = 9
    ended = ranks(tmp_path / "log", run, folder, ("on_rank", rank, "kill_in_step", 7), world=3)
    assert ended[rank][0] == 128 + 9
    line = the_line([entry for number, entry in enumerate(ended) if number != rank])
    assert "another process of this run ended" in line
    assert f"the last good checkpoint is {folder / 'checkpoints' / 'step-000000006.pt'}" in line


def test_identities_differ_where_a_weight_does(tmp_path):
    state = {"model": {"w": torch.zeros(400_000)}, "optimizer": {"state": {}, "param_groups": []}, "step": 1}
    identities = set()
    for number, value in enumerate((0.0, 1.0)):
        state["model"]["w"][5] = value
        path = save_checkpoint(tmp_path / str(number), 1, state, keep=1)
        identities.add(ending(path))
        assert ending(path) == ending(path)
        shares = write_shares(path.with_suffix(""), state, 3)
        identities.add(ending(shares))
        assert ending(shares) == ending(shares)
    assert len(identities) == 4


def test_a_folder_that_one_host_does_not_see_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "PATIENCE", 0.1)
    path = tmp_path / "checkpoints" / "step-000000001"
    path.mkdir(parents=True)  # seen before what is in it
    with pytest.raises(UserError, match=f"the checkpoint {path} cannot be read here"):
        ending(path)
