"""The words before the first step: what a run opened enters, a line for each thing that will happen leaves."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from mimkit.core import distributed
from mimkit.data.annotations.annotated import Annotated
from mimkit.methods.moco import MoCoConfig

if TYPE_CHECKING:
    from mimkit.train.machine import Engine
    from mimkit.train.prepare import Pretrain
    from mimkit.train.session import Session

TELLING = 200  # steps from which on a plan can show what a method learns


def announce(session: "Session", log: Callable[[str], None]) -> None:
    """What will happen, before it happens."""
    config, prepared, loader = session.config, session.prepared, session.loader
    method = type(config.method).__name__.removesuffix("Config")
    log(f"{session.recipe}: {method} with {config.encoder.name}")
    announce_pictures(session, log)
    announce_model(session, log)
    micro_batches = f"{loader.accumulate} x {session.resolved.micro_batch}"
    if distributed.world() > 1:
        micro_batches += f" x {distributed.world()} processes"
    steps = f"{prepared.steps:,} steps of {config.batch_size} pictures ({micro_batches})"
    log(f"  schedule   {config.epochs} epochs = {steps}")
    queue = config.method.queue if isinstance(config.method, MoCoConfig) else 0
    for note in (plan_note(prepared.steps, config.epochs), *size_notes(prepared.count, config.batch_size, queue)):
        if note:
            log(f"  note       {note}")
    optimizer = config.optimizer
    log(
        f"  rate       {optimizer.peak_lr(config.batch_size):.3g} = {optimizer.base_lr:.3g} x {config.batch_size} / "
        f"{optimizer.per}, {warmup_words(config)}"
    )
    if prepared.steps == 1 and session.schedule(0.0) == 0:
        log("  warning    one step in all, with a rate of 0 in its warm-up, changes nothing: give more epochs")
    engine = session.engine
    log(f"  machine    {machine_words(engine)}")
    if engine.sharding == "none" != config.machine.sharding:
        log(f"  note       sharding {config.machine.sharding}: one process alone holds the whole model")
    folder = session.run.folder
    if loader.skipped:
        log(f"  skipped    {len(loader.skipped)} pictures that cannot be read, see {folder / 'skipped.json'}")
    if session.first:
        log(f"  goes on    after step {session.first:,}")
    log(f"  run folder {folder}")


def machine_words(engine: "Engine") -> str:
    """What computes, and how."""
    words = [str(engine.device), engine.precision, f"{engine.attention} attention", f"{engine.threads} threads"]
    words += ["compiled"] * engine.compile + ["blocks recomputed"] * engine.recompute
    return ", ".join(words + ([f"sharding {engine.sharding}"] if engine.sharding != "none" else []))


def warmup_words(config: "Pretrain") -> str:
    """How long the warm-up is: a share of training, or epochs, and what is left of these where training is short."""
    share, epochs = config.schedule.of(config.epochs).share, config.schedule.warmup_epochs
    if epochs is None:
        return f"warm-up {share:.0%}"
    if epochs > share * config.epochs:
        return f"warm-up {share * config.epochs:g} epochs, half of all, not the {epochs:g} of the recipe"
    return f"warm-up {epochs:g} epochs"


def plan_note(steps: int, epochs: int) -> str:
    """What a plan of so few steps can show; empty where it is long enough to say more."""
    if steps >= TELLING:
        return ""
    more = math.ceil(epochs * TELLING / steps)
    count = f"{steps:,} step{'s' * (steps > 1)}"
    return f"{count}: enough to see that it runs, too few to judge what it learns; --epochs {more} would be {TELLING}"


def size_notes(pictures: int, batch_size: int, queue: int = 0) -> list[str]:
    """Lines about a batch, and a queue of keys (0: none), that hold more than the set has."""
    notes = []
    for size, name, flag in ((batch_size, "batch", "--batch-size"), (queue, "queue", "--method.queue")):
        if size > pictures:
            notes.append(
                f"a {name} of {size:,} holds each of the {pictures:,} pictures {size / pictures:.1f} times: a smaller "
                f"{flag} is enough"
            )
    return notes


def announce_pictures(session: "Session", log: Callable[[str], None]) -> None:
    """Which pictures, where they lie while training, and what labels are used for."""
    prepared = session.prepared
    pictures, size = prepared.pictures, prepared.size
    place = "in memory" if session.loader.resident else "streamed"
    log(f"  pictures   {len(pictures):,} from {pictures.name}, {place}; {known_words(session)}")
    mean, std = prepared.statistics
    # Where an evaluation while training is labeled, it may be by another split.
    labeled = prepared.labeled if session.evaluation.monitor is not None else None
    for note in dict.fromkeys((*pictures.notes, *(labeled[0].notes if labeled else ()))):
        log(f"  note       {note}")
    if pictures.about_values:
        log(f"  values     {pictures.about_values}")
    normal = f"mean {first_few(mean)}, std {first_few(std)}, {prepared.statistics_of}"
    log(f"  images     {size[0]}x{size[1]}, {pictures.channels} channels; {normal}")


def known_words(session: "Session") -> str:
    """What is known of the pictures, and what for."""
    pictures = session.prepared.pictures
    if isinstance(pictures, Annotated):
        classes = len(pictures.categories)
        joints = 0 if pictures.joints is None else len(pictures.joints.names)
        masks = " and masks" if pictures.has_masks else ""
        return {
            "segment": f"{classes} classes of pixels to learn",
            "detect": f"boxes{masks} of {classes} classes to learn",
            "depth": "depths to learn",
            "keypoints": f"people with {joints} joints to learn",
        }[pictures.task]
    use = "to learn" if session.config.method.supervised else "used to measure only"
    labels = f"labels of {len(pictures.classes)} classes, {use}" if pictures.classes else "no labels"
    return labels + (f"; {pictures.unlabeled_count:,} have no label" if pictures.unlabeled_count else "")


def announce_model(session: "Session", log: Callable[[str], None]) -> None:
    """How large the model is, and what became of released weights."""
    prepared, encoder = session.prepared, session.prepared.encoder
    in_encoder = sum(p.numel() for p in encoder.parameters()) / 1e6
    in_training = sum(p.numel() for p in prepared.task.parameters()) / 1e6
    log(
        f"  model      {in_encoder:.1f} M parameters in the encoder ({in_training:.1f} M while training), "
        f"{encoder.grid[0]}x{encoder.grid[1]} patches of {encoder.patch[0]}x{encoder.patch[1]}"
    )
    for line in prepared.weights_report.splitlines():
        log(f"  weights    {line}")


def first_few(values: tuple[float, ...]) -> str:
    """The first four numbers."""
    return " ".join(f"{value:.3f}" for value in values[:4]) + (" ..." if len(values) > 4 else "")
