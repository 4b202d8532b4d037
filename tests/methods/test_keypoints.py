"""Keypoints: the loss, joints that nobody labeled, gradients, and mirrored images."""

from dataclasses import replace

import pytest
import torch

from encoders import KINDS, batch_of, missing_gradients, small
from mimkit.core.annotation import Annotation
from mimkit.core.config import from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.methods.keypoints import KeypointsConfig
from mimkit.model.heatmaps import encode

SIZE = (64, 64)
SMALL = dict(joints=5, channels=16)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def targets(labeled: float) -> tuple[Annotation, ...]:
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(3, 1, 5, 2, generator=generator) * 64
    seen = 2.0 * (torch.rand(3, 1, 5, 1, generator=generator) < labeled)
    joints = torch.cat([places * (seen > 0), seen], dim=3)
    return tuple(Annotation(size=SIZE, keypoints=of_image) for of_image in joints)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["classic", "simple"])
def test_every_weight_gets_a_gradient_also_of_nobody(kind, head):
    method = KeypointsConfig(**SMALL, head=head).build(small(kind)).train()
    for labeled in (0.7, 0.0):
        method.zero_grad()
        step = method(batch_of(targets(labeled)), 0.0)
        step.loss.backward()
        assert not missing_gradients(method)
        norms = torch.stack([p.grad.norm() for p in method.parameters() if p.requires_grad])
        assert torch.isfinite(norms).all()
        first = next(p for name, p in method.named_parameters() if "patch_embed" in name or "conv1" in name)
        assert first.grad.norm() > 0 if labeled else (norms == 0).all() and step.loss == 0
        assert 0 <= step.logs["near"] <= 1
    assert method.eval().predict(torch.randn(2, 3, *SIZE)).shape == (2, 5, 3)


def test_the_loss_is_the_squared_distance_of_labeled_joints():
    method = KeypointsConfig(**SMALL, drop_path=0.0).build(small()).eval()
    batch = batch_of(targets(0.7))
    keypoints = torch.cat([target.keypoints for target in batch.targets])
    heatmaps, (truth, weights) = method.heatmaps(batch.images), encode(keypoints, SIZE, (16, 16))
    pairs = [(heatmaps[i, j] - truth[i, j]) ** 2 * (keypoints[i, j, 2] > 0) for i in range(3) for j in range(5)]
    torch.testing.assert_close(method(batch, 0.0).loss, torch.stack(pairs).mean())
    assert 0 < weights.sum() < weights.numel()
    # What nobody labeled may lie anywhere.
    moved = []
    for target in batch.targets:
        joints = target.keypoints.clone()
        joints[..., :2] += 20 * (joints[..., 2:] == 0)
        moved.append(replace(target, keypoints=joints))
    assert torch.equal(method(replace(batch, targets=tuple(moved)), 0.0).loss, method(batch, 0.0).loss)


def test_a_perfect_head_is_right(monkeypatch):
    method = KeypointsConfig(**SMALL).build(small()).eval()
    batch = batch_of(targets(1.0))
    keypoints = torch.cat([target.keypoints for target in batch.targets])
    monkeypatch.setattr(method, "heatmaps", lambda images: encode(keypoints, SIZE, (16, 16))[0])
    step = method(batch, 0.0)
    assert step.loss == 0 and step.logs["near"] == 1
    assert (method.predict(batch.images)[..., :2] - keypoints[..., :2]).abs().max() < 2.1


def test_mirrored_images_are_averaged_joint_by_joint():
    method = KeypointsConfig(**SMALL).build(small()).eval()
    images, mirrored = batch_of(targets(1.0)).images, (0, 2, 1, 4, 3)
    ours = method.predict(images, mirrored)
    # The mirrored image has the mirrored answer, with left and right exchanged.
    theirs = method.predict(images.flip(3), mirrored)[:, list(mirrored)]
    torch.testing.assert_close(ours[..., 1:], theirs[..., 1:], rtol=0, atol=1e-3)
    torch.testing.assert_close(ours[..., 0], 64 - theirs[..., 0], rtol=0, atol=1e-3)
    assert not torch.allclose(ours, method.predict(images))


def test_examples_and_bfloat16_work():
    config = KeypointsConfig(**SMALL)
    method = config.build(small()).train()
    batch = batch_of(config.example(2, SIZE, "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(batch, 0.0).loss
        places = method.predict(batch.images)
    loss.backward()
    assert loss.dtype == places.dtype == torch.float32 and not missing_gradients(method)


def test_settings_survive_and_what_cannot_be_meant_is_refused():
    config = KeypointsConfig(**SMALL)
    assert from_dict(to_dict(config)) == config and config.learns == "keypoints" and config.needs_whole_batch
    assert not replace(config, head="simple").needs_whole_batch and not replace(config, norm="group").needs_whole_batch
    for changes, words in ((dict(joints=0), "method.joints"), (dict(sigma=0.0), "method.sigma")):
        with pytest.raises(UserError, match=words):
            KeypointsConfig(**{**SMALL, **changes}).build(small())
