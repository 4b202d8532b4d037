"""Randomness with an address: (seed, stream, step, place, ...) enters, the same numbers leave, on any device.

Nothing here has state. A draw is a hash of its address, so it depends neither on workers, ranks and devices nor on
what was drawn before, and a resumed run meets the same crops and masks. The hash is SplitMix64's finaliser (Steele,
Lea, Flood 2014), written in tensor operations so that it runs in the step, on the device, and under torch.compile.
"""

import zlib
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; `>>` on int64 would copy the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def rng_keys(*address: int | str | Tensor) -> Int64[Tensor, "*shape"]:
    """One 64-bit key for each element of the broadcast address.

    `address` mixes names of streams, integers and integer tensors, such as `("mask", seed, step, positions)`.
    """
    key = torch.zeros((), dtype=torch.int64)
    for item in address:
        if isinstance(item, str):
            item = zlib.crc32(item.encode())
        if not isinstance(item, Tensor):
            item = torch.tensor(item, dtype=torch.int64)
        # The key so far goes in unmixed and each item mixed: (1, 2) and (2, 1) are different addresses.
        key = _mix(key.to(item.device) + _GOLDEN + _mix(item.to(torch.int64) + _GOLDEN))
    return key


def following(keys: Int64[Tensor, "*shape"], number: int) -> Int64[Tensor, "*shape"]:
    """Keys that follow from others, on their device and under torch.compile; each `number` of `integer` gives others.

    `rng_keys` would bring them to the CPU, where names and numbers of an address are.
    """
    return _mix(_mix(keys + _GOLDEN) + number)


def uniform(key: Int64[Tensor, "*B"], n: int, stream: int = 0) -> Float[Tensor, "*B n"]:
    """`n` float32 numbers in [0, 1) for each key, with 24 random bits; each `stream` gives others."""
    # The counter is mixed before it meets a constant factor: torch.compile's CPU code for `arange * constant` writes
    # past the end of rows that are no multiple of its vector width (seen with torch 2.15).
    counter = _mix(torch.arange(1, n + 1, device=key.device) ^ (stream << 32))
    bits = _mix(_mix(key.unsqueeze(-1) + counter) + key.unsqueeze(-1))
    return (_shift(bits, 40)).to(torch.float32) * 2.0**-24


def integer(*address: Any) -> int:
    """One non-negative 63-bit integer for an address: a seed for generators that want one."""
    return int(rng_keys(*address)) & (2**63 - 1)
