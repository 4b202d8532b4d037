"""What the stored numbers of pictures mean: raw values enter, levels in 0..255 leave, NaN where nothing was measured.

Pictures keep their own depth until they are cut. Then they become levels in float32, which everything behind takes:
resizing, colors and normalization are the same for 8-bit and for all others.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.reading import Reading, Transform

STORED = {
    "bool": torch.uint8,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "int8": torch.int16,
    "int16": torch.int16,
    "uint32": torch.float32,
    "int32": torch.float32,
    "uint64": torch.float32,
    "int64": torch.float32,
    "float16": torch.float32,
    "float32": torch.float32,
    "float64": torch.float32,
}
"""What values of a file are held as, by NumPy's name of their type."""
DEPTHS = {torch.uint8: "8-bit", torch.uint16: "16-bit", torch.int16: "signed 16-bit", torch.float32: "float"}
FULL = {torch.uint8: (0.0, 255.0), torch.uint16: (0.0, 65535.0), torch.int16: (0.0, 32767.0), torch.float32: (0.0, 1.0)}
"""Black and white of a type where nobody looked at the data: of single pictures, and of runs of versions before 0.3."""
PERCENTILES = (0.1, 99.9)  # of the values of a sample: what lies outside is a hot pixel or a fleck, and is clipped
_FREQUENT = 1e-3  # share of the values from which one that lies apart is no accident
_PIXELS = 4096  # values of a channel that a picture of the sample gives


@dataclass(frozen=True)
class Storage:
    """What the pictures of a set are held as."""

    channels: int
    dtype: torch.dtype = torch.uint8
    nodata: float | None = None
    """Integers that stand for no data; in float pictures that is NaN."""


@dataclass(frozen=True, kw_only=True)
class Values:
    """The meaning of stored numbers: which are black and white in each channel, and which are none."""

    dtype: torch.dtype = torch.uint8
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (255.0,)
    transform: Transform = "none"
    nodata: float | None = None
    apart: float | None = None
    """A frequent value far below or above all others, if there is one: it may well stand for no data."""

    @property
    def plain(self) -> bool:
        """Whether stored numbers are levels already: 8-bit pictures of which nothing else was said."""
        return self == Values()

    @property
    def holes(self) -> bool:
        """Whether pixels can have no data."""
        return self.nodata is not None or self.dtype == torch.float32

    def levels(self, raw: Shaped[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch C H W"]:
        """Values between black and white as 0..255 in float32, clipped; NaN where a pixel has no data.

        `sqrt` takes the root of the share of the way from black to white; `log` takes log(1 + value - black) as a share
        of log(1 + white - black), so it counts in raw units.
        """
        low, span = _ends(self, raw.device)
        share = raw.to(torch.float32, copy=True).sub_(low).div_(span).clamp_(0, 1)  # clamp leaves NaN
        if self.transform == "sqrt":
            share = share.sqrt()
        elif self.transform == "log":
            share = torch.log1p(share * span) / torch.log1p(span)
        levels = share.mul_(255)
        if self.nodata is not None and self.dtype != torch.float32:
            levels.masked_fill_(self.empty(raw), torch.nan)
        return levels

    def empty(self, raw: Shaped[Tensor, "*batch C H W"]) -> Tensor:
        """Which values are no data, in a shape that broadcasts.

        Signed and float bands say so each for itself. In unsigned ones, where the value is a color of its own, a pixel
        has no data if all its bands have that value, as in GDAL's mask of a data set.
        """
        if self.dtype == torch.float32:
            return raw.isnan()
        if self.nodata is None:
            return torch.zeros(raw.shape, dtype=torch.bool, device=raw.device)
        same = raw == self.nodata
        return same if self.dtype == torch.int16 else same.all(dim=-3, keepdim=True)

    @property
    def pairs(self) -> tuple[float, ...]:
        """Black and white as `images.value_range` takes them: one pair where all channels have the same."""
        pairs = list(zip(self.low, self.high, strict=True))
        return pairs[0] if len(set(pairs)) == 1 else tuple(value for pair in pairs for value in pair)

    def __str__(self) -> str:
        """In words, as `16-bit, uses 0.1 to 6 % of its range; scaled by 80 to 4,095`."""
        least, most = FULL[self.dtype]
        ranges = [f"{low:,.6g} to {high:,.6g}" for low, high in zip(self.low, self.high, strict=True)]
        shown = ranges[0] if len(set(ranges)) == 1 else ", ".join(ranges[:4]) + (", ..." if len(ranges) > 4 else "")
        words = DEPTHS[self.dtype]
        if self.dtype in (torch.uint16, torch.int16):
            shares = [f"{100 * (value - least) / (most - least):.2g}" for value in (min(self.low), max(self.high))]
            words += f", uses {shares[0]} to {shares[1]} % of its range"
        words += f"; scaled by {shown}"
        if self.transform != "none":
            words += f", {self.transform}"
        words += f"; no data: {self.nodata:g}" if self.nodata is not None else ""
        if self.apart is None:
            return words
        advice = f"if it is no data, give --images.nodata {self.apart:g}"
        return f"{words}; {self.apart:g} lies far from all others: {advice}"


@lru_cache(maxsize=16)
def _ends(values: Values, device: torch.device) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    """Black, and how far it is to white; made once, since a step would wait for what it sends to a device."""
    low = torch.tensor(values.low, device=device).view(-1, 1, 1)
    return low, torch.tensor(values.high, device=device).view(-1, 1, 1) - low


def given_values(reading: Reading, storage: Storage) -> Values | None:
    """What the reading itself says about values; None where the data have to be looked at.

    8-bit pictures are taken as they are, unless their range lies inside 0..255.

    Raises UserError for a range that is no pair, nor one pair a channel.
    """
    pairs, dtype = reading.value_range, storage.dtype
    if pairs is not None and dtype == torch.uint8 and not (min(pairs) >= 0 and max(pairs) <= 255):
        pairs = None
    if pairs is None:
        if dtype != torch.uint8:
            return None
        pairs = FULL[torch.uint8]
    if len(pairs) not in (2, 2 * storage.channels):
        raise UserError(
            f"images.value_range has {len(pairs)} numbers: give 2, or 2 for each of {storage.channels} channels"
        )
    nodata = reading.nodata if storage.nodata is None else storage.nodata
    nodata = None if dtype == torch.float32 else nodata  # it became NaN when the file was read
    return Values(dtype=dtype, low=pairs[::2], high=pairs[1::2], transform=reading.value_transform, nodata=nodata)


def measured_values(raw: Iterable[Shaped[Tensor, "C H W"]], reading: Reading, storage: Storage) -> Values:
    """Black and white of each channel by robust percentiles of these pictures, integers for integers."""
    blank = Values(dtype=storage.dtype, nodata=storage.nodata)
    channels: list[list[np.ndarray]] = [[] for _ in range(storage.channels)]
    for number, picture in enumerate(raw):
        _, height, width = picture.shape
        places = rng_keys("values", number, torch.arange(min(_PIXELS, height * width))) % (height * width)
        values = picture.flatten(1)[:, places].double()
        empty = blank.empty(picture).expand(picture.shape).flatten(1)[:, places]
        for channel, (row, hole) in enumerate(zip(values.numpy(), empty.numpy(), strict=True)):
            channels[channel].append(row[~hole])
    low, high, apart = [], [], None
    for values in channels:
        every = np.concatenate(values) if values else np.zeros(0)
        apart = lonely_value(every) if apart is None else apart
        black, white = np.percentile(every, PERCENTILES) if len(every) else (0.0, 1.0)
        if storage.dtype != torch.float32:
            black, white = np.floor(black), np.ceil(white)
        # Pictures of one value have no range: theirs is black, and 1 above it white.
        low.append(float(f"{black:.6g}"))
        high.append(float(f"{white:.6g}") if white > black else float(f"{black:.6g}") + 1)
    nodata = None if storage.dtype == torch.float32 else storage.nodata
    return Values(
        dtype=storage.dtype,
        low=tuple(low),
        high=tuple(high),
        transform=reading.value_transform,
        nodata=nodata,
        apart=apart,
    )


def lonely_value(values: np.ndarray) -> float | None:
    """The least or largest value, if it is frequent and lies far from all others; NaN left out before."""
    for end in (values.min, values.max) if len(values) else ():
        lone = values == end()
        others = values[~lone]
        if lone.mean() < _FREQUENT or not len(others):
            continue
        gap = np.abs(others - end()).min()
        if gap > np.ptp(others):
            return float(end())
    return None
