"""The order of a run: a position in it enters; which epoch that is and which picture stands there leaves.

The order is a formula without state: a keyed permutation (a Feistel network with cycle walking; Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002) of any number of pictures, computed for the places that are asked for.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import integer, rng_keys

VERSION: Final = 2
"""Of the order of new runs; 1, a `torch.randperm` for each epoch, is that of runs from before version 0.3."""
BLOCK = 256  # pictures that lie side by side and are read together, where there are lanes
WINDOW = 4096  # pictures of a lane that are mixed with each other
MOST_LANES = 64  # by default
_ROUNDS = 6


def permuted(key: Int64[Tensor, "*#B"], places: Int64[Tensor, "*B"], n: int) -> Int64[Tensor, "*B"]:
    """Where the places 0 .. n - 1 come to stand in the permutation of n things that the key names."""
    bits = max(2, (n - 1).bit_length())
    low = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
    # In NumPy, whose small operations cost a fifth of torch's; its unsigned numbers wrap around.
    unsigned = np.broadcast_to(key.numpy().astype(np.uint64), places.shape)
    round_keys = [_mix(unsigned + np.uint64(number)) for number in range(_ROUNDS)]

    def shuffled(x: np.ndarray, outside: np.ndarray) -> np.ndarray:
        high, rest = x >> low, x & low_mask
        for number, round_key in enumerate(round_keys):
            if number % 2:
                rest = rest ^ (_mix(high + round_key[outside]) & low_mask)
            else:
                high = high ^ (_mix(rest + round_key[outside]) & high_mask)
        return high << low | rest

    result = places.numpy().astype(np.uint64)
    # The network permutes a power of two, less than twice n or 4: what falls outside walks on until it is inside.
    outside = np.ones(result.shape, bool)
    while outside.any():
        result[outside] = shuffled(result[outside], outside)
        outside &= result >= n
    return torch.from_numpy(result.astype(np.int64))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, as in `core.randomness`."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Order:
    """Which picture stands at which position of a run: the same whatever ranks, workers and interruptions.

    Without lanes each epoch of n positions is a permutation of all pictures.

    With lanes a step takes equally many pictures of each. A lane has its own share of the blocks of an epoch, and what
    it shows is mixed within windows of some thousand pictures: a process that has a few lanes reads a few blocks at a
    time. An epoch then shows the same number of pictures in each lane, so up to `lanes - 1` of them, others each time,
    wait for the next one.

    Raises UserError where lanes do not go into a step, or are too many for the pictures.
    """

    seed: int
    n: int
    """Pictures in the set."""
    batch_size: int
    """Pictures in a step, over all ranks."""
    lanes: int = 1
    window: int = WINDOW
    """Pictures of a lane that are mixed with each other; whole blocks."""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.batch_size % self.lanes:
            fits = max(number for number in range(1, max(2, self.lanes)) if self.batch_size % number == 0)
            raise UserError(
                f"a step of {self.batch_size} pictures cannot take equally many of {self.lanes} lanes: use {fits} lanes"
            )
        if self.lanes > 1 and self.lanes > self.n:
            raise UserError(f"{self.n} pictures are too few for {self.lanes} lanes: use {max(1, self.n // BLOCK)}")
        if self.window < BLOCK:
            raise UserError(f"a window of {self.window} pictures is less than a block: use {BLOCK} or more")

    def at(self, position: Int64[Tensor, " P"]) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
        """Epoch and picture at each position of the run."""
        if self.lanes > 1:
            return self._in_lanes(position)
        epoch, place = position // self.n, position % self.n
        picture = torch.empty_like(position)
        for number in epoch.unique().tolist():  # a step may cover the end of one epoch and the beginning of the next
            here = epoch == number
            if self.version == 1:
                picture[here] = _permutation(self.seed, number, self.n)[place[here]]
            else:
                picture[here] = permuted(rng_keys("order", self.seed, number), place[here], self.n)
        return epoch, picture

    def _in_lanes(self, position: Tensor) -> tuple[Tensor, Tensor]:
        share = self.batch_size // self.lanes
        step, place = position // self.batch_size, position % self.batch_size
        lane, time = place // share, step * share + place % share
        length = self.n // self.lanes
        epoch, time = time // length, time % length
        picture = torch.empty_like(position)
        window = self.window // BLOCK * BLOCK
        for number in epoch.unique().tolist():
            for start in (time[epoch == number] // window * window).unique().tolist():
                here = (epoch == number) & (time // window * window == start)
                keys = rng_keys("window", self.seed, number, start, lane[here])
                mixed = permuted(keys, time[here] - start, min(window, length - start))
                picture[here] = self._picture(number, lane[here], start + mixed)
        return epoch, picture

    def _picture(self, epoch: int, lane: Tensor, place: Tensor) -> Tensor:
        """What a lane holds at a place: blocks of the epoch in a random order, dealt to the lanes in turn."""
        blocks, rest = divmod(self.n // self.lanes, BLOCK)  # of a lane; the rest is its short last block
        count = blocks * self.lanes
        slot, offset = place // BLOCK, place % BLOCK
        last = count * BLOCK + lane * rest + offset
        dealt = (slot * self.lanes + lane).clamp(max=max(0, count - 1))
        block = permuted(rng_keys("blocks", self.seed, epoch), dealt, max(1, count))
        # Turned by another number each epoch: else the same pictures would come last each time, or never.
        turned = torch.where(slot < blocks, block * BLOCK + offset, last) + integer("turn", self.seed, epoch) % self.n
        return turned % self.n

    def substitute(self, epoch: Int64[Tensor, "*P"], picture: Int64[Tensor, "*P"], attempt: int) -> Int64[Tensor, "*P"]:
        """What stands in for pictures that cannot be read: any other; with lanes one that lies near."""
        key = rng_keys("replace", self.seed, epoch, picture, attempt)
        if self.lanes == 1:
            return key % self.n
        first = picture // BLOCK * BLOCK
        return first + key % (self.n - first).clamp(max=BLOCK)


def default_lanes(n: int, batch_size: int) -> int:
    """Lanes for pictures that are read from far: a power of two that divides the step, each with blocks of its own."""
    lanes = MOST_LANES
    while lanes > 1 and (batch_size % lanes or n < 2 * lanes * BLOCK):
        lanes //= 2
    return lanes


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(integer("order", seed, epoch)))
