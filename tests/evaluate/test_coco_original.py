"""Average precision by way of an annotated set equals pycocotools' on the original JSON, to all its numbers."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mimkit.core.annotation import Prediction
from mimkit.data.annotations.sources import open_annotated
from mimkit.evaluate.coco import NAMES, AveragePrecision, coco_keypoints

pytest.importorskip("pycocotools")
SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", "../shared/data"))
COCO_MINI, JOINTS = SHARED / "coco_mini", SHARED / "coco_mini_keypoints"


def noisy(truth, generator, joints=False) -> Prediction:
    """What a fair detector would say: boxes a little off, some classes wrong, some objects missed, some made up."""
    count = len(truth.boxes)
    keep = torch.rand(count, generator=generator) > (0.0 if joints else 0.15)
    shift = 0.06 * torch.randn(count, 4, generator=generator) * (truth.boxes[:, 2:] - truth.boxes[:, :2]).repeat(1, 2)
    boxes = (truth.boxes + shift).clamp(min=0)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = torch.where(torch.rand(count, generator=generator) < 0.1, (truth.labels + 1) % 80, truth.labels)
    keypoints = None
    if joints:
        labels = truth.labels
        keypoints = truth.keypoints.clone()
        keypoints[..., :2] += 4 * torch.randn(keypoints[..., :2].shape, generator=generator)
        keypoints[..., 2] = 2.0
    scores = torch.rand(count, generator=generator)
    masks = None if truth.masks is None else truth.masks.roll(2, dims=2)
    whole = Prediction(size=truth.size, boxes=boxes, labels=labels, masks=masks, keypoints=keypoints, scores=scores)
    return whole.at(keep)


def original(file, results, kind) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="no coco_mini here")
def test_boxes_and_masks(kind):
    test = open_annotated([str(COCO_MINI)], "detect").test
    measured, results = AveragePrecision(test.categories), []
    generator = torch.Generator().manual_seed(0)
    for number in range(len(test)):
        truth = test.annotation(number)
        prediction = noisy(truth, generator)
        measured.add(truth, prediction)
        for row in range(len(prediction.boxes)):
            x0, y0, x1, y1 = prediction.boxes[row].double().tolist()
            entry = {"image_id": int(test.image_ids[number]), "score": float(prediction.scores[row])}
            entry["category_id"] = int(test.category_ids[int(prediction.labels[row])])
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0]}
            results.append(
                entry | (shape if kind == "bbox" else {"segmentation": measured.encode(prediction.masks[row])})
            )
    ours = measured.measure(kind)
    theirs = original(COCO_MINI / "annotations" / "instances_val2017.json", results, kind)
    assert 0.05 < theirs[0] < 0.9
    assert [ours[name] for name in NAMES["bbox"]] == pytest.approx(theirs, abs=1e-5)


@pytest.mark.skipif(not JOINTS.is_dir(), reason="no coco_mini_keypoints here")
def test_joints():
    test = open_annotated([str(COCO_MINI / "images")], "keypoints", labels=str(JOINTS)).test
    measured, results = AveragePrecision(test.categories, test.joints), []
    generator = torch.Generator().manual_seed(0)
    for number in range(len(test)):
        truth = test.annotation(number)
        prediction = noisy(truth, generator, joints=True)
        measured.add(truth, prediction)
        for row in range(len(prediction.boxes)):
            points = coco_keypoints(prediction.keypoints[row], predicted=True)["keypoints"]
            score = float(prediction.scores[row])
            results.append(
                {"image_id": int(test.image_ids[number]), "category_id": 1, "keypoints": points, "score": score}
            )
    ours = measured.measure("keypoints")
    theirs = original(JOINTS / "person_keypoints_val2017.json", results, "keypoints")
    assert 0.05 < theirs[0] < 0.99
    assert [ours[name] for name in NAMES["keypoints"]] == pytest.approx(theirs, abs=1e-5)
    assert np.isfinite(theirs).all() and json.dumps(ours)
