"""`mimkit launch` starts a command in several processes, keeps its status, and refuses what cannot be meant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from commandline import mimkit, refused
from mimkit.cli.launch import LaunchArguments, meeting, processes_of, split, status_of

SOURCE = Path(__file__).parents[2] / "src"


def typed(words: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """A command as a person types it, in processes of its own."""
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    variables |= {"PYTHONPATH": str(SOURCE)} | env
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)


def test_flags_of_launch_stand_before_the_command():
    assert split(["--gpus", "2", "--nodes=3", "pretrain", "a", "--run", "r", "--gpus", "4"]) == (
        ["--gpus", "2", "--nodes=3"],
        ["pretrain", "a", "--run", "r", "--gpus", "4"],
    )
    assert split(["--gpus", "2"]) == (["--gpus", "2"], [])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "wanted: mimkit launch [--gpus N] pretrain ..."),
        ("--processes 2 masks random", "'masks' runs in one process"),
        ("--processes 2 evaluate knn a --data b", "'evaluate' runs in one process"),
        ("--processes 0 pretrain --data a", "processes must be at least 1"),
        ("--processes 2 --gpus 2 pretrain --data a", "exclude each other"),
        ("--processes 2 --nodes 2 pretrain --data a", "--rendezvous HOST:PORT"),
        ("--processes 2 --nodes 2 --rendezvous here pretrain --data a", "--rendezvous HOST:PORT"),
        ("--processes 2 --nodes 2 --node-rank 2 --rendezvous h:1 pretrain --data a", "from 0 to 1, got 2"),
        ("--processes 2 --nodes 2 --rendezvous no.where.invalid:1 pretrain --data a", "cannot be reached"),
        ("--processes 2 --restarts -1 pretrain --data a", "restarts must be at least 0"),
        ("--process 2 pretrain --data a", "did you mean --processes"),
        ("--gpus 99 pretrain --data a", f"this host has {torch.cuda.device_count()} GPUs"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, line):
    assert line in refused(f"launch {words}")


def test_help_of_launch_and_of_what_it_starts():
    assert "--rendezvous" in mimkit("launch --help").out
    assert "--method.masker.ratio" in mimkit("launch --processes 2 pretrain mae_mini_28 --help").out


def test_hosts_meet_at_the_first_by_an_address_that_reaches_it(monkeypatch):
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    arguments = LaunchArguments(command=("pretrain",), processes=3, nodes=2, rendezvous="127.0.0.1:2950")
    assert processes_of(arguments) == 3
    place = {"rdzv_endpoint": "127.0.0.1:2950", "local_addr": "127.0.0.1"}
    assert meeting(arguments) == place | {"rdzv_configs": {}}
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert meeting(arguments) == place | {"rdzv_configs": {"is_host": False}}
    arguments.node_rank = 0
    assert meeting(arguments) == place | {"rdzv_configs": {"is_host": True}}


def test_one_status_of_several():
    assert [status_of(codes) for codes in ([2, 2], [2, -15], [-15, 1, 2], [2, -9], [143], [-15])] == [
        2,
        2,
        1,
        137,
        143,
        143,
    ]


def test_a_wrong_word_is_one_line_and_status_2(tmp_path):
    words = ["launch", "--processes", "2", "pretrain", "mae_mini_28", "--data", "nowhere", "--run", "r"]
    ended = typed(["mimkit.cli", *words], tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("mimkit: there is no folder or data set 'nowhere'") and not ended.stdout
