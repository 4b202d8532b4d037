"""Each dense method learns eight drawn scenes by heart, from random weights, on one core."""

from collections.abc import Callable

import pytest
import torch

from encoders import small
from mimkit.core.annotation import Annotation, Prediction
from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.evaluate.coco import AveragePrecision
from mimkit.methods.depth import DepthConfig
from mimkit.methods.detect import DetectConfig
from mimkit.methods.keypoints import KeypointsConfig
from mimkit.methods.segment import SegmentConfig
from mimkit.model.detection import MaskRCNNConfig, paste
from mimkit.train.optimizer import AdamWConfig, set_lr
from scenes import CLASSES, SEGMENTS, Scene, scene

pytestmark = pytest.mark.slow
SIZE, COUNT = (64, 64), 8


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def learned(config, annotation: Callable[[Scene], Annotation], steps: int, objects: int = 3):
    """The method after so many steps, with the images and annotations that it was taught."""
    scenes = [scene(number, SIZE, objects) for number in range(COUNT)]
    images = torch.stack([torch.tensor(s.picture) for s in scenes]).permute(0, 3, 1, 2) / 128 - 1
    truth = [annotation(s) for s in scenes]
    method = config.build(small(size=SIZE, width=96, heads=3, depth=4)).train()
    settings = AdamWConfig(base_lr=1e-3, per=4, betas=(0.9, 0.999), clip=1.0)
    optimizer = settings.build(method, 4)
    for step in range(steps):
        set_lr(optimizer, min(1, (step + 1) / 20) * (1 if step < 0.8 * steps else 0.1))
        index = (torch.arange(4) + 4 * step) % COUNT
        batch = Batch(images[index], rng_keys("x", index), index, targets=tuple(truth[i] for i in index))
        optimizer.zero_grad()
        method(batch, step / steps).loss.backward()
        settings.clip_gradients(list(method.parameters()))
        optimizer.step()
    return method.eval(), images, truth


def test_segmentation():
    config = SegmentConfig(classes=len(SEGMENTS), channels=32, auxiliary_channels=16, dropout=0.0, drop_path=0.0)

    def annotation(s: Scene) -> Annotation:
        return Annotation(size=SIZE, segments=torch.tensor(s.segments).short())

    method, images, truth = learned(config, annotation, 120)
    classes = torch.stack([t.segments for t in truth]).long()
    predicted = method.predict(images).argmax(dim=1)
    shares = []
    for number in range(len(SEGMENTS)):
        one, other = predicted == number, classes == number
        shares.append(((one & other).sum() / (one | other).sum()).item())
    assert sum(shares) / len(shares) > 0.9, shares


def test_depth():
    config = DepthConfig(channels=16, fine_channels=16, norm="group", drop_path=0.0)
    method, images, truth = learned(config, lambda s: Annotation(size=SIZE, depth=torch.tensor(s.depth)), 120)
    depth = torch.stack([t.depth for t in truth])
    error = ((method.predict(images) - depth).abs() / depth)[torch.isfinite(depth)]
    assert error.mean() < 0.1


def test_detection():
    pytest.importorskip("pycocotools")
    heads = MaskRCNNConfig(
        channels=32, proposal_convolutions=1, box_convolutions=0, box_width=64, mask_convolutions=2, anchors=64
    )
    heads.proposals, heads.boxes = 100, 64

    def annotation(s: Scene) -> Annotation:
        values = torch.tensor(s.boxes), torch.tensor(s.labels), torch.tensor(s.masks)
        return Annotation(size=SIZE, boxes=values[0], labels=values[1], masks=values[2])

    method, images, truth = learned(DetectConfig(classes=2, heads=heads, drop_path=0.0), annotation, 240)
    precision = AveragePrecision(CLASSES)
    for target, objects in zip(truth, method.predict(images), strict=True):
        masks = paste(objects.masks, objects.boxes, SIZE)
        values = dict(boxes=objects.boxes, labels=objects.labels, masks=masks, scores=objects.scores)
        precision.add(target, Prediction(size=SIZE, **values))
    assert precision.measure("bbox")["ap"] > 0.8 and precision.measure("segm")["ap"] > 0.6


def test_keypoints():
    def annotation(s: Scene) -> Annotation:
        return Annotation(size=SIZE, keypoints=torch.tensor(s.keypoints[-1:]))  # the nearest object

    method, images, truth = learned(KeypointsConfig(joints=4, channels=64, drop_path=0.0), annotation, 120, objects=1)
    keypoints = torch.cat([t.keypoints for t in truth])
    distance = torch.linalg.vector_norm(method.predict(images)[..., :2] - keypoints[..., :2], dim=2)
    assert (distance[keypoints[..., 2] > 0] < 3).float().mean() > 0.9
