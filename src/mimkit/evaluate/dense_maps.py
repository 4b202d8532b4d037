"""Annotated pictures enter a frozen extractor; features of patches with what each shows, and whole test maps, leave.

A picture is looked at whole, squashed to the extractor's size. What each patch shows is counted in the untouched
annotation: a pixel belongs to the patch in which its middle lies. `K` is the number of classes, and `A` that of numbers
in an answer: the shares of K classes, or one depth. What is not known is NaN.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from mimkit.core.annotation import VOID, Annotation
from mimkit.core.memory import memory_budget
from mimkit.core.randomness import rng_keys
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.decode import BadPicture
from mimkit.data.normalize import Normalize
from mimkit.data.pictures import sample
from mimkit.data.stream import EvaluationViews, all_bad, stream
from mimkit.data.views import Whole
from mimkit.evaluate.features import refuse_too_large
from mimkit.evaluate.target import Extractor

PLACES = (96, 96)
"""Rows and columns in which places of a picture are told apart, where no model is asked."""
BATCH = 32  # pictures, which come with maps in their own sizes
_LAST = (1 << 63) - 1  # stands behind every key


def truth_of(annotation: Annotation) -> Shaped[Tensor, "H W"]:
    """The classes (int16, VOID) or the depths (float32, NaN) of the pixels of a picture."""
    truth = annotation.depth if annotation.segments is None else annotation.segments
    assert truth is not None  # `Annotated.task` says that one is there
    return truth


def answers_in(truth: Shaped[Tensor, "H W"], grid: tuple[int, int], classes: int) -> Float[Tensor, "N A"]:
    """What each cell of a grid shows: shares of the classes, or the mean depth, of what is known in it; else NaN."""
    # Where a cell is smaller than a pixel, pixels are divided, so that no cell is empty.
    for axis in (0, 1):
        truth = truth.repeat_interleave(-(-grid[axis] // truth.shape[axis]), axis)
    rows, columns = (
        ((2 * torch.arange(side) + 1) * cells) // (2 * side) for side, cells in zip(truth.shape, grid, strict=True)
    )
    cell = rows[:, None] * grid[1] + columns
    cells = grid[0] * grid[1]
    if truth.is_floating_point():
        valid = ~truth.isnan()
        total = torch.bincount(cell[valid], truth[valid].double(), minlength=cells)
        return (total / torch.bincount(cell[valid], minlength=cells)).float()[:, None]
    valid = truth != VOID
    pairs = cell[valid] * classes + truth[valid]
    counts = torch.bincount(pairs, minlength=cells * classes).view(cells, classes)
    return (counts.double() / counts.sum(1, keepdim=True)).float()


def nearest(values: Shaped[Tensor, "h w"], size: tuple[int, int]) -> Shaped[Tensor, "H W"]:
    """Of another size, each pixel as the one in which its middle lies."""
    rows, columns = (
        ((2 * torch.arange(side) + 1) * length) // (2 * side) for side, length in zip(size, values.shape, strict=True)
    )
    return values[rows][:, columns]


@dataclass(frozen=True)
class AnnotatedViews:
    """Batch number -> views of whole pictures, their numbers, bad ones, and what `keep` makes of their maps."""

    pictures: Annotated
    view: Whole
    size: tuple[int, int]
    index: list[int]
    keep: Callable[[list[Tensor]], Any]

    def __call__(self, i: int) -> tuple[Shaped[Tensor, "b C h w"], Int64[Tensor, " b"], list[tuple[int, str]], Any]:
        views, numbers, bad = EvaluationViews(self.pictures, self.view, self.size, self.index, BATCH)(i)
        rows, truths = [], []
        for row, number in enumerate(numbers.tolist()):
            try:
                truths.append(truth_of(self.pictures.annotation(number)))
            except BadPicture as error:
                bad.append((number, str(error)))
                continue
            rows.append(row)
        return views[rows], numbers[rows], bad, self.keep(truths)


@dataclass(frozen=True)
class CellsAndPlaces:
    """Maps of a batch -> answers in the cells of a grid, and what each of PLACES shows."""

    grid: tuple[int, int]
    classes: int

    def __call__(self, truths: list[Tensor]) -> tuple[Float[Tensor, "b N A"], Shaped[Tensor, "b places"]] | None:
        if not truths:
            return None
        answers = [answers_in(truth, self.grid, self.classes) for truth in truths]
        return torch.stack(answers), torch.stack([nearest(truth, PLACES).flatten() for truth in truths])


def packed(truths: list[Tensor]) -> tuple[Shaped[Tensor, " pixels"], Int64[Tensor, "b 2"]]:
    """Maps of several sizes as one tensor, and their sizes: each tensor of a worker takes a file of its own."""
    sizes = torch.tensor([truth.shape for truth in truths], dtype=torch.int64).view(-1, 2)
    return torch.cat([truth.flatten() for truth in truths]) if truths else torch.empty(0), sizes


def unpacked(pixels: Shaped[Tensor, " pixels"], sizes: Int64[Tensor, "b 2"]) -> list[Shaped[Tensor, "_ _"]]:
    """The maps again."""
    pieces = pixels.split(sizes.prod(1).tolist())
    return [piece.view(*size) for piece, size in zip(pieces, sizes.tolist(), strict=True)]


@dataclass(frozen=True)
class Reader:
    """Reads pictures as an extractor wants them, with their maps."""

    extractor: Extractor
    device: torch.device
    workers: int = 0

    def grid(self) -> tuple[int, int, int]:
        """Numbers of a feature, rows and columns of the extractor's maps. Raises UserError where it has none."""
        with torch.inference_mode():
            height, width = self.extractor.size
            maps = self.extractor.maps(torch.zeros(1, self.extractor.channels, height, width, device=self.device))
        return maps.shape[1], maps.shape[2], maps.shape[3]

    def batches(
        self, pictures: Annotated, index: list[int], keep: Callable[[list[Tensor]], Any], skipped: dict[int, str]
    ) -> Iterator[tuple[Float[Tensor, "b D h w"], Int64[Tensor, " b"], Any]]:
        """Feature maps on the device, numbers of the pictures, and what `keep` makes of their maps, in order.

        Those that cannot be read are left out and noted in `skipped`. Raises UserError when that is all.
        """
        extractor, values = self.extractor, pictures.values
        normalize = Normalize(extractor.mean, extractor.std, self.device)
        view = Whole(flip=0.0, interpolation=extractor.interpolation)
        make = AnnotatedViews(pictures, view, extractor.size, index, keep)
        count, console = -(-len(index) // BATCH), Console(stderr=True)
        pin = self.device.type == "cuda"
        with closing(stream(make, count, self.workers, pin=pin)) as results:
            title = f"maps of {escape(pictures.name)}"
            shown = (
                track(results, title, total=count, console=console, transient=True) if console.is_terminal else results
            )
            for views, numbers, bad, truths in shown:
                skipped.update(bad)
                if not len(numbers):
                    continue
                images = normalize(views)
                with torch.inference_mode():
                    maps = extractor.maps(images.nan_to_num_(0.0) if values.holes else images)
                yield maps, numbers, truths
        if len(skipped) == len(index):
            raise all_bad(pictures, skipped)


@dataclass(frozen=True)
class Bank:
    """Patches of training pictures, on the CPU: of each picture the same number, drawn by address, known ones first."""

    features: Float[Tensor, "n P D"]
    answers: Float[Tensor, "n P A"]
    """NaN where nothing is known, which only follows what is."""
    places: "Places"
    learned: Bool[Tensor, " A"]
    """Which classes any pixel has."""
    grid: tuple[int, int]

    @property
    def valid(self) -> Bool[Tensor, "n P"]:
        """Which patches show something that is known."""
        return ~self.answers[:, :, 0].isnan()


class Places:
    """What the training pictures show at each of PLACES, whatever they look like."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._total = torch.zeros(PLACES[0] * PLACES[1], max(1, classes), dtype=torch.float64)
        self._count = torch.zeros(len(self._total), 1, dtype=torch.float64)

    def add(self, shown: Shaped[Tensor, "b places"]) -> None:
        """Count a batch: classes with VOID, or depths with NaN."""
        if self.classes:
            pictures, place = (shown != VOID).nonzero(as_tuple=True)
            pairs = place * self.classes + shown[pictures, place]
            self._total += torch.bincount(pairs, minlength=self._total.numel()).view_as(self._total)
        else:
            self._total += shown.nansum(0).double()[:, None]
        self._count += ((shown != VOID) & ~shown.isnan()).sum(0)[:, None]

    def constant(self) -> float:
        """The commonest class, or the mean depth."""
        total = self._total.sum(0)
        return float(total.argmax() if self.classes else total / self._count.sum())

    def answer(self) -> Shaped[Tensor, "h w"]:
        """The commonest class (int64) or the mean depth (float32) of each place; the constant where none is known."""
        at_each = self._total.argmax(1).double() if self.classes else (self._total / self._count)[:, 0]
        filled = torch.where(self._count[:, 0] > 0, at_each, self.constant()).view(PLACES)
        return filled.long() if self.classes else filled.float()


def gather(reader: Reader, pictures: Annotated, limit: int | None, skipped: dict[int, str]) -> Bank:
    """Features and answers of the patches of training pictures, of `limit` of them spread over the set if given.

    As many patches of each picture as a quarter of the memory holds. Raises UserError when that is none.
    """
    index = sample(len(pictures), len(pictures) if limit is None else limit)
    (width, *sides), classes = reader.grid(), len(pictures.categories) if pictures.task == "segment" else 0
    grid, answered = (sides[0], sides[1]), max(1, classes)
    each, room = 4 * (width + answered), memory_budget()
    refuse_too_large("patches", len(index), each, room)
    patches = min(grid[0] * grid[1], room // (each * len(index)))
    features = torch.empty(len(index), patches, width)
    answers = torch.empty(len(index), patches, answered)
    learned, places, done = torch.zeros(answered, dtype=torch.bool), Places(classes), 0
    for maps, numbers, (cells, shown) in reader.batches(pictures, index, CellsAndPlaces(grid, classes), skipped):
        places.add(shown)
        learned |= (cells > 0).flatten(0, 1).any(0)
        order = _known_first(numbers, ~cells[:, :, 0].isnan())[:, :patches]
        here = slice(done, done + len(numbers))
        tokens = maps.flatten(2).transpose(1, 2).cpu()
        features[here] = tokens.gather(1, order[:, :, None].expand(-1, -1, width))
        answers[here] = cells.gather(1, order[:, :, None].expand(-1, -1, answered))
        done += len(numbers)
    return Bank(features[:done], answers[:done], places, learned, grid)


def _known_first(numbers: Int64[Tensor, " b"], valid: Bool[Tensor, "b N"]) -> Int64[Tensor, "b N"]:
    """Patches of each picture in an order by address, those behind of which nothing is known."""
    keys = rng_keys("patches", numbers[:, None], torch.arange(valid.shape[1]))
    return torch.where(valid, keys, _LAST).argsort(dim=1, stable=True)
