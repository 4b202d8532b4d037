"""Average precision through pycocotools: what it must be, and what must never reach it."""

from dataclasses import replace

import pytest
import torch

from mimkit.core.annotation import Annotation, Joints, Prediction
from mimkit.evaluate.coco import AveragePrecision, _mean_precision

pytest.importorskip("pycocotools")
CLASSES = ("cup", "plate")


def truth_of(number: int, *, crowd: bool = False) -> Annotation:
    generator = torch.Generator().manual_seed(number)
    corner = torch.rand(3, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 10 + 25 * torch.rand(3, 2, generator=generator)], 1)
    masks = torch.zeros(3, 100, 100, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return Annotation(
        size=(100, 100),
        boxes=boxes,
        labels=torch.tensor([0, 1, number % 2]),
        masks=masks,
        areas=masks.flatten(1).sum(1).float(),
        crowd=torch.tensor([False, False, crowd]),
    )


def prediction_of(truth: Annotation, noise: float = 0.0, scores=(0.9, 0.8, 0.7)) -> Prediction:
    shift = noise * torch.randn(truth.boxes.shape, generator=torch.Generator().manual_seed(int(truth.boxes.sum())))
    keep = slice(None, len(scores))
    return Prediction(
        size=truth.size,
        boxes=truth.boxes[keep] + shift[keep],
        labels=truth.labels[keep],
        masks=truth.masks[keep],
        scores=torch.tensor(scores),
    )


def detections(pairs, joints=None) -> AveragePrecision:
    measured = AveragePrecision(CLASSES, joints)
    for truth, prediction in pairs:
        measured.add(truth, prediction)
    return measured


def nothing(truth: Annotation) -> Prediction:
    none = torch.zeros(0)
    return Prediction(
        size=truth.size,
        boxes=none.view(0, 4),
        labels=none.long(),
        masks=torch.zeros(0, *truth.size, dtype=torch.bool),
        scores=none,
    )


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_what_is_perfect_scores_one_and_what_finds_nothing_zero(kind):
    truths = [truth_of(number, crowd=number == 1) for number in range(4)]
    perfect = detections((truth, prediction_of(truth)) for truth in truths).measure(kind)
    assert perfect["ap"] == perfect["ap50"] == 1.0 and perfect["per_class"]["cup"]["ap"] == 1.0
    assert (perfect["low"], perfect["high"], perfect["pictures"]) == (1.0, 1.0, 4)
    silent = detections((truth, nothing(truth)) for truth in truths).measure(kind)
    assert silent["ap"] == 0.0 and silent["high"] == 0.0


def test_a_class_without_objects_is_left_out_and_nothing_to_find_is_no_number():
    truth = truth_of(0).at(torch.tensor([0]))
    scores = detections([(truth, prediction_of(truth, scores=(0.9,)))]).measure("bbox")
    assert scores["ap"] == 1.0 and scores["per_class"]["plate"] == {"ap": None, "objects": 0}
    empty = truth_of(0).at(torch.zeros(0, dtype=torch.int64))
    scores = detections([(empty, nothing(empty))]).measure("bbox")
    assert scores["ap"] is None and scores["low"] is None


def test_intervals_come_from_the_numbers_of_pycocotools():
    truths = [truth_of(number, crowd=number % 3 == 0) for number in range(12)]
    measured = detections((truth, prediction_of(truth, 3.0)) for truth in truths)
    scores = measured.measure("bbox")
    evaluation = measured._evaluated("bbox")
    by_class = {}
    for entry in evaluation.evalImgs:
        if entry is not None and entry["aRng"] == evaluation.params.areaRng[0]:
            by_class.setdefault(int(entry["category_id"]), {})[int(entry["image_id"])] = entry
    assert 0.1 < scores["ap"] < 0.95
    assert _mean_precision(by_class, list(range(1, 13)), 100) == pytest.approx(scores["ap"], abs=1e-6)
    assert scores["low"] < scores["ap"] < scores["high"]


def test_a_second_implementation_agrees():
    faster = pytest.importorskip("faster_coco_eval")
    truths = [truth_of(number, crowd=number % 3 == 0) for number in range(12)]
    measured = detections((truth, prediction_of(truth, 3.0)) for truth in truths)
    shared = {"images": measured.images, "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]}
    truth = faster.COCO(shared | {"annotations": measured.truth})
    found = truth.loadRes([dict(entry) for entry in measured.results])
    evaluation = faster.COCOeval_faster(truth, found, "bbox")
    evaluation.run()
    ours = measured.measure("bbox")
    assert ours["ap"] == pytest.approx(evaluation.stats[0], abs=1e-6)
    assert ours["ap50"] == pytest.approx(evaluation.stats[1], abs=1e-6)
    assert ours["ar100"] == pytest.approx(evaluation.stats[8], abs=1e-6)


def test_joints():
    skeleton = Joints(names=("head", "foot"), mirrored=(0, 1), sigmas=(0.05, 0.05))
    truth = truth_of(5)
    points = torch.tensor([[[10.5, 10.5, 2.0], [20.5, 60.5, 1.0]]] * 3)
    points[:, :, 0] += torch.tensor([0.0, 20.0, 40.0])[:, None]
    truth = replace(truth, keypoints=points, labels=torch.zeros(3, dtype=torch.int64), areas=torch.full((3,), 4000.0))
    right = replace(prediction_of(truth), keypoints=points)
    assert detections([(truth, right)], skeleton).measure("keypoints")["ap"] == 1.0
    wrong = replace(prediction_of(truth), keypoints=points + torch.tensor([0.0, 30.0, 0.0]))
    assert detections([(truth, wrong)], skeleton).measure("keypoints")["ap"] < 0.2
    with pytest.raises(ValueError, match="cannot be measured"):
        AveragePrecision(CLASSES, replace(skeleton, sigmas=()))
