"""Balance of classes: a result of an evaluation enters, what its accuracies have to be read against leaves in words."""

from collections.abc import Sequence
from typing import Any

from mimkit.core.metrics import unbalanced

FEW = 5  # names in a line


def needs_balance(result: dict[str, Any], classes: int) -> bool:
    """Whether the accuracy alone would mislead; not of a result of version 0.2, which does not say it."""
    return "largest_class" in result and unbalanced(result["largest_class"]["share"], classes)


def missing_classes(result: dict[str, Any]) -> list[str]:
    """A line about classes that were never learned, and one about those that were not tested."""
    lines = (
        ("unseen_classes", "no picture to learn from, so always wrong"),
        ("untested_classes", "no measured picture, so nothing is said of"),
    )
    return [f"{words}: {few(names)}" for key, words in lines if (names := result.get(key))]


def few(names: Sequence[str]) -> str:
    """The first names, and how many there are beyond."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
