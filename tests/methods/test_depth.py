"""Depth: losses against NumPy's, pixels of unknown depth, gradients, and what heads can say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders import KINDS, batch_of, missing_gradients, small
from mimkit.core.config import from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.methods.depth import DepthConfig, gradient_loss, silog_loss
from mimkit.model.depth import DepthHead, LinearDepth, doublings

SMALL = dict(channels=8, fine_channels=8, bins=16)
SIZE = (64, 64)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def example(config: DepthConfig, unknown: float = 0.3):
    """A batch with depths that are not known everywhere: NaN, and 0 as some files have it."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for target, mark in zip(config.example(2, SIZE, "cpu"), (torch.nan, 0.0), strict=True):
        depth = target.depth.clone()
        depth[torch.rand(SIZE, generator=generator) < unknown] = mark
        targets.append(replace(target, depth=depth))
    return batch_of(tuple(targets))


def settings(kind: str, head: str, **changes) -> DepthConfig:
    return DepthConfig(**{**SMALL, "head": head, "class_token": kind == "vit", "gradient": 0.5, **changes})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["simmim", "linear"])
def test_every_weight_gets_a_gradient_also_where_nothing_is_known(kind, head):
    config = settings(kind, head)
    method = config.build(small(kind)).train()
    for unknown in (0.3, 1.1):
        method.zero_grad()
        loss = method(example(config, unknown), 0.0).loss
        loss.backward()
        assert not missing_gradients(method)
        norms = torch.stack([p.grad.norm() for p in method.parameters() if p.requires_grad])
        assert torch.isfinite(norms).all() and torch.isfinite(loss)
        first = next(p for name, p in method.named_parameters() if "patch_embed" in name or "conv1" in name)
        assert first.grad.norm() > 0 if unknown < 1 else (norms == 0).all() and loss == 0
    depth = method.eval().predict(torch.randn(2, 3, *SIZE))
    assert depth.shape == (2, *SIZE) and depth.min() > 0 and depth.max() <= 10


@pytest.mark.parametrize("mean_weight", [0.5, 0.15])
def test_the_loss_is_the_published_one(mean_weight):
    generator = np.random.default_rng(0)
    predicted, depth = generator.uniform(1, 9, (2, 2, 6, 7))
    known = generator.random(depth.shape) < 0.7
    g = np.log(predicted[known]) - np.log(depth[known])
    expected = np.sqrt(np.var(g) + mean_weight * np.mean(g) ** 2)
    ratio = torch.tensor(np.where(known, np.log(predicted) - np.log(depth), 0), dtype=torch.float32)
    ours = silog_loss(ratio, torch.tensor(known), mean_weight)
    assert ours.item() == pytest.approx(expected, rel=1e-5)
    if mean_weight == 0.5:  # as SimMIM writes it
        assert expected == pytest.approx(np.sqrt(np.mean(g**2) - 0.5 * np.mean(g) ** 2))
    exact = torch.zeros(1, 4, 4, requires_grad=True)
    silog_loss(exact, torch.ones(1, 4, 4, dtype=torch.bool), mean_weight).backward()
    assert (exact.grad == 0).all()  # not the infinite slope of a root


def test_gradients_of_the_ratio_count_between_known_neighbors_alone():
    ramp = torch.arange(16.0).expand(1, 16, 16).clone()  # 1 a column, 0 a row
    known = torch.ones(1, 16, 16, dtype=torch.bool)
    assert gradient_loss(ramp, known) == 1 + 2 + 4 + 8
    assert gradient_loss(ramp + 3, known) == 15 and gradient_loss(0 * ramp, known) == 0
    known[:, :, 5], ramp[:, :, 5] = False, 0
    assert gradient_loss(ramp, known) == 15
    assert gradient_loss(ramp, ~known & known) == 0


def test_the_loss_sees_no_unknown_depth():
    config = settings("vit", "simmim", drop_path=0.0)
    method, batch = config.build(small()).eval(), example(settings("vit", "simmim"))
    before = method(batch, 0.0)
    other = []
    for target in batch.targets:
        unknown = ~torch.isfinite(target.depth) | (target.depth <= 0)
        other.append(replace(target, depth=target.depth.masked_fill(unknown, -torch.inf)))
    after = method(replace(batch, targets=tuple(other)), 0.0)
    assert torch.equal(before.loss, after.loss) and torch.equal(before.logs["abs_rel"], after.logs["abs_rel"])


def test_heads_are_the_published_ones():
    assert [doublings(stride) for stride in (32, 16, 14, 8, 4, 2)] == [3, 2, 2, 1, 0, 0]
    d, c = 1024, 128  # SwinV2-B
    head = DepthHead(d, 32, 32, c)
    convs = 4 * d * 32 + 2 * 4 * 32 * 32 + 9 * 32 * c + (9 * c * c + c) + (9 * c + 1)
    assert sum(p.numel() for p in head.parameters()) == convs + 3 * 2 * 32 + 2 * c
    middle = head.eval()([torch.randn(1, d, 3, 3)], (96, 96))
    torch.testing.assert_close(middle, torch.full((1, 96, 96), 5.0), rtol=0, atol=1.5)  # half of the furthest
    linear = LinearDepth([6], 5, nearest=1, furthest=9)
    with torch.no_grad():
        linear.classifier.weight.zero_()
        linear.classifier.bias.copy_(torch.tensor([-1.0, -1, -1, 0.4, -1]))
    # bins 1, 3, 5, 7, 9 weigh 0.1, 0.1, 0.1, 0.5, 0.1
    expected = (0.1 * (1 + 3 + 5 + 9) + 0.5 * 7) / 0.9
    torch.testing.assert_close(linear([torch.randn(1, 6, 2, 2)], (8, 8)), torch.full((1, 8, 8), expected))


def test_a_linear_head_reads_blended_places():
    torch.manual_seed(0)
    head, x = LinearDepth([6], 5), torch.randn(1, 6, 4, 4)
    logits = head.classifier(torch.nn.functional.interpolate(x, scale_factor=4, mode="bilinear")).relu() + 0.1
    expected = (logits * head.depths[:, None, None]).sum(1) / logits.sum(1)
    torch.testing.assert_close(head([x], (16, 16)), expected)


@pytest.mark.parametrize("head", ["simmim", "linear"])
def test_bfloat16_works(head):
    config = settings("vit", head)
    method = config.build(small()).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(example(config), 0.0).loss
        depth = method.predict(torch.randn(2, 3, *SIZE))
    loss.backward()
    assert loss.dtype == depth.dtype == torch.float32 and not missing_gradients(method)


def test_settings_survive_and_what_cannot_be_meant_is_refused():
    config = DepthConfig(depth_scale=1000.0, labels="depth")
    assert from_dict(to_dict(config)) == config and config.learns == "depth" and config.needs_whole_batch
    assert not DepthConfig(norm="group").needs_whole_batch and not DepthConfig(head="linear").needs_whole_batch
    for changes, words in (
        (dict(furthest=0.0), "method.nearest"),
        (dict(bins=1), "method.bins"),
        (dict(silog=-1.0), "method.silog"),
        (dict(head="linear", blocks=9), "blocks 9"),
    ):
        with pytest.raises(UserError, match=words):
            DepthConfig(**changes).build(small())
    with pytest.raises(UserError, match="class-token False"):
        DepthConfig(head="linear").build(small("swin"))
