"""Runs whose processes hold shares: what they leave in checkpoints/ is read by any number of processes, in any way."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from commandline import mimkit
from drills import ranks, the_line, tiny
from mimkit.core.errors import UserError
from mimkit.train.check import check_run
from mimkit.train.checkpoint import checkpoints, load_checkpoint, set_bad_aside
from mimkit.train.mirror import contents
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder

FULL = "step-000000004"


def config(data, sharding="full", **machine):
    run = tiny(data, log_every=1, evals=0, sharding=sharding, **({"save_every": 2} | machine))
    run.epochs, run.batch_size = 2, 12  # seven steps
    return run


def curve(folder: Path) -> list[float]:
    records = RunFolder(folder).metrics()
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def go_on(log: Path, run, folder: Path, world: int, until: int | None = None) -> None:
    for status, said in ranks(log, run, folder, world=world, max_steps=until):
        assert status == 0, said


def equal(folder: Path, other: Path) -> None:
    torch.testing.assert_close(curve(folder), curve(other), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def alone(forty, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    pretrain(config(forty, "none"), folder, log=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def stopped(forty, tmp_path_factory) -> Path:
    """Two processes with shares, stopped after 4 of 7 steps, with folders of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    go_on(folder.parent / "log", config(forty), folder, 2, 4)
    return folder


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def flip(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def test_a_folder_is_a_checkpoint_and_the_export_is_of_its_step(stopped):
    assert [path.name for path in checkpoints(stopped)] == ["step-000000002", FULL]
    names = {path.name for path in checkpoints(stopped)[-1].iterdir()}
    assert names == {"shard-00001.safetensors", "shard-00002.safetensors", "state.json"}
    files = {file.file: file for file in check_run(stopped)}
    assert all(file.good for file in files.values()), files
    assert files[f"checkpoints/{FULL}"].about == "step 4, checksums agree"
    assert "step 4" in files["export"].about
    assert not list(stopped.rglob("*.tmp"))


def test_commands_read_shares(run):
    words = mimkit(f"check {run}")
    assert words.status == 0 and f"checkpoints/{FULL}" in words.out, words
    file = run / "export" / "model.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-8] + b"8 others")  # so that it is written anew from the checkpoint
    words = mimkit(f"export {run} --out {run / 'again'}")
    assert words.status == 0, words
    assert (run / "again" / "model.safetensors").read_bytes() == before


def test_one_process_goes_on_from_shares_and_others_from_its_file(alone, run, forty, tmp_path):
    pretrain(config(forty, "none"), run, max_steps=5, log=lambda line: None)
    assert checkpoints(run)[-1].name == "step-000000005.pt"
    assert all(file.good for file in check_run(run))
    go_on(tmp_path / "log", config(forty), run, 3)
    assert checkpoints(run)[-1].name == "step-000000007" and RunFolder(run).finished
    equal(run, alone)


def test_processes_with_whole_models_go_on_from_shares(alone, run, forty, tmp_path):
    go_on(tmp_path / "log", config(forty, "none"), run, 2)
    assert checkpoints(run)[-1].suffix == ".pt"
    equal(run, alone)


def test_no_flipped_bit_becomes_other_weights(run):
    path, draw, refused = checkpoints(run)[-1], random.Random(0), 0
    good = load_checkpoint(path)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for _ in range(15):
            flip(file, draw)
            try:
                state = load_checkpoint(path)
            except UserError as error:
                assert "step-000000002 before it is good" in str(error)
                refused += 1
            else:
                assert state.keys() == good.keys()
                torch.testing.assert_close(state["model"], good["model"], rtol=0, atol=0)
            file.write_bytes(content)
    assert refused > 40


def test_the_folder_before_a_damaged_one_serves(run, alone, forty):
    flip(checkpoints(run)[-1] / "shard-00002.safetensors", random.Random(1))
    assert [file.file for file in check_run(run) if not file.good] == [f"checkpoints/{FULL}"]
    (run / "checkpoints" / f"{FULL}.bad").mkdir()  # of an earlier accident
    lines = []
    pretrain(config(forty, "none"), run, log=lines.append)
    assert any(f"warning    checkpoint {run}/checkpoints/{FULL}" in line for line in lines)
    assert any("after step 2" in line for line in lines)
    assert (run / "checkpoints" / f"{FULL}.bad" / "state.json").exists()
    equal(run, alone)


def test_folders_that_are_all_damaged_are_not_begun_anew(run):
    for path in checkpoints(run):
        (path / "shard-00001.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{FULL} cannot be read \(FileNotFoundError\): remove it, and the run begins"):
        set_bad_aside(run)


def test_shares_of_another_run_are_refused(run, forty, tmp_path):
    other = config(forty)
    other.seed = 1
    go_on(tmp_path / "log", other, tmp_path / "other", 2, 2)
    shutil.rmtree(checkpoints(run)[-1])
    shutil.copytree(checkpoints(tmp_path / "other")[-1], run / "checkpoints" / FULL)
    with pytest.raises(UserError, match=r"belongs to another run \(its seed is 1, not 0\)"):
        load_checkpoint(run / "checkpoints" / FULL)


def killed(log: Path, run, folder: Path, *fault) -> None:
    """The process that dies, and the other that says so."""
    ended = ranks(log, run, folder, *fault)
    statuses = sorted(status for status, _ in ended)
    assert statuses == [2, 128 + signal.SIGKILL], ended
    line = the_line([entry for entry in ended if entry[0] == 2])
    assert "another process of this run ended" in line and "last good checkpoint" in line, line


def test_a_kill_while_a_shard_is_written_and_training_goes_on(alone, forty, tmp_path):
    folder = tmp_path / "run"
    killed(tmp_path / "log", config(forty), folder, ("on_rank", 1, "kill_in_folder", 4, "shard"))
    assert [path.name for path in checkpoints(folder)] == ["step-000000002"]
    go_on(tmp_path / "log", config(forty), folder, 2)
    assert not list(folder.rglob("*.tmp"))
    equal(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "last"), [("shard", 2), ("state", 2), ("rename", 2), ("prune", 4)])
def test_a_kill_of_the_first_process_at_any_moment_of_a_save(at, last, alone, forty, tmp_path):
    folder = tmp_path / "run"
    killed(tmp_path / "log", config(forty, keep=1), folder, ("on_rank", 0, "kill_in_folder", 4, at))
    assert load_checkpoint(checkpoints(folder)[-1])["step"] == last
    go_on(tmp_path / "log", config(forty, keep=1), folder, 2)
    assert len(checkpoints(folder)) == 1 and not list(folder.rglob("*.tmp"))
    equal(folder, alone)


@pytest.mark.slow
def test_a_kill_before_the_last_export_leaves_it_to_the_next_start(alone, forty, tmp_path):
    folder = tmp_path / "run"
    killed(tmp_path / "log", config(forty), folder, ("on_rank", 0, "kill_in_folder", 7, "prune"))
    assert json.loads((folder / "export" / "identity.json").read_text())["step"] == 6
    go_on(tmp_path / "log", config(forty), folder, 2)
    assert json.loads((folder / "export" / "identity.json").read_text())["step"] == 7
    assert RunFolder(folder).finished
    equal(folder, alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_is_one_line_with_the_last_good_folder(rank, forty, tmp_path):
    folder, run = tmp_path / "run", config(forty, save_every=3)
    run.epochs = 3  # ten steps
    line = the_line(ranks(tmp_path / "log", run, folder, ("on_rank", rank, "full_in_folder", 6)))
    assert f"rank {rank} (host " in line and "No space left on device" in line and "free some space" in line
    assert f"the last good checkpoint is {folder / 'checkpoints' / 'step-000000003'}" in line
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000003"]
    assert 6 <= len(curve(folder)) < 9, "it is noticed before the next save"
    run.machine.sharding = "none"
    assert pretrain(run, folder, log=lambda line: None)["finished"]


def test_a_disk_that_hosts_do_not_share_is_said_at_the_first_save(forty, tmp_path):
    fault = ("on_rank", 1, "write_elsewhere", str(tmp_path))
    line = the_line(ranks(tmp_path / "log", config(forty), tmp_path / "run", ("short_patience",), fault))
    assert "shard-00002.safetensors, which another process has written, cannot be seen here" in line
    assert "disk that all hosts share" in line and "free some space" not in line and not checkpoints(tmp_path / "run")


def test_a_mirror_is_sent_complete_checkpoints_alone(forty, tmp_path):
    faults = ("say_published",), ("slow_disk",)
    (status, text), _ = ranks(tmp_path / "log", config(forty), tmp_path / "run", *faults)
    assert status == 0, text
    sent = [line.split()[1:] for line in text.splitlines() if line.startswith("SENT")]
    assert sent[-1] == ["7", "step-000000007"]
    assert all(name == f"step-{int(step):09d}" for step, name in sent)
    paths = contents(tmp_path / "run")
    assert {f"checkpoints/step-000000007/{name}" for name in ("shard-00002.safetensors", "state.json")} <= {*paths}


def test_a_full_disk_in_the_last_save_is_no_finished_run(forty, tmp_path):
    folder = tmp_path / "run"
    the_line(ranks(tmp_path / "log", config(forty), folder, ("on_rank", 1, "full_in_folder", 7)))
    assert not RunFolder(folder).finished
    assert [path.name for path in checkpoints(folder)] == [FULL, "step-000000006"]
    export = json.loads((folder / "export" / "identity.json").read_text())
    assert export["step"] == 6, "the last export comes after its checkpoint"


@pytest.mark.slow
def test_four_two_one_whole_and_shared_processes_equal_one(forty, tmp_path):
    """Each part goes on from what the one before left; AdamW's moments and steps come along."""
    run, whole = config(forty), config(forty, "none")
    run.epochs = whole.epochs = 8  # 26 steps
    pretrain(whole, tmp_path / "alone", log=lambda line: None)
    folder = tmp_path / "run"
    parts = ((run, 4, 5), (run, 2, 9), (run, 1, 13), (whole, 2, 17), (run, 3, 21), (run, 4, None))
    for part, world, until in parts:
        go_on(tmp_path / "log", part, folder, world, until)
        last = checkpoints(folder)[-1]
        assert last.is_dir() == (part is run and world > 1)
    assert RunFolder(folder).finished
    equal(folder, tmp_path / "alone")


@pytest.mark.slow
def test_machines_with_whole_models_write_each_share_once(alone, forty, tmp_path):
    folder = tmp_path / "run"
    for until in (4, None):
        run, env = config(forty, "hybrid"), {"LOCAL_WORLD_SIZE": 2}
        for status, said in ranks(tmp_path / "log", run, folder, world=4, max_steps=until, **env):
            assert status == 0, said
        shards = [path.name for path in checkpoints(folder)[-1].glob("shard-*")]
        assert sorted(shards) == ["shard-00001.safetensors", "shard-00002.safetensors"]
    equal(folder, alone)
