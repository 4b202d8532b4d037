"""Session: a config and a run folder enter; all that training needs, opened on this machine, leaves."""

from collections.abc import Callable

import torch

from mimkit.core import distributed
from mimkit.core.errors import UserError
from mimkit.train.agreement import Origin, agree
from mimkit.train.checkpoint import restore
from mimkit.train.dataset_view import open_dataset_view
from mimkit.train.machine import Engine
from mimkit.train.monitor import Monitor
from mimkit.train.online import OnlineEvaluation
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.resolved import Choices, Resolved
from mimkit.train.run_folder import RunFolder
from mimkit.train.sharding import Whole
from mimkit.train.training import LogSteps, Span, Training


class Session:
    """Everything of one run in this process, opened in the order in which one thing needs the other.

    Pictures come first, then the task that fits them, the engine that is chosen by trying the task, the optimizer of
    the task on its device, the checkpoint that fills both, and the batches.

    Args:
        config: the run; on an unfinished run it must equal that run's, `machine` aside.
        run: its folder, which this process has taken.
        recipe: its name, for config.json and the model card.
        device: of this process.
        log: takes lines about what takes long, in the main process.

    Raises:
        UserError: anything a person can mend, as pictures that changed since the run began.
    """

    def __init__(
        self, config: Pretrain, run: RunFolder, recipe: str, device: torch.device, log: Callable[[str], None]
    ) -> None:
        self.config, self.run, self.device = config, run, device
        self.schedule = config.schedule.of(config.epochs)
        self.origin = origin = distributed.on_main(lambda: Origin.of(run, config, recipe), device)
        self.recipe, before = origin.recipe, Resolved.from_json(origin.resolved)
        for reason in origin.set_aside:
            log(f"  warning    {reason}: going on from the one before it")
        self.prepared = prepared = Prepared(config, before, begun=origin.checkpoint is not None)
        agree(prepared, origin)
        refuse_changed_pictures(prepared, before)
        self.workers = config.machine.readers()
        self.dataset = open_dataset_view(
            prepared.pictures, prepared.size, *prepared.statistics, device=device, workers=self.workers
        )
        prepared.task.setup(self.dataset, resumed=prepared.begun)
        world = distributed.world()  # which is 1 to what the main process does alone
        micro_batch = distributed.on_main(lambda: prepared.micro_batch(device, world), device)
        self.engine = Engine.choose(
            config.machine, device, prepared.task, lambda: prepared.timing_sample(micro_batch), before.engine
        )
        self.whole = Whole(prepared.task, self.engine.sharding, device)
        self.module = self.engine.wrap(prepared.task)
        self.optimizer = config.optimizer.build(prepared.task, config.batch_size)
        self.first, self.seconds = self._restore()
        self.loader = prepared.loader(device, micro_batch=micro_batch, workers=self.workers, log=log)
        self.evaluation = self._evaluation(before)
        self.resolved = self._resolved(micro_batch)

    def _restore(self) -> tuple[int, float]:
        """Fill task and optimizer from the last checkpoint; the steps and seconds behind it."""
        saved = self.origin.checkpoint
        return (0, 0.0) if saved is None else restore(saved, self.prepared.task, self.optimizer, self.device)

    def _evaluation(self, before: Resolved) -> OnlineEvaluation:
        """What evaluates in training; a new run is evaluated before its first step."""
        monitor = None
        if distributed.is_main() and self.config.machine.evals > 0:
            monitor = Monitor(self.prepared, self.engine, workers=self.workers)
        config, total = self.config, self.prepared.steps
        evaluation = OnlineEvaluation(
            monitor,
            self.whole,
            self.run,
            self.device,
            warmup=self.schedule.share * total,
            total=total,
            settings=config.method.against_collapse,
        )
        evaluation.measure_start(before.start)
        return evaluation

    def _resolved(self, micro_batch: int) -> Resolved:
        prepared, (mean, std) = self.prepared, self.prepared.statistics
        return Resolved(
            data=prepared.pictures.name,
            pictures=len(prepared.pictures),
            fingerprint=prepared.pictures.fingerprint,
            size=prepared.size,
            channels=prepared.pictures.channels,
            reading=prepared.pictures.resolved.to_json(),
            mean=tuple(mean),
            std=tuple(std),
            statistics_of=prepared.statistics_of,
            steps=prepared.steps,
            micro_batch=micro_batch,
            resident=self.loader.resident,
            by_class=prepared.by_class,
            order=prepared.order_version,
            lanes=prepared.lanes,
            engine=Choices(**self.engine.describe()),
            start=self.evaluation.start,
        )

    def begin(self) -> None:
        """Write config.json of a new run; drop what a run wrote after its last checkpoint. In the main process."""
        if distributed.is_main():
            if not self.run.exists:
                self.run.write_config(self.config, self.recipe, self.resolved.to_json())
            self.run.rewind(self.first)
        self.evaluation.recall()

    def training(self, last: int) -> Training:
        """The steps up to `last`, ready to be trained."""
        config, total = self.config, self.prepared.steps
        training = Training(
            self.prepared.task,
            self.module,
            self.engine,
            self.optimizer,
            config.optimizer,
            self.schedule,
            Span(self.first, last, total),
            LogSteps.spread(total, config.machine.log_every, config.machine.evals),
            seed=config.seed,
        )
        training.feed(self.loader.micro_batches(self.first, last), self.loader.accumulate)
        return training


def refuse_changed_pictures(prepared: Prepared, before: Resolved) -> None:
    """Refuse to go on with other pictures than those that the run began with."""
    pictures = prepared.pictures
    if before.pictures is None or (before.pictures, before.fingerprint) == (len(pictures), pictures.fingerprint):
        return
    raise UserError(
        f"the pictures changed since this run began ({before.pictures:,} then, {len(pictures):,} now; names, "
        "sizes or times of files differ): bring them back to go on, or start anew with another --run"
    )
