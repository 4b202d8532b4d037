"""What an evaluation writes: its JSON enters, as another command finds it, and leaves checked."""

from typing import Annotated, Any, NotRequired, TypedDict

from mimkit.core.annotation import DENSE_TASKS
from mimkit.core.schema import Count, Fraction, Range, fit, plain
from mimkit.train.saved import ClassScore


class Scores(TypedDict, total=False):
    """Of one pool, or of a fine-tuning."""

    accuracy: Fraction
    low: Fraction | None
    high: Fraction | None
    top5: Fraction | None
    per_class: dict[str, ClassScore] | None


class LargestClass(TypedDict):
    """The class of most pictures, and the accuracy of who always says it."""

    name: str
    share: Fraction


class Measurement(TypedDict):
    """Of one target."""

    kind: str
    headline: NotRequired[str]
    data: NotRequired[str]
    train: NotRequired[Count]
    test: NotRequired[Count]
    largest_class: NotRequired[LargestClass | None]
    results: dict[str, Scores]


class Evaluation(TypedDict):
    """What `--json` of `mimkit evaluate knn`, `probe` and `attentive` holds."""

    results: list[Measurement]


Meters = Annotated[float, Range(0, 1e6)]


class DenseScores(TypedDict, total=False):
    """Of one way to read frozen patches: mIoU or RMSE, with the interval of it."""

    miou: Fraction
    rmse: Meters
    low: Meters | None
    high: Meters | None
    per_class: dict[str, dict[str, float]] | None


class DenseMeasurement(TypedDict):
    """Of one target, by `mimkit evaluate segment` or `depth`."""

    kind: str
    data: NotRequired[str]
    train: NotRequired[Count]
    test: NotRequired[Count]
    results: dict[str, DenseScores]


def check_evaluation(content: dict[str, Any]) -> None:
    """Refuse the JSON of an evaluation that does not hold what its kinds hold. Raises Misfit."""
    for number, entry in enumerate(content["results"]):
        dense = isinstance(entry, dict) and entry.get("kind") in DENSE_TASKS
        fit(plain(entry), DenseMeasurement if dense else Measurement, f"results.{number}")


def is_evaluation(content: dict[str, Any]) -> bool:
    """Whether JSON in a run folder means to be one of these, so that it is checked."""
    results = content.get("results")
    return isinstance(results, list) and any(isinstance(entry, dict) and "kind" in entry for entry in results)
