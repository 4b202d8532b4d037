"""Survey: a set of pictures enters; what reading them tells of each, and what that says of the set, leave."""

import hashlib
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimkit.core.memory import cores
from mimkit.data.header import BadPicture, Header
from mimkit.data.pictures import Pictures, sample

_SIDE = 64  # rows and columns of a picture, at most, that tell how bright it is
_DEPTHS = {"uint8": "8-bit", "uint16": "16-bit", "int16": "signed 16-bit"}
_KINDS = {1: "gray", 3: "color"}
_NUMBER = re.compile(r"\d[\d,.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What reading one picture tells."""

    number: int
    height: int
    width: int
    least: tuple[float, ...]
    """Lowest value of each channel, as the file has it; NaN where a channel has no data."""
    most: tuple[float, ...]
    level: float
    """Mean of a part of its pixels, from 0 black to 1 white; NaN without data."""
    empty: float
    """Share of its values that are no data."""
    content: bytes
    """A hash of size and values: equal pictures have equal ones, whatever their files are called."""

    @property
    def blank(self) -> bool:
        """Whether it has one value everywhere, or no data at all."""
        return not any(low < high for low, high in zip(self.least, self.most, strict=True))


@dataclass(frozen=True)
class Survey:
    """A set, and what was learned by reading pictures that are spread over it."""

    pictures: Pictures
    count: int
    """How many were read."""
    facts: list[Facts]
    """Of those that can be read, in the order of the set."""
    bad: dict[int, str]
    """Why the others cannot."""
    headers: Counter[Header]
    """What all say of themselves, sizes aside."""
    seconds: float

    def where(self, facts: Facts) -> str:
        """Where a picture lies."""
        return self.pictures.where(facts.number)

    def label(self, facts: Facts) -> str | None:
        """The class of a picture, where it has one."""
        labels, names = self.pictures.labels, self.pictures.classes
        number = -1 if labels is None else int(labels[facts.number])
        return None if number < 0 else names[number] if names else str(number)


def survey(pictures: Pictures, limit: int) -> Survey:
    """Read at most so many pictures."""
    numbers = sample(len(pictures), limit)
    _ = pictures.values  # found once, before threads ask for it
    facts: list[Facts] = []
    bad: dict[int, str] = {}
    headers: Counter[Header] = Counter()
    start = last_line = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:  # threads do: decoders let go of the interpreter's lock
        for count, (number, header, result) in enumerate(pool.map(lambda n: _look(pictures, n), numbers)):
            if header is not None:
                headers[header._replace(height=0, width=0)] += 1
            if isinstance(result, str):
                bad[number] = result
            else:
                facts.append(result)
            if time.perf_counter() - last_line > 10:
                last_line = time.perf_counter()
                print(f"read {count:,} of {len(numbers):,} pictures", file=sys.stderr, flush=True)
    return Survey(pictures, len(numbers), facts, bad, headers, time.perf_counter() - start)


def _look(pictures: Pictures, number: int) -> tuple[int, Header | None, Facts | str]:
    """A picture's header, and what it is like or why it cannot be read."""
    header = None
    try:
        header = pictures.header(number)
        raw = pictures.read(number)
    except BadPicture as error:
        return number, header, str(error)
    values, height, width = pictures.values, raw.shape[1], raw.shape[2]
    # Decoders leave channels last, which is slow to look through. NumPy copies: torch's own threads would fight ours.
    numbers = np.ascontiguousarray(raw.numpy())
    empty = np.broadcast_to(values.empty(raw).numpy(), numbers.shape) if values.holes else None
    content = hashlib.sha1(repr(raw.shape).encode() + numbers.data, usedforsecurity=False)
    least, most = _extremes(numbers, empty)
    few = raw[:, :: -(-height // _SIDE), :: -(-width // _SIDE)]
    return (
        number,
        header,
        Facts(
            number=number,
            height=height,
            width=width,
            least=least,
            most=most,
            level=float(values.levels(few).nanmean()) / 255,
            empty=0.0 if empty is None else float(empty.mean()),
            content=content.digest(),
        ),
    )


def _extremes(values: np.ndarray, empty: np.ndarray | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The lowest and the highest value of each channel, of those that are data."""
    if empty is None or not empty.any():
        flat = values.reshape(len(values), -1)
        return tuple(flat.min(1).tolist()), tuple(flat.max(1).tolist())
    rows = [channel[~hole] for channel, hole in zip(values, empty, strict=True)]
    pairs = [(float(row.min()), float(row.max())) if len(row) else (float("nan"),) * 2 for row in rows]
    return tuple(low for low, _ in pairs), tuple(high for _, high in pairs)


def mix(headers: Counter[Header]) -> dict[str, int]:
    """How many pictures are of which channels and depth, as 'gray, 16-bit', the most frequent first."""
    kinds: Counter[str] = Counter()
    for header, count in headers.items():
        channels = _KINDS.get(header.channels, f"{header.channels} channels")
        kinds[f"{channels}, {_DEPTHS.get(header.dtype, header.dtype)}"] += count
    return dict(kinds.most_common())


def stacks(headers: Counter[Header]) -> dict[str, int]:
    """How many pictures are one plane of a stack, as '12 planes, axes ZYX'."""
    kinds: Counter[str] = Counter()
    for header, count in headers.items():
        if header.planes > 1:
            kinds[f"{header.planes} planes" + (f", axes {header.axes}" if header.axes else "")] += count
    return dict(kinds.most_common())


def reasons(bad: dict[int, str]) -> dict[str, list[int]]:
    """Bad pictures by what is wrong with them, numbers in the words aside; the most frequent first."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    first: dict[str, str] = {}
    for number, reason in bad.items():
        groups[first.setdefault(_NUMBER.sub("0", reason), reason)].append(number)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def used_range(facts: Iterable[Facts]) -> dict[str, list[float]]:
    """The lowest and the highest value of each channel in all pictures that have data there."""
    with np.errstate(all="ignore"):
        least = np.fmin.reduce(np.array([each.least for each in facts]))
        most = np.fmax.reduce(np.array([each.most for each in facts]))
    return {"least": least.tolist(), "most": most.tolist()}


def duplicates(train: Survey, test: Survey | None) -> dict[str, Any]:
    """Pictures with the same values.

    Returns:
        in_train: how many pictures of the training split are further copies of others; in_test: the same; across: how
        many of the test split are in the training split too, None without one; conflicts: how many groups of equal
        pictures have several classes; groups: places of equal pictures as
        (split, facts), those across first.
    """
    groups: defaultdict[bytes, list[tuple[str, Facts]]] = defaultdict(list)
    for name, split in (("train", train), ("test", test)):
        for facts in split.facts if split else []:
            groups[facts.content].append((name, facts))
    equal = [group for group in groups.values() if len(group) > 1]
    copies = {"train": 0, "test": 0}
    across = conflicts = 0
    for group in equal:
        counts = Counter(name for name, _ in group)
        for name in copies:
            copies[name] += max(0, counts[name] - 1)
        across += counts["test"] if counts["train"] else 0
        classes = {(train if name == "train" or test is None else test).label(facts) for name, facts in group}
        conflicts += len(classes - {None}) > 1
    equal.sort(key=lambda group: len({name for name, _ in group}) == 1)
    return {
        "in_train": copies["train"],
        "in_test": copies["test"],
        "across": across if test else None,
        "conflicts": conflicts,
        "groups": equal,
    }


def odd_ones(facts: list[Facts]) -> dict[str, Facts]:
    """The pictures that stand out, by what makes them do so."""
    odd: dict[str, Facts] = {}
    by_area = sorted(facts, key=lambda each: each.height * each.width)
    if by_area[0].height * by_area[0].width < by_area[-1].height * by_area[-1].width:
        odd |= {"smallest": by_area[0], "largest": by_area[-1]}
    by_level = sorted((each for each in facts if each.level == each.level), key=lambda each: each.level)
    if len(by_level) > 1:
        odd |= {"darkest": by_level[0], "brightest": by_level[-1]}
    emptiest = max(facts, key=lambda each: each.empty)
    if emptiest.empty > 0:
        odd["most without data"] = emptiest
    if blank := next((each for each in facts if each.blank), None):
        odd["one value everywhere"] = blank
    return odd
