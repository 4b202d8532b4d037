"""Evaluate: a target and data enter, accuracies with intervals leave, as a dict and as a table for people."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast, get_args

from rich.markup import escape
from rich.table import Table

from mimkit.core.errors import UserError, unknown
from mimkit.data.decode import BadPicture
from mimkit.data.loader import statistics
from mimkit.data.pictures import Pictures, Split, sample
from mimkit.data.sources import open_pictures
from mimkit.evaluate.attentive import evaluate_attentive
from mimkit.evaluate.features import extract
from mimkit.evaluate.knn import evaluate_knn
from mimkit.evaluate.pools import Pool
from mimkit.evaluate.probe import ProbeMethod, evaluate_probe
from mimkit.evaluate.target import Extractor, export_folder, open_target
from mimkit.train.machine import Machine

Kind = Literal["knn", "probe", "attentive"]
Choice = Pool | Literal["auto", "all"]
NAMES = {"knn": "kNN", "probe": "linear probe", "attentive": "attentive probe"}
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
) -> dict[str, Any]:
    """Measure a target on pictures with labels.

    Args:
        kind: `knn` (`measures.knn`), `probe` (`evaluate_probe`) or `attentive` (`evaluate_attentive`).
        target: see `open_target`.
        data: see `open_pictures`; without a test split of its own, 20 % are set apart by address.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that read pictures; 0 reads here.
        limit_train, limit_test: how many pictures to take, spread over the set; all by default.
        k, temperature: of kNN.
        method: of the probe.
        pools: of kNN and probe, see `evaluate.pools`; the first is the headline. `auto` is what the target was trained
            for: the class token where its method trained that one (SimCLR, MoCo, DINO, fine-tuning by it), else the
            mean of the patch tokens. `all` is this one and all others that the target has. `pixels` have but
            themselves; an attentive probe sees all tokens.

    Returns:
        JSON: kind, target, data, train and test (pictures used), classes, skipped (pictures that cannot be
        read), split_note (empty when the data have a test split), headline (a pool), results {pool:
        {accuracy, low, high, ...}} with accuracies in 0..1, and settings.

    Raises:
        UserError: anything a person can mend.
    """
    choices = (("kind of evaluation", kind, Kind), ("probe method", method, ProbeMethod))
    for what, given, valid in choices:
        if given not in get_args(valid):
            raise unknown(what, given, get_args(valid))
    for name, value in (("k", k), ("limit_train", limit_train), ("limit_test", limit_test)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, got {temperature}; 0.07 is usual")
    where = Machine(device=device).find_device()
    train, test, extractor = _open(target, [data] if isinstance(data, str) else list(data))
    limits: Any = dict(limit_train=limit_train, limit_test=limit_test)
    settings: dict[str, Any] = {"size": list(extractor.size)}
    if extractor.assumed:
        settings["assumed"] = extractor.assumed
    if kind == "attentive":
        measured: dict[str, Any] = evaluate_attentive(extractor, train, test, device=where, workers=workers, **limits)
    else:
        chosen = choose_pools(extractor, pools)
        features = [
            extract(extractor, pictures, device=where, pools=chosen, limit=limit, workers=workers)
            for pictures, limit in ((train, limit_train), (test, limit_test))
        ]
        known, unseen = features
        assert known.labels is not None
        if len(known.labels.unique()) < 2:
            raise UserError(
                f"{train.name}: all {len(known)} pictures to learn from have one label: give two classes or more"
            )
        measured = {"train": len(known), "test": len(unseen), "skipped": known.skipped + unseen.skipped}
        if kind == "knn":
            measured["results"] = evaluate_knn(*features, k=k, temperature=temperature, pools=chosen, device=where)
            settings |= {"k": k, "temperature": temperature}
        else:
            how = cast(ProbeMethod, method)
            measured["results"] = evaluate_probe(*features, method=how, pools=chosen, device=where)
            settings |= {"method": method}
    return {
        "kind": kind,
        "target": target,
        "data": train.name,
        "classes": len(train.classes) if train.classes else int(train.labels.max()) + 1,  # type: ignore[union-attr]
        "split_note": "" if train.has_test else "no test split of its own: 80 % train, 20 % test, by address",
        "headline": next(iter(measured["results"])),
        "settings": settings,
        **measured,
    }


def table(results: Iterable[dict[str, Any]]) -> Table:
    """Accuracies in percent with intervals: a part for each target, a row for each kind and pool; headlines in bold."""
    made, names = Table("target", "measure", "features", "accuracy", "95 % interval", "with"), {}
    for result in results:
        names.setdefault(result["target"], []).append(result)
    for target, found in names.items():
        for result in found:
            for pool, one in result["results"].items():
                made.add_row(
                    escape(target),
                    NAMES[result["kind"]],
                    pool,
                    f"{one['accuracy']:.1%}",
                    f"{one['low']:.1%} to {one['high']:.1%}",
                    _with(result, one),
                    style="bold" if pool == result["headline"] else None,
                )
        made.add_section()
    return made


def _with(result: dict[str, Any], one: dict[str, Any]) -> str:
    """The settings of a measurement, given or chosen on held-out pictures."""
    if result["kind"] == "knn":
        return f"k {result['settings']['k']}"
    if result["kind"] == "attentive":
        return f"{one['heads']} head{'s' if one['heads'] > 1 else ''}, rate {one['rate']:g}"
    if one["method"] == "logistic":
        return f"logistic regression, C {one['penalty']:g}"
    return f"{'LARS' if one['method'] == 'lars' else one['method']}, base rate {one['rate']:g}"


def _open(target: str, data: list[str]) -> tuple[Pictures, Pictures, Extractor]:
    """Pictures to learn from and to be tested on, as the target wants them, and the target."""
    own = export_folder(target)  # before pictures are opened, which can take long
    train = labeled(data, "train")
    mean, std = statistics(train) if own is None else ((), ())
    extractor = open_target(target, size=usual_size(train), channels=train.channels, mean=mean, std=std)
    how = {"channels": extractor.channels, "value_range": extractor.value_range}
    if (extractor.channels, extractor.value_range) != (train.channels, train.value_range):
        train = labeled(data, "train", **how)
    test = labeled(data, "test", **how)
    if train.classes != test.classes:
        raise UserError(f"{train.name}: train and test have different classes: give both the same class folders")
    return train, test, extractor


def labeled(data: list[str], split: Split, **how: Any) -> Pictures:
    """As `open_pictures`. Raises UserError for pictures without labels."""
    pictures = open_pictures(data, split, **how)
    if pictures.labels is None:
        raise UserError(
            f"measuring needs labels, and {pictures.name} has none: put the pictures of each class into a "
            "folder of its own (DATA/cat/1.jpg, DATA/dog/2.jpg), or give a list of paths with a tab and a "
            "label a line"
        )
    return pictures


def usual_size(pictures: Pictures) -> tuple[int, int]:
    """The one size of the pictures, by the headers of a sample; MAE's when they are large or differ."""
    found = set()
    for number in sample(len(pictures), 64):
        try:
            found.add(pictures.size(number))
        except BadPicture:
            continue
    one = found.pop() if len(found) == 1 else _USUAL
    return one if max(one) <= _LARGE else _USUAL


def choose_pools(extractor: Extractor, asked: Sequence[Choice]) -> list[Pool]:
    """The pools to measure, the headline first."""
    valid = extractor.pools
    if extractor.model is None:
        return list(valid)
    chosen: list[Pool] = []
    for pool in asked:
        if pool in ("auto", "all"):
            chosen += [extractor.headline, *(valid if pool == "all" else ())]
        elif pool in valid:
            chosen.append(pool)
        elif pool in ("class", "both"):
            raise UserError(f"{extractor.name} has no class token: ask for the pool 'mean'")
        else:
            raise unknown(f"pool of {extractor.name}", pool, ["auto", "all", *valid])
    return list(dict.fromkeys(chosen)) or [extractor.headline]
