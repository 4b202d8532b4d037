"""Work that is spread over worker processes: a function of a number enters, its results leave in order.

Each result is made wholly by one worker from its number alone, so nothing depends on how many workers there
are.
"""

import os
import pickle
import signal
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimkit.core.annotation import Annotation
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.annotations.cut import cut_annotation
from mimkit.data.decode import BadPicture
from mimkit.data.order import VERSION, WINDOW, Order
from mimkit.data.pictures import Pictures
from mimkit.data.resize import crop_beyond, crop_resize_one
from mimkit.data.spawn import GUARD, forked, is_of_main, main_hidden
from mimkit.data.values import Values
from mimkit.data.views import View, relative_boxes

T = TypeVar("T")
_AT_ONCE = (32, 1 << 26)  # pictures or bytes that are decoded before their boxes are drawn together
_ATTEMPTS = 100


def stream(make: Callable[[int], T], count: int, workers: int, *, pin: bool = False) -> Generator[T, None, None]:
    """`make(0) .. make(count - 1)` in order, made ahead by `workers` processes (0: here, when asked for).

    Ends its workers when it is closed. Raises UserError when a worker dies or raises one.
    """
    if workers == 0 or count == 0:
        yield from map(make, range(count))
        return
    loader = DataLoader(
        _Results(make, count),
        batch_size=None,
        num_workers=min(workers, count),
        prefetch_factor=2,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_main,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    with main_hidden(make):  # workers start here
        results = iter(loader)
    killed = False
    try:
        for result in results:
            if isinstance(result, _Failure):
                raise UserError(result.message)
            yield result
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        killed = True  # raised below: what is raised here would remember this error, and it the other workers
    finally:
        del results  # ends the workers
    if killed and not forked() and is_of_main(make):
        raise UserError(f"a data loading process ended as it started: {GUARD}")
    if killed:
        raise UserError(
            "a data loading process was killed, most often for lack of (shared) memory: "
            f"use fewer workers than {workers}, or 0, or give a container more (docker --shm-size)"
        )


@dataclass
class _Failure:
    message: str


class _Results(Dataset, Generic[T]):
    def __init__(self, make: Callable[[int], T], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> "T | _Failure":
        try:
            return self._make(index)
        except UserError as error:  # torch would wrap it in a traceback
            return _Failure(str(error))


def _leave_signals_to_main(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM go to a whole process group; only the main process decides what they mean."""
    # A group of its own, which a signal to the main process's group does not reach.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The main process's handler, inherited by fork, would only note the signal; a worker must end by it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(frozen=True)
class Rows:
    """What micro batches consist of, before any picture is read."""

    epoch: Int64[Tensor, " b"]
    picture: Int64[Tensor, " b"]
    views: Int64[Tensor, "V b"]  # random keys of the first view and of the others
    mask: Int64[Tensor, " b"]


@dataclass(frozen=True)
class Plan:
    """Which picture is seen when, and how: a function of the seed and the position in the run alone.

    Raises UserError when a step cannot be divided into equal micro batches over the ranks.
    """

    seed: int
    n: int
    """Pictures in the set."""
    batch_size: int
    """Pictures in a step, over all ranks."""
    micro_batch: int
    """Pictures that one rank sees at once."""
    rank: int = 0
    world: int = 1
    other_views: int = 0
    """Views of each picture besides the first."""
    lanes: int = 1
    """With `window` and `version`, see `order.Order`."""
    window: int = WINDOW
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.lanes > 1 and self.lanes % self.world:
            fits = max(self.world, self.lanes // self.world * self.world)
            raise UserError(f"{self.lanes} lanes do not divide over {self.world} processes: use {fits} lanes")
        _ = self.order  # refuses lanes that do not go into a step
        at_once = self.micro_batch * self.world
        if self.batch_size > 0 and self.micro_batch > 0 and self.batch_size % at_once == 0:
            return
        nearest = max(1, round(self.batch_size / at_once)) * at_once
        fix = f"use batch size {nearest}"
        if self.micro_batch > 0 and self.batch_size > 0 and self.batch_size % self.world == 0:
            fraction = self.batch_size // self.world
            fits = max(size for size in range(1, min(self.micro_batch, fraction) + 1) if fraction % size == 0)
            fix += f" or micro batches of {fits}"
        processes = f" on {self.world} processes" if self.world > 1 else ""
        raise UserError(
            f"batch size {self.batch_size}{processes} does not divide into micro batches of {self.micro_batch}: {fix}"
        )

    @property
    def order(self) -> Order:
        """Which picture is seen when."""
        return Order(self.seed, self.n, self.batch_size, self.lanes, self.window, self.version)

    @property
    def accumulate(self) -> int:
        """Micro batches of one rank in a step."""
        return self.batch_size // (self.micro_batch * self.world)

    def rows(self, first: int, count: int = 1) -> Rows:
        """`count` micro batches of this rank one after the other, from number `first` of the run.

        Each is a fixed slice of its step's global batch.
        """
        # Several micro batches in one go: the hashes and permutations below are many small steps, whatever their
        # length.
        number = torch.arange(first, first + count).unsqueeze(1)
        step = number // self.accumulate
        place = self._first_place(number % self.accumulate) + torch.arange(self.micro_batch)
        epoch, picture = self.order.at((step * self.batch_size + place).flatten())
        # A mask belongs to a place in a step, a crop to a picture in an epoch: a substitute keeps the crop's key.
        mask = rng_keys("mask", self.seed, step, place).flatten()
        views = [rng_keys("crop", self.seed, epoch, picture)]
        views += [rng_keys("view", self.seed, epoch, picture, number) for number in range(1, self.other_views + 1)]
        return Rows(epoch, picture, torch.stack(views), mask)

    def _first_place(self, number: Tensor) -> Tensor:
        """Where micro batches of this rank begin in the global batch of their step, by their numbers in the step.

        With other ranks or micro batches the same places are only dealt out differently: their keys and pictures stay.
        """
        if self.lanes > 1:  # all places of a rank side by side: a few lanes are its own
            return (self.rank * self.accumulate + number) * self.micro_batch
        return (number * self.world + self.rank) * self.micro_batch  # ranks side by side in each micro batch

    def substitute(self, epoch: Tensor, picture: Tensor, attempt: int) -> Tensor:
        """What stands in for pictures that cannot be read."""
        return self.order.substitute(epoch, picture, attempt)


class Drawn(NamedTuple):
    """What is said of a micro batch besides its views; as in Batch."""

    mask: Int64[Tensor, " b"]  # random keys
    index: Int64[Tensor, " b"]
    crop: Float[Tensor, "b 4"]
    flip: Bool[Tensor, " b"]
    views: Int64[Tensor, "V b"]  # random keys


def cut(
    view: View,
    pictures: Iterable[Tensor],
    boxes: Int64[Tensor, "b 4"],
    flip: Bool[Tensor, " b"],
    drawn: Int64[Tensor, " b"],
    size: tuple[int, int],
    values: Values = Values(),
) -> UInt8[Tensor, "b C h w"] | Float[Tensor, "b C h w"]:
    """Boxes of pictures on the CPU, resized one by one as `crop_beyond` does and altered by `view.augment`.

    RandAugment sees 8 bits, and what it gives has data everywhere.
    """
    crops = [
        crop_beyond(picture, box, mirror, size, view.interpolation, values)
        for picture, box, mirror in zip(pictures, boxes, flip.tolist(), strict=True)
    ]
    views = torch.stack(crops)
    if view.augment is None:
        return views
    return view.augment(views if values.plain else views.nan_to_num(127.5).round().to(torch.uint8), drawn)


@dataclass
class MicroBatches:
    """Micro batch number -> its views (uint8 or levels), what is said of them, bad pictures met, and targets packed.

    For workers.
    """

    pictures: Pictures
    views: tuple[View, ...]
    size: tuple[int, int]
    plan: Plan
    first_step: int
    bad: dict[int, str] = field(default_factory=dict)

    def __call__(self, i: int) -> tuple[tuple[Shaped[Tensor, "b C _ _"], ...], Drawn, list[tuple[int, str]], bytes]:
        rows = self.plan.rows(self.first_step * self.plan.accumulate + i)
        n, channels = len(rows.picture), self.pictures.channels
        dtype = torch.uint8 if self.pictures.values.plain else torch.float32
        views = tuple(torch.empty(n, channels, *view.shape(self.size), dtype=dtype) for view in self.views)
        drawn = Drawn(rows.mask, rows.picture.clone(), torch.empty(n, 4), torch.empty(n, dtype=torch.bool), rows.views)
        skipped: dict[int, str] = {}
        decoded: list[Tensor] = []
        targets: list[Annotation] = []
        for row in range(n):
            drawn.index[row], picture, annotation = self._read(rows.epoch[row], rows.picture[row], skipped)
            decoded.append(picture)
            targets += [] if annotation is None else [annotation]
            # Some pictures are held before they are cut, as a draw of boxes is many small steps; not all, because
            # decoded ones can be far larger than their views.
            if row + 1 == n or len(decoded) == _AT_ONCE[0] or sum(map(Tensor.numel, decoded)) > _AT_ONCE[1]:
                self._cut_all(decoded, slice(row + 1 - len(decoded), row + 1), views, drawn, targets)
                decoded = []
        # Packed here: as tensors each would cross to the main process in a file of its own.
        return views, drawn, list(skipped.items()), pickle.dumps(targets)

    def _cut_all(
        self, decoded: list[Tensor], here: slice, views: tuple[Tensor, ...], drawn: Drawn, targets: list[Annotation]
    ) -> None:
        """Write all views of some pictures into their rows of the micro batch, and where the first view lies.

        What is known of the pictures, where it is, becomes what is known of their first views.
        """
        heights, widths = torch.tensor([picture.shape[1:] for picture in decoded]).unbind(1)
        for number, (view, into) in enumerate(zip(self.views, views, strict=True)):
            size, view_keys = view.shape(self.size), drawn.views[number, here]
            boxes, mirrored = view.boxes(drawn.views[0, here] if view.aligned else view_keys, heights, widths, size)
            into[here] = cut(view, decoded, boxes, mirrored, view_keys, size, self.pictures.values)
            if number == 0:
                drawn.crop[here] = relative_boxes(boxes, heights, widths)
                drawn.flip[here] = mirrored
                if isinstance(self.pictures, Annotated):
                    joints = self.pictures.joints
                    targets[here] = [
                        cut_annotation(annotation, box, mirror, size, joints)
                        for annotation, box, mirror in zip(targets[here], boxes, mirrored.tolist(), strict=True)
                    ]

    def _read(self, epoch: Tensor, planned: Tensor, skipped: dict[int, str]) -> tuple[int, Tensor, Annotation | None]:
        """The wanted picture with what is known of it, or what stands in for it when it is bad."""
        picture = int(planned)
        # The substitute follows from the address of what it replaces: every worker and rank finds the same one.
        for attempt in range(1, _ATTEMPTS + 1):
            if picture not in self.bad:
                try:
                    return picture, self.pictures.read(picture), self._annotation(picture)
                except BadPicture as error:
                    self.bad[picture] = str(error)
            skipped[picture] = self.bad[picture]
            picture = int(self.plan.substitute(epoch, planned, attempt))
        raise all_bad(self.pictures, self.bad)

    def _annotation(self, picture: int) -> Annotation | None:
        return self.pictures.annotation(picture) if isinstance(self.pictures, Annotated) else None


def all_bad(pictures: Pictures, bad: dict[int, str]) -> UserError:
    """The error when no readable picture can be found."""
    picture, reason = next(iter(bad.items()))
    return UserError(
        f"hardly any picture of {pictures.name} can be read; for example {pictures.where(picture)}: {reason}"
    )


@dataclass(frozen=True)
class Chunks:
    """Chunk number -> the pictures of that chunk in one tensor and the bad ones; for loading a set into memory."""

    pictures: Pictures
    shape: tuple[int, int, int]
    chunk: int

    def __call__(self, i: int) -> tuple[Shaped[Tensor, "b C H W"], list[tuple[int, str]], int | None]:
        """The third value is a picture of another shape, at which the chunk was given up."""
        here = range(i * self.chunk, min((i + 1) * self.chunk, len(self.pictures)))
        pixels, bad = torch.zeros(len(here), *self.shape, dtype=self.pictures.storage.dtype), []
        for row, number in enumerate(here):
            try:
                picture = self.pictures.read(number)
            except BadPicture as error:
                bad.append((number, str(error)))
                continue
            # The headers of a sample agreed; only decoding all shows the one that does not.
            if picture.shape != self.shape:
                return pixels, bad, number
            pixels[row] = picture
        return pixels, bad, None


@dataclass(frozen=True)
class EvaluationViews:
    """Batch number -> unaugmented views (uint8, or levels), which pictures they show, and the bad ones left out."""

    pictures: Pictures
    view: View
    size: tuple[int, int]
    index: list[int]
    batch_size: int

    def __call__(self, i: int) -> tuple[Shaped[Tensor, "b C h w"], Int64[Tensor, " b"], list[tuple[int, str]]]:
        views, good, bad, values = [], [], [], self.pictures.values
        for number in self.index[i * self.batch_size : (i + 1) * self.batch_size]:
            try:
                picture = self.pictures.read(number)
            except BadPicture as error:
                bad.append((number, str(error)))
                continue
            # As tensors of one entry: views draw for batches alone.
            height, width = torch.tensor(picture.shape[1:]).split(1)
            boxes, _ = self.view.boxes(torch.zeros(1, dtype=torch.int64), height, width, self.size)
            views.append(crop_resize_one(picture, boxes[0], False, self.size, self.view.interpolation, values))
            good.append(number)
        # A batch whose pictures are all bad still has a shape that can be joined.
        empty = torch.zeros(0, self.pictures.channels, *self.size, dtype=torch.uint8 if values.plain else torch.float32)
        return torch.stack(views) if views else empty, torch.tensor(good, dtype=torch.int64), bad
