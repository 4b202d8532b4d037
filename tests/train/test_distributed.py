"""Several processes compute what one computes, one of them writes, and all of them stop together."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from drills import ranks, the_line, tiny
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.prepare import Prepared
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder


def config(data, **machine):
    run = tiny(data, log_every=1, evals=1, **machine)
    run.epochs = 2  # ten steps
    return run


def curve(folder: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in RunFolder(folder).metrics()]


def close(one: Path, other: Path) -> None:
    ours, theirs = curve(one), curve(other)
    assert [step for step, _ in ours] == [step for step, _ in theirs] == list(range(1, len(ours) + 1))
    torch.testing.assert_close([loss for _, loss in ours], [loss for _, loss in theirs], rtol=1e-5, atol=0)
    # AdamW forgives a gradient of another scale; this does not.
    norms = [[record["gradient_norm"] for record in RunFolder(run).metrics()] for run in (one, other)]
    torch.testing.assert_close(*norms, rtol=1e-4, atol=0)


@pytest.fixture(scope="module")
def alone(forty, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    pretrain(config(forty), folder, log=lambda line: None)
    return folder


def test_two_processes_equal_one_and_the_first_alone_writes(alone, forty, tmp_path):
    folder = tmp_path / "run"
    (first, said), (second, quiet) = ranks(tmp_path / "log", config(forty), folder, ("write_nothing", str(folder)))
    assert (first, second) == (0, 0), said + quiet
    assert "1 x 4 x 2 processes" in said
    assert "step" not in quiet and "WROTE" not in quiet
    assert RunFolder(folder).finished
    close(alone, folder)
    assert RunFolder(folder).metrics()[-1]["effective_rank"] > 1


@pytest.mark.parametrize("micro", [4, 1])
def test_accumulation_equals_the_whole_batch(micro, alone, forty, tmp_path):
    said = []
    pretrain(config(forty, micro_batch=micro), tmp_path / "run", log=said.append)
    assert any(f"({8 // micro} x {micro})" in line for line in said)
    close(alone, tmp_path / "run")


def test_two_processes_that_accumulate_equal_one(alone, forty, tmp_path):
    folder = tmp_path / "run"
    for status, said in ranks(tmp_path / "log", config(forty, micro_batch=2, resident=False, workers=1), folder):
        assert status == 0, said
    pretrain(config(forty, resident=False), tmp_path / "alone", log=lambda line: None)
    close(tmp_path / "alone", folder)


def test_a_run_goes_on_with_another_number_of_processes(alone, forty, tmp_path):
    folder = tmp_path / "run"
    pretrain(config(forty), folder, max_steps=4, log=lambda line: None)  # one process chose micro batches of 8
    for status, said in ranks(tmp_path / "log", config(forty), folder):
        assert status == 0, said
    close(alone, folder)


def test_two_then_one_then_three_processes_equal_one(forty, tmp_path):
    run = config(forty)
    run.batch_size = 6
    pretrain(run, tmp_path / "alone", log=lambda line: None)
    folder = tmp_path / "run"
    for world, until in ((2, 4), (1, 9), (3, None)):
        for status, said in ranks(tmp_path / "log", run, folder, world=world, max_steps=until):
            assert status == 0, said
    assert RunFolder(folder).finished
    close(tmp_path / "alone", folder)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(forty, tmp_path):
    folder = tmp_path / "run"
    half = {"rank": 1, "world": 2, "micro_batch": 4, "workers": 0, "log": lambda line: None}
    loader = Prepared(config(forty)).loader(torch.device("cpu"), **half)
    second = next(loader.micro_batches(5, 6)).index[:3].tolist()
    line = the_line(ranks(tmp_path / "log", config(forty), folder, ("not_finite", 5, 1)))
    named = re.findall(r"(\d\d)\.png", line.partition("the loss is nan at step 6 (rank 1, pictures ")[2])
    assert [int(name) for name in named] == second
    assert str(folder / "checkpoints" / "step-000000003.pt") in line
    assert load_checkpoint(checkpoints(folder)[-1])["step"] == 3
    assert curve(folder)[-1][0] == 5


def test_trouble_of_the_first_process_stops_all(forty, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    assert "not empty and holds no run" in the_line(ranks(tmp_path / "log", config(forty), folder))
    full = ranks(tmp_path / "log", config(forty), tmp_path / "full", ("full_disk", "save", 6))
    assert "step-000000003.pt" in the_line(full)


def test_a_signal_to_one_process_stops_all_after_the_same_step(alone, forty, tmp_path):
    folder = tmp_path / "run"
    fault = ("signal_in_step", 4, int(signal.SIGTERM), 1)
    (first, said), (second, more) = ranks(tmp_path / "log", config(forty), folder, fault)
    assert first == second == 128 + signal.SIGTERM, said + more
    assert load_checkpoint(checkpoints(folder)[-1])["step"] == 5
    pretrain(config(forty), folder, log=lambda line: None)
    close(alone, folder)


def test_bad_pictures_of_every_process_are_listed(forty, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in forty.iterdir():
        (data / path.name).symlink_to(path)
    for number in range(4):
        (data / f"bad{number}.png").write_bytes(b"")
    run = config(data, resident=False)
    run.images.bad_fraction, run.epochs = 0.2, 1
    for status, said in ranks(tmp_path / "log", run, tmp_path / "run"):
        assert status == 0, said
    skipped = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert sorted(Path(name).name for name in skipped) == [f"bad{number}.png" for number in range(4)]


def test_a_batch_that_does_not_divide_is_answered(forty, tmp_path):
    run = config(forty)
    run.batch_size = 7
    line = the_line(ranks(tmp_path / "log", run, tmp_path / "run"))
    assert "batch_size 7 does not divide over 2 processes: use 8" in line
