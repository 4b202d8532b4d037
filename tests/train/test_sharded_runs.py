"""Runs whose processes hold shares: what they leave in checkpoints/ is read by any number of processes, in any way."""

from pathlib import Path

import pytest
import torch

from drills import ranks, tiny
from mimkit.train.checkpoint import checkpoints
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder


def config(data, sharding="full", **machine):
    run = tiny(data, log_every=1, evals=0, sharding=sharding, **machine)
    run.epochs, run.batch_size = 2, 12  # six steps
    return run


def curve(folder: Path) -> list[float]:
    records = RunFolder(folder).metrics()
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def go_on(log: Path, run, folder: Path, world: int, until: int | None = None, *faults: tuple) -> None:
    for status, said in ranks(log, run, folder, *faults, world=world, max_steps=until):
        assert status == 0, said


@pytest.fixture(scope="module")
def alone(forty, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    pretrain(config(forty, "none"), folder, log=lambda line: None)
    return folder


def test_shares_of_two_then_one_process_then_shares_again_equal_one(alone, forty, tmp_path):
    folder = tmp_path / "run"
    go_on(tmp_path / "log", config(forty), folder, 2, 2)
    assert [path.name for path in checkpoints(folder)] == ["step-000000002"]
    go_on(tmp_path / "log", config(forty), folder, 1, 4)
    assert checkpoints(folder)[-1].name == "step-000000004.pt"
    go_on(tmp_path / "log", config(forty), folder, 3)
    assert checkpoints(folder)[-1].is_dir()
    torch.testing.assert_close(curve(folder), curve(alone), rtol=1e-6, atol=0)
