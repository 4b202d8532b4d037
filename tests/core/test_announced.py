"""What a launcher sets is understood, and half of it is refused in one line."""

import pytest

from commandline import mimkit, refused
from mimkit.core.announced import Place, announced, may_speak

WHOLE = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
OTHERS = ["compare a b", "masks random", "evaluate knn a", "analyze a", "doctor a", "report a", "embed a", "view a"]


@pytest.fixture
def setting(monkeypatch):
    """Sets variables; a name alone removes it."""
    for name in (*WHOLE, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_a_whole_set_is_a_place(setting):
    assert announced() is None and may_speak() is True
    setting(**WHOLE)
    assert announced() == Place(3, 4) and may_speak() is None
    setting(RANK="0", WORLD_SIZE="1")
    assert may_speak() is True


@pytest.mark.parametrize(
    "values",
    [
        {"RANK": "3"},
        {"RANK": "0"},
        {"WORLD_SIZE": "4"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        WHOLE | {"RANK": "4"},
        WHOLE | {"WORLD_SIZE": "four"},
        WHOLE | {"MASTER_PORT": "99999"},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["pretrain mae_mini_32 --data a", "evaluate knn a --data a", "recipes"])
def test_variables_that_a_shell_kept_are_answered(values, command, setting):
    setting(**values)
    line = refused(command)
    assert "RANK=" in line or "WORLD_SIZE=4" in line
    assert f"unset {' '.join(values)}" in line and "mimkit launch" in line


@pytest.mark.parametrize("command", OTHERS)
def test_what_runs_in_one_process_refuses_several(command, setting, monkeypatch):
    setting(**WHOLE)
    monkeypatch.setattr("mimkit.cli.main.may_speak", lambda: True)  # nobody listens at that port
    name = command.split()[0]
    assert f"'mimkit {name}' runs in one process, and 4 were started" in refused(command)


def test_tasks_of_slurm_are_told_how_to_meet(setting):
    setting(SLURM_PROCID="0", SLURM_NTASKS="8")
    for words in ("pretrain mae_mini_32 --data a", "evaluate finetune a --data a"):
        line = refused(words)
        assert "SLURM has 8 tasks" in line and "srun --ntasks-per-node 1 mimkit launch --gpus N" in line
    setting(SLURM_NNODES="2")
    assert "--nodes 2 --rendezvous FIRST_HOST:29500 pretrain ..." in refused("pretrain mae_mini_32 --data a")
    assert "SLURM" not in mimkit("evaluate knn nothing --data a").err, "a script may measure beside its tasks"
    setting(SLURM_PROCID="1")
    silent = mimkit("pretrain mae_mini_32 --data a")
    assert (silent.status, silent.err) == (2, "")
    setting(SLURM_NTASKS="1")
    assert "SLURM" not in refused("pretrain mae_mini_32 --data nowhere"), "the way out that the line names"
