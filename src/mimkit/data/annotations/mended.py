"""What is broken in annotations: names enter; a note of what was left out leaves, or an error when that is too much."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from mimkit.core.errors import UserError
from mimkit.data.annotations.pairs import Pairs

BAD_FRACTION = 0.01
"""The share of annotations above which broken ones are no accident."""


def few(numbers: Sequence[int], where: Callable[[int], str]) -> str:
    """The first three of these, by name, and how many more there are."""
    more = f" and {len(numbers) - 3:,} more" if len(numbers) > 3 else ""
    # Names of files need not be valid text, and this is printed.
    return ", ".join(where(number) for number in numbers[:3]).encode(errors="replace").decode() + more


def note_of(
    numbers: Sequence[int],
    total: int,
    kind: str,
    where: Callable[[int], str],
    bad_fraction: float,
) -> str:
    """A line about broken entries, which are left out: how many, and the first three.

    Args:
        total: how many entries there are, whole ones too.
        kind: what is wrong, after the count: `boxes lie outside of their picture`.
        where: names an entry by its number.

    Raises UserError when they are more than this share of all.
    """
    line = f"{len(numbers):,} {kind}: {few(numbers, where)}"
    if len(numbers) > bad_fraction * total:
        raise UserError(f"{line} (of {total:,}; more than {100 * bad_fraction:g} % is no accident: mend them)")
    return f"left out: {line}"


def leave_out(pairs: Pairs, numbers: Sequence[int], reasons: Sequence[str], kind: str, bad_fraction: float) -> Pairs:
    """Pairs without broken ones, of which a note tells why; `reasons` of all. Raises UserError for too many."""
    if not len(numbers):
        return pairs
    note = note_of(
        numbers,
        len(pairs.images),
        kind,
        lambda number: f"{os.fsdecode(pairs.labels[number])} ({reasons[number]})",
        bad_fraction,
    )
    rest = pairs.without(numbers)
    if not rest.train or not rest.test:
        raise UserError(f"{note}; then one of the splits is empty")
    return replace(rest, notes=(*rest.notes, note))
