"""Dense tasks after training: a finished run enters; scores on its test pictures, and pictures of them, leave."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mimkit.core.annotation import Annotation
from mimkit.core.grids import save_picture
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.decode import BadPicture
from mimkit.data.stream import all_bad, stream
from mimkit.evaluate.drawn import Shown, draw, shown_pixels
from mimkit.evaluate.finetune import WORST, draw_confusion
from mimkit.evaluate.measured import HEADLINES, Measure, measure_of
from mimkit.evaluate.predict import predict
from mimkit.evaluate.trained import Trained, open_trained
from mimkit.train.prepare import Prepared
from mimkit.train.run_folder import RunFolder, write_json, write_text
from mimkit.weights.card import with_scores

OWN = {"segment": "pixels right", "depth": "RMSE (m)", "detect": "quality", "keypoints": "similarity"}
"""What the score of one picture is."""
EACH = 4  # of the best and of the worst pictures, which are drawn


def measure(folder: Path, *, device: torch.device, workers: int = 0) -> dict[str, Any]:
    """Scores of a finished run of a dense task on its test pictures, whole and in their own size.

    Returns what it adds to the run's result.json: kind, metric (the headline's name), scores, train, test,
    skipped_test and more about the run. Writes pictures/predictions.png, and confusion.png of segmentation.
    """
    run = RunFolder(folder)
    saved = run.read_config()
    config = saved["config"]
    prepared = Prepared(config, saved["resolved"], begun=True)
    trained = open_trained(str(folder), device)
    test, skipped = prepared.annotated.test, dict[int, str]()
    scores, own, measured = score(trained, test, workers=workers, skipped=skipped)
    result = run.result()
    result |= {
        "kind": trained.kind,
        "metric": HEADLINES[trained.kind],
        "scores": scores,
        "architecture": config.encoder.name,
        "weights": config.encoder.weights,
        "data": prepared.name,
        "train": prepared.count,
        "test": len(test) - len(skipped),
        "skipped_test": len(skipped),
        "notes": list(dict.fromkeys(test.notes)),
        "epochs": config.epochs,
        "pictures_per_second": round(result["steps"] * config.batch_size / max(1e-3, result["seconds"]), 1),
    }
    write_json(run.result_path, result)  # first: what is drawn can be drawn again
    if own:
        sheet = draw(extremes(trained, test, own, measured), trained.kind, trained.categories, trained.joints)
        save_picture(sheet, folder / "pictures" / "predictions.png")
    if "confusion" in scores:
        confusion = torch.tensor(scores["confusion"])
        save_picture(draw_confusion(confusion, list(trained.categories)), folder / "confusion.png")
    note_scores(folder / "export" / "README.md", result)
    return result


def note_scores(card: Path, result: dict[str, Any]) -> None:
    """Let the README of an export say what was measured after it was written; nothing of a result without scores."""
    if card.is_file() and "scores" in result:
        rows = dict(score_rows(result["kind"], result["scores"])) | {"measured on": f"{result['test']:,} pictures"}
        write_text(card, with_scores(card.read_text(encoding="utf-8"), rows))


def score(
    trained: Trained, test: Annotated, *, workers: int, skipped: dict[int, str]
) -> tuple[dict[str, Any], dict[int, float], Measure]:
    """Scores over a set, each picture's own by its number, and what measured them; bad pictures are left out."""
    masks = trained.kind == "detect" and test.has_masks and trained.settings.masks
    measured = measure_of(trained.kind, trained.categories, trained.joints, masks=masks)
    own: dict[int, float] = {}
    count = 0
    for number, picture, truth in examples(test, workers, skipped):
        value = measured.add(truth, predict(trained, picture, test.values, _people(trained, truth)))
        count += 1
        if value is not None:
            own[number] = value
    if not count:
        raise all_bad(test, skipped)
    return measured.result(), own, measured


def examples(test: Annotated, workers: int, skipped: dict[int, str]) -> Iterator[tuple[int, Tensor, Annotation]]:
    """Each picture with its number and what is known of it; those that cannot be read are noted."""
    with closing(stream(partial(_example, test), len(test), workers)) as results:
        for number, (picture, truth) in enumerate(results):
            if isinstance(picture, str):
                skipped[number] = picture
            else:
                yield number, picture, truth


def _example(test: Annotated, number: int) -> tuple[Any, Any]:
    """A picture and what is known of it, or why it cannot be read."""
    try:
        return test.read(number), test.annotation(number)
    except BadPicture as error:
        return str(error), None


def _people(trained: Trained, truth: Annotation) -> Tensor | None:
    return truth.boxes if trained.kind == "keypoints" else None


def extremes(trained: Trained, test: Annotated, own: dict[int, float], measured: Measure) -> list[Shown]:
    """The worst pictures by their own score, and the best."""
    order = sorted(own, key=lambda number: own[number], reverse=measured.lower_is_better)
    worst, best = order[:EACH], order[max(EACH, len(order) - EACH) :]
    rows = []
    for title, numbers in (("worst", worst), ("best", best)):
        for number in numbers:
            picture, truth = test.read(number), test.annotation(number)
            prediction = predict(trained, picture, test.values, _people(trained, truth))
            words = f"{title}: {OWN[trained.kind]} {own[number]:.3f}"
            pixels = shown_pixels(picture, test.values)
            rows.append(Shown(pixels=pixels, truth=truth, prediction=prediction, title=words))
    return rows


def table(result: dict[str, Any]) -> Table:
    """Scores with intervals, what they cost, and the classes that do worst."""
    grid = Table(box=None, pad_edge=False, show_header=False)
    scores, folder = result["scores"], Path(result["run"])
    rows = [
        (result["kind"], f"{result['architecture']}, from {result['weights'] or 'new weights'}, by {result['recipe']}"),
        *score_rows(result["kind"], scores),
        ("pictures", f"{result['train']:,} to learn from, {result['test']:,} measured, of {result['data']}"),
        ("training", f"{result['epochs']} epochs, {result['steps']:,} steps, {result['seconds']:,.0f} s"),
        ("", f"{result['pictures_per_second']:,.1f} pictures/s"),
        *worst_rows(result["kind"], scores.get("per_class", {})),
        *(("note", note) for note in result["notes"]),
        ("pictures", str(folder / "pictures" / "predictions.png")),
        *([("confusion", str(folder / "confusion.png"))] if "confusion" in scores else []),
        ("use it", f"mimkit predict {folder} --data PICTURES --out FOLDER"),
        ("the backbone", f"timm.create_model('local-dir:{(folder / 'export').absolute()}', pretrained=True)"),
    ]
    for row in rows:
        grid.add_row(*map(escape, row))
    return grid


def score_rows(kind: str, scores: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores of a task, the headline first, with its interval over pictures."""
    interval = f"({shown(scores['low'])} to {shown(scores['high'])})"
    if kind == "segment":
        return [
            ("mIoU", f"{shown(scores['miou'])} {interval}"),
            ("pixels right", f"{shown(scores['pixel_accuracy'])}; mean over classes {shown(scores['class_accuracy'])}"),
        ]
    if kind == "depth":
        near = ", ".join(f"{shown(scores[f'delta{i}'])}" for i in (1, 2, 3))
        return [
            ("RMSE", f"{shown(scores['rmse'])} m {interval}"),
            ("within 1.25", f"{near} of the pixels (1.25, its square, its cube)"),
            ("relative", f"{shown(scores['abs_rel'])}; log10 {shown(scores['log10'])}"),
        ]
    name = "joints AP" if kind == "keypoints" else "box AP"
    rows = [(name, f"{shown(scores['ap'])} {interval}; AP50 {shown(scores['ap50'])}, AP75 {shown(scores['ap75'])}")]
    if "masks" in scores:
        masks = scores["masks"]
        interval = f"({shown(masks['low'])} to {shown(masks['high'])})"
        rows += [("mask AP", f"{shown(masks['ap'])} {interval}; AP50 {shown(masks['ap50'])}")]
    if "errors" in scores:
        counted = ", ".join(f"{name} {count:,}" for name, count in scores["errors"].items())
        rows += [("sure objects", counted)]
    return rows


def worst_rows(kind: str, per_class: dict[str, Any]) -> list[tuple[str, str]]:
    """The classes that do worst."""
    name = "iou" if kind == "segment" else "ap"
    counted = "pixels" if kind == "segment" else "objects"
    measured = [(label, scores) for label, scores in per_class.items() if scores[name] is not None]
    worst = sorted(measured, key=lambda entry: entry[1][name])[:WORST]
    rows = [(f"  {label}", f"{shown(scores[name])}, {scores[counted]:,} {counted}") for label, scores in worst]
    return [("worst classes", ""), *rows] if len(measured) > 1 else []


def shown(value: float | None) -> str:
    """A score for people; a dash where there was nothing to measure."""
    return "-" if value is None else f"{value:.3f}"
