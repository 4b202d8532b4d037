"""What the files of a run folder hold: JSON of config.json, metrics and result.json enters, the same leaves checked."""

from typing import Any, NotRequired, TypedDict

from mimkit.core.schema import Count, Fraction, Positive, fit, misfit


class Config(TypedDict):
    """config.json; `config` is checked by `core.config`, `resolved` by `train.resolved`."""

    format: NotRequired[Positive]
    mimkit: NotRequired[str | None]
    recipe: str
    started: NotRequired[str]
    config: dict[str, Any]
    resolved: dict[str, Any]
    environment: NotRequired[dict[str, Any]]


class Record(TypedDict):
    """A line of metrics.jsonl; besides, a number for each name."""

    step: Count
    seconds: NotRequired[float]
    knn: NotRequired[Fraction]
    warning: NotRequired[str]


class Result(TypedDict, total=False):
    """result.json, also of a fine-tuning that was measured."""

    steps: Count
    of: Count
    seconds: float
    skipped: Count
    knn: Fraction | None
    accuracy: Fraction
    top5: Fraction
    per_class: dict[str, "ClassScore"]
    confusion: list[list[Count]]
    warning: str


class ClassScore(TypedDict):
    """What became of the pictures of a class."""

    accuracy: Fraction
    pictures: Count
    taken_for: NotRequired[str | None]


def record(data: Any, place: str) -> dict[str, Any]:
    """A line of metrics. Raises Misfit."""
    values = fit(data, Record, place)
    for key, value in values.items():
        if key != "warning" and (not isinstance(value, (int, float)) or isinstance(value, bool)):
            raise misfit(f"{place}.{key}", "a number", value)
    return values
