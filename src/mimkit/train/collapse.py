"""Collapse: what the evaluation before the first step found and what a later one does enter; a warning may leave."""

from collections.abc import Mapping, Sequence

NARROW, SPREAD, RANK = 0.35, 0.5, 0.5  # of a spread; of the first spread; of the first effective rank


def collapse(
    record: Mapping[str, float], first: Mapping[str, float], most: int, settings: Sequence[str] = ()
) -> str | None:
    """One line, if the features of an evaluation are nearly alike and those of the first one were not.

    Both spread and rank must have fallen: classes that are far apart may leave few directions, and features that share
    a large mean, as those of masked models do, may still use many. docs/metrics/effective-rank.md has the numbers.

    Args:
        record: with `step`, `feature_spread` and `effective_rank`, or nothing is said.
        first: the same without the step, before the first step; empty if there was none.
        most: the largest rank that so many features of such a width can have.
        settings: of the method, that keep features apart.
    """
    if not {"feature_spread", "effective_rank"} <= record.keys() & first.keys():
        return None
    spread, rank = record["feature_spread"], record["effective_rank"]
    if not (spread < min(NARROW, SPREAD * first["feature_spread"]) and rank < RANK * first["effective_rank"]):
        return None
    return (
        f"warning: features are collapsing at step {record['step']:,}: spread {spread:.2g} "
        f"({first['feature_spread']:.2g} at the start), effective rank {rank:.1f} of at most {most} "
        f"({first['effective_rank']:.1f} at the start); try in a new --run a lower --optimizer.base-lr or a longer "
        f"--schedule.warmup{_or_another(settings)}"
    )


def _or_another(settings: Sequence[str]) -> str:
    flags = [f"--method.{name.replace('_', '-')}" for name in settings]
    return f", or another {' or '.join(flags)}" if flags else ""
