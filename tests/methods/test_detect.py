"""Detection: losses against torchvision's Mask R-CNN to the bit, pictures without objects, crowds, gradients."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import MaskRCNN

from encoders import KINDS, batch_of, missing_gradients, small
from mimkit.core.annotation import Annotation
from mimkit.core.config import from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.methods.detect import Detect, DetectConfig
from mimkit.model.detection import MaskRCNNConfig, paste

SIZE = (128, 128)
HEADS = MaskRCNNConfig(
    channels=16, box_convolutions=1, box_width=32, mask_convolutions=1, anchors=32, proposals=50, boxes=16
)
CONFIG = DetectConfig(classes=3, heads=HEADS, drop_path=0.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def target(boxes: list[list[float]], labels: list[int], masks: bool = True) -> Annotation:
    """Objects whose masks fill their boxes."""
    places = torch.tensor(boxes).reshape(-1, 4)
    y, x = torch.arange(SIZE[0])[:, None], torch.arange(SIZE[1])
    left, top, right, bottom = (places[:, i, None, None] for i in range(4))
    filled = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    kinds = torch.tensor(labels, dtype=torch.int64)
    return Annotation(size=SIZE, boxes=places, labels=kinds, masks=filled if masks else None)


def targets(masks: bool = True) -> tuple[Annotation, ...]:
    objects = target([[10.0, 20, 80, 100], [30, 30, 60, 50]], [0, 2], masks)
    return (objects, target([[5.0, 5, 120, 60]], [1], masks), target([], [], masks))


class Reference(torch.nn.Module):
    """What torchvision calls a backbone."""

    out_channels = HEADS.channels

    def __init__(self, method: Detect) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {str(number): x for number, x in enumerate(self.method.maps(images))}


def torchvisions(method: Detect) -> MaskRCNN:
    """Mask R-CNN of torchvision with our modules and its own settings, so that these are compared as well."""
    rpn, roi = method.heads.rpn, method.heads.roi_heads
    return MaskRCNN(
        Reference(method),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        min_size=SIZE[0],
        max_size=SIZE[0],
        size_divisible=1,
        _skip_resize=True,  # which would draw a size from the generator that the heads draw from
        rpn_anchor_generator=rpn.anchor_generator,
        rpn_head=rpn.head,
        rpn_pre_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=32,
        box_batch_size_per_image=16,
        box_roi_pool=roi.box_roi_pool,
        box_head=roi.box_head,
        box_predictor=roi.box_predictor,
        mask_roi_pool=roi.mask_roi_pool,
        mask_head=roi.mask_head,
        mask_predictor=roi.mask_predictor,
    )


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_losses_are_torchvisions_to_the_bit_in_any_mode(kind):
    method = CONFIG.build(small(kind, SIZE))
    batch = batch_of(targets())
    theirs = torchvisions(method).train()
    truth = [dict(boxes=t.boxes, labels=t.labels + 1, masks=t.masks.to(torch.uint8)) for t in batch.targets]
    torch.manual_seed(5)
    expected = theirs(list(batch.images), truth)
    for mode in (True, False):
        torch.manual_seed(5)
        step = method.train(mode)(batch, 0.0)
        assert step.logs.keys() == expected.keys() and len(expected) == 5
        assert all(torch.equal(step.logs[name], expected[name]) for name in expected)
        torch.testing.assert_close(step.loss, sum(expected.values()))


def test_what_is_detected_is_torchvisions_and_of_the_picture_alone():
    config = replace(CONFIG, heads=replace(HEADS, least_score=0.2))
    method = config.build(small("vit", SIZE))
    images = batch_of(targets()).images
    theirs = torchvisions(method).eval()
    theirs.roi_heads.score_thresh = 0.2
    with torch.no_grad():
        expected = theirs(list(images))
    ours = method.eval().predict(images)
    for objects, detections in zip(expected, ours, strict=True):
        assert len(detections.boxes) and torch.equal(detections.boxes, objects["boxes"])
        assert torch.equal(detections.labels, objects["labels"] - 1) and detections.labels.max() < 3
        assert torch.equal(detections.scores, objects["scores"])
        assert detections.masks.shape == (len(detections.boxes), 28, 28) and detections.size == SIZE
        assert paste(detections.masks, detections.boxes, SIZE).shape == objects["masks"][:, 0].shape
    (upper,) = method.detect(images[:1], [(64, 100)])
    assert upper.boxes[:, 2].max() <= 100 and upper.boxes[:, 3].max() <= 64 and upper.size == (64, 100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", [True, False])
def test_every_weight_gets_a_gradient_also_without_one_object(kind, masks):
    method = replace(CONFIG, masks=masks).build(small(kind, SIZE)).train()
    for of_images in (targets(masks), (target([], [], masks),) * 2):
        method.zero_grad()
        loss = method(batch_of(of_images), 0.0).loss
        loss.backward()
        assert not missing_gradients(method) and torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)
        first = next(p for name, p in method.named_parameters() if "patch_embed" in name or "conv1" in name)
        assert first.grad.norm() > 0


def test_crowds_are_not_learned():
    method = CONFIG.build(small("vit", SIZE))
    alone = target([[10.0, 20, 80, 100]], [0])
    both = target([[10.0, 20, 80, 100], [0, 0, 128, 128]], [0, 2])
    both = replace(both, crowd=torch.tensor([False, True]))
    losses = []
    for of_image in (alone, both, replace(both, crowd=torch.zeros(2, dtype=torch.bool))):
        torch.manual_seed(0)
        losses.append(method(batch_of((of_image,)), 0.0).loss)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_windows_examples_and_bfloat16_work(kind):
    method = replace(CONFIG, window=4).build(small(kind, SIZE)).train()
    batch = batch_of(CONFIG.example(2, SIZE, "cpu"))
    losses = []
    for enabled in (True, False):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            step = method(batch, 0.0)
            (detections, _) = method.predict(batch.images)
        losses.append(step.loss)
        assert {value.dtype for value in [step.loss, *step.logs.values()]} == {torch.float32}
        assert {detections.boxes.dtype, detections.scores.dtype, detections.masks.dtype} == {torch.float32}
    losses[0].backward()
    assert not missing_gradients(method) and abs(losses[0] - losses[1]) < 0.05 * losses[1]


def test_a_frozen_encoder_gets_no_gradient():
    method = replace(CONFIG, freeze=True).build(small("vit", SIZE)).train()
    method(batch_of(targets()), 0.0).loss.backward()
    assert all(p.grad is None for p in method.encoder.parameters()) and not missing_gradients(method)


def test_settings_survive_and_what_cannot_be_meant_is_refused():
    assert from_dict(to_dict(CONFIG)) == CONFIG and CONFIG.learns == "detect" and not CONFIG.needs_whole_batch
    for config, words in (
        (replace(CONFIG, classes=0), "method.classes"),
        (replace(CONFIG, heads=replace(HEADS, boxes=0)), "method.heads.boxes"),
    ):
        with pytest.raises(UserError, match=words):
            config.build(small())
    with pytest.raises(UserError, match="patch 16"):
        CONFIG.build(small(size=(56, 56), patch=14))
