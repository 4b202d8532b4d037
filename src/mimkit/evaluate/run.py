"""Evaluate: a target and data enter, accuracies with intervals leave, as a dict and as a table for people."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.markup import escape
from rich.table import Table

from mimkit.core.errors import UserError, at_least, unknown
from mimkit.core.metrics import class_balance, class_names
from mimkit.data.decode import BadPicture
from mimkit.data.loader import statistics
from mimkit.data.pictures import Pictures, sample
from mimkit.data.reading import Reading
from mimkit.data.sources import Measured, open_measured
from mimkit.evaluate.attentive import evaluate_attentive
from mimkit.evaluate.balance import missing_classes, needs_balance
from mimkit.evaluate.features import extract
from mimkit.evaluate.knn import evaluate_knn
from mimkit.evaluate.pools import Pool
from mimkit.evaluate.probe import ProbeMethod, evaluate_probe
from mimkit.evaluate.target import Extractor, export_folder, open_target, reading_for
from mimkit.train.machine import Machine
from mimkit.train.run_folder import run_beside

Kind = Literal["knn", "probe", "attentive"]
Choice = Pool | Literal["auto", "all"]
NAMES = {"knn": "kNN", "probe": "linear probe", "attentive": "attentive probe"}
SPLIT_NOTE = "no test split with labels: of each class 80 % train, 20 % test, by address"
OF_CLASS_TOKEN = ("lars", "maskalign")  # protocols whose papers classify the class token, whatever was trained
_LARGE = 256  # pixels; pictures beyond it, or of several sizes, are looked at in MAE's size
_USUAL = (224, 224)


def evaluate(
    kind: str,
    target: str,
    data: Sequence[str],
    *,
    device: str = "auto",
    workers: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    k: int = 20,
    temperature: float = 0.07,
    method: str = "auto",
    pools: Sequence[Choice] = ("auto",),
    reading: Reading = Reading(),
) -> dict[str, Any]:
    """Measure a target on pictures with labels.

    Args:
        kind: `knn` (`core.metrics.knn`), `probe` (`evaluate_probe`) or `attentive` (`evaluate_attentive`).
        target: see `open_target`.
        data: see `open_pictures`; without a test split of its own, 20 % are set apart by address.
        device, workers: `auto`, `cpu`, `cuda` or `cuda:N`; processes that read pictures, 0 reads here.
        limit_train, limit_test: how many pictures to take, spread over the set; all by default.
        k, temperature, method: of kNN; of the probe.
        pools: of kNN and probe, see `evaluate.pools` and `choose_pools`; the first is the headline.
        reading: how files become pictures, where that is another way than the target's, and their column of labels.

    Returns:
        JSON: kind, target, data, train and test (pictures used), classes, skipped (pictures that cannot be read),
        unlabeled (pictures without a label), notes (lines about the data), split_note (empty with a test split),
        headline (a pool), results {pool: scores} of `core.metrics.class_scores`, what `class_balance` gives, settings.

    Raises:
        UserError: anything a person can mend.
    """
    at_least(1, k=k, limit_train=limit_train, limit_test=limit_test)
    _refuse_unknown(kind, method, temperature)
    (train, test, unlabeled), extractor = _open(target, [data] if isinstance(data, str) else list(data), reading)
    machine: Any = dict(
        device=Machine(device=device).find_device(), workers=workers, limit_train=limit_train, limit_test=limit_test
    )
    settings: Any = {"attentive": {}, "knn": {"k": k, "temperature": temperature}, "probe": {"method": method}}[kind]
    if kind == "attentive":
        measured: dict[str, Any] = evaluate_attentive(extractor, train, test, **machine)
    else:
        measured = _measure_pools(extractor, train, test, pools, settings, **machine)
    settings |= {"assumed": extractor.assumed} if extractor.assumed else {}
    return {
        "kind": kind,
        "target": target,
        "data": train.name,
        "classes": len(train.classes or ()),
        "unlabeled": unlabeled,
        "notes": list(dict.fromkeys(filter(None, (*train.notes, *test.notes, train.about_values)))),
        "split_note": "" if train.has_test else SPLIT_NOTE,
        "headline": next(iter(measured["results"])),
        "settings": {"size": list(extractor.size), **settings},
        **measured,
    }


def _refuse_unknown(kind: str, method: str, temperature: float) -> None:
    for setting, value, valid in (("kind of evaluation", kind, Kind), ("probe method", method, ProbeMethod)):
        if value not in get_args(valid):
            raise unknown(setting, value, get_args(valid))
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, got {temperature}; 0.07 is usual")


def _measure_pools(
    extractor: Extractor,
    train: Pictures,
    test: Pictures,
    choices: Sequence[Choice],
    settings: dict[str, Any],
    *,
    device: torch.device,
    workers: int,
    limit_train: int | None,
    limit_test: int | None,
) -> dict[str, Any]:
    """Sizes of the two sets and accuracies by pool: by a linear probe if the settings name its method, else by kNN."""
    pools = choose_pools(extractor, choices, settings.get("method", ""))
    reading: Any = dict(device=device, pools=pools, workers=workers)
    bank = extract(extractor, train, limit=limit_train, **reading)
    queries = extract(extractor, test, limit=limit_test, **reading)
    assert bank.labels is not None
    if len(bank.labels.unique()) < 2:
        raise UserError(
            f"{train.name}: all {len(bank)} pictures to learn from have one label: give two classes or more"
        )
    assert queries.labels is not None
    names = class_names(train.classes, bank.labels, queries.labels)
    if "k" in settings:
        settings["k"] = min(settings["k"], len(bank))  # reported so: there are no more neighbors
    measure: Any = evaluate_probe if "method" in settings else evaluate_knn
    results = measure(bank, queries, pools=pools, device=device, classes=names, **settings)
    counts = {"train": len(bank), "test": len(queries), "skipped": bank.skipped + queries.skipped}
    return {**counts, **class_balance(bank.labels, queries.labels, names), "results": results}


def table(results: Iterable[dict[str, Any]]) -> Table:
    """Accuracies in percent with intervals: a part for each target, a row for each kind and pool; headlines in bold.

    The last row is what always naming the largest class would score. Where that is much, a column has the balanced
    accuracy, the mean over the classes.
    """
    results, names = list(results), {}
    balanced = any(needs_balance(result, result["classes"]) for result in results)
    several = len({result["data"] for result in results}) > 1
    heads = (
        "target",
        *(["data"] if several else []),
        "measure",
        "features",
        "accuracy",
        "95 % interval",
        *(["balanced"] if balanced else []),
        "with",
    )
    grid = Table(*heads, caption_justify="left")
    for result in results:
        names.setdefault(result["target"], []).append(result)
    for target, measurements in names.items():
        for result in measurements:
            for pool, scores in result["results"].items():
                grid.add_row(
                    escape(target),
                    *([escape(Path(result["data"]).name)] if several else []),
                    NAMES[result["kind"]],
                    pool,
                    f"{scores['accuracy']:.1%}",
                    f"{scores['low']:.1%} to {scores['high']:.1%}",
                    *([f"{scores['balanced_accuracy']:.1%}"] if balanced else []),
                    _with(result, scores),
                    style="bold" if pool == result["headline"] else None,
                )
        grid.add_section()
    _add_largest(grid, results, balanced, several)
    grid.caption = escape("\n".join(_caption(results))) or None
    return grid


def _add_largest(grid: Table, results: list[dict[str, Any]], balanced: bool, several: bool) -> None:
    """What always naming the largest class of the tested pictures scores: a row, several where the tests differ."""
    rows = {}
    for result in results:
        largest = result["largest_class"]
        tested = len(next(iter(result["results"].values()))["per_class"])
        cells = (f"{largest['share']:.1%}", "", *([f"{1 / tested:.1%}"] if balanced else []))
        data = [escape(Path(result["data"]).name)] if several else []
        rows["", *data, "largest class", "", *cells, f"always '{escape(largest['name'])}'"] = None
    for row in rows:
        grid.add_row(*row)


def _caption(results: Iterable[dict[str, Any]]) -> list[str]:
    """What the data are like, each line once."""
    lines = []
    for result in results:
        if result["unlabeled"]:
            lines.append(f"{result['unlabeled']:,} pictures of {result['data']} have no label: no measure sees them")
        lines += [f"{result['data']}: {note}" for note in result["notes"]] + missing_classes(result)
    return list(dict.fromkeys(lines))


def _with(result: dict[str, Any], scores: dict[str, Any]) -> str:
    """The settings of a measurement, given or chosen on held-out pictures."""
    if result["kind"] == "knn":
        return f"k {result['settings']['k']}"
    if result["kind"] == "attentive":
        return f"{scores['heads']} head{'s' if scores['heads'] > 1 else ''}, rate {scores['rate']:g}"
    if scores["method"] == "logistic":
        return f"logistic regression, C {scores['penalty']:g}"
    return f"{'LARS' if scores['method'] == 'lars' else scores['method']}, base rate {scores['rate']:g}"


def _open(target: str, data: list[str], reading: Reading) -> tuple[Measured, Extractor]:
    """Pictures to learn from and to be tested on, as the target wants them, and the target."""
    own = export_folder(target)  # before pictures are opened, which can take long
    by_class = splits_by_class(own)
    reading = reading_for(target, reading)
    measured = open_measured(data, reading, by_class=by_class)
    train = measured.train
    # A folder brings its own; for others they are computed, which reads a thousand pictures.
    mean, std = statistics(train) if own is None else ((), ())
    extractor = open_target(target, size=usual_size(train), channels=train.channels, mean=mean, std=std)
    # The pictures were opened as they are, to tell a timm model their channels; released weights want their own.
    if extractor.channels != train.channels:
        measured = open_measured(data, replace(reading, channels=extractor.channels), by_class=by_class)
    return measured, extractor


def splits_by_class(export: Path | None) -> bool:
    """Whether pictures are set apart of each class: not for a fine-tuning of before 0.3, which learned other ones."""
    saved = {} if export is None else run_beside(export)
    method = saved.get("config", {}).get("method", {}).get("class", "")
    return not method.endswith("FineTuneConfig") or bool(saved.get("resolved", {}).get("by_class"))


def usual_size(pictures: Pictures) -> tuple[int, int]:
    """The one size of the pictures, by the headers of a sample; MAE's when they are large or differ."""
    sizes = set()
    for number in sample(len(pictures), 64):
        try:
            sizes.add(pictures.size(number))
        except BadPicture:
            continue
    size = sizes.pop() if len(sizes) == 1 else _USUAL
    return size if max(size) <= _LARGE else _USUAL


def choose_pools(extractor: Extractor, choices: Sequence[Choice], method: str = "auto") -> list[Pool]:
    """The pools to measure, the headline first.

    `auto` is what the target was trained for, class token or mean of the patch tokens; of the probes lars and maskalign
    (`method`) it is the class token as in their papers, and that beside it. `all` is this and all that the target has.
    """
    valid = extractor.pools
    if extractor.model is None:
        return list(valid)
    pools: list[Pool] = []
    for pool in choices:
        if pool in ("auto", "all"):
            papers: list[Pool] = ["class"] if method in OF_CLASS_TOKEN and "class" in valid else []
            pools += [*papers, extractor.headline, *(valid if pool == "all" else ())]
        elif pool in valid:
            pools.append(pool)
        elif pool in ("class", "both"):
            raise UserError(f"{extractor.name} has no class token: ask for the pool 'mean'")
        else:
            raise unknown(f"pool of {extractor.name}", pool, ["auto", "all", *valid])
    # Each once, in the order asked for: the first is the headline.
    return list(dict.fromkeys(pools)) or [extractor.headline]
