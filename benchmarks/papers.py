"""The tables of docs/results.md: what `mimkit compare --json` wrote enters, Markdown leaves.

    python benchmarks/papers.py benchmarks/results/sbam-ratios-imagenette.json --pairs 3-0 4-1 5-2

Accuracies in percent: mean and deviation over seeds. Contenders count from 0; 3-0 is the difference of the fourth to
the first, with the p-value of a paired t-test over seeds. `--curves` drops the curves
from the files, to keep them small.
"""

import argparse
import json
import statistics
from pathlib import Path

from mimkit.compare import paired_p


def cell(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def difference(mine: list[float], base: list[float]) -> str:
    p = paired_p(mine, base)
    return f"{100 * (statistics.mean(mine) - statistics.mean(base)):+.1f}" + ("" if p is None else f" ({p:.2f})")


def table(result: dict, pairs: list[tuple[int, int]]) -> list[str]:
    contenders = result["contenders"]
    kinds = list(contenders[0]["measures"])
    seeds = [{kind: row["measures"][kind]["seeds"] for kind in kinds} for row in contenders]
    lines = [["", "contender", "epochs", "FLOP", *kinds]]
    for number, row in enumerate(contenders):
        told = [str(number), f"`{row['contender']}`", str(row["epochs"]), f"{row['work']:.2f}"]
        lines.append(told + [cell(seeds[number][kind]) for kind in kinds])
    for a, b in pairs:
        lines.append([f"{a}-{b}", "", "", "", *(difference(seeds[a][kind], seeds[b][kind]) for kind in kinds)])
    lines.insert(1, ["-"] * len(lines[0]))
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--pairs", nargs="*", default=[], metavar="A-B")
    parser.add_argument("--curves", action="store_true")
    asked = parser.parse_args()
    pairs = [(int(a), int(b)) for a, b in (pair.split("-") for pair in asked.pairs)]
    for file in asked.files:
        result = json.loads(file.read_text())
        if asked.curves and result.pop("curves", None):
            file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{file.stem}: equal {result['budget']}, seeds 0 to {result['seeds'] - 1}\n")
        print("\n".join(table(result, pairs or [(number, 0) for number in range(1, len(result["contenders"]))])))


if __name__ == "__main__":
    main()
