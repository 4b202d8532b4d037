"""Predict: a trained dense task and pictures enter; what it says of them, as values or as files, leaves."""

import io
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mimkit.api.preprocess import Picture, Preprocess
from mimkit.api.results import Result, picture_tag
from mimkit.core.annotation import VOID, Prediction
from mimkit.core.errors import UserError
from mimkit.core.grids import save_picture
from mimkit.data.decode import BadPicture
from mimkit.data.pictures import Pictures, sample
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.stream import all_bad, stream
from mimkit.data.values import Storage, given_values
from mimkit.evaluate.coco import AveragePrecision, coco_keypoints
from mimkit.evaluate.drawn import Shown, class_color, draw, shown_pixels
from mimkit.evaluate.predict import predict
from mimkit.evaluate.target import Extractor, reading_for
from mimkit.evaluate.trained import Trained, open_trained
from mimkit.train.machine import Machine
from mimkit.train.run_folder import disk_errors

SHEET = "predictions.png"
DRAWN = 8  # pictures on the sheet beside the files
DEEPEST = 65_535  # millimeters that a 16-bit PNG holds


@dataclass(frozen=True)
class Predicted:
    """What a task says of one picture, which Jupyter shows drawn over it.

    `prediction` has `segments` (H, W), -1 to K - 1; `depth` (H, W) in meters; or `boxes` (n, 4) with `labels`, `scores`
    and `masks` (n, H, W) or `keypoints` (n, J, 3): see `core.annotation.Annotation`.
    """

    prediction: Prediction
    categories: tuple[str, ...]
    """What the classes are called."""
    image: Image.Image
    """The picture beside the prediction."""

    def _repr_html_(self) -> str:
        stream = io.BytesIO()
        self.image.save(stream, format="PNG")
        return picture_tag(stream.getvalue(), "prediction")


def predict_one(trained: Trained, picture: Picture, boxes: Any = None) -> Predicted:
    """What a task says of a picture. `boxes` (n, 4): of keypoints, the people. Raises UserError."""
    extractor = Extractor(
        name=trained.name,
        size=trained.size,
        channels=trained.channels,
        mean=trained.mean,
        std=trained.std,
        fingerprint="",
        reading=trained.reading,
    )
    pixels = Preprocess(extractor).pixels(picture)
    values = given_values(trained.reading, Storage(trained.channels, pixels.dtype, trained.reading.nodata))
    assert values is not None  # other types than uint8 come with a range
    prediction = predict(trained, pixels, values, _boxes(trained, boxes))
    row = Shown(pixels=shown_pixels(pixels, values), truth=None, prediction=prediction, title="picture")
    return Predicted(prediction, trained.categories, draw([row], trained.kind, trained.categories, trained.joints))


def _boxes(trained: Trained, boxes: Any) -> Float[Tensor, "n 4"] | None:
    if boxes is None:
        return None
    if trained.kind != "keypoints":
        raise UserError(f"boxes are of people whose joints are looked for: leave them out of {trained.kind}")
    rows = torch.as_tensor(boxes, dtype=torch.float32)
    if rows.ndim != 2 or rows.shape[1] != 4 or not rows.isfinite().all() or not (rows[:, 2:] > rows[:, :2]).all():
        raise UserError("boxes are rows of left, top, right and bottom in pixels, as [[10, 20, 60, 140]]")
    return rows


def predict_to(
    target: str,
    data: Sequence[str],
    out: Path,
    *,
    limit: int | None = None,
    device: str = "auto",
    workers: int = 0,
    reading: Reading = Reading(),
) -> Result:
    """What a task says of each picture of a set, as files.

    Segmentation writes an 8-bit (of more than 255 classes 16-bit) PNG of class numbers for each picture, and
    classes.json; depth a 16-bit PNG in millimeters; detection and keypoints predictions.json in COCO's form with
    scores. predictions.png shows some.

    Args:
        target: a run of a dense task, or its export.
        data: see `open_pictures`; labels are not needed.
        out: a new or empty folder.
        limit: so many pictures, spread over the set.
        device, workers: `auto`, `cpu`, `cuda` or `cuda:N`; processes that read pictures.
        reading: how files become pictures, where that is another way than the task's.

    Raises:
        UserError: anything a person can mend.
    """
    trained = open_trained(target, Machine(device=device).find_device())
    reading = replace(reading_for(target, reading), channels=trained.channels)
    pictures = open_pictures(data, "all", reading)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: give --out a new or empty folder")
    numbers = sample(len(pictures), len(pictures) if limit is None else limit)
    skipped: dict[int, str] = {}
    writer = _Writer(trained, pictures, out)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with closing(stream(_Reader(pictures, numbers), len(numbers), workers)) as results:
            for number, picture in zip(numbers, results, strict=True):
                if isinstance(picture, str):
                    skipped[number] = picture
                else:
                    writer.write(number, picture, predict(trained, picture, pictures.values))
        if not writer.count:
            raise all_bad(pictures, skipped)
        writer.close()
    return Result(
        target=target,
        kind=trained.kind,
        data=pictures.name,
        out=str(out),
        pictures=writer.count,
        skipped=len(skipped),
        categories=list(trained.categories),
    )


@dataclass(frozen=True)
class _Reader:
    """Place in a list of numbers -> that picture, or why it cannot be read; for workers."""

    pictures: Pictures
    numbers: list[int]

    def __call__(self, place: int) -> Any:
        try:
            return self.pictures.read(self.numbers[place])
        except BadPicture as error:
            return str(error)


class _Writer:
    """Files of predictions, one picture after the other."""

    def __init__(self, trained: Trained, pictures: Pictures, out: Path) -> None:
        self.trained, self.pictures, self.out = trained, pictures, out
        self.count = 0
        self.rows: list[Shown] = []
        self.images: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        self.rle = AveragePrecision(trained.categories) if trained.kind == "detect" else None

    def write(self, number: int, picture: Tensor, prediction: Prediction) -> None:
        """Note or write one picture."""
        self.count += 1
        name = self._name(number)
        if prediction.segments is not None:
            self._save(_indexed(prediction.segments, len(self.trained.categories)), name)
        elif prediction.depth is not None:
            millimeters = (prediction.depth * 1000).round().clamp(0, DEEPEST).numpy().astype(np.uint16)
            self._save(Image.fromarray(millimeters), name)
        else:
            self._note(number, name, prediction)
        if self.count <= DRAWN:
            pixels = shown_pixels(picture, self.pictures.values)
            self.rows.append(Shown(pixels=pixels, truth=None, prediction=prediction, title=Path(name).name[:40]))

    def _name(self, number: int) -> str:
        """Of a picture's file: its place below the folder of the set, else its number with the name of its file."""
        where, root = self.pictures.where(number), os.path.abspath(os.path.expanduser(self.pictures.name))
        if os.path.isdir(root) and where.startswith(root + os.sep):
            return os.path.relpath(where, root)
        return f"{number:08d}" + (f"-{os.path.basename(where)}" if os.path.isfile(where) else "")

    def _save(self, image: Image.Image, name: str) -> None:
        file = (self.out / name).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() or file == self.out / SHEET:  # a.jpg beside a.png
            file = self.out / f"{name}.png"
        save_picture(image, file)

    def _note(self, number: int, name: str, prediction: Prediction) -> None:
        assert prediction.boxes is not None and prediction.labels is not None and prediction.scores is not None
        height, width = prediction.size
        self.images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
        sides = torch.cat([prediction.boxes[:, :2], prediction.boxes[:, 2:] - prediction.boxes[:, :2]], 1)
        for row, (box, label, score) in enumerate(
            zip(sides.tolist(), prediction.labels.tolist(), prediction.scores.tolist(), strict=True)
        ):
            entry: dict[str, Any] = {"id": len(self.objects) + 1, "image_id": number + 1, "category_id": label + 1}
            entry |= {"bbox": [round(value, 2) for value in box], "area": box[2] * box[3], "iscrowd": 0}
            if prediction.masks is not None and self.rle is not None:
                encoded = self.rle.encode(prediction.masks[row])
                entry["segmentation"] = encoded | {"counts": encoded["counts"].decode()}
            if prediction.keypoints is not None:
                entry |= coco_keypoints(prediction.keypoints[row], predicted=True)
            self.objects.append(entry | {"score": round(score, 6)})

    def close(self) -> None:
        """Write what is of all pictures."""
        trained = self.trained
        if trained.kind in ("detect", "keypoints"):
            joints: dict[str, Any] = {}
            if trained.joints is not None:
                bones = [[start + 1, end + 1] for start, end in trained.joints.bones]
                joints = {"keypoints": list(trained.joints.names), "skeleton": bones}
            categories = [{"id": i + 1, "name": name} | joints for i, name in enumerate(trained.categories)]
            table = {"images": self.images, "categories": categories, "annotations": self.objects}
            (self.out / "predictions.json").write_text(json.dumps(table), encoding="utf-8")
        if trained.kind == "segment":
            names = dict(enumerate(trained.categories))
            (self.out / "classes.json").write_text(json.dumps(names, indent=2), encoding="utf-8")
        save_picture(draw(self.rows, trained.kind, trained.categories, trained.joints), self.out / SHEET)


def _indexed(segments: Tensor, classes: int) -> Image.Image:
    """Class numbers as an image, with a palette of the colors in which they are drawn; 255 where there is none."""
    numbers = segments.numpy()
    if classes > 255:
        return Image.fromarray(numbers.astype(np.uint16))
    image = Image.fromarray(np.where(numbers == VOID, 255, numbers).astype(np.uint8))
    image.putpalette([value for number in range(256) for value in class_color(number)])
    return image
