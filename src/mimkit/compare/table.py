"""Tables: contenders with their accuracies enter; means, spreads, verdicts, a table and curves leave."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from scipy.stats import ttest_rel

from mimkit.compare.contender import Budget, Contender
from mimkit.compare.transfer import lower_is_better

SIGNIFICANT = 0.05


def summary(groups: list[list[Contender]], budget: Budget, seeds: int) -> dict[str, Any]:
    """Means, spreads and differences to the baseline, the first with the same budget, as JSON."""
    rows = []
    pairs = [(group[0], contender) for group in groups for contender in group]  # each with the baseline of its budget
    for first, contender in pairs:
        row: dict[str, Any] = {
            "contender": contender.words,
            "epochs": contender.epochs,
            "budget": first.epochs,
            "work": round(contender.epochs * contender.cost / (first.epochs * first.cost), 3),
            "measures": {},
        }
        for kind in first.results[0]:
            mine = [contender.results[seed][kind] for seed in range(seeds)]
            base = [first.results[seed][kind] for seed in range(seeds)]
            row["measures"][kind] = {
                "mean": statistics.mean(mine),
                "deviation": statistics.stdev(mine) if seeds > 1 else None,
                "seeds": mine,
                "difference": statistics.mean(mine) - statistics.mean(base),
                "p": paired_p(mine, base) if contender is not first else None,
            }
        rows.append(row)
    largest = next((contender.largest for group in groups for contender in group if contender.largest), None)
    settings = {"budget": budget, "seeds": seeds, "common": groups[0][0].common, "largest_class": largest}
    return {**settings, "contenders": rows, "curves": [contender.curves for group in groups for contender in group]}


def paired_p(mine: Sequence[float], base: Sequence[float]) -> float | None:
    """Two-sided p-value of a paired t-test over seeds; None for fewer than two, or where all differ by the same."""
    differences = [a - b for a, b in zip(mine, base, strict=True)]
    if len(differences) < 2 or max(differences) - min(differences) < 1e-9:
        return None
    return float(ttest_rel(mine, base).pvalue)


def verdict(measure: dict[str, Any], kind: str = "") -> str:
    """What a difference to the baseline means, in a few words, with the points, or meters, that it is."""
    error = lower_is_better(kind)
    points = f"{measure['difference']:+.3f}" if error else f"{100 * measure['difference']:+.1f}"
    if measure["p"] is None:
        return points if measure["difference"] else ""
    direction = "better" if (measure["difference"] > 0) != error else "worse"
    words = direction if measure["p"] < SIGNIFICANT else "within noise"
    return f"{points}, {words} (p {told_p(measure['p'])})"


def told_p(p: float) -> str:
    """A p-value to read: 0.051 and 0.049 lie on two sides."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def comparison_rows(result: dict[str, Any]) -> list[list[str]]:
    """The cells, heads first: a row for each contender; accuracies in percent, RMSE in meters, with their spread."""
    kinds = list(result["contenders"][0]["measures"])
    rows = [["contender", "epochs", "compute" if result["budget"] != "time" else "time"]]
    for kind in kinds:
        rows[0] += [kind.replace("knn", "kNN").replace("finetune", "fine-tuned", 1), "to baseline"]
    for row in result["contenders"]:
        rows.append([row["contender"], str(row["epochs"]), f"{row['work']:.2f}"])
        for kind in kinds:
            measure = row["measures"][kind]
            scale, digits = (1, 3) if lower_is_better(kind) else (100, 1)
            several = measure["deviation"] is not None
            spread = f" ± {scale * measure['deviation']:.{digits}f}" if several else ""
            rows[-1] += [f"{scale * measure['mean']:.{digits}f}{spread}", verdict(measure, kind)]
    return rows


def comparison_table(result: dict[str, Any]) -> Table:
    """`comparison_rows` for a terminal."""
    seeds = f"mean and deviation of {result['seeds']} seeds" if result["seeds"] > 1 else "one seed"
    title = f"equal {result['budget']}, {seeds}"
    table = Table(title=title, title_justify="left", caption=escape(chance(result)), caption_justify="left")
    heads, *rows = comparison_rows(result)
    for number, head in enumerate(heads):
        table.add_column(head, overflow="fold", justify="right" if number in (1, 2) else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def markdown(result: dict[str, Any]) -> str:
    """`comparison_rows` for a notebook."""
    heads, *rows = comparison_rows(result)
    table = "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["-"] * len(heads), *rows))
    return "\n\n".join(filter(None, (table, chance(result))))


def chance(result: dict[str, Any]) -> str:
    """What always naming the largest class would score; empty where no measurement says it."""
    largest = result.get("largest_class")
    return f"always naming the largest class scores {100 * largest['share']:.1f}" if largest else ""


def draw_curves(contenders: list[Contender], file: Path, budget: Budget) -> None:
    """Online kNN while training, over the work done: a line for each contender, a band for its seeds' range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    points = [point for contender in contenders for curve in contender.curves.values() for point in curve]
    most = max((x for x, _ in points), default=0.0)
    unit, name = (60.0, "minutes") if budget == "time" else (1e15, "PFLOP") if most >= 1e14 else (1e12, "TFLOP")
    for contender in contenders:
        curves = [curve for curve in contender.curves.values() if curve]
        # A run that was cut off has a shorter curve: no mean over seeds there.
        if not curves or len({len(curve) for curve in curves}) > 1:
            continue
        # Seeds have equal steps, so points of the same number lie at the same work.
        values = torch.tensor([[y for _, y in curve] for curve in curves])
        work = [x / unit for x, _ in curves[0]]
        label = f"{contender.words}, {contender.epochs} epochs"
        (line,) = axes.plot(work, values.mean(dim=0).tolist(), marker=".", label=label)
        low, high = values.min(dim=0).values.tolist(), values.max(dim=0).values.tolist()
        axes.fill_between(work, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xlabel(name)
    axes.set_ylabel("online kNN accuracy")
    if axes.has_data():
        figure.legend(fontsize="small", loc="outside lower center", frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
