"""A run survives kills, signals, full disks and damage: what was computed is neither lost nor changed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from drills import Child, tiny
from mimkit.core.errors import UserError
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder
from places import SUPPORT


def train(config, folder, **how):
    return pretrain(config, folder, recipe="tiny", log=lambda line: None, **how)


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in RunFolder(folder).metrics()]


def same_result(one: Path, other: Path) -> None:
    """Weights, optimizer and everything that the export says, bit for bit."""
    for path in sorted((one / "export").iterdir()):
        assert path.read_bytes() == (other / "export" / path.name).read_bytes(), path.name
    states = [load_checkpoint(checkpoints(folder)[-1]) for folder in (one, other)]
    assert states[0]["step"] == states[1]["step"]
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)
    torch.testing.assert_close(states[0]["optimizer"], states[1]["optimizer"], rtol=0, atol=0)


@pytest.fixture(scope="module")
def straight(forty, tmp_path_factory) -> Path:
    """Twenty steps without an accident."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    result = train(tiny(forty), folder)
    assert result["finished"] and result["steps"] == result["of"] == 20
    return folder


KILLS = [
    (("kill_before_config",), None),  # the fault, and the last checkpoint afterwards
    (("kill_in_step", 4), 3),
    (("kill_in_save", 9), 6),
    (("kill_in_metrics", 15), 12),
    (("kill_before_export", 20), 20),
]


def killed_and_resumed(config, folder: Path, log: Path) -> None:
    for fault, last in KILLS:
        status, said = Child(log, config, folder, fault).wait()
        assert status == 128 + signal.SIGKILL, said
        saved = checkpoints(folder)
        assert (load_checkpoint(saved[-1])["step"] if saved else None) == last
    assert not RunFolder(folder).finished
    status, said = Child(log, config, folder).wait()
    assert status == 0, said
    assert "goes on    after step 20" in said
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("how", ["streamed", "workers", "resident"])
def test_killed_five_times_equals_straight(how, forty, tmp_path, straight):
    machine = {"streamed": {"resident": False}, "workers": {"resident": False, "workers": 3}, "resident": {}}[how]
    killed_and_resumed(tiny(forty, **machine), tmp_path / "killed", tmp_path / "log")
    if how != "resident":
        straight = tmp_path / "straight"  # without workers: they must not matter
        train(tiny(forty, resident=False), straight)
    same_result(straight, tmp_path / "killed")
    done = steps(tmp_path / "killed")
    assert done == sorted(set(done)) and done[-1] == 20


def test_choices_left_to_the_machine_are_kept(forty, tmp_path):
    """What a one-off timing chose for the first part of a run holds for the rest of it."""
    config = tiny(forty, precision="auto", attention="auto", threads=None)
    status, said = Child(tmp_path / "log", config, tmp_path / "killed", ("kill_in_step", 13)).wait()
    assert status == 128 + signal.SIGKILL, said
    path = tmp_path / "killed" / "config.json"
    kept = json.loads(path.read_text())["resolved"]["engine"]
    for engine in (kept, kept | {"precision": "bfloat16" if kept["precision"] == "float32" else "float32"}):
        # Whatever the timing finds today: both choices must be obeyed.
        one, other = (tmp_path / f"{engine['precision']}-{n}" for n in ("straight", "resumed"))
        fixed = {key: engine[key] for key in ("precision", "attention", "threads")}
        train(tiny(forty, **fixed), one)
        shutil.copytree(tmp_path / "killed", other)
        if engine is not kept:
            for old in checkpoints(other):
                old.unlink()
            saved = json.loads(path.read_text())
            saved["resolved"]["engine"] = engine
            (other / "config.json").write_text(json.dumps(saved))
        train(config, other)
        same_result(one, other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(number, forty, tmp_path, straight):
    folder = tmp_path / "run"
    status, said = Child(tmp_path / "log", tiny(forty), folder, ("signal_in_step", 6, int(number))).wait()
    assert status == 128 + number, said
    assert load_checkpoint(checkpoints(folder)[-1])["step"] == 7
    assert not RunFolder(folder).finished and steps(folder)[-1] == 7
    result = train(tiny(forty), folder)
    assert result["finished"] and result["signal"] is None
    same_result(straight, folder)


def test_a_signal_in_the_last_step_is_no_interruption(forty, tmp_path):
    folder = tmp_path / "run"
    fault = ("signal_in_step", 19, int(signal.SIGTERM))
    status, said = Child(tmp_path / "log", tiny(forty), folder, fault).wait()
    assert status == 0, said
    assert RunFolder(folder).finished and json.loads((folder / "result.json").read_text())["signal"] is None


@pytest.mark.parametrize(("what", "last"), [("save", 3), ("export", 6), ("metrics", 3)])
def test_a_full_disk_stops_with_the_last_checkpoint_intact(what, last, forty, tmp_path, straight):
    folder = tmp_path / "run"
    status, said = Child(tmp_path / "log", tiny(forty), folder, ("full_disk", what, 6)).wait()
    errors = [line for line in said.splitlines() if line.startswith("mimkit: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in said, said
    good = folder / "checkpoints" / f"step-{last:09d}.pt"
    assert str(good) in errors[0] and "free some space" in errors[0]
    assert checkpoints(folder)[-1] == good and load_checkpoint(good)["step"] == last
    left = [path.name for path in folder.rglob("*") if path.suffix == ".tmp" or "partial" in path.name]
    assert not left
    assert (folder / "export" / "model.safetensors").stat().st_size > 10_000
    train(tiny(forty), folder)
    same_result(straight, folder)


@pytest.fixture
def stopped(forty, tmp_path) -> Path:
    """A run stopped after 10 steps, with checkpoints of steps 9 and 10."""
    folder = tmp_path / "stopped"
    result = train(tiny(forty), folder, max_steps=10)
    assert not result["finished"] and result["steps"] == 10
    return folder


def test_max_steps_stops_early_and_goes_on(stopped, forty, straight):
    (stopped / "checkpoints" / "step-000000011.tmp").write_bytes(b"half")  # of a save that was killed
    again = train(tiny(forty), stopped, max_steps=5)
    assert not list(stopped.rglob("*.tmp"))
    assert again["steps"] == 10 and steps(stopped)[-1] == 10, "what is done is not undone"
    train(tiny(forty), stopped)
    same_result(straight, stopped)


def test_metrics_are_whole_and_in_order_after_damage(stopped, forty):
    """Lines behind the checkpoint, half a line and a disk's zeros at the end are dropped."""
    path = stopped / "metrics.jsonl"
    before = path.read_text()
    for damage in ('{"step": 11, "loss": 1.0}\n{"st', '{"step": 10, "loss": 2', "\0\0\0", "\xff"):
        path.write_text(before + damage, encoding="latin-1")
        assert RunFolder(stopped).metrics()[-1]["step"] in (10, 11), "reading tolerates it as well"
        RunFolder(stopped).rewind(10)
        assert path.read_text() == before
    train(tiny(forty), stopped)
    done = steps(stopped)
    assert done == sorted(set(done)) and {5, 10, 15, 20} <= set(done)


def test_the_checkpoint_before_a_damaged_one_serves(stopped, forty, straight):
    newest = checkpoints(stopped)[-1]
    newest.write_bytes(newest.read_bytes()[:-2000])
    with pytest.raises(UserError, match=rf"{newest} cannot be read .*remove it, step-000000009\.pt before it is good"):
        load_checkpoint(newest)
    said = []
    pretrain(tiny(forty), stopped, recipe="tiny", log=said.append)
    assert any(f"warning    checkpoint {newest} cannot be read" in line for line in said)
    assert any("after step 9" in line for line in said)
    assert newest.with_name(newest.name + ".bad").exists()
    same_result(straight, stopped)


def test_a_run_does_not_begin_anew_without_a_word(stopped, forty):
    for path in checkpoints(stopped):
        path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"step-000000010\.pt cannot be read .*remove it, and the run begins anew"):
        train(tiny(forty), stopped)
    assert len(checkpoints(stopped)) > 1


def test_no_flipped_bit_becomes_other_weights(stopped):
    """Each is refused, or lies where nothing is read."""
    newest = checkpoints(stopped)[-1]
    content, good = newest.read_bytes(), load_checkpoint(newest)
    identity = good.pop("identity")
    chance, refused = random.Random(0), 0
    for _ in range(150):
        place = chance.randrange(len(content))
        newest.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
        try:
            state = load_checkpoint(newest)
        except UserError:
            refused += 1
        else:
            assert state.pop("identity") == identity and state.keys() == good.keys(), f"byte {place}"
            torch.testing.assert_close(state, good, rtol=0, atol=0)
    assert refused > 100


def test_a_checkpoint_of_another_run_is_refused(stopped, forty, tmp_path):
    """Also one that fits, as that of another seed."""
    newest = checkpoints(stopped)[-1]
    other = tiny(forty)
    other.seed = 1
    train(other, tmp_path / "other", max_steps=10)
    shutil.copy(checkpoints(tmp_path / "other")[-1], newest)
    with pytest.raises(UserError, match=r"belongs to another run \(its seed is 1, not 0\)"):
        load_checkpoint(newest)
    state = torch.load(checkpoints(stopped)[0], weights_only=True)
    state["model"] = {key: value.repeat(2) for key, value in state["model"].items() if value.ndim == 1}
    for path in checkpoints(stopped):
        torch.save(state, path)
    with pytest.raises(UserError, match="belongs to another run"):
        train(tiny(forty), stopped)
    torch.save({"weights": 1}, newest)
    with pytest.raises(UserError, match="is no checkpoint of mimkit"):
        load_checkpoint(newest)


def test_a_checkpoint_holds_numbers(stopped):
    newest = checkpoints(stopped)[-1]
    state = torch.load(newest, weights_only=True)
    next(value for key, value in state["model"].items() if key.startswith("encoder.")).view(-1)[0] = torch.nan
    torch.save(state, newest)
    with pytest.raises(UserError, match="weights that are not finite"):
        load_checkpoint(newest)


def test_other_settings_are_refused_but_the_machine_may_differ(stopped, forty, straight):
    other = tiny(forty)
    other.optimizer.weight_decay, other.seed = 0.1, 1
    with pytest.raises(UserError, match=r"optimizer\.weight_decay = 0\.05, not 0\.1 and 1 more"):
        train(other, stopped)
    assert steps(stopped)[-1] == 10
    train(tiny(forty, log_every=2, save_every=7, keep=1, evals=0, workers=2), stopped)
    assert len(checkpoints(stopped)) == 1
    ours, theirs = (load_checkpoint(checkpoints(folder)[-1])["model"] for folder in (stopped, straight))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_changed_data_is_refused(forty, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(forty, data)
    train(tiny(data), tmp_path / "run", max_steps=2)
    (data / "00.png").unlink()
    with pytest.raises(
        UserError, match=r"pictures changed since this run began \(40 then, 39 now; names, sizes or times"
    ):
        train(tiny(data), tmp_path / "run")


def test_a_finished_run_is_refused_and_untouched(straight, forty):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    with pytest.raises(UserError, match=r"holds a finished run \(20 steps\).*another --run"):
        train(tiny(forty), straight)
    assert before == {path: path.stat().st_mtime_ns for path in straight.rglob("*")}


def test_a_run_of_another_process_is_refused(forty, tmp_path):
    folder = tmp_path / "run"
    config = tiny(forty, resident=False, workers=1)
    one = Child(tmp_path / "one", config, folder, ("stop_in_step", 4))
    while len(checkpoints(folder)) < 1:
        time.sleep(0.02)
    try:
        with pytest.raises(UserError, match="another process is training"):
            train(config, folder)
        os.kill(one.process.pid, signal.SIGKILL)
        one.wait()
    finally:
        one.process.kill()
    assert train(config, folder)["finished"], "the workers of a killed run do not hold its lock"


def test_foreign_folders_are_refused_and_untouched(forty, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and holds no run"):
        train(tiny(forty), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        train(tiny(forty), tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="cannot write to"):
        train(tiny(forty), tmp_path / "thesis.tex" / "run")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_refused(forty, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write to"):
        train(tiny(forty), tmp_path / "run")


def test_a_start_that_failed_does_not_block_the_next(forty, tmp_path):
    config = tiny(forty)
    config.encoder.patch = 5
    with pytest.raises(UserError, match="do not divide into patches"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(tiny(forty), tmp_path / "run", max_steps=1)["steps"] == 1


@pytest.mark.slow
def test_the_command_line_survives_kills_at_random_moments(forty, tmp_path):
    """The same words each time, everything about the machine left to it."""
    (tmp_path / "lab.py").write_text(
        "from drills import tiny\n\n"
        "def recipe():\n    run = tiny(); run.machine.precision = run.machine.attention = 'auto'\n"
        "    run.machine.threads = None; run.epochs = 40\n    return run\n"
    )
    import random

    def command(name: str) -> subprocess.Popen:
        words = ["pretrain", "lab:recipe", "--data", str(forty), "--run", str(tmp_path / name)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(SUPPORT)])}
        return subprocess.Popen([sys.executable, "-m", "mimkit.cli", *words], env=env, cwd=tmp_path)

    kills, draw = 0, random.Random(0)
    while not RunFolder(tmp_path / "killed").finished:
        process = command("killed")
        started = time.monotonic()
        seen = len(steps(tmp_path / "killed"))
        while kills < 5 and process.poll() is None and time.monotonic() - started < 100:
            if len(steps(tmp_path / "killed")) != seen:  # it trains: now, or a little later
                time.sleep(draw.uniform(0, 0.5))
                process.kill()
                kills += 1
                break
            time.sleep(0.05)
        process.wait()
    assert kills >= 3
    shutil.copytree(tmp_path / "killed", tmp_path / "straight")
    for path in (tmp_path / "straight").iterdir():  # the choices of the machine stay, all else goes
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert command("straight").wait() == 0
    one, other = ((tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("killed", "straight"))
    assert one == other
