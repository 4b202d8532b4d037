"""Results of dense evaluation enter; one table for people leaves."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from mimkit.evaluate.balance import missing_classes

NAMES = {"knn": "kNN", "linear": "linear"}


@dataclass(frozen=True)
class Column:
    """A column of numbers."""

    head: str
    key: str
    form: str


COLUMNS = {
    "segment": (
        Column("mIoU", "miou", ".1%"),
        Column("pixel accuracy", "pixel_accuracy", ".1%"),
        Column("class accuracy", "class_accuracy", ".1%"),
    ),
    "depth": (
        Column("RMSE (m)", "rmse", ".3f"),
        Column("delta 1", "delta1", ".1%"),
        Column("abs rel", "abs_rel", ".3f"),
    ),
}
"""By kind; the first has the interval."""
BASELINES = {
    "segment": "place: the commonest class at each place of the training pictures; constant: the commonest class",
    "depth": "place: the mean depth at each place of the training pictures; constant: the mean depth",
}


def table(results: Iterable[dict[str, Any]]) -> Table:
    """Scores with intervals over pictures: a row for each target and measure, then the baselines that need no model."""
    results = list(results)
    kind = results[0]["kind"]
    first, *others = COLUMNS[kind]
    heads = ("target", "measure", first.head, "95 % interval", *(column.head for column in others))
    grid = Table(*heads, caption_justify="left")
    baselines: dict[tuple[str, ...], None] = {}
    for number, result in enumerate(results):
        for name, scores in result["results"].items():
            last = number == len(results) - 1 or results[number + 1]["target"] != result["target"]
            end = last and name == list(result["results"])[-1]
            grid.add_row(escape(result["target"]), NAMES[name], *_cells(kind, scores), end_section=end)
        for name, scores in result["baselines"].items():
            baselines[name, "", *_cells(kind, scores)] = None
    for row in baselines:
        grid.add_row(*row)
    grid.caption = escape("\n".join(_caption(results)))
    return grid


def _cells(kind: str, scores: dict[str, Any]) -> list[str]:
    first, *others = COLUMNS[kind]
    interval = f"{scores['low']:{first.form}} to {scores['high']:{first.form}}"
    return [f"{scores[first.key]:{first.form}}", interval, *(f"{scores[c.key]:{c.form}}" for c in others)]


def _caption(results: list[dict[str, Any]]) -> list[str]:
    """What the rows are and what the data are like, each line once."""
    lines = [f"{BASELINES[results[0]['kind']]}; intervals are over pictures"]
    for result in results:
        skipped = f", {result['skipped']:,} cannot be read" if result["skipped"] else ""
        lines.append(
            f"{result['data']}: {result['train']:,} pictures to learn from, {result['test']:,} tested{skipped}"
        )
        lines += [f"{result['data']}: {note}" for note in result["notes"]] + missing_classes(result)
    return list(dict.fromkeys(lines))
