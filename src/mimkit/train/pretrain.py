"""Pre-training, top to bottom: a config and a run folder enter; metrics, checkpoints and export/ leave."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mimkit.core import distributed
from mimkit.methods.base import Method
from mimkit.train.agreement import lost_peers
from mimkit.train.announce import announce
from mimkit.train.callbacks import Checkpointer, EpochStart, StopSignal
from mimkit.train.export import export_encoder
from mimkit.train.identity import identity_of
from mimkit.train.loop import fit
from mimkit.train.metrics_log import MetricsLog
from mimkit.train.mirror import Mirror
from mimkit.train.prepare import Pretrain
from mimkit.train.recorder import Recorder
from mimkit.train.run_folder import RunFolder, disk_errors, write_json
from mimkit.train.session import Session
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
        log: takes the lines before the first step.

    Raises:
        UserError: anything a person can mend.
    """
    config.machine.check()
    device = config.machine.find_device()
    with distributed.processes(device):
        # The main process chooses: what is a free folder to one is taken a moment later for the other.
        folder, max_steps = distributed.on_main(lambda: (folder, max_steps), device)
        run = RunFolder(folder)
        distributed.on_main(run.start, device)
        try:
            with lost_peers(run):
                return train(config, run, recipe, max_steps, device, log if distributed.is_main() else silent)
        except BaseException:
            if distributed.is_main():
                run.abandon()
            raise


def train(
    config: Pretrain,
    run: RunFolder,
    recipe: str,
    max_steps: int | None,
    device: torch.device,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Open the run, train its steps, and say what came of it. Every process of a run calls this together."""
    session = Session(config, run, recipe, device, log)
    session.begin()
    mirror = Mirror.of(run.folder, log)
    total = session.prepared.steps
    last = total if max_steps is None else max(session.first, min(total, max_steps))
    announce(session, log)
    recorder = open_recorder(session)
    stop = StopSignal()
    epochs = EpochStart(recorder, session.dataset, count=session.prepared.count, batch_size=config.batch_size)
    checkpointer = Checkpointer(
        run,
        recorder,
        config.machine,
        stop,
        lambda task, steps: export(session, task, steps),
        mirror.save,
        session.whole,
        session.first,
    )
    if session.first == total:  # killed between the last checkpoint and its export
        with session.whole.gathered() as task, disk_errors(run.folder):
            if distributed.is_main():
                export(session, task, total)
    try:
        with stop.handling(), checkpointer.pending():
            done = fit(session.training(last), [epochs, recorder, checkpointer])
    finally:
        recorder.line.close()
        recorder.log.close()
        mirror.settle()
    result = {
        "run": str(run.folder),
        "recipe": session.recipe,
        "finished": done >= total,
        "steps": done,
        "of": total,
        "seconds": round(recorder.log.seconds, 1),
        "signal": checkpointer.stopped_by if done < last else None,
        "skipped": len(recorder.skipped.reasons),
        **session.evaluation.measures,
        **recorder.log.warnings,
    }
    if distributed.is_main() and result["finished"]:
        with disk_errors(run.folder):
            write_json(run.result_path, result)
    if distributed.is_main():
        with disk_errors(run.folder):
            mirror.finish()
    return result


def open_recorder(session: Session) -> Recorder:
    """What records the steps, with the bad pictures that were met while the set was opened."""
    config, run = session.config, session.run
    tensorboard = config.machine.tensorboard and distributed.is_main()
    skipped = SkippedPictures(run, session.prepared.pictures, config.images.bad_fraction)
    skipped.add(tuple(session.loader.skipped.items()))
    return Recorder(
        MetricsLog(run, seconds=session.seconds, tensorboard=tensorboard, first=session.first),
        session.evaluation,
        skipped,
        session.prepared.pictures,
        total=session.prepared.steps,
        batch_size=config.batch_size,
        precision=session.engine.precision,
    )


def export(session: Session, task: Method, steps: int) -> None:
    """Write the model as it stands after so many steps, in a task with whole weights, into the run's export/."""
    prepared = copy.copy(session.prepared)
    prepared.task = task
    folder, measures = session.run.folder / "export", session.evaluation.measures
    identity = identity_of(session.run.folder)
    export_encoder(prepared, folder, recipe=session.recipe, step=steps, measured=measures, identity=identity)


def silent(line: str) -> None:
    """Of several processes the main one speaks."""
