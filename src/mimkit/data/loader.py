"""From pictures to batches on the device: steps enter, normalized views with their random keys leave.

Small sets of one size live in memory as one tensor in their own depth and are cut, resized and normalized as whole
batches; all others, and annotated ones, stream through worker processes. Both ways see the same pictures, boxes and
keys, and colors change as whole batches on the device. Where a pixel has no data the image is 0, the mean.
"""

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.memory import memory_budget
from mimkit.core.randomness import rng_keys
from mimkit.core.symmetry import draw_symmetries, turned
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.augment import erased
from mimkit.data.color import ColorAugment
from mimkit.data.decode import BadPicture
from mimkit.data.normalize import Normalize
from mimkit.data.pictures import Pictures, sample
from mimkit.data.resize import crop_resize_many
from mimkit.data.stream import Chunks, Drawn, EvaluationViews, MicroBatches, Plan, all_bad, cut, stream
from mimkit.data.views import CenterCrop, Flips, View, relative_boxes

__all__ = ["Loader", "Plan", "ViewSettings", "evaluation_batches", "statistics"]

_CHUNK = 256  # pictures that one worker decodes in a piece when a set is loaded into memory
_DRAWN = 4096  # pictures whose boxes are drawn at once, for as many steps as they make
_GPU_FRACTION = 0.2  # of a GPU's memory that pictures may take


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Which images a batch has of each picture."""

    view: View
    """Which part of a picture is seen, and how."""
    other_views: tuple[View, ...] = ()
    """Further views of the same pictures, in Batch.other_views; each is drawn by itself."""
    size: tuple[int, int]
    """Height and width of the views that have no size of their own."""
    mean: Sequence[float]
    """Per channel, of pixels in 0..1; with `std`."""
    std: Sequence[float]
    flips: Flips = "left-right"
    """`dihedral`: each view is turned by one of the symmetries of its shape, besides what mirrors it."""


class Loader:
    """Batches for training.

    Args:
        pictures: what to show.
        settings: which images to make of each picture.
        plan: which pictures a step and this rank see; its `n` and `other_views` are those of the first two.
        device: where batches are wanted.
        workers: processes that decode; 0 decodes here.
        resident: whether the set lives in memory; `auto` when all pictures have one size and it fits.
        memory_limit: bytes that the set may take there; a quarter of the machine's memory (shared by the
            ranks on it) when None.
        log: is given a line when something takes long.

    Raises UserError when a view asks for colors that the pictures do not have, or `resident=True` is not possible.
    """

    def __init__(
        self,
        pictures: Pictures,
        settings: ViewSettings,
        plan: Plan,
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        resident: Literal["auto"] | bool = "auto",
        memory_limit: int | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        assert plan.n == len(pictures) and plan.other_views == len(settings.other_views)
        self.pictures, self.plan, self.device = pictures, plan, torch.device(device)
        self.views, self.size = (settings.view, *settings.other_views), settings.size
        self.dihedral = settings.flips == "dihedral"
        for view in self.views:
            view.check(pictures.channels)
        self.skipped: dict[int, str] = {}
        """Bad pictures met so far and why."""
        self._workers, self._log, self._values = workers, log, pictures.values
        self._mean = torch.tensor(settings.mean, device=self.device).view(-1, 1, 1)
        self._normalize = Normalize(settings.mean, settings.std, self.device)
        self._pixels: Shaped[Tensor, "n C H W"] | None = None
        self._bad: Tensor | None = None
        if isinstance(pictures, Annotated):
            _refuse_unfollowed(settings)
        elif resident is not False:
            self._load(memory_limit or memory_budget(), insist=resident is True)

    @property
    def resident(self) -> bool:
        """Whether the set lives in memory."""
        return self._pixels is not None

    @property
    def accumulate(self) -> int:
        """Micro batches of one rank in a step."""
        return self.plan.accumulate

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The `accumulate` micro batches of this rank for each step in [first_step, last_step)."""
        steps = range(first_step, last_step)
        return self._from_memory(steps) if self.resident else self._from_workers(steps)

    def _from_memory(self, steps: range) -> Iterator[Batch]:
        pixels = self._pixels
        assert pixels is not None
        # Micro batches are numbered through the whole run: resuming is starting at another number.
        first, last = steps.start * self.accumulate, steps.stop * self.accumulate
        size = self.plan.micro_batch
        ahead = max(1, _DRAWN // size)
        for number in range(first, last, ahead):  # drawn together, because a draw is many small steps
            rows = self.plan.rows(number, min(ahead, last - number))
            index = self._substituted(rows.epoch, rows.picture)
            heights = torch.full_like(index, pixels.shape[2])
            widths = torch.full_like(index, pixels.shape[3])
            shapes = [view.shape(self.size) for view in self.views]
            boxes_by_view = [
                view.boxes(rows.views[0] if view.aligned else view_keys, heights, widths, shape)
                for view, view_keys, shape in zip(self.views, rows.views, shapes, strict=True)
            ]
            first_boxes, flip = boxes_by_view[0]
            crop = relative_boxes(first_boxes, heights, widths)
            for start in range(0, len(index), size):
                here = slice(start, start + size)
                pictures = _rows(pixels, index[here]).to(self.device)
                images = []
                for view, boxes, view_keys, shape in zip(self.views, boxes_by_view, rows.views, shapes, strict=True):
                    place, mirrored = boxes[0][here], boxes[1][here]
                    images.append(self._cut(view, pictures, place, mirrored, view_keys[here], shape))
                drawn = Drawn(rows.mask[here], index[here], crop[here], flip[here], rows.views[:, here])
                yield self._batch(images, drawn)

    def _from_workers(self, steps: range) -> Iterator[Batch]:
        # Workers get the bad pictures known so far, and report new ones: each meets only those it reads itself.
        make = MicroBatches(self.pictures, self.views, self.size, self.plan, steps.start, dict(self.skipped))
        pin = self.device.type == "cuda"
        with closing(stream(make, len(steps) * self.accumulate, self._workers, pin=pin)) as micro_batches:
            for pixels, drawn, skipped, packed in micro_batches:
                self.skipped.update(skipped)
                images = [
                    self._finish(view, values, view_keys)
                    for view, values, view_keys in zip(self.views, pixels, drawn.views, strict=True)
                ]
                batch = self._batch(images, drawn, tuple((number, reason) for number, reason in skipped))
                targets = tuple(target.to(self.device) for target in pickle.loads(packed))  # of our own worker
                yield replace(batch, targets=targets)

    def _cut(
        self, view: View, pictures: Tensor, boxes: Tensor, flip: Tensor, drawn: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """One view of pictures in memory, finished."""
        if view.augment is not None:  # one by one, in the arithmetic of the workers: it sees the same whole numbers
            return self._finish(view, cut(view, pictures.cpu(), boxes, flip, drawn, size, self._values), drawn)
        # Colors change values in 0..1, so normalization must wait for them; else resampling writes normalized values.
        finish = self._normalize if view.color is None else None
        values = crop_resize_many(pictures, boxes, flip, size, view.interpolation, finish, self._values)
        return self._finish(view, values, drawn, normalized=finish is not None)

    def _finish(self, view: View, values: Tensor, drawn: Tensor, *, normalized: bool = False) -> Tensor:
        """Colors, normalization, erasing and symmetries, on the device; from values in 0..255 if not normalized."""
        if view.color is not None:
            values = self._colored(view.color, values.to(self.device, non_blocking=True).float() / 255, drawn)
        images = values if normalized else self._normalize(values)
        images = erased(images, drawn, view.erase) if view.erase else images
        return turned(images, self._symmetries(drawn, images)) if self.dihedral else images

    def _symmetries(self, drawn: Tensor, images: Tensor) -> Tensor:
        return draw_symmetries(drawn, square=images.shape[2] == images.shape[3]).to(self.device, non_blocking=True)

    def _colored(self, change: ColorAugment, values: Tensor, drawn: Tensor) -> Tensor:
        """Colors of values in 0..1 changed, in 0..255; holes meet the change as the mean and stay holes."""
        if not self._values.holes:
            return change(values, drawn).mul_(255)
        empty = values.isnan()
        return change(torch.where(empty, self._mean, values), drawn).mul_(255).masked_fill_(empty, torch.nan)

    def _batch(self, images: list[Tensor], drawn: Drawn, skipped: tuple[tuple[int, str], ...] = ()) -> Batch:
        mask = drawn.mask.to(self.device, non_blocking=True)
        crop = drawn.crop.to(self.device, non_blocking=True)
        flip = drawn.flip.to(self.device, non_blocking=True)
        valid = None
        if self._values.holes:
            valid = ~images[0].isnan()
            images = [image.nan_to_num(0.0) for image in images]
        symmetry = self._symmetries(drawn.views[0], images[0]) if self.dihedral else None
        return Batch(images[0], mask, drawn.index, skipped, crop, flip, symmetry, valid, other_views=tuple(images[1:]))

    def _substituted(self, epoch: Tensor, picture: Tensor) -> Tensor:
        """Numbers of pictures with the bad ones replaced."""
        index, attempt = picture, 0
        if self._bad is not None:
            # The attempts of `MicroBatches._read`, for all pictures at once: both ways show the same substitutes.
            while self._bad[index].any():
                attempt += 1
                index = torch.where(self._bad[index], self.plan.substitute(epoch, picture, attempt), index)
        return index

    def _load(self, limit: int, *, insist: bool) -> None:
        """Bring the set into memory if it belongs there."""
        pixels = self.pictures.tensor()
        if pixels is None:
            shape = self._common_shape(insist)
            if shape is None:
                return
            total = len(self.pictures) * shape[0] * shape[1] * shape[2] * self._values.dtype.itemsize
            if total > limit and not insist:
                return
            self._log(f"loading {len(self.pictures):,} pictures into memory ({total / 1e6:,.0f} MB)")
            pixels = self._decode_all(shape, insist)
        if pixels is None:
            return
        if self.device.type == "cuda":
            room = torch.cuda.get_device_properties(self.device).total_memory
            # On the GPU too if it is small there: a step then copies nothing from the CPU.
            if pixels.nbytes <= _GPU_FRACTION * room:
                pixels = pixels.to(self.device)
        self._pixels = pixels

    def _common_shape(self, insist: bool) -> tuple[int, int, int] | None:
        """The one shape of the pictures, by the headers of a sample; None when they differ."""
        # Headers of 64 pictures, spread over the set: opening all of a million only to find two sizes would take
        # minutes.
        sizes = {}
        for number in sample(len(self.pictures), 64):
            try:
                sizes.setdefault(self.pictures.size(number), number)
            except BadPicture:
                continue
        if len(sizes) == 1:
            return (self.pictures.channels, *next(iter(sizes)))
        if insist and sizes:
            raise self._different(*list(sizes.values())[:2])
        return None

    def _different(self, *numbers: int) -> UserError:
        names = " and ".join(self.pictures.where(number) for number in numbers)
        return UserError(f"resident=True needs pictures of one size, these differ: {names}; use resident=auto")

    def _decode_all(self, shape: tuple[int, int, int], insist: bool) -> Tensor | None:
        """Every picture decoded into one tensor; None when one of another size turns up."""
        # Filled as chunks come, so the set is held once; bad pictures stay black and are never shown.
        pixels = torch.empty(len(self.pictures), *shape, dtype=self._values.dtype)
        bad: dict[int, str] = {}
        started = last_line = time.monotonic()
        count = -(-len(pixels) // _CHUNK)
        with closing(stream(Chunks(self.pictures, shape, _CHUNK), count, self._workers)) as chunks:
            for number, (chunk, bad_here, different) in enumerate(chunks):
                bad.update(bad_here)
                if different is not None:
                    if insist:
                        raise self._different(0, different)
                    self._log("not all pictures have one size: they stream from where they lie")
                    return None
                pixels[number * _CHUNK : number * _CHUNK + len(chunk)] = chunk
                now = time.monotonic()
                if now - last_line > 10:
                    last_line = now
                    self._log(f"{number * _CHUNK + len(chunk):,} of {len(pixels):,} after {now - started:.0f} s")
        if bad:
            self.skipped.update(bad)
            self._bad = torch.zeros(len(pixels), dtype=torch.bool)
            self._bad[list(bad)] = True
            if self._bad.all():
                raise all_bad(self.pictures, bad)
        return pixels


def _refuse_unfollowed(settings: ViewSettings) -> None:
    """Refuse changes of pictures that boxes, masks and depths would not follow."""
    if settings.view.augment is not None:
        raise UserError("RandAugment moves pictures, which boxes and masks do not follow: leave view.augment out")
    if settings.flips == "dihedral":
        raise UserError("boxes, masks and depths are mirrored left to right only: leave --images.flips dihedral away")


def _rows(pixels: Shaped[Tensor, "n C H W"], index: Int64[Tensor, " b"]) -> Shaped[Tensor, "b C H W"]:
    """Some pictures of a set in memory."""
    # As signed numbers of the same bits: devices know few operations on unsigned 16-bit ones.
    signed = pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels
    return signed.index_select(0, index.to(pixels.device)).view(pixels.dtype)


def evaluation_batches(
    pictures: Pictures,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    view: View = CenterCrop(),
    batch_size: int = 256,
    workers: int = 0,
    limit: int | None = None,
    shuffle: bool = False,
    skipped: dict[int, str] | None = None,
    keep_holes: bool = False,
) -> Iterator[tuple[Float[Tensor, "B C h w"], Int64[Tensor, " B"] | None, Int64[Tensor, " B"]]]:
    """Every picture once, without augmentation: normalized images on the device, labels and numbers.

    Pixels without data are 0, the mean, or with `keep_holes` NaN (`core.display.split_holes`). Bad pictures are left
    out and noted in `skipped`. `limit` takes so many, spread over the set. They come in order, which in a folder of
    classes is class by class; with `shuffle` in one by address, where each batch is a random sample. Labels (None when
    the set has none) and numbers stay on the CPU.
    """
    device, skipped, values = torch.device(device), {} if skipped is None else skipped, pictures.values
    normalized = Normalize(mean, std, device)

    def normalize(views: Tensor, out: Tensor | None = None) -> Tensor:
        images = normalized(views, out)
        return images.nan_to_num_(0.0) if values.holes and not keep_holes else images

    index = sample(len(pictures), len(pictures) if limit is None else limit)
    if shuffle:
        # Still by address: the same pictures come in the same order for every model, so their results can be paired.
        index = torch.tensor(index)[rng_keys("shuffle", torch.tensor(index)).argsort()].tolist()
    pixels = pictures.tensor()
    if pixels is not None:
        for numbers in torch.tensor(index).split(batch_size):
            side = torch.ones_like(numbers)  # also stands for the keys: views of evaluation draw nothing
            boxes, _ = view.boxes(side, side * pixels.shape[2], side * pixels.shape[3], size)
            upright = torch.zeros(len(numbers), dtype=torch.bool)
            batch = pixels[numbers].to(device)
            images = crop_resize_many(batch, boxes, upright, size, view.interpolation, normalize, values)
            yield images, None if pictures.labels is None else pictures.labels[numbers], numbers
        return
    make = EvaluationViews(pictures, view, size, index, batch_size)
    with closing(stream(make, -(-len(index) // batch_size), workers, pin=device.type == "cuda")) as batches:
        for views, numbers, bad in batches:
            skipped.update(bad)
            if len(numbers):
                yield normalize(views), None if pictures.labels is None else pictures.labels[numbers], numbers


def statistics(
    pictures: Pictures, seed: int = 0, sample_size: int = 1000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, over all pixels with data of a sample of pictures.

    In 0..1, from black to white as `pictures.values` says. Raises UserError when none can be read, or none has data.
    """
    if not pictures.values.plain:
        return _statistics_of_levels(pictures, seed, sample_size)
    # A histogram has all that mean and deviation need: exact whatever the number of pixels, and no sum in float32.
    counts = torch.zeros(pictures.channels, 256, dtype=torch.int64)
    for picture in _sampled(pictures, seed, sample_size):
        for channel, values in enumerate(picture.flatten(1)):
            counts[channel] += values.bincount(minlength=256)
    value = torch.arange(256) / 255
    fraction = counts.double() / counts.sum(1, keepdim=True)
    mean = fraction @ value.double()
    variance = (fraction * (value.double() - mean[:, None]) ** 2).sum(1)
    std = variance.sqrt().clamp(min=1 / 255)  # pictures of one color
    return tuple(round(x, 6) for x in mean.tolist()), tuple(round(x, 6) for x in std.tolist())


def _sampled(pictures: Pictures, seed: int, size: int) -> Iterator[Shaped[Tensor, "C H W"]]:
    """Those of so many pictures, spread over the set, that can be read. Raises UserError when none can."""
    bad, count = dict[int, str](), 0
    for number in sample(len(pictures), size, seed):
        try:
            yield pictures.read(number)
            count += 1
        except BadPicture as error:
            bad[number] = str(error)
    if not count:
        raise all_bad(pictures, bad)


def _statistics_of_levels(
    pictures: Pictures, seed: int, sample_size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """As `statistics`, of pictures of other depths and of ones with holes: by sums in float64."""
    count = torch.zeros(pictures.channels, dtype=torch.float64)
    total, squares = count.clone(), count.clone()
    for picture in _sampled(pictures, seed, sample_size):
        levels = pictures.values.levels(picture).flatten(1).double() / 255
        count += (~levels.isnan()).sum(1)
        total += levels.nansum(1)
        squares += levels.square().nansum(1)
    if not count.all():
        raise UserError(f"{pictures.name}: a channel has no data in any of {min(len(pictures), sample_size)} pictures")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1e-4)  # pictures of one value
    return tuple(round(x, 6) for x in mean.tolist()), tuple(round(x, 6) for x in std.tolist())
