"""Doctor of annotated sets: a folder and a task enter; what its two splits hold, and what was mended, leave."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from mimkit.analysis.doctor import CLASSES, EXAMPLES
from mimkit.core.annotation import DenseTask
from mimkit.core.errors import UserError, at_least
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.annotations.objects import Objects
from mimkit.data.annotations.remembered import in_threads
from mimkit.data.annotations.segments import Segmented
from mimkit.data.annotations.sources import open_annotated
from mimkit.data.header import BadPicture
from mimkit.data.pictures import sample
from mimkit.data.reading import Reading

SMALL, MEDIUM = 32**2, 96**2
"""Areas in pixels below which COCO calls objects small, and medium; others are large."""
_SPARSE = 16  # every so many pixels give the median of a depth


@dataclass(frozen=True)
class AnnotationExamination:
    """What was found out."""

    result: dict[str, Any]
    """As JSON."""

    @property
    def table(self) -> Table:
        """For people: a row for each thing that there is to say."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows(self.result):
            table.add_row(name, escape(text))
        return table


def examine_annotations(
    data: list[str],
    task: DenseTask,
    *,
    labels: str | None = None,
    void: int | None = None,
    depth_scale: float | None = None,
    limit: int = 20_000,
    reading: Reading = Reading(),
) -> AnnotationExamination:
    """Open a set as training does, and read its pictures and annotations.

    Of each split at most `limit` pictures are read, spread over it; objects and pixels of classes are counted of all.
    The other settings are those of `open_annotated`. Raises UserError.
    """
    at_least(1, limit=limit)
    sets = open_annotated(data, task, labels=labels, reading=reading, void=void, depth_scale=depth_scale)
    splits = {"train": describe(sets.train, limit), "test": describe(sets.test, limit)}
    counts = {name: split.pop("counts") for name, split in splits.items()}
    classes = [
        {"name": name} | {split: counts[split][number] for split in counts}
        for number, name in enumerate(sets.train.categories)
    ]
    result = {
        "data": sets.train.name,
        "labels": labels,
        "task": task,
        "split": "own" if sets.train.has_test else "address",
        "unit": "pixels" if task == "segment" else "objects",
        "classes": classes,
        "masks": sets.train.has_masks,
        "joints": list(sets.train.joints.names) if sets.train.joints else [],
        "splits": splits,
        "notes": list(dict.fromkeys((*sets.train.notes, *sets.test.notes))),
    }
    if not any(split["readable"] for split in splits.values()):
        reason = next(iter(splits["train"]["bad"].values()))
        raise UserError(f"no picture of {sets.train.name} can be read: {reason}; give another folder")
    return AnnotationExamination(result)


def describe(annotated: Annotated, limit: int) -> dict[str, Any]:
    """What one split holds. `counts` are objects or pixels of each class."""
    numbers = sample(len(annotated), limit)
    reads = in_threads(lambda number: _read(annotated, number), numbers)
    bad = {annotated.where(n): reason for n, reason in zip(numbers, reads, strict=True) if isinstance(reason, str)}
    about: dict[str, Any] = {
        "pictures": len(annotated),
        "read": len(numbers),
        "readable": len(numbers) - len(bad),
        "bad": bad,
        "counts": [],
    }
    if isinstance(annotated, Segmented):
        pixels = annotated.pixels.tolist()
        about |= {"counts": pixels[:-1], "void": pixels[-1] / max(1, sum(pixels))}
    if isinstance(annotated, Objects):
        about |= _objects(annotated)
    if annotated.task == "depth":
        about["depth"] = _depths([values for values in reads if isinstance(values, np.ndarray)])
    return about


def _read(annotated: Annotated, number: int) -> str | np.ndarray:
    """Why a picture or its annotation cannot be read, else some of its depths, NaN where unknown; empty without any."""
    try:
        picture, annotation = annotated.read(number), annotated.annotation(number)
    except BadPicture as error:
        return str(error)
    if tuple(picture.shape[1:]) != annotation.size:
        return f"is {tuple(picture.shape[1:])}, and its annotation {annotation.size}"
    if annotation.depth is None:
        return np.zeros(0)
    values = annotation.depth.flatten().numpy()
    ends = [np.nanmin(values), np.nanmax(values)] if np.isfinite(values).any() else []
    return np.concatenate([values[number % _SPARSE :: _SPARSE], np.array(ends, np.float32)])


def _objects(annotated: Objects) -> dict[str, Any]:
    table = annotated.table
    single = ~table.crowd
    areas = table.areas[single]
    about: dict[str, Any] = {
        "objects": int(single.sum()),
        "crowds": int(table.crowd.sum()),
        "empty": int((table.counts == 0).sum()),
        "sizes": {
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        "counts": np.bincount(table.labels[single], minlength=len(annotated.categories)).tolist(),
    }
    if table.keypoints is not None:
        labeled = table.keypoints[single][..., 2] > 0
        about["labeled"] = {
            "people": int(labeled.any(1).sum()),
            "joints": labeled.sum(0).tolist(),
            "hidden": int((table.keypoints[single][..., 2] == 1).sum()),
        }
    return about


def _depths(values: list[np.ndarray]) -> dict[str, float] | None:
    """Unknown share, least, median and largest meters; None where nothing is known."""
    every = np.concatenate(values) if values else np.zeros(0)
    measured = every[np.isfinite(every)]
    if not len(measured):
        return None
    return {
        "unknown": float(1 - len(measured) / len(every)),
        "least": float(measured.min()),
        "median": float(np.median(measured)),
        "most": float(measured.max()),
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each thing that there is to say."""
    splits, lines = result["splits"], []
    address = "" if result["split"] == "own" else " (20 % by address)"
    lines.append(("pictures", f"{_counts(splits, 'pictures')}{address} from {result['data']}"))
    if result["task"] in ("detect", "keypoints"):
        lines += _object_rows(result)
    if result["task"] == "segment":
        shares = [f"{100 * split['void']:.2g} % of the pixels in {name}" for name, split in splits.items()]
        lines.append(("void", "; ".join(shares)))
    if result["task"] == "depth":
        lines.append(("depth", "; ".join(f"{_depth_text(split)} in {name}" for name, split in splits.items())))
    if result["classes"] and result["task"] != "depth":
        lines += _class_rows(result)
    for name, split in splits.items():
        if split["bad"]:
            place, reason = next(iter(split["bad"].items()))
            lines.append(("bad", f"{len(split['bad']):,} in {name} cannot be read, as {place}: {reason}"))
    if not any(split["bad"] for split in splits.values()):
        lines.append(("bad", f"none ({_counts(splits, 'read')} read)"))
    return [*lines, *(("note", note) for note in result["notes"])]


def _counts(splits: dict[str, Any], key: str) -> str:
    """A number of each split."""
    return " and ".join(f"{split[key]:,} in {name}" for name, split in splits.items())


def _depth_text(split: dict[str, Any]) -> str:
    depth = split["depth"]
    if depth is None:
        return "nothing"
    ends = f"{depth['least']:.3g} to {depth['most']:.3g} m, half below {depth['median']:.3g} m"
    return f"{ends}, {100 * depth['unknown']:.2g} % unknown"


def _object_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    splits = result["splits"]
    word = "people" if result["task"] == "keypoints" else "objects"
    masks = "" if result["task"] == "keypoints" else ", with masks" if result["masks"] else ", without masks"
    lines = [(word, _counts(splits, "objects") + masks)]
    sizes = [
        f"{', '.join(f'{count:,} {size}' for size, count in split['sizes'].items())} in {name}"
        for name, split in splits.items()
    ]
    lines.append(("sizes", f"{'; '.join(sizes)} (as COCO: below {SMALL:,} and {MEDIUM:,} pixels)"))
    for key, text in (("crowds", "crowds, which nothing learns"), ("empty", "pictures without objects")):
        if any(split[key] for split in splits.values()):
            lines.append(("", f"{text}: {_counts(splits, key)}"))
    if result["joints"]:
        labeled = {name: split["labeled"] for name, split in splits.items()}
        lines.append(("labeled", f"people with joints: {_counts(labeled, 'people')}"))
        counts = zip(result["joints"], *(split["joints"] for split in labeled.values()), strict=True)
        lines.append(("joints", ", ".join(f"{name} {'/'.join(f'{n:,}' for n in each)}" for name, *each in counts)))
        lines.append(("", f"hidden ones among them: {_counts(labeled, 'hidden')}"))
    return lines


def _class_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    classes, unit = result["classes"], result["unit"]
    lines = [("classes", f"{len(classes)}, {unit} in train/test")]
    shown = sorted(classes, key=lambda each: -each["train"])[:CLASSES]
    more = f" and {len(classes) - len(shown)} more (--json - lists all)" if len(classes) > len(shown) else ""
    lines.append(("", ", ".join(f"{each['name']} {each['train']:,}/{each['test']:,}" for each in shown) + more))
    for in_train, in_test, fate in (
        (False, True, f"no {unit} in train, measured and never learned"),
        (True, False, f"no {unit} in test, learned and never measured"),
        (False, False, f"no {unit} at all"),
    ):
        names = [each["name"] for each in classes if (each["train"] > 0, each["test"] > 0) == (in_train, in_test)]
        if names:
            rest = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
            lines.append(("", f"{fate}: {', '.join(names[:EXAMPLES])}{rest}"))
    return lines
