"""Prepare a run: its config enters; pictures, their statistics, the model and a first batch leave."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast

import timm
import torch

from mimkit.core import distributed
from mimkit.core.annotation import DENSE_TASKS
from mimkit.core.batch import Batch
from mimkit.core.errors import UserError, within
from mimkit.core.memory import free_memory
from mimkit.core.randomness import integer, rng_keys
from mimkit.data.annotations.sources import AnnotatedSplits, open_annotated
from mimkit.data.labels import label_subset
from mimkit.data.loader import Loader, Plan, ViewSettings, statistics
from mimkit.data.order import VERSION, WINDOW, default_lanes
from mimkit.data.reading import Reading
from mimkit.data.sources import Pictures, open_measured, open_pictures
from mimkit.data.values import FULL
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.mae import MAEConfig
from mimkit.model.backbone import Backbone
from mimkit.model.build import EncoderConfig, is_beit, is_convolutional
from mimkit.model.decoder import Decoder
from mimkit.model.vit import refuse_unsuitable
from mimkit.train.footprint import kept_bytes
from mimkit.train.images import Images
from mimkit.train.machine import Machine, untouched
from mimkit.train.optimizer import AdamWConfig, OptimizerConfig
from mimkit.train.resolved import Resolved
from mimkit.train.schedule import Schedule, WarmupCosine
from mimkit.weights.load import load_weights
from mimkit.weights.statistics import IMAGENET, Statistics, weights_statistics


@dataclass(kw_only=True, slots=True)
class Pretrain:
    """A pre-training run. All but `machine` may change results; `machine` should not."""

    data: tuple[str, ...] = ()
    """Folders, text files of paths, Parquet files, or photos, fashion-mnist, cifar10, cifar100, stl10, imagenette."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    method: MethodConfig = field(default_factory=MAEConfig)
    images: Images = field(default_factory=Images)
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    schedule: Schedule = field(default_factory=WarmupCosine)
    epochs: int = 800
    """How often each picture is seen."""
    batch_size: int = 4096
    """Pictures in a step, over all processes and micro batches."""
    lanes: int | None = None
    """Parts of the pictures that a step takes equally many of, each read block by block; by default 1, a full shuffle,
    and for pictures in an object store up to 64. A multiple of the number of processes."""
    window: int = WINDOW
    """Pictures of a lane that are mixed with each other; without lanes all are."""
    seed: int = 0
    """Where all randomness of the run starts."""
    machine: Machine = field(default_factory=Machine)
    label_column: str | None = None
    """The column of labels in Parquet files, lists and metadata; by default label, labels, fine_label, class, ..."""

    def reading(self) -> Reading:
        """How files become pictures with labels, as far as the settings say."""
        return replace(self.images.reading(), label_column=self.label_column)


class Prepared:
    """What a config means on this data: every part is made when it is first asked for.

    Args:
        before: what an earlier part of the run found out.
        begun: a checkpoint holds the weights, so released ones are not asked for again.
        pictures: to learn from, where they are open already; by default those that the config names.
    """

    def __init__(
        self,
        config: Pretrain,
        before: Resolved | Mapping[str, Any] | None = None,
        *,
        begun: bool = False,
        pictures: Pictures | None = None,
    ) -> None:
        within(1, 1 << 31, epochs=config.epochs)
        within(1, 1 << 24, batch_size=config.batch_size, lanes=config.lanes, window=config.window)
        within(-(2**63), 2**63 - 1, seed=config.seed)
        config.images.check()
        config.optimizer.check()
        self.config = config
        self.before = before if isinstance(before, Resolved) else Resolved.from_json(before or {})
        self.begun, self.open_pictures = begun, pictures
        self.size = config.images.shape()

    @cached_property
    def pictures(self) -> Pictures:
        """All pictures to learn from."""
        if self.open_pictures is not None:
            return self.open_pictures
        method, reading = self.config.method, self.reading
        if not method.supervised:
            return open_pictures(self.config.data, "all", reading)
        if method.learns in DENSE_TASKS:
            return self.annotated.train.taught
        pictures = open_measured(self.config.data, reading, purpose="fine-tuning", by_class=self.by_class).train
        self._refuse_renumbered(pictures)
        return label_subset(pictures, method.label_fraction, self.config.seed)

    @cached_property
    def annotated(self) -> AnnotatedSplits:
        """Pictures with what is known of them, to learn from and to be measured, of a dense task."""
        method: Any = self.config.method  # a DenseConfig
        return open_annotated(self.config.data, method.learns, reading=self.reading, **method.of_labels())

    @cached_property
    def reading(self) -> Reading:
        """How files become pictures: as the settings say, or as an earlier part of the run completed them."""
        if self.before.reading:
            return replace(Reading.from_json(self.before.reading), label_column=self.config.label_column)
        reading = self.config.reading()
        if self.before.pictures is None or reading.value_range is not None:
            return reading
        # A run of a version before 0.3: black and white of other depths than 8 bits were those of the type.
        dtype = open_pictures(self.config.data, "all", reading).storage.dtype
        return reading if dtype == torch.uint8 else replace(reading, value_range=FULL[dtype])

    @property
    def resolved_reading(self) -> Reading:
        """The reading that an export carries; the pictures of a run that has begun need not be there any more."""
        if self.before.pictures is None:
            reading = self.pictures.resolved
        else:
            reading = self.reading if self.before.reading else self.config.images.reading()
        return replace(reading, label_column=None)  # other data have other columns

    @property
    def by_class(self) -> bool:
        """Whether pictures that are set apart for a test are so of each class: not so in runs of before version 0.3."""
        return bool(self.before.by_class) if self.before.pictures else True

    @property
    def order_version(self) -> Literal[1, 2]:
        """Of the order of the pictures (`data.order`): runs of before version 0.3 go on in theirs."""
        return self.before.order or (VERSION if self.before.pictures is None else 1)

    @property
    def lanes(self) -> int:
        """Of the order of the pictures: as given, as in an earlier part of the run, or by where they lie."""
        if lanes := self.config.lanes or self.before.lanes:
            return lanes
        return default_lanes(self.count, self.config.batch_size) if self.pictures.remote else 1

    def _refuse_renumbered(self, pictures: Pictures) -> None:
        """Refuse to go on with a fine-tuning whose classes an earlier version numbered otherwise."""
        names, method = pictures.classes or (), cast(Any, self.config.method)  # a FineTuneConfig
        resorted = pictures.named and all(name.isdecimal() for name in names) and tuple(sorted(names)) != names
        if not self.by_class and (resorted or method.classes != len(names)):
            raise UserError(
                f"an earlier version of mimkit began this run and numbered the {len(names)} classes of {pictures.name} "
                "otherwise: start anew with another --run"
            )

    @property
    def name(self) -> str:
        """What the pictures are called."""
        return self.before.data or self.pictures.name

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return self.before.pictures or len(self.pictures)

    @property
    def channels(self) -> int:
        """Of the images: known from an earlier part of the run, or as the pictures have them."""
        return self.before.channels or self.pictures.channels

    @cached_property
    def labeled(self) -> tuple[Pictures, Pictures] | None:
        """A bank and pictures to classify, when there are labels and enough of them: they only measure."""
        if self.pictures.labels is None or self.config.method.learns in DENSE_TASKS:
            return None
        try:
            train, test, _ = open_measured(self.config.data, self.pictures.resolved, by_class=self.by_class)
        except UserError:
            return None
        train = self.pictures if self.config.method.supervised else train
        return (train, test) if len(train) and len(test) else None

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and standard deviation per channel, checked; `statistics_of` says whose they are."""
        (mean, std), images = self._statistics[0], self.config.images
        mean, std = images.mean or mean, images.std or std
        channels = self.channels
        if len(mean) != channels or len(std) != channels or not all(0 < x < math.inf for x in std):
            raise UserError(
                f"images.mean and images.std need {self.channels} numbers each, std above 0; "
                f"got {list(mean)} and {list(std)}"
            )
        return mean, std

    @property
    def statistics_of(self) -> str:
        """Whose mean and standard deviation these are, in words."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[Statistics, str]:
        """Mean and standard deviation per channel with their origin: as set, of the weights, ImageNet's, the data's."""
        images, before, encoder = self.config.images, self.before, self.config.encoder
        if images.mean is not None and images.std is not None:
            return (images.mean, images.std), "as set"
        if before.mean is not None and before.std is not None:
            return (before.mean, before.std), before.statistics_of or "of the data"
        released = weights_statistics(encoder.weights, encoder.name) if encoder.weights else None
        if released is not None and len(released[0]) == self.channels:
            return released, f"of the weights ({encoder.weights})"
        if images.statistics == "imagenet" and self.channels == len(IMAGENET[0]) and self.pictures.values.plain:
            return IMAGENET, "of ImageNet"
        return statistics(self.pictures), "of the data"

    @cached_property
    def steps(self) -> int:
        """Steps of the whole schedule."""
        return max(1, math.ceil(self.config.epochs * self.count / self.config.batch_size))

    @cached_property
    def weights_report(self) -> str:
        """What became of released weights, if any; they are loaded when the task is built."""
        assert "task" in self.__dict__
        return self._report

    @cached_property
    def task(self) -> Method:
        """The method with its encoder: initialized by the seed, or from released weights."""
        self._report = ""
        name, method = self.config.encoder.name, self.config.method
        if is_convolutional(name) and not method.convolutions:
            with torch.device("meta"):
                refuse_unsuitable(timm.create_model(name), name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer("init", self.config.seed))
            encoder: Any = self.config.encoder.build(self.size, self.channels)
            suits = method.beits if is_beit(name) else is_convolutional(name) or method.windows
            if not suits:
                refuse_unsuitable(encoder.timm, name)
            encoder.mean, encoder.std = self.statistics
            task = self.config.method.build(encoder)
        if self.config.encoder.weights and not self.begun:
            decoder = task.decoder if isinstance(task.decoder, Decoder) else None  # of MAE, which others release too
            report = load_weights(self.config.encoder.weights, encoder, decoder, name=self.config.encoder.name)
            self._report = report.summary()
        return task

    @property
    def encoder(self) -> Backbone:
        """The encoder inside the task."""
        return self.task.encoder

    def sample(self, count: int, device: torch.device | str = "cpu") -> Batch:
        """Noise in the shape of a batch, to time and to weigh a step with."""
        generator = torch.Generator().manual_seed(0)
        views = []
        for view in (self.config.images.view, *self.config.images.other_views):
            noise = torch.randn(count, self.channels, *view.shape(self.size), generator=generator)
            views.append(noise.to(device))
        number = torch.arange(count)
        keys = rng_keys("sample", number).to(device)
        method: Any = self.config.method
        targets = method.example(count, self.size, device) if method.learns in DENSE_TASKS else ()
        return Batch(views[0], keys, number % self.count, other_views=tuple(views[1:]), targets=targets)

    def timing_count(self, micro_batch: int) -> int:
        """Pictures to time a step with: fewer large ones, so that it takes seconds."""
        return max(1, min(micro_batch, 64, 64 * 96 * 96 // (self.size[0] * self.size[1])))

    def timing_sample(self, micro_batch: int) -> Batch:
        """A batch to time a step with."""
        return self.sample(self.timing_count(micro_batch))

    def bytes_per_picture(self) -> int:
        """Memory that one picture takes in a step: what autograd keeps for the backward pass, measured in float32."""
        with untouched(self.task):
            return kept_bytes(self.task, self.sample(2), self.config.machine.recompute) // 2

    def micro_batch(self, device: torch.device, world: int) -> int:
        """Pictures at once: as given, else the largest part of the batch that fits into half the free memory."""
        config, method = self.config, type(self.config.method).__name__
        if config.method.needs_whole_batch and config.batch_size < 2:
            raise UserError(
                f"{method} compares the pictures of a step, so it needs more than one: give --batch-size 2 or more"
            )
        per_process = config.batch_size // world
        if per_process < 1 or config.batch_size % world:
            near = max(1, round(config.batch_size / world)) * world
            raise UserError(f"batch_size {config.batch_size} does not divide over {world} processes: use {near}")
        micro_batch = config.machine.micro_batch
        before = self.before.micro_batch
        if micro_batch is None and before and per_process % before == 0:  # on another number of processes it may not
            micro_batch = before
        if micro_batch is None:
            sharing = world if device.type == "cpu" else 1  # processes that share the memory
            fitting = max(1, int(free_memory(device) / 2 / sharing / self.bytes_per_picture()))
            micro_batch = max(n for n in range(1, min(per_process, fitting) + 1) if per_process % n == 0)
        if config.method.needs_whole_batch and micro_batch != per_process:
            raise UserError(
                f"{method} compares all pictures of a step, so micro batches of {micro_batch} would change it: lower "
                f"--batch-size or give --machine.micro-batch {per_process}"
            )
        return micro_batch

    def resident(self) -> bool | Literal["auto"]:
        """Whether the pictures live in memory: as given, as in an earlier part of the run, or as they fit."""
        if self.config.machine.resident is not None:
            return self.config.machine.resident
        return "auto" if self.before.resident is None else self.before.resident

    def loader(
        self,
        device: torch.device,
        *,
        micro_batch: int,
        workers: int,
        rank: int | None = None,
        world: int | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> Loader:
        """Batches for one process: this one, unless `rank` and `world` say otherwise."""
        config, images = self.config, self.config.images
        mean, std = self.statistics
        plan = Plan(
            seed=config.seed,
            n=len(self.pictures),
            batch_size=config.batch_size,
            micro_batch=micro_batch,
            rank=distributed.rank() if rank is None else rank,
            world=distributed.world() if world is None else world,
            other_views=len(images.other_views),
            lanes=self.lanes,
            window=config.window,
            version=self.order_version,
        )
        settings = ViewSettings(
            view=images.view,
            other_views=images.other_views,
            size=self.size,
            mean=mean,
            std=std,
            flips=images.flips,
        )
        resident = self.resident()
        return Loader(self.pictures, settings, plan, device=device, workers=workers, resident=resident, log=log)
