"""A tiny run and its accidents: arguments enter a child process, an exit status and what it printed leave.

Children are forked from a server that has mimkit imported already and nothing else done: a start costs about
a second instead of an import, and neither autograd's nor OpenMP's threads stand in the way of a fork.
"""

import builtins
import errno
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from mimkit.cli import main as cli
from mimkit.core import distributed
from mimkit.core.config import from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.core.names import trust
from mimkit.data.pictures import Subset
from mimkit.guidance.exploitation import Exploitation
from mimkit.guidance.sampler import MaskSampler
from mimkit.methods.mae import MAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.train import agreement, callbacks, run_folder, saver
from mimkit.train import prepare as preparing
from mimkit.train import pretrain as pretraining
from mimkit.train.checkpoint import checkpoints
from mimkit.train.machine import Engine, Machine
from mimkit.train.mirror import Mirror
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.run_folder import RunFolder
from mimkit.train.training import Training

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["mimkit.train.pretrain", "mimkit.cli.train"])


def tiny(data: Path | str = "photos", **machine: Any) -> Pretrain:
    """Twenty steps on forty pictures, in float32 on one thread; checkpoints every third step."""
    fixed = {"device": "cpu", "precision": "float32", "attention": "fused", "threads": 1, "workers": 0}
    often = {"log_every": 5, "save_every": 3, "evals": 2, "tensorboard": False}
    return Pretrain(
        data=(str(data),),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=1, heads=2),
        method=MAEConfig(decoder=DecoderConfig(width=16, depth=1, heads=2)),
        images=Images(size=12),
        optimizer=AdamWConfig(base_lr=0.05),
        epochs=4,
        batch_size=8,
        machine=Machine(**(fixed | often | machine)),
    )


class Child:
    """A run in another process, or several one after the other; `faults` are functions of this module with their
    arguments, applied first."""

    def __init__(
        self,
        log: Path,
        config: Pretrain | list[Pretrain],
        folder: Path | list[Path],
        *faults: tuple,
        max_steps: int | None = None,
        **env: Any,
    ) -> None:
        self.log = log
        runs = zip(*([it] if not isinstance(it, list) else it for it in (config, folder)), strict=True)
        words = [(to_dict(one), str(place), max_steps) for one, place in runs]
        self.process = processes.Process(target=_child, args=(str(log), words, faults, env))
        self.process.start()

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Its exit status (128 + N for a signal that killed it) and all that it printed."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.log.read_text()}")
        code = self.process.exitcode
        return code if code >= 0 else 128 - code, self.log.read_text()


def _child(log: str, words: list[tuple], faults: tuple[tuple, ...], env: dict[str, Any]) -> None:
    os.environ.update({key: str(value) for key, value in env.items()})
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    # A child of a forkserver would start its workers from a second one.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    for name, *arguments in faults:
        globals()[name](*arguments)

    trust("my_lab")  # its configs come as JSON

    def command(args: list[str]) -> int:
        with distributed.processes(torch.device("cpu")) if len(words) > 1 else nullcontext():  # they meet but once
            for config, folder, max_steps in words:
                result = pretraining.pretrain(from_dict(config), Path(folder), recipe="tiny", max_steps=max_steps)
        return 128 + result["signal"] if result["signal"] else 0

    cli.run = lambda name, args: command(args)  # the statuses and the one line are the command line's own
    os.environ.setdefault("COLUMNS", "200")
    sys.exit(cli.main(["pretrain"]))


def ranks(
    log: Path, config: Pretrain | list[Pretrain], folder: Path | list[Path], *faults: tuple, world: int = 2, **how: Any
) -> list[tuple[int, str]]:
    """The same run in several processes that meet over gloo, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    children = [
        Child(log.with_suffix(f".{n}"), config, folder, *faults, RANK=n, LOCAL_RANK=n, **(meet | how))
        for n in range(world)
    ]
    return [child.wait() for child in children]


def the_line(ended: list[tuple[int, str]]) -> str:
    """Why all processes ended with status 2: one line, of one of them."""
    lines = [line for _, said in ended for line in said.splitlines() if line.startswith("mimkit: ")]
    assert [status for status, _ in ended] == [2] * len(ended) and len(lines) == 1, ended
    assert not any("Traceback" in said for _, said in ended), ended
    return lines[0]


# ---- accidents


def die() -> None:
    """As `kill -9` does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, name: str, act: Callable[..., None]) -> None:
    real = getattr(owner, name)

    def patched(*args: Any, **how: Any) -> Any:
        act(*args)
        return real(*args, **how)

    setattr(owner, name, patched)


def kill_in_step(step: int) -> None:
    """Between the backward pass of a step (counted from 0) and its optimizer."""
    _before(Training, "update", lambda training, at, *rest: at == step and die())


def kill_before_config() -> None:
    _before(RunFolder, "write_config", lambda *args: die())


class _HalfFile:
    def __init__(self, file: Any, act: Callable[[], None], after: int) -> None:
        self.file, self.act, self.left = file, act, after

    def write(self, data: Any) -> int:
        self.left -= 1
        if self.left < 0:
            self.file.flush()
            self.act()
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def kill_in_save(step: int) -> None:
    """When a checkpoint is half on disk."""
    real = torch.save

    def save(state: dict, file: Any) -> None:
        real(state, _HalfFile(file, die, 20) if state["step"] == step else file)

    torch.save = save


def kill_before_export(step: int) -> None:
    """When the checkpoint is complete and the export of the same step is not begun."""
    steps = [0]
    _before(callbacks, "save_checkpoint", lambda folder, at, *rest: steps.__setitem__(0, at))
    _before(pretraining, "export_encoder", lambda *args: steps[0] == step and die())


def kill_in_folder(step: int, at: str) -> None:
    """While the folder of a step is saved: with half a shard on disk and training some steps on (`shard`), before
    state.json (`state`), before the rename (`rename`), before older ones are removed (`prune`)."""
    trained = [0]
    _before(Training, "update", lambda training, at, *rest: trained.__setitem__(0, at))

    def half(path: Path, pieces: Any) -> None:
        if f"{step:09d}" in str(path):
            path.write_bytes(b"half")
            until = time.monotonic() + 60
            while trained[0] < step + 1 and time.monotonic() < until:
                time.sleep(0.01)
            die()

    at_place = {
        "shard": ("write_pieces", half),
        "state": ("write_state", lambda folder, rest, *more: rest["step"] == step and die()),
        "rename": ("flush_folder", lambda folder: folder.name == f"step-{step:09d}.tmp" and die()),
        "prune": ("prune", lambda folder, *rest: checkpoints(folder)[-1].name == f"step-{step:09d}" and die()),
    }
    _before(saver, *at_place[at])


def write_elsewhere(folder: str) -> None:
    """Shards go to a disk of this host alone."""
    _instead(saver, "write_pieces", lambda real, path, pieces: real(Path(folder) / path.name, pieces))


def short_patience() -> None:
    """Files of other hosts are not waited for."""
    saver.PATIENCE = 0.1


def slow_disk() -> None:
    """A shard takes longer than a step and an export."""
    _before(saver, "write_pieces", lambda *args: time.sleep(1))


def say_published() -> None:
    """What is sent to where the run is mirrored: the step, and the newest checkpoint."""
    _before(Mirror, "save", lambda mirror, step: print("SENT", step, checkpoints(mirror.folder)[-1].name, flush=True))


def full_in_folder(step: int) -> None:
    """No space is left for a shard of a step, whose first half is written."""

    def refuse(path: Path, pieces: Any) -> None:
        if f"{step:09d}" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _before(saver, "write_pieces", refuse)


def kill_in_metrics(step: int) -> None:
    """When half a line of metrics is on disk."""

    def half(run: RunFolder, record: dict[str, Any]) -> None:
        if record["step"] == step:
            with open(run.metrics_path, "a", encoding="utf-8") as file:
                file.write('{"step": ')
            die()

    _before(RunFolder, "append", half)


def signal_in_step(step: int, number: int, rank: int = 0) -> None:
    """A signal to one process while it computes a step (counted from 0)."""
    if int(os.environ.get("RANK", 0)) == rank:
        _before(Training, "update", lambda training, at, *rest: at == step and os.kill(os.getpid(), number))


def stop_in_step(step: int) -> None:
    """Waits in a step (counted from 0) for whatever comes."""
    _before(Training, "update", lambda training, at, *rest: at == step and time.sleep(600))


def not_finite(step: int, rank: int = 0) -> None:
    """The loss of one step (counted from 0) is not a number on one rank."""
    real = Engine.step
    count = [0]

    def patched(engine: Engine, task: Any, batch: Any, *rest: Any) -> Any:
        count[0] += 1
        if count[0] == step + 1 and int(os.environ.get("RANK", 0)) == rank:
            batch.images.fill_(float("nan"))
        return real(engine, task, batch, *rest)

    Engine.step = patched


def bad_gradient(step: int) -> None:
    """A gradient overflows in one step (counted from 0) whose loss is finite."""
    real = Engine.step
    count = [0]

    def patched(engine: Engine, task: Any, *rest: Any) -> Any:
        result = real(engine, task, *rest)
        count[0] += 1
        if count[0] == step + 1:
            next(engine.plain(task).parameters()).grad.fill_(float("inf"))
        return result

    Engine.step = patched


def exploited(masked: list[float]) -> None:
    """The share that the decoder draws from mask tokens, for each epoch."""
    real = MaskSampler.before_epoch

    def patched(mask_sampler: Any, encoder: Any, epoch: int, progress: float, dataset: Any, exploit: Any) -> Any:
        fraction = torch.tensor([masked[epoch]])
        return real(
            mask_sampler, encoder, epoch, progress, dataset, lambda images: Exploitation(1 - fraction, fraction)
        )

    MaskSampler.before_epoch = patched


def full_disk(what: str, step: int) -> None:
    """No more than a few bytes can be written to any file when `what` is written at or after a step."""
    owner, name = {
        "save": (callbacks, "save_checkpoint"),
        "export": (pretraining, "export_encoder"),
        "metrics": (RunFolder, "append"),
    }[what]
    real, steps = getattr(owner, name), [0]

    def limited(*args: Any, **how: Any) -> Any:
        free = resource.getrlimit(resource.RLIMIT_FSIZE)
        if steps[0] >= step:
            size = args[0].metrics_path.stat().st_size if what == "metrics" else 3000
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 7, free[1]))
        try:
            return real(*args, **how)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, free)

    _before(Training, "update", lambda training, at, *rest: steps.__setitem__(0, at + 1))
    setattr(owner, name, limited)


def write_nothing(folder: str) -> None:
    """Any process but the first dies when it changes something below the folder."""
    if os.environ["RANK"] == "0":
        return

    def watch(event: str, arguments: tuple) -> None:
        writes = event == "open" and arguments[2] is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(arguments[0]).startswith(folder):
            print("WROTE", event, arguments, flush=True)
            die()

    sys.addaudithook(watch)


# ---- what one process alone meets


def on_rank(rank: int, name: str, *arguments: Any) -> None:
    """A fault for one process of several."""
    if int(os.environ["RANK"]) == rank:
        globals()[name](*arguments)


def _instead(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **how: replacement(real, *args, **how))


def stale_listing() -> None:
    """The newest checkpoint is not listed yet, as a network's disk does for seconds."""
    _instead(agreement, "checkpoints", lambda real, folder: real(folder)[:-1])
    _instead(run_folder, "checkpoints", lambda real, folder: real(folder)[:-1])


def hidden(place: str) -> None:
    """Nothing below a folder is there, as on a host that does not share the disk."""
    agreement.PATIENCE = 0.1

    def opened(real: Any, file: Any, *rest: Any, **how: Any) -> Any:
        if str(file).startswith(place):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return real(file, *rest, **how)

    _instead(builtins, "open", opened)
    _instead(Path, "exists", lambda real, path: not str(path).startswith(place) and real(path))
    _instead(os.path, "exists", lambda real, path: not str(path).startswith(place) and real(path))


def other_setting(name: str, value: Any) -> None:
    """A setting is another one."""
    _before(pretraining, "pretrain", lambda config, *rest: setattr(config, name, value))


def fewer_pictures() -> None:
    """Some files are not there."""
    _instead(preparing, "open_pictures", lambda real, *args: Subset(real(*args), torch.arange(33)))


def other_files() -> None:
    """As many files, of other times."""
    _instead(preparing, "open_pictures", lambda real, *args: Subset(real(*args), torch.arange(40).flip(0)))


def no_pictures() -> None:
    """The pictures are not there."""

    def refuse(*args: Any) -> None:
        raise UserError("there is no folder /data")

    _before(preparing, "open_pictures", refuse)


def broken() -> None:
    """Something that nobody expects, while the pictures are opened."""

    def fail(*args: Any) -> None:
        raise RuntimeError("boom")

    _before(preparing, "open_pictures", fail)


def no_device() -> None:
    """This host has no GPU: found out before the processes meet."""

    def refuse(*args: Any) -> None:
        raise UserError("this torch sees no GPU")

    _before(Machine, "find_device", refuse)


# ---- sharded training


def say_shares() -> None:
    """Each process says how many numbers of the weights it holds, and how many there are."""

    def say(training: Any, at: int, *rest: Any) -> None:
        weights = [*training.task.parameters()]
        holds = sum(value.to_local().numel() if isinstance(value, DTensor) else value.numel() for value in weights)
        print("HOLDS", holds, "of", sum(value.numel() for value in weights), flush=True)

    _before(Training, "update", say)


def bad_share(step: int) -> None:
    """What this process holds of a weight is not finite after a step (counted from 0)."""
    real = Training.update

    def patched(training: Training, at: int, *rest: Any) -> None:
        real(training, at, *rest)
        if at == step:
            shares = [value.detach().to_local() for value in training.task.parameters()]
            next(share for share in shares if share.numel()).fill_(float("inf"))

    Training.update = patched
