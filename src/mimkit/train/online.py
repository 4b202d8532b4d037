"""Online evaluation: a task in training enters; its features' measures, pictures and a warning of collapse leave."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mimkit.core import distributed
from mimkit.methods.base import Method
from mimkit.model.backbone import Backbone
from mimkit.train.collapse import collapse
from mimkit.train.monitor import Monitor
from mimkit.train.run_folder import MEASURED, RunFolder, disk_errors
from mimkit.train.sharding import Whole


class OnlineEvaluation:
    """Evaluates at a few steps of a run. The main process does it, and every process gets the numbers.

    Args:
        monitor: the pictures to evaluate on; None in the other processes, and where nobody asks for evaluations.
        whole: the task in training.
        run: pictures are written into its folder.
        warmup: steps of the schedule's warm-up, in which a low spread is no collapse.
        total: steps of the whole schedule.
        settings: of the method, that keep features apart.
    """

    def __init__(
        self,
        monitor: Monitor | None,
        whole: Whole,
        run: RunFolder,
        device: torch.device,
        *,
        warmup: float,
        total: int,
        settings: Sequence[str],
    ) -> None:
        self.monitor, self.whole, self.run, self.device = monitor, whole, run, device
        self.warmup, self.total, self.settings = warmup, total, settings
        self.suspected = False  # whether the evaluation before found a collapse
        self.start: dict[str, float] = {}  # before the first step: what a collapse is a fall from
        self.measures: dict[str, float] = {}  # the latest, also of an earlier part of the run

    @property
    def encoder(self) -> Backbone:
        """The encoder in training."""
        return self.whole.task.encoder

    def recall(self) -> None:
        """Take the latest measures of an earlier part of the run, as its metrics have them."""
        for record in self.run.metrics():
            self.warning(record)
            self.measures |= {name: record[name] for name in MEASURED if name in record}

    def measure_start(self, remembered: dict[str, float]) -> None:
        """Evaluate before the first step, unless an earlier part of the run did."""

        def measure(task: Method) -> dict[str, float]:
            return {} if self.monitor is None else self.monitor.evaluate_start(task, task.encoder)

        self.start = remembered
        if not remembered:
            with self.whole.gathered() as task:
                self.start = distributed.on_main(lambda: measure(task), self.device)

    def measure(self, steps: int) -> dict[str, float]:
        """Rank, spread and online kNN after so many steps, and pictures of what the method predicts. Collective."""

        def measure_and_draw(task: Method) -> dict[str, float]:
            assert self.monitor is not None
            measures = self.monitor.evaluate(task, task.encoder)
            folder: Path = self.run.folder / "pictures"
            with disk_errors(self.run.folder):
                self.monitor.draw(task, task.encoder, folder, steps)
            return measures

        with self.whole.gathered() as task:
            measures = distributed.on_main(lambda: measure_and_draw(task), self.device)
        self.measures |= measures
        return measures

    def warning(self, record: dict[str, float]) -> str | None:
        """One line if the features have collapsed since the start, and had at the evaluation before.

        Nothing in the warm-up; at the end of the run one evaluation is enough.
        """
        if self.monitor is None or "feature_spread" not in record or record["step"] < self.warmup:
            return None
        line = collapse(record, self.start, self.monitor.largest_rank(self.encoder), self.settings)
        confirmed = self.suspected or record["step"] >= self.total
        self.suspected = line is not None
        return line if confirmed else None
