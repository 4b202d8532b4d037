"""`mimkit launch`: a command enters; it runs in several processes, and its status leaves."""

import logging
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from mimkit.cli.overview import wanted
from mimkit.core.errors import UserError, at_least
from mimkit.core.flags import HELP, Arguments, parse
from mimkit.core.names import trusted


@dataclass(kw_only=True)
class LaunchArguments(Arguments):
    """Train in several processes, on one host or on several. The flags of launch stand before the command."""

    command: Positional[Annotated[tuple[str, ...], arg(metavar="[--gpus N] pretrain ...")]]
    """What one would type behind `mimkit`: `pretrain` or `evaluate finetune`, with all its words."""
    gpus: int | None = None
    """GPUs of each host, with a process for each; by default all."""
    processes: int | None = None
    """Processes of each host on its CPU, instead of GPUs."""
    nodes: int = 1
    """Hosts; the same line is typed on each of them."""
    node_rank: int | None = None
    """Which of the hosts this one is, from 0; under SLURM it is known."""
    rendezvous: str | None = None
    """Where the hosts meet, HOST:PORT: the first of them, and a port that is free there."""
    restarts: int = 0
    """How often all processes are started again when one is lost; they go on from the last checkpoint."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return LaunchArguments, None


def run(args: list[str]) -> int:
    """Run a command in several processes; its status, or 128 + N where signal N ended one of them."""
    ours, words = split(args)
    if not words and not HELP & set(ours):
        raise wanted("launch")
    arguments = parse(LaunchArguments, [*ours, *words[:1]], "mimkit launch")
    if words[0] != "pretrain" and words[:2] != ["evaluate", "finetune"]:
        raise UserError(
            f"launch starts 'pretrain' and 'evaluate finetune'; '{words[0]}' runs in one process, without it"
        )
    if HELP & set(words):
        from mimkit.cli.main import run as alone

        return alone(words[0], words[1:])
    count = processes_of(arguments)
    words += [f"--trust={package}" for package in trusted()]
    words += [] if arguments.json is None else ["--json", arguments.json]
    if arguments.processes is not None and not any(word.startswith("--machine.device") for word in words):
        words += ["--machine.device", "cpu"]
    return start(words, count, arguments)


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of launch, each with one value, and the words from the command on."""
    number = 0
    while number < len(args) and args[number].startswith("-"):
        number += 1 if "=" in args[number] or args[number] in HELP else 2
    return list(args[:number]), list(args[number:])


def processes_of(arguments: LaunchArguments) -> int:
    """Processes of this host. Raises UserError for numbers that cannot be meant."""
    at_least(1, gpus=arguments.gpus, processes=arguments.processes, nodes=arguments.nodes)
    at_least(0, restarts=arguments.restarts, node_rank=arguments.node_rank)
    if arguments.node_rank is not None and arguments.node_rank >= arguments.nodes:
        raise UserError(f"--node-rank counts hosts from 0 to {arguments.nodes - 1}, got {arguments.node_rank}")
    if arguments.nodes > 1 and not re.fullmatch(r"[^:\s]+:\d{1,5}", arguments.rendezvous or ""):
        raise UserError("several --nodes meet at the first of them: give all the same --rendezvous HOST:PORT")
    if arguments.processes is not None:
        if arguments.gpus is not None:
            raise UserError("--gpus and --processes exclude each other: --processes are those on a CPU")
        return arguments.processes
    import torch

    present = torch.cuda.device_count()
    if not present or (arguments.gpus or 0) > present:
        raise UserError(f"this host has {present} GPUs for torch: give --gpus up to that, or --processes N on its CPU")
    return arguments.gpus or present


def start(words: Sequence[str], count: int, arguments: LaunchArguments) -> int:
    """Start the processes by torchrun's own agent, wait for them, and return the status of the command."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from mimkit.train.machine import cores

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    logging.disable(logging.ERROR)  # the agent's own account of what the command has said in one line
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=arguments.nodes,
            max_nodes=arguments.nodes,
            nproc_per_node=count,
            run_id=os.environ.get("SLURM_JOB_ID", "mimkit"),
            rdzv_backend="c10d",
            max_restarts=arguments.restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **meeting(arguments),
        )
        try:
            # -P: no code from the working folder.
            elastic_launch(config, sys.executable)("-P", "-m", "mimkit.cli", *words)
        except ChildFailedError as error:
            return status_of([failure.exitcode for failure in error.failures.values()])
        except SignalException as error:
            return 128 + int(error.sigval)
        except RendezvousError as error:
            raise UserError(
                f"the hosts did not meet at {arguments.rendezvous} ({error}): type the same line on all "
                f"{arguments.nodes}, with a port of the first that the others reach"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
    return 0


def status_of(codes: Sequence[int]) -> int:
    """One status of several processes that failed: a signal counts first, but for the agent's own SIGTERM."""
    code = min(codes, key=lambda code: (code == -signal.SIGTERM, code))
    return 128 - code if code < 0 else code


def meeting(arguments: LaunchArguments) -> dict[str, Any]:
    """Where the hosts meet, and the address of this one, for torch's LaunchConfig."""
    if arguments.nodes == 1:
        return {"rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    host, _, port = str(arguments.rendezvous).rpartition(":")
    node_rank = arguments.node_rank
    if node_rank is None and "SLURM_NODEID" in os.environ:
        node_rank = int(os.environ["SLURM_NODEID"])
    # Without a word each host compares its name with the meeting's, which fails where names do not resolve.
    configs = {} if node_rank is None else {"is_host": node_rank == 0}
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((host, int(port)))  # sends nothing; says by which address that host is reached
            address = route.getsockname()[0]
    except OSError as error:
        raise UserError(f"--rendezvous {arguments.rendezvous} cannot be reached ({error.strerror})") from error
    return {"rdzv_endpoint": f"{host}:{port}", "rdzv_configs": configs, "local_addr": address}
