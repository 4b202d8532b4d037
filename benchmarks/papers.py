"""The tables of docs/results.md: what `mimkit compare --json` wrote enters, Markdown leaves.

    python benchmarks/papers.py benchmarks/results/sbam-ratios-imagenette.json --pairs 3-0 4-1 5-2 5-4:2-1

The tables are those of `mimkit compare`, with differences to its first contender. Contenders count from 0; 3-0 is the
difference of the fourth to the first in points, with the p-value of a paired t-test over seeds, and 5-4:2-1 how much
more 5-4 is than 2-1. `--curves` drops the curves from the files, to keep them small. `--average-distance PNG` gives
AvgDist of each contender's masks in pixels (the mean of 512) and draws the accuracies over it, a panel for each file:

    python benchmarks/papers.py benchmarks/results/simmim-*.json --average-distance docs/images/average-distance.png
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from mimkit.analysis.figures import COLORS, panels
from mimkit.compare.contender import Contender
from mimkit.compare.table import markdown, paired_p, told_p
from mimkit.masks.statistics import average_distance
from mimkit.recipes.overrides import configured
from mimkit.train.prepare import Pretrain

MASKS = 512


def less(asked: str, seeds: list[list[float]]) -> list[float]:
    """By seed, what the asked contender has, or it less another one."""
    one, *other_views = (seeds[int(number)] for number in asked.split("-"))
    return [mine - sum(theirs) for mine, *theirs in zip(one, *other_views, strict=True)]


def compared(pair: str, seeds: list[list[float]]) -> str:
    """The difference of two contenders in points, or of two differences, and its p-value."""
    mine, base = (less(asked, seeds) for asked in pair.split(":" if ":" in pair else "-"))
    p = paired_p(mine, base)
    return f"{100 * (statistics.mean(mine) - statistics.mean(base)):+.1f}" + ("" if p is None else f" (p {told_p(p)})")


def distance(words: str, common: str) -> float:
    """AvgDist in pixels of a contender's masks."""
    command = Contender(words, Pretrain(), common).command()
    config = configured(command, command)
    patch = config.encoder.patch
    grid = (config.images.size // patch,) * 2
    mask = config.method.masker(torch.empty(MASKS, grid[0] * grid[1], 0), torch.arange(MASKS), 0.0, grid)
    return average_distance(mask, grid, (patch, patch)).mean().item()


def draw_distances(results: dict[str, dict], file: Path) -> None:
    figure, axes = panels(len(results), len(results), side=(4.2, 3.2))
    for one, (name, result) in zip(axes, results.items(), strict=True):
        rows = sorted(result["contenders"], key=lambda row: row["distance"])
        for color, kind in zip(COLORS, rows[0]["measures"], strict=False):
            found = [row["measures"][kind] for row in rows]
            one.errorbar(
                [row["distance"] for row in rows],
                [100 * measure["mean"] for measure in found],
                yerr=[100 * (measure["deviation"] or 0) for measure in found],
                color=color, marker="o", ms=4, capsize=3, label=kind.replace("knn", "kNN"),
            )  # fmt: skip
        one.set(title=name, xlabel="AvgDist (px)", ylabel="accuracy (%)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--pairs", nargs="*", default=[], metavar="A-B")
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--average-distance", type=Path, metavar="PNG")
    asked = parser.parse_args()
    results = {}
    for file in asked.files:
        result = json.loads(file.read_text())
        if asked.curves and result.pop("curves", None):
            file.write_text(json.dumps(result, indent=1) + "\n")
        results[file.stem] = result
        print(f"\n{file.stem}: equal {result['budget']}, seeds 0 to {result['seeds'] - 1}\n\n{markdown(result)}")
        for pair in asked.pairs:
            for kind in result["contenders"][0]["measures"]:
                seeds = [row["measures"][kind]["seeds"] for row in result["contenders"]]
                print(f"{pair}: {kind} {compared(pair, seeds)}")
        if asked.average_distance:
            for number, row in enumerate(result["contenders"]):
                row["distance"] = distance(row["contender"], result["common"])
                print(f"{number}: AvgDist {row['distance']:.1f} px")
    if asked.average_distance:
        draw_distances(results, asked.average_distance)


if __name__ == "__main__":
    main()
