"""Accuracy against time of a recipe: a recipe and labeled pictures enter; kNN and probe at several points leave.

Trains once, keeps checkpoints on the way, measures each, and beside them the pixels and the untrained encoder.

    python benchmarks/learning.py mae_mini_32 --data ../shared/data/cifar10 --points 6
    python benchmarks/learning.py mae_mini_28 --data fashion-mnist --points 4
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from mimkit.evaluate.run import evaluate
from mimkit.recipes import find_recipe
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.prepare import Prepared
from mimkit.train.pretrain import export_encoder, pretrain
from mimkit.train.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--points", type=int, default=6, help="checkpoints to measure")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit-train", type=int, help="labeled pictures for the points before the last")
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--run", type=Path, help="keep the run here; an unfinished one goes on")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = find_recipe(arguments.recipe)
    config.data = tuple(arguments.data)
    config.epochs = arguments.epochs or config.epochs
    config.machine.threads = arguments.threads
    total = Prepared(config).steps
    config.machine.save_every, config.machine.keep = -(-total // arguments.points), arguments.points
    config.machine.save_minutes = 1e6
    folder = arguments.run or Path(tempfile.mkdtemp()) / "run"
    if not RunFolder(folder).finished:
        pretrain(config, folder, recipe=arguments.recipe)
    saved = RunFolder(folder).read_config()
    config, known = saved["config"], saved["resolved"]
    rows = []

    def measure(name: str, target: str, step: int, seconds: float, limit: bool) -> None:
        row = {"what": name, "step": step, "epochs": round(step * config.batch_size / known["pictures"], 2)}
        row["seconds"] = round(seconds)
        for kind in ("knn", "probe"):
            found = evaluate(
                kind,
                target,
                arguments.data,
                limit_train=arguments.limit_train if limit else None,
                limit_test=arguments.limit_test if limit else None,
            )
            best = found["results"][found["headline"]]
            row[kind] = [round(100 * best[key], 1) for key in ("accuracy", "low", "high")]
        rows.append(row)
        print(json.dumps(row), flush=True)

    measure("pixels", "pixels", 0, 0, False)
    measure("untrained", f"untrained:{folder}", 0, 0, False)
    for path in checkpoints(folder):
        state = load_checkpoint(path)
        ready = Prepared(config, known, begun=True)
        ready.task.load_state_dict(state["model"])
        place = Path(tempfile.mkdtemp()) / "export"
        export_encoder(ready, place, recipe=saved["recipe"], step=state["step"], measured={})
        last = state["step"] == known["steps"]
        measure("trained", str(place), state["step"], state["seconds"], not last)
        shutil.rmtree(place.parent)
    print("\n| | step | epochs | seconds | kNN | probe |\n|-|-|-|-|-|-|")
    for row in rows:
        shown = [f"{row[kind][0]} ({row[kind][1]} to {row[kind][2]})" for kind in ("knn", "probe")]
        print("| " + " | ".join(map(str, (row["what"], row["step"], row["epochs"], row["seconds"], *shown))) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"recipe": arguments.recipe, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
