"""What is broken in annotations: names enter; a note of what was left out leaves, or an error when that is too much."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mimkit.core.errors import UserError
from mimkit.data.annotations.pairs import Pairs
from mimkit.data.pictures import first_few

BAD_FRACTION = 0.01
"""The share of annotations above which broken ones are no accident."""


def note_of(places: Sequence[str], total: int, kind: str, bad_fraction: float, action: str = "left out") -> str:
    """A line about broken entries: how many, and the first three.

    Args:
        total: how many entries there are, whole ones too.
        kind: what is wrong, after the count: `boxes lie outside of their picture`.
        action: what happens to them.

    Raises UserError when they are more than this share of all.
    """
    line = f"{len(places):,} {kind}: {first_few(list(places), 3)}"
    if len(places) > bad_fraction * total:
        raise UserError(f"{line} (of {total:,}; more than {100 * bad_fraction:g} % is no accident: mend them)")
    return f"{action}: {line}"


def leave_out(
    pairs: Pairs, numbers: Sequence[int], reasons: Mapping[str, str], kind: str, bad_fraction: float
) -> Pairs:
    """Pairs without broken ones, of which a note tells; `reasons` by name. Raises UserError when they are too many."""
    if not numbers:
        return pairs
    places = [f"{name} ({reason})" for name, reason in reasons.items()]
    note = note_of(places, len(pairs.images), kind, bad_fraction)
    rest = pairs.without(numbers)
    if not rest.train or not rest.test:
        raise UserError(f"{note}; then one of the splits is empty")
    return replace(rest, notes=(*rest.notes, note))
