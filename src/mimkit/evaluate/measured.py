"""Scores of a dense task over a set: truth and prediction of one picture after the other enter, JSON leaves."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from mimkit.core.annotation import Annotation, DenseTask, Joints, Prediction
from mimkit.core.dense_metrics import class_pixels, depth_errors, depth_scores, pixel_confusion, pixel_scores
from mimkit.core.errors import UserError
from mimkit.evaluate.coco import AveragePrecision

SURE = 0.5  # objects of at least this score are drawn, and count in the score of one picture
HEADLINES: dict[str, str] = {"segment": "miou", "depth": "rmse", "detect": "ap", "keypoints": "ap"}
"""What each task is measured by first of all."""


class Measure(ABC):
    """Takes pictures one after the other, and says at the end what the task is worth."""

    lower_is_better = False

    @abstractmethod
    def add(self, truth: Annotation, prediction: Prediction) -> float | None:
        """Take one picture; returns its own score, None where it has none."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Scores of all pictures, as JSON; the first is the headline."""


class SegmentMeasure(Measure):
    """mIoU over the set, and which class was taken for which."""

    def __init__(self, categories: tuple[str, ...]) -> None:
        self.categories, self.pixels = categories, list[Tensor]()
        self.confusion = torch.zeros(len(categories), len(categories), dtype=torch.int64)

    def add(self, truth: Annotation, prediction: Prediction) -> float | None:
        assert truth.segments is not None and prediction.segments is not None
        confusion = pixel_confusion(truth.segments, prediction.segments, len(self.categories))
        self.confusion += confusion
        self.pixels.append(class_pixels(confusion))
        counted = confusion.sum()
        return None if not counted else float(confusion.diagonal().sum() / counted)

    def result(self) -> dict[str, Any]:
        scores = pixel_scores(torch.stack(self.pixels), self.categories)
        return scores | {"confusion": self.confusion.tolist()}


class DepthMeasure(Measure):
    """Errors in meters and shares, per picture and then over the pictures."""

    lower_is_better = True

    def __init__(self) -> None:
        self.errors: list[dict[str, float] | None] = []

    def add(self, truth: Annotation, prediction: Prediction) -> float | None:
        assert truth.depth is not None and prediction.depth is not None
        self.errors.append(errors := depth_errors(prediction.depth, truth.depth))
        return None if errors is None else errors["rmse"]

    def result(self) -> dict[str, Any]:
        return depth_scores(self.errors)


class DetectMeasure(Measure):
    """COCO's average precision of boxes, and of masks where there are some; errors by kind."""

    def __init__(self, categories: tuple[str, ...], *, masks: bool) -> None:
        self.detections, self.masks = AveragePrecision(categories), masks
        self.errors = dict.fromkeys(("right", "class", "place", "double", "background", "missed"), 0)

    def add(self, truth: Annotation, prediction: Prediction) -> float | None:
        self.detections.add(truth, prediction)
        return self._sort(truth, prediction)

    def _sort(self, truth: Annotation, prediction: Prediction) -> float | None:
        """Sort the sure objects of a picture by what is wrong with them; returns its quality.

        As TIDE (Bolya et al. 2020) tells them apart, by IoU of boxes: right from 0.5 on; the place is wrong between 0.1
        and 0.5; the class is wrong; an object is found twice; nothing is there. The quality is the sum of the IoU of
        right ones over right, wrong and missed ones, where half of each wrong or missed one counts.
        """
        assert truth.boxes is not None and truth.labels is not None
        assert prediction.boxes is not None and prediction.labels is not None and prediction.scores is not None
        real = torch.ones(len(truth.boxes), dtype=torch.bool) if truth.crowd is None else ~truth.crowd
        boxes, labels = truth.boxes[real], truth.labels[real]
        sure = prediction.scores >= SURE
        overlaps = _overlaps(prediction.boxes[sure], boxes)
        matched = torch.zeros(len(boxes), dtype=torch.bool)
        quality, wrong = 0.0, 0
        crowded = _in_crowds(truth, prediction.boxes[sure], prediction.labels[sure])
        for overlap, label, in_crowd in zip(overlaps, prediction.labels[sure], crowded.tolist(), strict=True):
            same = torch.where((labels == label) & ~matched, overlap, 0.0)
            if len(boxes) and same.max() >= 0.5:
                matched[same.argmax()] = True
                self.errors["right"] += 1
                quality += float(same.max())
                continue
            if in_crowd:
                continue  # neither right nor wrong
            wrong += 1
            self.errors[_wrong(overlap, labels == label)] += 1
        missed = int((~matched).sum())
        self.errors["missed"] += missed
        counted = int(matched.sum()) + (wrong + missed) / 2
        return quality / counted if counted else None

    def result(self) -> dict[str, Any]:
        boxes = self.detections.measure("bbox")
        masks = {"masks": self.detections.measure("segm")} if self.masks else {}
        return boxes | masks | {"errors": self.errors}


class KeypointMeasure(Measure):
    """COCO's average precision of joints, by object keypoint similarity."""

    def __init__(self, categories: tuple[str, ...], joints: Joints) -> None:
        self.detections, self.joints = AveragePrecision(categories, joints), joints

    def add(self, truth: Annotation, prediction: Prediction) -> float | None:
        self.detections.add(truth, prediction)
        assert truth.keypoints is not None and prediction.keypoints is not None and truth.areas is not None
        labeled = truth.keypoints[..., 2] > 0
        if not labeled.any() or len(prediction.keypoints) != len(truth.keypoints):
            return None
        distance = (prediction.keypoints[..., :2] - truth.keypoints[..., :2]).square().sum(-1)
        variance = (2 * torch.tensor(self.joints.sigmas)).square()
        similarity = (-distance / (2 * truth.areas[:, None].clamp(min=1.0) * variance)).exp()
        return float(similarity[labeled].mean())

    def result(self) -> dict[str, Any]:
        return self.detections.measure("keypoints")


def measure_of(kind: DenseTask, categories: tuple[str, ...], joints: Joints | None, *, masks: bool) -> Measure:
    """The measure of a task. Raises UserError where an extra is missing, or joints are not known."""
    if kind == "segment":
        return SegmentMeasure(categories)
    if kind == "depth":
        return DepthMeasure()
    if kind == "detect":
        return DetectMeasure(categories, masks=masks)
    if joints is None:
        raise UserError("the set does not say which joints it labels: give COCO's json of keypoints")
    return KeypointMeasure(categories, joints)


def _overlaps(boxes: Float[Tensor, "m 4"], others: Float[Tensor, "n 4"]) -> Float[Tensor, "m n"]:
    return box_iou(boxes.float(), others.float())


def _in_crowds(truth: Annotation, boxes: Float[Tensor, "m 4"], labels: Tensor) -> Tensor:
    """Which boxes lie by half or more in a crowd of their class."""
    assert truth.boxes is not None and truth.labels is not None
    if truth.crowd is None or not truth.crowd.any() or not len(boxes):
        return torch.zeros(len(boxes), dtype=torch.bool)
    crowds, kinds = truth.boxes[truth.crowd], truth.labels[truth.crowd]
    low = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-6)
    return ((shared / own[:, None] >= 0.5) & (labels[:, None] == kinds)).any(1)


def _wrong(overlap: Float[Tensor, " n"], same: Tensor) -> str:
    """What is wrong with an object that is not right, by its IoU with the true ones and whether they have its class."""
    if not len(overlap):
        return "background"
    own = torch.where(same, overlap, 0.0).max()
    if own >= 0.5:
        return "double"
    if own >= 0.1:
        return "place"
    return "class" if overlap.max() >= 0.5 else "background"
