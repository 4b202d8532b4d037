"""Average precision as everyone measures it: annotations and predictions enter pycocotools, its numbers leave.

Nothing reaches pycocotools that it takes wrongly in silence: ids begin with 1, and what it needs is always there.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mimkit.core.annotation import Annotation, Joints, Prediction
from mimkit.core.errors import UserError, missing_extra
from mimkit.core.randomness import rng_keys

Kind = Literal["bbox", "segm", "keypoints"]
NAMES = {
    "bbox": ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
    + ("ar_small", "ar_medium", "ar_large"),
    "keypoints": ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large"),
}
"""Of pycocotools' numbers, in its order; masks have those of boxes."""
DRAWS = 200  # of pictures, for an interval


class AveragePrecision:
    """Annotations and predictions of pictures, as they come, and what pycocotools says of them."""

    def __init__(self, categories: Sequence[str], joints: Joints | None = None) -> None:
        """Raises UserError where the extra is not installed, or the sigmas of the joints are not known."""
        try:
            import pycocotools.mask as rle
        except ImportError as error:
            raise missing_extra("average precision", "detect") from error
        if joints is not None and len(joints.sigmas) != len(joints.names):
            raise UserError(
                f"how exactly the {len(joints.names)} joints are labeled is not known (COCO knows its 17): "
                "object keypoint similarity cannot be measured"
            )
        self._rle: Any = rle
        self.categories, self.joints = list(categories), joints
        self.images: list[dict[str, Any]] = []
        self.truth: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []

    def add(self, truth: Annotation, prediction: Prediction) -> None:
        """One picture, in its own pixels."""
        number = len(self.images) + 1
        self.images.append({"id": number, "height": truth.size[0], "width": truth.size[1]})
        for entry in self._entries(truth, number):
            self.truth.append(entry | {"id": len(self.truth) + 1})  # an id of 0 would count as missed
        assert prediction.scores is not None
        for entry, score in zip(self._entries(prediction, number), prediction.scores.tolist(), strict=True):
            self.results.append(entry | {"score": score, "id": len(self.results) + 1})

    def _entries(self, annotation: Annotation, number: int) -> list[dict[str, Any]]:
        assert annotation.boxes is not None and annotation.labels is not None
        boxes = annotation.boxes.double()
        sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        areas = annotation.areas if annotation.areas is not None else sides[:, 2] * sides[:, 3]
        crowd = torch.zeros(len(boxes)) if annotation.crowd is None else annotation.crowd
        entries = []
        for row, (box, label) in enumerate(zip(sides.tolist(), annotation.labels.tolist(), strict=True)):
            entry = {"image_id": number, "category_id": label + 1, "bbox": box, "area": float(areas[row])}
            entry["iscrowd"] = int(crowd[row])
            if annotation.masks is not None:
                entry["segmentation"] = self.encode(annotation.masks[row])
            if annotation.keypoints is not None:
                predicted = isinstance(annotation, Prediction)
                entry |= coco_keypoints(annotation.keypoints[row], predicted=predicted)
            entries.append(entry)
        return entries

    def encode(self, mask: Bool[Tensor, "H W"]) -> dict[str, Any]:
        """COCO's compressed run lengths."""
        return dict(self._rle.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8))))

    def measure(self, kind: Kind) -> dict[str, Any]:
        """pycocotools' numbers, None where there is nothing to measure; per class; with an interval over pictures."""
        evaluation = self._evaluated(kind)
        names = NAMES["keypoints" if kind == "keypoints" else "bbox"]
        scores: dict[str, Any] = {
            name: None if value < 0 else round(float(value), 6)
            for name, value in zip(names, evaluation.stats, strict=True)
        }
        precision = evaluation.eval["precision"]  # thresholds x recalls x classes x areas x limits
        for number, name in enumerate(self.categories):
            values = precision[:, :, number, 0, -1]
            count = sum(entry["category_id"] == number + 1 and not entry["iscrowd"] for entry in self.truth)
            measured = values[values > -1]
            per_class = {"ap": round(float(measured.mean()), 6) if len(measured) else None, "objects": count}
            scores.setdefault("per_class", {})[name] = per_class
        low, high = self._interval(evaluation)
        return scores | {"low": low, "high": high, "pictures": len(self.images)}

    def _evaluated(self, kind: Kind) -> Any:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            truth: Any = COCO()
            results: Any = COCO()
            shared: dict[str, Any] = {"images": self.images}
            shared["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(self.categories)]
            truth.dataset = shared | {"annotations": [dict(entry) for entry in self.truth]}
            results.dataset = shared | {"annotations": [dict(entry) for entry in self.results]}
            for entry in results.dataset["annotations"]:
                self._size(entry, kind)
            truth.createIndex()
            results.createIndex()
            evaluation = COCOeval(truth, results, kind)
            if self.joints is not None and kind == "keypoints":
                evaluation.params.kpt_oks_sigmas = np.array(self.joints.sigmas)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _size(self, entry: dict[str, Any], kind: Kind) -> None:
        """Let the size of a found object be that of its mask or of its joints, as pycocotools' `loadRes` does."""
        if kind == "segm":
            entry["area"] = float(self._rle.area(entry["segmentation"]))
        elif kind == "keypoints":
            points = np.array(entry["keypoints"]).reshape(-1, 3)[:, :2]
            entry["area"] = float(np.prod(points.max(0) - points.min(0)))

    def _interval(self, evaluation: Any) -> tuple[float | None, float | None]:
        """Percentiles 2.5 and 97.5 of the average precision over draws of as many pictures, with repetition."""
        matched = [entry for entry in evaluation.evalImgs if entry is not None]
        area = evaluation.params.areaRng[0]
        by_class: dict[int, dict[int, Any]] = {}
        for entry in matched:
            if entry["aRng"] == area:
                by_class.setdefault(int(entry["category_id"]), {})[int(entry["image_id"])] = entry
        count, limit = len(self.images), evaluation.params.maxDets[-1]
        draws = rng_keys("bootstrap", torch.arange(DRAWS * count)).remainder(count).view(DRAWS, count) + 1
        values = [_mean_precision(by_class, row, limit) for row in draws.tolist()]
        numbers = [value for value in values if value is not None]
        if not numbers:
            return None, None
        low, high = np.percentile(numbers, [2.5, 97.5])
        return round(float(low), 6), round(float(high), 6)


def _mean_precision(by_class: dict[int, dict[int, Any]], pictures: list[int], limit: int) -> float | None:
    """COCO's average precision of some pictures, from how pycocotools matched each."""
    means = []
    for entries in by_class.values():
        picked = [entries[number] for number in pictures if number in entries]
        truth = sum(int((np.asarray(entry["gtIgnore"]) == 0).sum()) for entry in picked)
        if not truth:
            continue
        scores = np.concatenate([entry["dtScores"][:limit] for entry in picked])
        if not len(scores):
            means.append(0.0)
            continue
        right = np.concatenate([entry["dtMatches"][:, :limit] for entry in picked], axis=1).astype(bool)
        ignored = np.concatenate([entry["dtIgnore"][:, :limit] for entry in picked], axis=1).astype(bool)
        means.append(_precision(scores, right, ignored, truth))
    return float(np.mean(means)) if means else None


def _precision(scores: np.ndarray, right: np.ndarray, ignored: np.ndarray, truth: int) -> float:
    """Mean over IoU thresholds of the precision at 101 recalls, the best at each recall or beyond."""
    order = np.argsort(-scores, kind="mergesort")
    right, ignored = right[:, order], ignored[:, order]
    hits = np.cumsum(right & ~ignored, axis=1).astype(float)
    misses = np.cumsum(~right & ~ignored, axis=1).astype(float)
    recall = hits / truth
    precision = hits / np.maximum(hits + misses, np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    levels = np.linspace(0, 1, 101)
    values = []
    for recalls, precisions in zip(recall, precision, strict=True):
        place = np.searchsorted(recalls, levels, side="left")
        reached = place < len(precisions)
        values.append(np.where(reached, precisions[np.minimum(place, len(precisions) - 1)], 0.0).mean())
    return float(np.mean(values))


def coco_keypoints(keypoints: Float[Tensor, "J 3"], *, predicted: bool) -> dict[str, Any]:
    """Joints in COCO's form: whole numbers of its places are middles of pixels. Predicted ones have a place always."""
    labeled = keypoints[:, 2] > 0
    points = keypoints.clone().double()
    points[:, :2] -= 0.5
    if not predicted:
        points[~labeled] = 0
    return {"keypoints": points.flatten().tolist(), "num_keypoints": int(labeled.sum())}
