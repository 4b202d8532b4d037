"""A set of pictures, whatever holds them: a number enters, a picture in its own depth or its label leaves."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.classes import UNLABELED, Labels, in_order, number_values
from mimkit.data.decode import BadPicture, Header
from mimkit.data.reading import Reading
from mimkit.data.tiff import Box
from mimkit.data.values import FULL, Storage, Values, given_values, measured_values

Split = Literal["train", "test", "all"]
_SAMPLE = 256  # pictures whose values tell black and white, where their type does not


class Pictures(ABC):
    """Pictures `0 .. len - 1`. Cheap to hand to worker processes: no Python object per picture."""

    name: str  # what the user called it
    labels: Int64[Tensor, " n"] | None = None  # -1: a picture without one; None: no picture has one
    classes: tuple[str, ...] | None = None  # names of the labels, of all splits together; None where there are none
    all_classes: tuple[str, ...] | None = None  # the same where only another split of the set has labels
    named: bool = False  # whether class names mean the same in other sources: words do, bare numbers do not
    no_labels: str = ""  # why there are none
    notes: tuple[str, ...] = ()  # lines about what was found, for whoever opens the pictures to print once
    has_test: bool = False  # whether the source has a test split of its own
    reading: Reading = Reading()  # how files become pictures
    owners: Int64[Tensor, " n"] | None = None  # of tiles: which picture each is of
    remote: bool = False  # whether they lie in an object store, where neighbors are best read together

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def storage(self) -> Storage:
        """Channels and type of what `read` gives."""

    @property
    def channels(self) -> int:
        """Color channels that `read` gives."""
        return self.storage.channels

    @cached_property
    def values(self) -> Values:
        """What the stored numbers mean: as the reading says, else by what a sample of the pictures uses."""
        values = given_values(self.reading, self.storage)
        return measured_values(self._readable(_SAMPLE), self.reading, self.storage) if values is None else values

    @property
    def about_values(self) -> str:
        """A line about what stored numbers were taken for; empty for 8-bit pictures without a range of their own."""
        if not self.values.plain:
            return str(self.values)
        if self.reading.value_range in (None, FULL[torch.uint8]):
            return ""
        return "8-bit, taken as they are: a value range is for other depths, or lies inside 0 to 255"

    def _readable(self, count: int) -> Iterator[Shaped[Tensor, "C H W"]]:
        """Those of `count` pictures, spread over the set, that can be read."""
        for i in sample(len(self), count):
            try:
                yield self.read(i)
            except BadPicture:
                continue

    @property
    def resolved(self) -> Reading:
        """The reading with what it left open: later pictures that are read by it become what these are."""
        storage, values = self.storage, self.values
        value_range = None if values.plain else values.pairs
        nodata = storage.nodata if self.reading.nodata is None else self.reading.nodata
        return replace(self.reading, channels=storage.channels, value_range=value_range, nodata=nodata)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the content does; for caches of what was computed from it."""

    @abstractmethod
    def read(self, i: int) -> Shaped[Tensor, "C H W"]:
        """Picture `i`, upright, in its own depth: `values` says what the numbers mean. Raises BadPicture."""

    @abstractmethod
    def size(self, i: int) -> tuple[int, int]:
        """Height and width of picture `i` from its header. Raises BadPicture."""

    def header(self, i: int) -> Header:
        """What picture `i` says of itself before its pixels are decoded. Raises BadPicture."""
        return Header(*self.size(i), self.channels, str(self.storage.dtype).removeprefix("torch."))

    @abstractmethod
    def where(self, i: int) -> str:
        """Where picture `i` lies, for messages."""

    @property
    def unlabeled_count(self) -> int:
        """How many pictures of a set with labels have none."""
        return 0 if self.labels is None else int((self.labels < 0).sum())

    def set_labels(self, labels: Labels) -> None:
        """Take these labels. With no picture of this split labeled there are none, but the classes stay known."""
        self.all_classes, self.named, self.no_labels = labels.classes, labels.named, labels.reason
        if labels.numbers is not None and bool((labels.numbers >= 0).any()):
            self.labels, self.classes = labels.numbers, labels.classes
        elif not self.no_labels:
            self.no_labels = f"none of these {len(self):,} pictures has one" if labels.classes else "nothing names any"

    def get_labels(self) -> Labels:
        """What `set_labels` took."""
        labels = self.labels
        if labels is None and self.all_classes:
            labels = torch.full((len(self),), UNLABELED)
        return Labels(numbers=labels, classes=self.all_classes, named=self.named, reason=self.no_labels)

    def read_as(self, reading: Reading) -> bool:
        """Whether these pictures are already what this reading makes of their files; labels aside."""
        reading = replace(reading, label_column=self.reading.label_column)
        return reading in (replace(self.reading, channels=self.channels), self.resolved)

    def read_box(self, i: int, box: Box) -> Shaped[Tensor, "C h w"]:
        """A box (row, column, height, width) of picture `i`. Raises BadPicture."""
        row, column, height, width = box
        return self.read(i)[:, row : row + height, column : column + width]

    def tensor(self) -> Shaped[Tensor, "n C H W"] | None:
        """All pictures at once when they are decoded already, else None."""
        return None


class Decoded(Pictures):
    """Pictures in memory as one uint8 tensor."""

    def __init__(
        self,
        name: str,
        pixels: UInt8[Tensor, "n C H W"],
        labels: Int64[Tensor, " n"] | None = None,
        classes: tuple[str, ...] | None = None,
        *,
        has_test: bool = False,
        channels: int | None = None,
    ) -> None:
        if channels not in (None, 1, 3):
            raise UserError(f"{name} has {pixels.shape[1]} channels; images.channels can be 1 or 3, not {channels}")
        if channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        elif channels == 1 and pixels.shape[1] == 3:
            luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            # In pieces: as float32 the whole set would take four times its room.
            pieces = pixels.split(1024)
            pixels = torch.cat([(piece * luma).sum(1, keepdim=True).round().to(torch.uint8) for piece in pieces])
        self.name, self.has_test = name, has_test
        self._pixels = pixels.contiguous()
        if labels is None:
            self.set_labels(Labels())
        else:
            named = classes is not None
            self.set_labels(
                Labels(numbers=labels, classes=classes, named=True) if named else number_values(labels.tolist())
            )

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def storage(self) -> Storage:
        return Storage(self._pixels.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        # Some hundred pictures tell sets apart; hashing all would take longer than the work that is cached.
        few = self._pixels[:: max(1, len(self) // 512)].numpy()
        return digest(self.name, tuple(self._pixels.shape), few.tobytes())

    def read(self, i: int) -> Tensor:
        return self._pixels[i]

    def size(self, i: int) -> tuple[int, int]:
        return self._pixels.shape[2], self._pixels.shape[3]

    def where(self, i: int) -> str:
        return f"{self.name} picture {i}"

    def tensor(self) -> Tensor:
        return self._pixels


class Joined(Pictures):
    """Several sources one after the other.

    Labels are joined by class name; pictures of a source without labels have none. Where names mean nothing beyond
    their own source, labels are kept of one labeled source alone, and with several all are dropped.
    """

    def __init__(self, sources: Sequence[Pictures]) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        self.name = " + ".join(source.name for source in sources)
        self.reading = sources[0].reading
        self.has_test, self.remote = all(s.has_test for s in sources), any(s.remote for s in sources)
        # By the classes of all splits, so that every split is joined alike.
        labeled = [source for source in sources if source.all_classes]
        bare = [source.name for source in labeled if not source.named]
        notes = [note for source in sources for note in source.notes]
        if not labeled:
            self.set_labels(Labels(reason=next((source.no_labels for source in sources if source.no_labels), "")))
        elif bare and len(labeled) > 1:
            others = " and ".join(source.name for source in labeled if source.name != bare[0])
            reason = (
                f"the classes of {bare[0]} are bare numbers, which nothing matches with those of {others or 'more'}: "
                "name them (class folders, or words in the column 'label')"
            )
            notes.append(f"labels are not used: {reason}")
            self.set_labels(Labels(reason=reason))
        else:
            self.set_labels(_joined_labels(sources))
        self.notes = tuple(dict.fromkeys(notes))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def storage(self) -> Storage:
        return self.sources[0].storage

    @property
    def fingerprint(self) -> str:
        return digest(*(source.fingerprint for source in self.sources))

    def locate(self, i: int) -> tuple[Pictures, int]:
        """The source that holds picture `i`, and its number there."""
        number = int(np.searchsorted(self._ends, i, side="right"))
        source = self.sources[number]
        return source, i - int(self._ends[number]) + len(source)

    def read(self, i: int) -> Tensor:
        source, place = self.locate(i)
        return source.read(place)

    def read_box(self, i: int, box: Box) -> Tensor:
        source, place = self.locate(i)
        return source.read_box(place, box)

    def size(self, i: int) -> tuple[int, int]:
        source, place = self.locate(i)
        return source.size(place)

    def header(self, i: int) -> Header:
        source, place = self.locate(i)
        return source.header(place)

    def where(self, i: int) -> str:
        source, place = self.locate(i)
        return source.where(place)


def _joined_labels(sources: Sequence[Pictures]) -> Labels:
    """Labels of sources whose class names mean the same, or of which one alone has labels."""
    classes = in_order(name for source in sources for name in source.all_classes or ())
    number = {name: i for i, name in enumerate(classes)}
    numbers = []
    for source in sources:
        labels = source.get_labels().numbers
        if labels is None:
            labels = torch.full((len(source),), UNLABELED)
        # Sources may number the same class otherwise: by way of its name each gets the number of all. The last entry
        # is that of -1.
        table = torch.tensor([*(number[name] for name in source.all_classes or ()), UNLABELED])
        numbers.append(table[labels])
    return Labels(numbers=torch.cat(numbers), classes=classes, named=any(source.named for source in sources))


class Subset(Pictures):
    """Some pictures of another set, by number."""

    def __init__(self, whole: Pictures, index: Int64[Tensor, " m"]) -> None:
        self._whole, self._index = whole, index
        self.name, self.notes, self.has_test = whole.name, whole.notes, whole.has_test
        self.reading, self.remote = whole.reading, whole.remote
        self.owners = None if whole.owners is None else whole.owners[index]
        self.set_labels(whole.get_labels().at(index))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def storage(self) -> Storage:
        return self._whole.storage

    @property
    def values(self) -> Values:
        return self._whole.values

    @property
    def fingerprint(self) -> str:
        return digest(self._whole.fingerprint, self._index.numpy().tobytes())

    def read(self, i: int) -> Tensor:
        return self._whole.read(int(self._index[i]))

    def read_box(self, i: int, box: Box) -> Tensor:
        return self._whole.read_box(int(self._index[i]), box)

    def size(self, i: int) -> tuple[int, int]:
        return self._whole.size(int(self._index[i]))

    def header(self, i: int) -> Header:
        return self._whole.header(int(self._index[i]))

    def where(self, i: int) -> str:
        return self._whole.where(int(self._index[i]))

    def tensor(self) -> Tensor | None:
        return None if (pixels := self._whole.tensor()) is None else pixels[self._index]


def split_by_address(pictures: Pictures, split: Split, *, by_class: bool = True) -> Pictures:
    """A set without a test split of its own: 80 % are `train`, 20 % `test`, always the same ones; `all` is all.

    With labels 20 % of each class are `test`, of two pictures or more at least one; unlabeled ones are `train`.
    Without `by_class` labels do not matter, as before version 0.3.

    Raises UserError for fewer than 5 pictures, and for classes of one picture each.
    """
    if split == "all":
        return pictures
    if len(pictures) < 5:
        raise UserError(f"{pictures.name} has {len(pictures)} pictures: too few to set some apart for a test")
    order = rng_keys("split", torch.arange(len(pictures))).argsort()
    if pictures.labels is None or not by_class:
        # By address, not by position: in folders of classes the last fifth would be some classes alone.
        tested = round(0.2 * len(pictures))
        return _apart(pictures, (order[:tested] if split == "test" else order[tested:]).sort().values)
    counts = torch.bincount(pictures.labels[pictures.labels >= 0], minlength=len(pictures.classes or ()))
    quota = (0.2 * counts).round().long().clamp(min=1) * (counts > 1)
    if not quota.any():
        raise UserError(
            f"{pictures.name} has one picture of each class: give two or more, to set some apart for a test"
        )
    order = order[pictures.labels[order] >= 0]
    in_test = torch.zeros(len(pictures), dtype=torch.bool)
    in_test[order[place_in_class(pictures.labels[order]) < quota[pictures.labels[order]]]] = True
    subset = _apart(pictures, (in_test if split == "test" else ~in_test).nonzero().flatten())
    single = [name for name, count in zip(pictures.classes or (), counts.tolist(), strict=True) if count == 1]
    if single:
        subset.notes += (f"classes of one picture, which only train: {first_few(single)}",)
    return subset


def _apart(pictures: Pictures, index: Tensor) -> Subset:
    """A part of what has no test split of its own, or of no use."""
    subset = Subset(pictures, index)
    subset.has_test = False
    return subset


def place_in_class(labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """How many before each have its label: 0 for the first of each class. No label is below 0."""
    counts = torch.bincount(labels)
    order = labels.argsort(stable=True)  # class after class, in each as they come
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
    return rank


def first_few(names: Sequence[str], count: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    # Names of files need not be valid text, and this is printed.
    return ", ".join(names[:count]).encode(errors="replace").decode() + more


def sample(n: int, size: int, seed: int = 0) -> list[int]:
    """`size` different numbers below `n` by address, in increasing order; all when there are no more."""
    if n <= size:
        return list(range(n))
    edges = torch.arange(size + 1) * n // size  # one from each of `size` equal stretches
    return (edges[:-1] + rng_keys("sample", seed, torch.arange(size)) % edges.diff()).tolist()


def digest(*parts: object) -> str:
    """A short hash of byte strings and of anything with a faithful repr."""
    total = hashlib.sha1(usedforsecurity=False)
    for item in parts:
        total.update(item if isinstance(item, bytes) else repr(item).encode())
        # A separator, so that ("ab", "c") and ("a", "bc") differ.
        total.update(b"\0")
    return total.hexdigest()[:20]
