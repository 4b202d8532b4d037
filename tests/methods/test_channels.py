"""Losses of single channels: those of a formula written out, which average to the loss where every number counts."""

import pytest
import torch

from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.methods.channels import channel_losses
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.mae import MAEConfig
from mimkit.methods.simmim import SimMIMConfig
from mimkit.methods.targets.color import RawPixels
from mimkit.methods.targets.hog import HOG
from mimkit.methods.targets.pixels import Pixels
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import patchify, unpatchify

DECODER = DecoderConfig(width=8, depth=1, heads=2)


def encoder(channels: int):
    torch.manual_seed(0)
    built = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=16, depth=1, heads=2).build((16, 24), channels)
    built.mean, built.std = (0.5,) * channels, (0.2,) * channels
    return built


def batch(channels: int, *, holes: bool = False) -> Batch:
    images = torch.randn(3, channels, 16, 24, generator=torch.Generator().manual_seed(1))
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[:, channels // 3, 3:9, 5:14] = False
    images = torch.where(valid, images, 0.0) if holes else images
    number = torch.arange(3)
    return Batch(images, rng_keys("test", number), number, valid=valid if holes else None)


def of_channels(logs: dict) -> torch.Tensor:
    return torch.stack([logs[name] for name in sorted(logs) if name.startswith("loss_channel_")])


METHODS = {
    "MAE": MAEConfig(target=Pixels(norm=False), decoder=DECODER),
    "MAE, standardized": MAEConfig(target=Pixels(), decoder=DECODER),
    "EMAE": EMAEConfig(target=Pixels(), decoder=DECODER, weight=0.0),
    "SimMIM": SimMIMConfig(),
    "SimMIM, cells": SimMIMConfig(target=RawPixels(cell=2), loss="l2"),
}


@pytest.mark.parametrize("name", METHODS)
def test_they_average_to_the_loss(name):
    step = METHODS[name].build(encoder(5))(batch(5), 0.0)
    losses = of_channels(step.logs)
    assert len(losses) == 5 and losses.std() > 1e-3 and not losses.requires_grad
    torch.testing.assert_close(losses.mean(), step.loss.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("holes", [False, True])
def test_those_of_mae_are_those_of_pixels(holes):
    """Squared errors of hidden pixels that have data, channel by channel, from pictures."""
    method, data = METHODS["MAE"].build(encoder(5)).eval(), batch(5, holes=holes)
    patches, mask, _ = method.sample(data, 0.0)
    predicted = unpatchify(method.predict(patches, mask), (4, 4), (4, 6))
    errors = (predicted - data.images).square()
    share = patchify(torch.ones_like(data.images), (4, 4)) * mask.counted.unsqueeze(2)
    weight = unpatchify(share, (4, 4), (4, 6)) * (1 if data.valid is None else data.valid)
    expected = (errors * weight).sum(dim=(0, 2, 3)) / weight.sum(dim=(0, 2, 3))
    torch.testing.assert_close(of_channels(method(data, 0.0).logs), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["MAE", "SimMIM"])
def test_what_lies_under_holes_changes_no_number(name):
    method, data = METHODS[name].build(encoder(5)).eval(), batch(5, holes=True)
    assert of_channels(method(data, 0.0).logs).isfinite().all()


@pytest.mark.parametrize(
    "config, channels", [(METHODS["MAE"], 3), (METHODS["SimMIM"], 1), (SimMIMConfig(target=HOG(cell=4)), 5)]
)
def test_colors_and_other_targets_have_none(config, channels):
    assert not any("channel" in name for name in config.build(encoder(channels))(batch(channels), 0.0).logs)


def test_a_channel_without_any_data_is_zero_not_nan():
    valid = torch.zeros(1, 2, 4, dtype=torch.bool)
    losses = channel_losses(torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), valid)
    assert all(value == 0 for value in losses.values())
