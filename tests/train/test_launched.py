"""Runs in several processes as a person starts them: by `mimkit launch` and torchrun, with kills, on two hosts."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mimkit.train.checkpoint import checkpoints, load_checkpoint
from places import ROOT, SUPPORT

pytestmark = pytest.mark.slow
LAB = """
import os
from pathlib import Path

from drills import kill_in_step, tiny


def recipe():
    run = tiny(log_every=1, evals=1)
    run.epochs = 2
    if os.environ.get("KILL") == os.environ["RANK"] and not Path("killed").exists():
        Path("killed").touch()
        kill_in_step(7)
    return run
"""


@pytest.fixture(scope="module")
def lab(forty, tmp_path_factory):
    """A folder with a recipe of ten steps, and what starts a command there."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "lab.py").write_text(LAB)
    return folder


def begin(words: list[str], folder: Path, before: tuple[str, ...] = (), **env: str) -> subprocess.Popen:
    path = os.pathsep.join(map(str, (ROOT / "src", SUPPORT, folder)))
    command = [*before, sys.executable, "-m", *words]
    env = os.environ | {"PYTHONPATH": path} | env
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def pretrain(forty: Path, run: Path) -> list[str]:
    return ["pretrain", "lab:recipe", "--data", str(forty), "--run", str(run)]


def launched(*words: str) -> list[str]:
    return ["mimkit.cli", "launch", *words]


def same_bits(one: Path, other: Path) -> None:
    states = [load_checkpoint(checkpoints(folder)[-1]) for folder in (one, other)]
    assert states[0]["step"] == states[1]["step"] == 10
    for name in ("model", "optimizer"):
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def undisturbed(lab, forty) -> Path:
    status, out, err = ended(begin([*launched("--processes", "2"), *pretrain(forty, lab / "straight")], lab))
    assert status == 0, err
    assert out.count("done: 10 steps") == 1 and "(1 x 4 x 2 processes)" in err
    return lab / "straight"


def test_torchrun_takes_run_behind_two_dashes(undisturbed, lab, forty):
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "mimkit.cli"]
    status, out, err = ended(begin([*torchrun, *pretrain(forty, lab / "torchrun")], lab))
    assert status == 0 and out.count("done: 10 steps") == 1, err
    same_bits(undisturbed, lab / "torchrun")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_started_again_bit_for_bit(rank, undisturbed, lab, forty):
    (lab / "killed").unlink(missing_ok=True)
    run = lab / f"restarted-{rank}"
    words = [*launched("--processes", "2", "--restarts", "2"), *pretrain(forty, run)]
    status, out, err = ended(begin(words, lab, KILL=str(rank)))
    assert status == 0 and (lab / "killed").exists(), err
    assert "goes on    after step 6" in err and out.count("done: 10 steps") == 1
    same_bits(undisturbed, run)


def test_a_kill_is_the_status_and_the_same_words_go_on_bit_for_bit(undisturbed, lab, forty):
    (lab / "killed").unlink(missing_ok=True)
    run = lab / "again"
    words = [*launched("--processes", "2"), *pretrain(forty, run)]
    status, _, err = ended(begin(words, lab, KILL="1"))
    lines = [line for line in err.splitlines() if line.startswith("mimkit: ")]
    assert status == 128 + signal.SIGKILL and len(lines) <= 1, err
    assert all("the last good checkpoint is" in line for line in lines)
    assert ended(begin(words, lab, KILL="1"))[0] == 0
    same_bits(undisturbed, run)


@contextmanager
def two_hosts():
    """Two network namespaces with one cable, as two hosts of one network."""
    hosts = {f"mimkit{os.getpid()}{letter}": f"10.77.0.{number}" for number, letter in ((1, "a"), (2, "b"))}
    one, other = hosts

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in hosts:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", other)
        for name, address in hosts.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield hosts
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    finally:
        for name in hosts:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and ip")
def test_two_hosts_equal_one_bit_for_bit(undisturbed, lab, forty):
    run = lab / "hosts"
    with two_hosts() as hosts:
        first = next(iter(hosts.values()))
        processes = []
        for number, name in enumerate(hosts):
            place = ["--nodes", "2", "--node-rank", str(number), "--rendezvous", f"{first}:29512"]
            words = [*launched("--processes", "1", *place), *pretrain(forty, run)]
            before = ("ip", "netns", "exec", name)
            processes.append(begin(words, lab, before, GLOO_SOCKET_IFNAME="cable"))
        results = [ended(process) for process in processes]
    assert [status for status, _, _ in results] == [0, 0], results
    assert sum(out.count("done: 10 steps") for _, out, _ in results) == 1
    same_bits(undisturbed, run)
