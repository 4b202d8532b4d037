"""Pre-training, top to bottom: a config and a run folder enter; metrics, checkpoints and export/ leave."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mimkit import distributed
from mimkit.errors import UserError
from mimkit.export import export_timm, model_card
from mimkit.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mimkit.train.loop import fit
from mimkit.train.machine import Engine
from mimkit.train.monitor import Monitor
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.progress import Recorder, duration
from mimkit.train.run import RunFolder, disk_errors, read_json, write_json


def pretrain(
    config: Pretrain,
    folder: Path,
    *,
    recipe: str = "custom",
    max_steps: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, or go on with the unfinished run in `folder`; returns what result.json will hold.

    Args:
        config: the run; on an unfinished run it must equal that run's, `machine` aside.
        folder: taken for this run alone; created when absent.
        recipe: its name, for config.json and the model card.
        max_steps: stop after so many steps of the planned schedule; the same command goes on.
        say: prints the lines before the first step.

    Raises:
        UserError: anything a person can mend.
    """
    device = config.machine.find_device()
    with distributed.processes(device):
        main = distributed.is_main()
        notify = say if main else (lambda line: None)
        run = RunFolder(folder)
        if main:
            run.start()
        distributed.wait()
        return _train(config, run, recipe, max_steps, device, notify)


def _train(
    config: Pretrain, run: RunFolder, recipe: str, max_steps: int | None, device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    main, world = distributed.is_main(), distributed.world()
    kept: dict[str, Any] = {}
    if run.exists:
        run.refuse_other(config)
        saved = run.read_config()
        kept, recipe = saved["resolved"], saved["recipe"]
    ready = Prepared(config, kept)
    pictures, size = ready.pictures, ready.size
    if kept and (kept["pictures"], kept["fingerprint"]) != (len(pictures), pictures.fingerprint):
        raise UserError(
            f"the pictures changed since this run began ({kept['pictures']:,} then, {len(pictures):,} now): bring them "
            "back to go on, or start anew with another --run"
        )
    mean, std = ready.statistics
    task = ready.task
    workers = config.machine.workers if config.machine.workers is not None else min(16, os.cpu_count() or 1)
    micro = ready.micro_batch(device, world)
    engine = Engine.choose(config.machine, device, task, lambda: ready.sample(min(micro, 64)), kept.get("engine"))
    loader = ready.loader(device, rank=distributed.rank(), world=world, micro_batch=micro, workers=workers, notify=say)
    total = ready.steps
    resolved = {
        "data": pictures.name,
        "pictures": len(pictures),
        "fingerprint": pictures.fingerprint,
        "size": list(size),
        "channels": pictures.channels,
        "mean": list(mean),
        "std": list(std),
        "steps": total,
        "micro_batch": micro,
        "engine": engine.describe(),
    }
    if main and not run.exists:
        run.write_config(config, recipe, resolved)

    wrapped = engine.wrap(task)
    optimizer = config.optimizer.build(task, config.batch_size)
    first, seconds = 0, 0.0
    if saves := checkpoints(run.folder):
        state = load_checkpoint(saves[-1], device)
        task.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
        del state
    if main:
        run.rewind(first)
    last = total if max_steps is None else min(total, max_steps)
    _announce(say, ready, recipe, engine, loader, first, total, micro, world, run.folder)

    began = time.perf_counter() - seconds
    board = _tensorboard(run.folder, first) if main and config.machine.tensorboard else None
    skipped = SkippedPictures(run, pictures, config.images.bad_share)
    if main:
        skipped.note(tuple(loader.skipped.items()))
    monitor = None
    if main and config.machine.looks > 0:
        train, test = ready.labelled or (pictures, None)
        monitor = Monitor(
            train, test, size=size, mean=mean, std=std, engine=engine, workers=workers, seed=config.seed
        )

    def write(record: dict[str, Any]) -> None:
        record["seconds"] = round(time.perf_counter() - began, 3)
        run.append(record)
        if board is not None:
            for name, value in record.items():
                if name not in ("step", "seconds"):
                    board.add_scalar(name, value, record["step"])

    recorder = Recorder(
        total=total,
        batch_size=config.batch_size,
        every=config.machine.log_every,
        write=write,
        skip=skipped.note if main else lambda new: None,
        name_pictures=lambda numbers: ", ".join(pictures.where(n) for n in numbers),
        last_checkpoint=lambda: f"last good checkpoint: {saves[-1]}"
        if (saves := checkpoints(run.folder))
        else "no checkpoint was saved before it",
        precision=engine.precision,
    )
    look_steps = {round(total * i / config.machine.looks) for i in range(1, config.machine.looks + 1)} if monitor else set()
    measured: dict[str, float] = {}

    def look(step: int) -> None:
        assert monitor is not None
        measured.update(monitor.look(task, ready.encoder))
        record = {"step": step, **measured}
        if hasattr(task, "reconstruct"):
            with disk_errors(run.folder):
                monitor.draw(task, ready.encoder, run.folder / "pictures" / f"step-{step:09d}.png")
                monitor.draw(task, ready.encoder, run.folder / "pictures" / "reconstruction.png")
        write(record)

    def export(step: int) -> None:
        card = model_card(
            architecture=config.encoder.name,
            recipe=recipe,
            data=pictures.name,
            pictures=len(pictures),
            steps=step,
            epochs=step * config.batch_size / len(pictures),
            size=size,
            mean=mean,
            std=std,
            measured=measured,
        )
        export_timm(
            ready.encoder,
            run.folder / "export",
            model_args=config.encoder.timm_args(size, pictures.channels),
            mean=mean,
            std=std,
            card=card,
            name=config.encoder.name,
            crop_pct=0.875 if min(size) >= 128 else 1.0,
        )

    def save(step: int) -> None:
        recorder.flush()  # also refuses to save after a loss that is not finite
        if not main:
            return
        state = {
            "step": step,
            "seconds": time.perf_counter() - began,
            "model": task.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with disk_errors(run.folder):
            save_checkpoint(run.folder, step, state, config.machine.keep)
            export(step)

    caught: list[int] = []
    saved_at = time.perf_counter()

    def pause(step: int) -> bool:
        nonlocal saved_at
        start = time.perf_counter()
        every = config.machine.save_every
        aligned = world == 1 or step % config.machine.log_every == 0 or step == last
        stop = aligned and distributed.any_process(bool(caught), device)
        due = start - saved_at > 60 * config.machine.save_minutes and aligned
        if step in look_steps:
            recorder.flush()
            if main:
                look(step)
            distributed.wait()
        if stop or step == last or (every and step % every == 0) or distributed.any_process(due, device):
            save(step)
            saved_at = time.perf_counter()
        recorder.skip_time(time.perf_counter() - start)
        return stop

    handlers = {s: signal.signal(s, lambda number, frame: caught.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        done = fit(
            wrapped,
            loader.micro_batches(first, last),
            optimizer,
            config.schedule,
            engine,
            recorder,
            pause,
            seed=config.seed,
            first=first,
            last=last,
            total=total,
            accumulate=loader.accumulate,
            clip=config.optimizer.clip,
        )
    finally:
        recorder.line.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if board is not None:
            board.close()
    result = {
        "run": str(run.folder),
        "recipe": recipe,
        "finished": done >= total,
        "steps": done,
        "of": total,
        "seconds": round(time.perf_counter() - began, 1),
        "signal": caught[0] if caught else None,
        "skipped": len(skipped.seen),
        **measured,
    }
    if main and result["finished"]:
        with disk_errors(run.folder):
            write_json(run.result_path, result)
    return result


class SkippedPictures:
    """Bad pictures of a run: listed once each in skipped.jsonl, and too many of them stop the run."""

    def __init__(self, run: RunFolder, pictures: Any, share: float) -> None:
        self.run, self.pictures, self.share = run, pictures, share
        self.path = run.folder / "skipped.json"
        self.seen: dict[str, str] = read_json(self.path) if self.path.exists() else {}

    def note(self, new: tuple[tuple[int, str], ...]) -> None:
        """Add pictures and their reasons."""
        found = {self.pictures.where(number): reason for number, reason in new}
        if not found.keys() - self.seen.keys():
            return
        self.seen |= found
        with disk_errors(self.run.folder):
            write_json(self.path, self.seen)
        if len(self.seen) > self.share * len(self.pictures):
            some = "; ".join(f"{name}: {reason}" for name, reason in list(self.seen.items())[:3])
            raise UserError(
                f"{len(self.seen)} of {len(self.pictures)} pictures cannot be read ({some}; all in {self.path}): mend or "
                f"remove them, or allow more with --images.bad-share {2 * len(self.seen) / len(self.pictures):.2g}"
            )


def _announce(
    say: Callable[[str], None],
    ready: Prepared,
    recipe: str,
    engine: Engine,
    loader: Any,
    first: int,
    total: int,
    micro: int,
    world: int,
    folder: Path,
) -> None:
    """What will happen, before it happens."""
    config, pictures, (mean, std) = ready.config, ready.pictures, ready.statistics
    labels = f"labels of {len(pictures.classes)} classes, used to measure only" if pictures.classes else "no labels"
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (ready.encoder, ready.task)]
    rate, optimizer = config.optimizer.rate(config.batch_size), config.optimizer
    parts = f"{loader.accumulate} x {micro}" + (f" x {world} processes" if world > 1 else "")
    say(f"{recipe}: {type(config.method).__name__.removesuffix('Config')} with {config.encoder.name}")
    say(f"  pictures   {len(pictures):,} from {pictures.name}, {'in memory' if loader.resident else 'streamed'}; {labels}")
    say(
        f"  images     {ready.size[0]}x{ready.size[1]}, {pictures.channels} channels; mean {_short(mean)}, std {_short(std)}"
    )
    say(
        f"  model      {millions[0]:.1f} M parameters in the encoder ({millions[1]:.1f} M while training), "
        f"{ready.encoder.grid[0]}x{ready.encoder.grid[1]} patches of {ready.encoder.patch[0]}x{ready.encoder.patch[1]}"
    )
    if ready.weights_report:
        for line in ready.weights_report.splitlines():
            say(f"  weights    {line}")
    say(f"  schedule   {config.epochs} epochs = {total:,} steps of {config.batch_size} pictures ({parts})")
    say(f"  rate       {rate:.3g} = {optimizer.base_rate:.3g} x {config.batch_size} / 256, warm-up {config.schedule.warmup:.0%}")
    say(
        f"  machine    {engine.device}, {engine.precision}, {engine.attention} attention, "
        f"{engine.threads} threads{', compiled' if engine.compile else ''}"
    )
    if loader.skipped:
        say(f"  skipped    {len(loader.skipped)} pictures that cannot be read, see {folder / 'skipped.json'}")
    if first:
        say(f"  goes on    after step {first:,}")
    say(f"  run folder {folder}")


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:.3f}" for v in values[:4]) + (" ..." if len(values) > 4 else "")


def _tensorboard(folder: Path, first: int) -> Any:
    """A TensorBoard writer when tensorboard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with disk_errors(folder):
        return SummaryWriter(str(folder / "tensorboard"), purge_step=first)


__all__ = ["Pretrain", "duration", "pretrain"]
