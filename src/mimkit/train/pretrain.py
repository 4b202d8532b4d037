"""Pre-training, top to bottom: a config and a run folder enter; metrics, checkpoints and export/ leave."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimkit.core import distributed
from mimkit.core.errors import UserError
from mimkit.core.names import FORMAT
from mimkit.train.checkpoint import checkpoints, restore, save_checkpoint
from mimkit.train.collapse import collapse
from mimkit.train.dataset_view import open_dataset_view
from mimkit.train.export import export_encoder
from mimkit.train.loop import fit
from mimkit.train.machine import Engine
from mimkit.train.monitor import Monitor
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.recorder import Recorder, duration
from mimkit.train.run_folder import MEASURED, RunFolder, disk_errors, last_good, write_json
from mimkit.train.skipped import SkippedPictures


def pretrain(
    config: Pretrain,
    folder: Path,
    *,
    recipe: str = "custom",
    max_steps: int | None = None,
    log: Callable[[str], None] = print,
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
    config.machine.check()
    device = config.machine.find_device()
    with distributed.processes(device):
        main = distributed.is_main()
        log = log if main else (lambda line: None)
        run = RunFolder(distributed.on_main(lambda: folder, device))  # a free folder is another one a moment later
        distributed.on_main(run.start, device)
        try:
            return _train(config, run, recipe, max_steps, device, log)
        except BaseException:
            if main:
                run.abandon()
            raise


def _train(
    config: Pretrain,
    run: RunFolder,
    recipe: str,
    max_steps: int | None,
    device: torch.device,
    log: Callable[[str], None],
) -> dict[str, Any]:
    main, world = distributed.is_main(), distributed.world()
    kept: dict[str, Any] = {}
    if distributed.on_main(lambda: run.exists, device):
        run.refuse_other(config)
        saved = run.read_config()
        kept, recipe = saved["resolved"], saved["recipe"]
    ready = Prepared(config, kept, begun=bool(checkpoints(run.folder)))
    pictures, size = ready.pictures, ready.size
    if kept and (kept["pictures"], kept["fingerprint"]) != (len(pictures), pictures.fingerprint):
        raise UserError(
            f"the pictures changed since this run began ({kept['pictures']:,} then, {len(pictures):,} now; names, "
            "sizes or times of files differ): bring them back to go on, or start anew with another --run"
        )
    mean, std = ready.statistics
    task = ready.task
    workers = config.machine.readers()
    dataset = open_dataset_view(pictures, size=size, mean=mean, std=std, device=device, workers=workers)
    task.setup(dataset, resumed=ready.begun)
    micro = distributed.on_main(lambda: ready.micro_batch(device, world), device)
    engine = Engine.choose(config.machine, device, task, lambda: ready.sample(ready.timed(micro)), kept.get("engine"))
    wrapped = engine.wrap(task)
    optimizer = config.optimizer.build(task, config.batch_size)
    first, seconds = 0, 0.0
    if saves := checkpoints(run.folder):
        first, seconds = restore(saves[-1], task, optimizer, device)
    loader = ready.loader(device, rank=distributed.rank(), world=world, micro_batch=micro, workers=workers, log=log)
    total = ready.steps
    monitor = None
    if main and config.machine.evals > 0:
        train, test = ready.labeled or (pictures, None)
        monitor = Monitor(train, test, size=size, mean=mean, std=std, engine=engine, workers=workers, seed=config.seed)

    def look_first() -> dict[str, float]:
        return monitor.look(task, ready.encoder, classify=False) if monitor is not None else {}

    at_start = kept.get("start") or distributed.on_main(look_first, device)  # what a collapse is a fall from
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
        "resident": loader.resident,
        "engine": engine.describe(),
        "start": at_start,
    }
    if main and not run.exists:
        run.write_config(config, recipe, resolved)
    if main:
        run.rewind(first)
    last = total if max_steps is None else max(first, min(total, max_steps))
    _announce(log, ready, recipe, engine, loader, first, total, micro, world, run.folder)

    began = time.perf_counter() - seconds
    board = _tensorboard(run.folder, first) if main and config.machine.tensorboard else None
    skipped = SkippedPictures(run, pictures, config.images.bad_fraction)
    skipped.note(tuple(loader.skipped.items()))
    warned: dict[str, str] = {}  # by metrics.jsonl, of an earlier part too

    def write(record: dict[str, Any]) -> None:
        record["seconds"] = round(time.perf_counter() - began, 3)
        if monitor is not None and not warned and (found := collapse(record, at_start, monitor.most(ready.encoder))):
            record["warning"] = warned["warning"] = found
        run.append(record)
        if board is not None:
            with disk_errors(run.folder):
                for name, value in record.items():
                    if name not in ("step", "seconds", "warning"):
                        board.add_scalar(name, value, record["step"])

    def prepare(step: int) -> None:
        """Before the first step of an epoch the task may look at pictures outside the batches."""
        epoch, last_epoch = (s * config.batch_size // ready.count for s in (step, step - 1))
        if epoch != last_epoch:
            start = time.perf_counter()
            recorder.note(task.before_epoch(epoch, step / total, dataset))
            recorder.skip_time(time.perf_counter() - start)

    measured: dict[str, float] = {}
    for record in run.metrics():
        measured |= {name: record[name] for name in MEASURED if name in record}
        warned |= {name: record[name] for name in ("warning",) if name in record}

    def look(step: int) -> dict[str, float]:
        def measure() -> dict[str, float]:
            assert monitor is not None
            found = monitor.look(task, ready.encoder)
            with disk_errors(run.folder):
                monitor.draw(task, ready.encoder, run.folder / "pictures" / f"step-{step:09d}.png")
                monitor.draw(task, ready.encoder, run.folder / "pictures" / "reconstruction.png")
            return found

        found = distributed.on_main(measure, device)
        measured.update(found)
        return found

    evals = config.machine.evals
    recorder = Recorder(
        total=total,
        batch_size=config.batch_size,
        every=config.machine.log_every,
        evals={round(total * i / evals) for i in range(1, evals + 1)},
        look=look,
        write=write,
        skip=skipped.note,
        name_pictures=lambda numbers: ", ".join(pictures.where(n) for n in numbers),
        last_checkpoint=lambda: last_good(run.folder),
        precision=engine.precision,
    )

    def export(step: int) -> None:
        export_encoder(ready, run.folder / "export", recipe=recipe, step=step, measured=measured)

    def save(step: int) -> None:
        recorder.refuse_bad_weights(step, [*task.parameters(), *optimizer_tensors(optimizer)])

        def write_all() -> None:
            state = {
                "format": FORMAT,
                "step": step,
                "seconds": time.perf_counter() - began,
                "model": task.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            with disk_errors(run.folder):
                save_checkpoint(run.folder, step, state, config.machine.keep)
                export(step)

        distributed.on_main(write_all, device)

    caught: list[int] = []
    saved_at, stopped_by = time.perf_counter(), 0
    asked_at, asked, every = time.perf_counter(), first, 1

    def pause(step: int) -> bool:
        nonlocal saved_at, stopped_by, asked_at, asked, every
        due = step == last or (config.machine.save_every and step % config.machine.save_every == 0)
        late = False
        now = time.perf_counter()
        if world == 1 or step >= asked + every:  # asking all processes costs: about once a second
            stopped_by = distributed.largest(caught[0] if caught else 0, device)
            late = distributed.largest(int(now - saved_at > 60 * config.machine.save_minutes), device) > 0
            if world > 1:
                speed = distributed.largest(int((step - asked) / max(1e-6, now - asked_at)), device)
                every, asked, asked_at = max(1, min(speed, config.machine.log_every)), step, now
        if stopped_by or due or late:
            recorder.flush()  # also refuses to save after a loss that is not finite
            start = time.perf_counter()
            save(step)
            saved_at = time.perf_counter()
            recorder.skip_time(saved_at - start)
        return stopped_by > 0

    if main and first == total:  # killed between the last checkpoint and its export
        with disk_errors(run.folder):
            export(total)
    handlers = {
        s: signal.signal(s, lambda number, frame: caught.append(number)) for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        done = fit(
            wrapped,
            loader.micro_batches(first, last),
            optimizer,
            config.schedule,
            engine,
            recorder,
            prepare,
            pause,
            seed=config.seed,
            first=first,
            last=last,
            total=total,
            accumulate=loader.accumulate,
            clip=config.optimizer.clip_gradients,
        )
    finally:
        recorder.line.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if board is not None:
            with suppress(OSError):  # a full disk was reported already
                board.close()
    result = {
        "run": str(run.folder),
        "recipe": recipe,
        "finished": done >= total,
        "steps": done,
        "of": total,
        "seconds": round(time.perf_counter() - began, 1),
        "signal": stopped_by if done < last else None,
        "skipped": len(skipped.seen),
        **measured,
        **warned,
    }
    if main and result["finished"]:
        with disk_errors(run.folder):
            write_json(run.result_path, result)
    return result


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _announce(
    log: Callable[[str], None],
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
    use = "to learn" if config.method.supervised else "used to measure only"
    labels = f"labels of {len(pictures.classes)} classes, {use}" if pictures.classes else "no labels"
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (ready.encoder, ready.task)]
    rate, optimizer = config.optimizer.rate(config.batch_size), config.optimizer
    parts = f"{loader.accumulate} x {micro}" + (f" x {world} processes" if world > 1 else "")
    log(f"{recipe}: {type(config.method).__name__.removesuffix('Config')} with {config.encoder.name}")
    kept = "in memory" if loader.resident else "streamed"
    log(f"  pictures   {len(pictures):,} from {pictures.name}, {kept}; {labels}")
    log(
        f"  images     {ready.size[0]}x{ready.size[1]}, {pictures.channels} channels; "
        f"mean {_short(mean)}, std {_short(std)}"
    )
    log(
        f"  model      {millions[0]:.1f} M parameters in the encoder ({millions[1]:.1f} M while training), "
        f"{ready.encoder.grid[0]}x{ready.encoder.grid[1]} patches of {ready.encoder.patch[0]}x{ready.encoder.patch[1]}"
    )
    if ready.weights_report:
        for line in ready.weights_report.splitlines():
            log(f"  weights    {line}")
    log(f"  schedule   {config.epochs} epochs = {total:,} steps of {config.batch_size} pictures ({parts})")
    log(
        f"  rate       {rate:.3g} = {optimizer.base_lr:.3g} x {config.batch_size} / {optimizer.per}, "
        f"warm-up {config.schedule.warmup:.0%}"
    )
    log(
        f"  machine    {engine.device}, {engine.precision}, {engine.attention} attention, "
        f"{engine.threads} threads{', compiled' if engine.compile else ''}"
    )
    if loader.skipped:
        log(f"  skipped    {len(loader.skipped)} pictures that cannot be read, see {folder / 'skipped.json'}")
    if first:
        log(f"  goes on    after step {first:,}")
    log(f"  run folder {folder}")


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:.3f}" for v in values[:4]) + (" ..." if len(values) > 4 else "")


def _tensorboard(folder: Path, first: int) -> Any:
    """A TensorBoard writer when tensorboard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with disk_errors(folder):
        return SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)


__all__ = ["Pretrain", "duration", "pretrain"]
