"""Record: a run folder enters; what its files say (settings, curves, film, results) leaves as plain data."""

import json
import math
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from mimkit.core.config import flatten
from mimkit.core.errors import UserError
from mimkit.core.files import named, read_regular
from mimkit.core.schema import fit, plain
from mimkit.data.reading import Reading
from mimkit.evaluate.run import NAMES
from mimkit.evaluate.saved import Scores, check_evaluation, is_evaluation
from mimkit.report.dense import dense_task
from mimkit.train.recorder import duration
from mimkit.train.run_folder import MEASURED, RunFolder

POINTS = 400  # of a curve, about
WORST = 20  # classes in the table of an evaluation
FRAMES = 24  # of all films of a page together
CURVES = {  # by key of metrics.jsonl, in the order of the page: (title, what to look for)
    "loss": ("Loss", "What training minimizes. It compares only between runs with the same target and masks."),
    "knn": (
        "Online kNN accuracy",
        "Share of held-out pictures whose class their neighbors name: a first word on the features, higher is better.",
    ),
    "effective_rank": ("Effective rank", "How many directions the features use. A fall towards 1 is collapse."),
    "feature_spread": (
        "Spread of features",
        "How far features of whole pictures point apart: 1 evenly over all directions, 0 all alike, which is collapse.",
    ),
    "learning_rate": ("Learning rate", "As scheduled: a warm-up, then usually a slow fall."),
    "images_per_second": ("Images per second", "Speed of training. Dips are pauses of the machine or waits for data."),
    "gradient_norm": ("Gradient norm", "Length of the gradient before it is clipped. Growing spikes precede trouble."),
    "hidden": ("Hidden patches", "Share of the patches that the masks hide."),
    "reconstruction": ("Reconstruction", "The part of the loss that predicts hidden patches."),
    "disagreement": ("Disagreement", "The part of the loss that compares predictions of a patch under two masks."),
    "positive": ("Cosine of positives", "Two views of one picture: towards 1 is what a contrastive loss asks for."),
    "negative": ("Cosine of negatives", "Views of other pictures: near 0 or below; near 1 is collapse."),
    "spread": ("Spread", "How far the directions of features fill their sphere: near 1 evenly, 0 is collapse."),
    "entropy": (
        "Entropy of the teacher",
        "In nats. 0: every picture gets one label; the logarithm of K: it says nothing.",
    ),
}
_ASIDE = ("exports", "export", "checkpoints", "pictures", "tensorboard")  # folders of a run without results


def read_run(folder: Path) -> dict[str, Any]:
    """All that the small files of a run tell; the classes that its config names need not be importable.

    Returns plain data: recipe, method, facts [[name, text]], settings {dotted name: value}, curves (see `curves`),
    film [step], results (see `results`), environment [[name, text]], status, progress in [0, 1], batch_size and
    pictures.

    Raises:
        UserError: no run lives there, or its config is broken.
    """
    run = RunFolder(folder)
    if not run.exists:
        raise UserError(f"{folder} holds no run of mimkit: give folders that 'mimkit pretrain' wrote")
    saved = run.read_plain_config()
    config, resolved = saved["config"], saved["resolved"]
    records = run.metrics()
    last = records[-1].get("step", 0) if records else 0
    total = resolved.get("steps") or 0
    status = "finished" if run.finished else f"step {last:,} of {total:,}" if total else f"step {last:,}"
    environment = {"mimkit": saved.get("mimkit"), **saved.get("environment", {}), **resolved.get("engine", {})}
    result = run.result() if run.finished else {}
    facts = _facts(saved, records, result) | {"state": status, "warning": _warning(records)}
    return {
        "name": folder.resolve().name,
        "recipe": saved.get("recipe"),
        "method": facts["method"],
        "facts": [[name, str(text)] for name, text in facts.items() if text not in (None, "")],
        "settings": {key: short(value) for key, value in flatten(config).items()},
        "data": [str(source) for source in config.get("data", [])],
        "curves": with_levels(curves(records), saved),
        "film": frames(folder),
        "results": results(folder, records),
        "classes": class_tables(folder),
        "dense": dense_task(folder),
        "environment": [[name, str(value)] for name, value in environment.items() if value is not None],
        "status": status,
        "progress": min(1.0, last / total) if total else 0.0,
        "batch_size": config.get("batch_size"),
        "pictures": resolved.get("pictures"),
        "step": last,
        "steps": total,
    }


def _read_as(reading: Any) -> str | None:
    """How files became pictures, in words; nothing of plain 8-bit ones, and of what cannot be understood."""
    try:
        return str(Reading.from_json(reading)) or None
    except (AttributeError, TypeError, ValueError):
        return None


def _facts(saved: dict[str, Any], records: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, Any]:
    """What was trained on what, by name, in the order of the page; None or nothing where no file says it."""
    config, resolved = saved["config"], saved["resolved"]
    method, encoder = config.get("method", {}), config.get("encoder", {})
    images, count, epochs = resolved.get("size", []), resolved.get("pictures"), config.get("epochs")
    steps = f"{resolved.get('steps') or 0:,} steps of {config.get('batch_size')} pictures"
    seconds = result.get("seconds") or (records[-1].get("seconds") if records else None)
    return {
        "recipe": saved.get("recipe"),
        "method": _class_name(method).removesuffix("Config"),
        "masker": _class_name(method.get("masker", {})),
        "encoder": ", ".join([str(encoder.get("name", "")), *_shape(encoder)]),
        "pictures": f"{count:,} from {short(resolved.get('data', ''))}" if count else None,
        "images": " x ".join(map(str, images)) + f" px, {resolved.get('channels')} channels" if images else None,
        "normalized by": f"mean and std {whose}" if (whose := resolved.get("statistics_of")) else None,
        "read as": _read_as(resolved.get("reading")),
        "schedule": f"{epochs} epoch{'s' * (epochs != 1)}, {steps}",
        "seed": config.get("seed"),
        "started": str(saved.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
        "time": None if seconds is None else duration(seconds),
    }


def _class_name(settings: dict[str, Any]) -> str:
    """The class of a part of a config, which need not be importable: its name without the module."""
    return str(settings.get("class", "")).rpartition(":")[2]


def _shape(encoder: dict[str, Any]) -> list[str]:
    """What a config says of the encoder's shape, in words."""
    args = encoder.get("model_args") or {}  # where an export was fine-tuned, its shape
    width = encoder.get("width") or args.get("embed_dim")
    depth = encoder.get("depth") or args.get("depth")
    heads = encoder.get("heads") or args.get("num_heads")
    patch = encoder.get("patch") or args.get("patch_size")
    words = [f"{name} {value}" for name, value in (("width", width), ("depth", depth), ("heads", heads)) if value]
    return words + ([f"patches of {patch} px"] if patch else [])


def _warning(records: list[dict[str, Any]]) -> str | None:
    """The first warning of the run."""
    return next((record["warning"] for record in records if record.get("warning")), None)


def names(folders: Sequence[Path]) -> list[str]:
    """What tells runs apart: the name of the folder or, where several share it as in a study, of those above it."""
    paths = [Path(short(str(folder.resolve()))).parts for folder in folders]
    # In a comparison the folder of a seed says nothing, the one above it names the contender.
    plain = [path[-2] if re.fullmatch(r"seed-\d+", path[-1]) and len(path) > 1 else path[-1] for path in paths]
    if len(set(plain)) == len(plain):
        return plain
    for depth in range(1, 4):
        tails = [path[-depth:] for path in paths]
        if len(set(tails)) == len(tails):
            while depth > 1 and len({tail[-1] for tail in tails}) == 1:
                tails, depth = [tail[:-1] for tail in tails], depth - 1
            return ["/".join(tail) for tail in tails]
    return [path[-1] for path in paths]


def short(value: Any) -> Any:
    """Without the place of the home folder, which is nobody's business, wherever a path stands."""
    # A page is sent to others.
    home = str(Path.home())
    if isinstance(value, str):
        return "~" + value[len(home) :] if value == home or value.startswith(home + "/") else value
    return [short(item) for item in value] if isinstance(value, list) else value


def curves(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every number of metrics.jsonl over steps: key, title, says, step, seconds and value, thinned to `POINTS`."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for record in records:
        step, seconds = record.get("step"), record.get("seconds", math.nan)
        for key, value in record.items():
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            if numeric and isinstance(step, int) and key not in ("step", "seconds", "data_wait"):
                points.setdefault(key, []).append((step, seconds, value))
    order = [*(key for key in CURVES if key in points), *sorted(points.keys() - CURVES.keys())]
    thinned = []
    for key in order:
        title, says = CURVES.get(key, (key.replace("_", " ").capitalize(), ""))
        step, seconds, value = zip(*thin(points[key]), strict=True)
        thinned.append(
            {"key": key, "title": title, "says": says, "step": step}
            | {"seconds": [rounded(number) for number in seconds], "value": [rounded(number) for number in value]}
        )
    return thinned


def with_levels(drawn: list[dict[str, Any]], saved: dict[str, Any]) -> list[dict[str, Any]]:
    """The curves, that of the online kNN with `levels` [name, value]: what it has to be compared with, as far as known.

    `untrained` is the encoder before the first step, `start` one whose weights came from elsewhere.
    """
    start = saved["resolved"].get("start") or {}
    begun = "start" if saved["config"].get("encoder", {}).get("weights") else "untrained"
    names = {"chance": "chance", "knn_pixels": "pixels", "knn_start": begun}
    levels = [[name, rounded(start[key])] for key, name in names.items() if isinstance(start.get(key), (int, float))]
    return [curve | ({"levels": levels} if curve["key"] == "knn" else {}) for curve in drawn]


def thin(points: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """Of each stretch the lowest and the highest point, so that no spike is lost; the first and last stay."""
    if len(points) <= POINTS:
        return points
    # Two points stay of each stretch, so stretches are twice as wide.
    width = math.ceil(2 * len(points) / POINTS)
    indices = {0, len(points) - 1}
    for start in range(0, len(points), width):
        stretch = range(start, min(start + width, len(points)))
        indices |= {min(stretch, key=lambda i: points[i][2]), max(stretch, key=lambda i: points[i][2])}
    return [points[i] for i in sorted(indices)]


def rounded(value: float) -> float | None:
    """Five digits; None where it is undefined, since JSON has no NaN."""
    return float(f"{value:.5g}") if isinstance(value, (int, float)) and math.isfinite(value) else None


def frames(folder: Path, limit: int = FRAMES) -> list[int]:
    """Steps of the pictures drawn at evaluations, at most so many, evenly spread with the first and the last."""
    steps = []
    for path in (folder / "pictures").glob("step-*.png"):
        # Other files a person put there are passed over.
        number = path.stem.removeprefix("step-")
        if number.isascii() and number.isdigit():
            steps.append(int(number))
    steps.sort()
    if len(steps) <= limit:
        return steps
    return [steps[round(i * (len(steps) - 1) / (limit - 1))] for i in range(limit)] if limit > 1 else steps[-1:]


def frame(folder: Path, step: int) -> Path:
    """Where the picture of a step lies."""
    return folder / "pictures" / f"step-{step:09d}.png"


def results(folder: Path, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measured numbers: of result.json, of the last evaluation, and of all JSON that evaluations left in the folder.

    Each: what, value (text), interval (text), on (the data), by (how), file.
    """
    rows: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    for record in records:
        # Not every line has every number: the last of each counts, not the last line.
        last |= record
    measured = {"knn": "online kNN", "effective_rank": "effective rank", "feature_spread": "spread of features"}
    for key in MEASURED:
        if isinstance(last.get(key), (int, float)):
            value = format(last[key], {"knn": ".1%", "effective_rank": ".1f"}.get(key, ".3f"))
            rows.append(row(measured[key], value, by="the token it trains, while training", file="metrics.jsonl"))
    for content, file in _json_files(folder):
        rows += _evaluation(content, file)
    return rows


def _json_files(folder: Path) -> Generator[tuple[dict[str, Any], str]]:
    """What evaluations left in the folder and the folders in it, with the names of the files."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        if (path.parent != folder and path.parent.name in _ASIDE) or path.name in ("config.json", "skipped.json"):
            continue
        try:
            content = json.loads(read_regular(path).decode("utf-8"))
        except (OSError, ValueError, RecursionError):  # of somebody else
            continue
        if isinstance(content, dict):
            with named(path):
                if is_evaluation(content):
                    check_evaluation(content)
                else:
                    fit(plain(content), Scores)
            yield content, str(path.relative_to(folder))


def class_tables(folder: Path) -> list[dict[str, Any]]:
    """The classes of every evaluation that says them; of several pools those of the headline.

    Each: what, file, rows [name, accuracy, pictures, taken_for] as text, the worst first, and more: how many beyond.
    """
    tables = []
    for content, file in _json_files(folder):
        scored: list[tuple[str, Any]] = [("fine-tuned", content)] if "accuracy" in content else []
        measurements = content.get("results")
        for measurement in measurements if isinstance(measurements, list) else []:
            if isinstance(measurement, dict) and isinstance(measurement.get("results"), dict):
                kind, pool = str(measurement.get("kind")), measurement.get("headline")
                scored.append((f"{NAMES.get(kind, kind)}, {pool}", measurement["results"].get(pool)))
        for title, scores in scored:
            if isinstance(scores, dict) and isinstance(scores.get("per_class"), dict) and scores["per_class"]:
                tables.append({"what": title, "file": file} | _class_rows(scores["per_class"]))
    return tables


def _class_rows(per_class: dict[str, dict[str, Any]]) -> dict[str, Any]:
    # Of equals the class with more pictures first: its accuracy says more.
    worst = sorted(per_class.items(), key=lambda item: (item[1]["accuracy"], -item[1]["pictures"]))
    rows = [
        [name, f"{scores['accuracy']:.1%}", f"{scores['pictures']:,}", scores.get("taken_for") or ""]
        for name, scores in worst[:WORST]
    ]
    return {"rows": rows, "more": max(0, len(worst) - WORST)}


def row(title: str, value: str, interval: str = "", on: str = "", by: str = "", file: str = "") -> dict[str, Any]:
    """One line of the table of results."""
    return {"what": title, "value": value, "interval": interval, "on": on, "by": by, "file": file}


def _evaluation(content: dict[str, Any], file: str) -> list[dict[str, Any]]:
    """Rows of what `mimkit evaluate` wrote: of frozen features, or of a fine-tuning."""
    rows = []
    measurements = content.get("results")
    for measurement in measurements if isinstance(measurements, list) else []:
        if not isinstance(measurement, dict) or not isinstance(measurement.get("results"), dict):
            continue
        kind = str(measurement.get("kind"))
        for pool, scores in measurement["results"].items():
            if isinstance(scores, dict) and {"miou", "rmse"} & set(scores):
                rows.append(_of_pixels(pool, scores, _data(measurement), file))
            if isinstance(scores, dict) and "accuracy" in scores:
                title, by = NAMES.get(kind, kind), f"features: {pool}"
                rows.append(row(title, *_scores(scores), _data(measurement), by, file))
    if "accuracy" in content:
        on = _data(content)
        rows.append(row("fine-tuned accuracy", *_scores(content), on, "whole model, with labels", file))
        if isinstance(content.get("top5"), (int, float)):
            rows.append(row("fine-tuned top-5 accuracy", f"{content['top5']:.1%}", "", on, "", file))
    return rows


def _of_pixels(pool: str, scores: dict[str, Any], on: str, file: str) -> dict[str, Any]:
    """Frozen features of a dense task: mIoU, or RMSE in meters."""
    key, unit = ("miou", "") if "miou" in scores else ("rmse", " m")
    values = [f"{scores[name]:.3f}" if isinstance(scores.get(name), float) else "" for name in (key, "low", "high")]
    interval = f"{values[1]} to {values[2]}" if values[1] and values[2] else ""
    title = "mIoU" if key == "miou" else "RMSE of depth"
    return row(title, values[0] + unit, interval, on, f"frozen, {pool}", file)


def _data(measurement: dict[str, Any]) -> str:
    """Which pictures were learned from and measured."""
    counts = f"{measurement.get('train', '?')} / {measurement.get('test', '?')} pictures"
    return f"{short(str(measurement.get('data', '')))} ({counts})"


def _scores(scores: dict[str, Any]) -> tuple[str, str]:
    def percent(key: str) -> str:
        return f"{scores[key]:.1%}" if isinstance(scores.get(key), (int, float)) else ""

    low, high = percent("low"), percent("high")
    return percent("accuracy"), f"{low} to {high}" if low and high else ""


def differing(runs: list[dict[str, Any]]) -> list[list[Any]]:
    """Settings that are not the same in all runs: [name, value of each run as text]."""
    rows = []
    for key in sorted(set().union(*(run["settings"] for run in runs))):
        # As text: lists and numbers compare and show alike.
        values = [json.dumps(run["settings"][key]) if key in run["settings"] else "-" for run in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows
