"""Dense evaluation: a target and annotated pictures enter; how well its frozen patches tell classes or depths leaves.

Two measures, of features that nothing changes: the neighbors of each patch, and a linear map. Beside them stand what
needs no model, *place* and *constant*: what a photograph shows depends on where in it one looks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mimkit.core.dense_metrics import class_pixels, depth_errors, depth_scores, pixel_confusion, pixel_scores
from mimkit.core.errors import UserError, at_least, unknown
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.annotations.sources import AnnotatedSplits, open_annotated
from mimkit.data.loader import statistics
from mimkit.data.pictures import sample
from mimkit.data.reading import Reading
from mimkit.evaluate.dense_fit import (
    MEMORY,
    Answer,
    Linear,
    class_map,
    depth_map,
    fit_classes,
    fit_depth,
    neighbors,
)
from mimkit.evaluate.dense_maps import Bank, Places, Reader, gather, nearest, packed, unpacked
from mimkit.evaluate.run import usual_size
from mimkit.evaluate.target import HUB, UNTRAINED, Extractor, export_folder, open_target, reading_for
from mimkit.train.machine import Machine
from mimkit.weights.official import ENDINGS

FrozenTask = Literal["segment", "depth"]
DenseMeasure = Literal["knn", "linear"]
PIXELS_SIZE = (96, 96)  # 12 x 12 cells of 8 pixels


@dataclass(frozen=True)
class Task:
    """What classes and depths of pixels are measured by."""

    lacks: str
    """What a pixel is without, of which nothing is known."""
    fit_linear: Callable[[Bank, torch.device], Linear]
    enlarged: Callable[[Float[Tensor, "A h w"], tuple[int, int]], Shaped[Tensor, "H W"]]
    """Answers of patches for the pixels of a picture."""
    placed: Callable[[Shaped[Tensor, "h w"], tuple[int, int]], Shaped[Tensor, "H W"]]
    """The same of one answer for each place."""
    compared: Callable[[Shaped[Tensor, "H W"], Shaped[Tensor, "H W"], int], Any]
    """What scores need of a picture: of its truth, its prediction and the number of classes."""
    scored: Callable[[list[Any], Sequence[str]], dict[str, Any]]
    """JSON of all pictures and the names of the classes."""


TASKS = {
    "segment": Task(
        lacks="a class",
        fit_linear=fit_classes,
        enlarged=class_map,
        placed=nearest,
        compared=lambda truth, guess, classes: class_pixels(pixel_confusion(truth, guess, classes)),
        scored=lambda rows, names: pixel_scores(torch.stack(rows), names),
    ),
    "depth": Task(
        lacks="a depth",
        fit_linear=fit_depth,
        enlarged=lambda answers, size: depth_map(answers[0], size),
        placed=depth_map,
        compared=lambda truth, guess, _: depth_errors(guess, truth),
        scored=lambda rows, _: depth_scores(rows),
    ),
}


def evaluate_dense(
    kind: str,
    target: str,
    data: Sequence[str],
    *,
    labels: str | None = None,
    void: int | None = None,
    depth_scale: float | None = None,
    measures: Sequence[str] = ("knn", "linear"),
    memory: int = MEMORY,
    device: str = "auto",
    workers: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    reading: Reading = Reading(),
) -> dict[str, Any]:
    """Measure frozen patch features of a target on annotated pictures.

    Args:
        kind: `segment` or `depth`.
        target: see `open_target`.
        data, labels, void, depth_scale: see `open_annotated`.
        measures: `knn` (nearest neighbors), `linear` (a linear classifier, or ridge regression of depth), or both.
        memory: patches among which neighbors are looked for.
        device, workers: `auto`, `cpu`, `cuda` or `cuda:N`; processes that read pictures, 0 reads here.
        limit_train, limit_test: how many pictures to take, spread over the set; all by default.
        reading: how files become pictures, where that is another way than the target's.

    Returns:
        JSON: as `measure`, with target and notes (lines about the data).

    Raises:
        UserError: anything a person can mend.
    """
    _refuse_unknown(kind, measures, memory, limit_train, limit_test)
    task: Any = kind
    (train, test), extractor = _open(task, target, data, reading, labels=labels, void=void, depth_scale=depth_scale)
    machine = Machine(device=device).find_device()
    settings: Any = dict(measures=measures, memory=memory, limit_train=limit_train, limit_test=limit_test)
    result = measure(task, extractor, train, test, device=machine, workers=workers, **settings)
    notes = list(dict.fromkeys(filter(None, (*train.notes, *test.notes, train.about_values))))
    return {"kind": kind, "target": target, "data": train.name, "notes": notes, **result}


def _refuse_unknown(
    kind: str, measures: Sequence[str], memory: int, limit_train: int | None, limit_test: int | None
) -> None:
    at_least(1, memory=memory, limit_train=limit_train, limit_test=limit_test)
    if kind not in get_args(FrozenTask):
        raise unknown("dense measure of frozen features", kind, get_args(FrozenTask))
    for name in measures:
        if name not in get_args(DenseMeasure):
            raise unknown("measure of patches", name, get_args(DenseMeasure))
    if not measures:
        raise UserError("nothing to measure: name knn, linear or both")


def _open(
    task: FrozenTask, target: str, data: Sequence[str], reading: Reading, **layout: Any
) -> tuple[AnnotatedSplits, Extractor]:
    own = export_folder(target)  # before pictures are opened, which can take long
    places = [data] if isinstance(data, str) else list(data)
    reading = reading_for(target, reading)
    splits = open_annotated(places, task, reading=reading, **layout)
    train = splits.train
    mean, std = statistics(train) if own is None else ((), ())
    extractor = open_target(target, size=usual_size(train), channels=train.channels, mean=mean, std=std)
    if extractor.model is None:
        extractor = replace(extractor, size=PIXELS_SIZE)
    # They were opened as they are, to tell a timm model their channels; released weights want their own.
    if extractor.channels != train.channels:
        splits = open_annotated(places, task, reading=replace(reading, channels=extractor.channels), **layout)
    return splits, extractor


def measure(
    task: FrozenTask,
    extractor: Extractor,
    train: Annotated,
    test: Annotated,
    *,
    measures: Sequence[str] = ("knn", "linear"),
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
    workers: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
) -> dict[str, Any]:
    """As `evaluate_dense`, of an extractor and pictures that are open.

    Returns:
        JSON: train and test (pictures used), skipped (that cannot be read); of classes how many, unseen_classes and
        untested_classes; settings; results {measure: scores} and baselines {place, constant: scores}, see
        `pixel_scores` and `depth_scores`.

    Raises:
        UserError: the pictures are annotated for another task, nothing is known of them, or the target has no maps.
    """
    for pictures in (train, test):
        if pictures.task != task:
            raise UserError(f"{pictures.name} is annotated for {pictures.task}: measure that, or open it for {task}")
    machine, settings = torch.device(device), TASKS[task]
    if extractor.model is not None:
        extractor.model.to(machine)
    reader, skipped = Reader(extractor, machine, workers), (dict[int, str](), dict[int, str]())
    bank = gather(reader, train, limit_train, skipped[0])
    if not bank.valid.any():
        raise UserError(f"no pixel of the training pictures of {train.name} has {settings.lacks}: all of it is void")
    fits: dict[str, Callable[[], Answer]] = {
        "knn": lambda: neighbors(bank, memory, machine),
        "linear": lambda: settings.fit_linear(bank, machine),
    }
    fitted = {name: fits[name]() for name in measures}
    rows = _rows(reader, test, limit_test, skipped[1], settings, fitted, bank.places)
    scores = {name: settings.scored(pictures, train.categories) for name, pictures in rows.items()}
    used: dict[str, Any] = {"size": list(extractor.size), "grid": list(bank.grid), "patches": bank.features.shape[1]}
    used |= {name: answer.settings for name, answer in fitted.items()}
    used |= {"assumed": extractor.assumed} if extractor.assumed else {}
    return {
        "train": len(bank.features),
        "test": len(rows["place"]),
        "skipped": len(skipped[0]) + len(skipped[1]),
        **(_classes(bank, train.categories, rows["place"]) if task == "segment" else {}),
        "settings": used,
        "results": {name: scores[name] for name in fitted},
        "baselines": {name: scores[name] for name in ("place", "constant")},
    }


def _rows(
    reader: Reader,
    test: Annotated,
    limit: int | None,
    skipped: dict[int, str],
    task: Task,
    fitted: dict[str, Answer],
    places: Places,
) -> dict[str, list[Any]]:
    """What scores need of each test picture, by measure and by baseline; compared in the picture's own size."""
    rows: dict[str, list[Any]] = {name: [] for name in (*fitted, "place", "constant")}
    usual, constant = places.answer(), places.constant()
    index = sample(len(test), len(test) if limit is None else limit)
    for maps, _, together in reader.batches(test, index, packed, skipped):
        answers = {name: answer(maps) for name, answer in fitted.items()}
        for picture, truth in enumerate(unpacked(*together)):
            size = (truth.shape[0], truth.shape[1])
            guesses = {name: task.enlarged(answer[picture], size).cpu() for name, answer in answers.items()}
            guesses["place"] = task.placed(usual, size)
            guesses["constant"] = torch.full(size, constant, dtype=usual.dtype)
            for name, guess in guesses.items():
                rows[name].append(task.compared(truth, guess, places.classes))
    return rows


def _classes(bank: Bank, names: Sequence[str], rows: list[Int64[Tensor, "3 K"]]) -> dict[str, Any]:
    """How many classes there are, and which are tested and not learned, or learned and not tested."""
    tested = torch.stack(rows)[:, 1].any(0)
    unseen, untested = tested & ~bank.learned, bank.learned & ~tested
    return {
        "classes": len(names),
        "unseen_classes": [names[i] for i in unseen.nonzero()[:, 0].tolist()],
        "untested_classes": [names[i] for i in untested.nonzero()[:, 0].tolist()],
    }


def with_baselines(targets: Iterable[str]) -> list[str]:
    """The targets, behind each the same network untrained where that can be built, and last the pixels."""
    listed = []
    for target in targets:
        listed += [target, *untrained(target)]
    return list(dict.fromkeys([*listed, "pixels"]))


def untrained(target: str) -> list[str]:
    """The target `untrained:X` of a run, an export or a timm name; none of pixels, of files and of the hub."""
    alone = target == "pixels" or target.startswith((UNTRAINED, HUB)) or Path(target).suffix in ENDINGS
    return [] if alone else [UNTRAINED + target]
