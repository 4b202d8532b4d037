"""Announced processes: the variables that a launcher sets enter; which of how many processes this one is leaves.

Nothing heavy is imported: the command line asks before torch loads.
"""

import os
from typing import NamedTuple

from mimkit.core.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, Kubernetes' operators and `mimkit launch` set for each process."""


class Place(NamedTuple):
    """This process among those that were started together."""

    rank: int
    world: int


def announced() -> Place | None:
    """This process among those that a launcher started together; None where it is alone.

    Raises UserError where only some of the variables are set, as a shell may keep them, or where they cannot be meant.
    """
    values = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not values.keys() & {"RANK", "WORLD_SIZE"}:
        return None
    stray = " ".join(name for name in VARIABLES if name in values)
    way_out = f"start several processes with 'mimkit launch', or for one alone 'unset {stray}'"
    present = ", ".join(f"{name}={value}" for name, value in values.items())
    if missing := [name for name in VARIABLES if name not in values]:
        raise UserError(f"the environment has {present} but no {' and no '.join(missing)}: {way_out}")
    rank, world, port = (values[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    numbers = all(value.isascii() and value.isdecimal() for value in (rank, world, port))
    if not numbers or not (int(rank) < int(world) and 0 < int(port) < 2**16):
        raise UserError(f"the environment has {present}, which no launcher sets: {way_out}")
    return Place(int(rank), int(world))


def may_speak() -> bool | None:
    """Whether this process says an error: True where it is alone, None where the processes have to ask each other."""
    try:
        place = announced()
    except UserError:
        return True
    if place is None:
        return lone_tasks() == 1 or os.environ.get("SLURM_PROCID") == "0"
    return True if place.world == 1 else None


def lone_tasks() -> int:
    """How many tasks SLURM started that nobody told of each other; 1 without SLURM and under a launcher."""
    tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    return int(tasks) if tasks.isdecimal() and "RANK" not in os.environ else 1


def refuse_lone_tasks(command: str) -> None:
    """Refuse to train in one of several tasks of SLURM, each of which would train alone."""
    if (tasks := lone_tasks()) == 1:
        return
    nodes = os.environ.get("SLURM_NNODES", "1")
    several = "" if nodes == "1" else f" --nodes {nodes} --rendezvous FIRST_HOST:29500"
    raise UserError(
        f"SLURM has {tasks} tasks here, which would not train together: "
        f"'srun --ntasks-per-node 1 mimkit launch --gpus N{several} {command} ...' starts them so; "
        f"a process for itself is 'SLURM_NTASKS=1 mimkit {command} ...'"
    )


def refuse_together(command: str) -> None:
    """Refuse a command that runs in one process where several were started for it."""
    place = announced()
    if place is not None and place.world > 1:
        raise UserError(
            f"'mimkit {command}' runs in one process, and {place.world} were started: leave out torchrun or "
            "'mimkit launch'; only 'pretrain' and 'evaluate finetune' work in several"
        )
