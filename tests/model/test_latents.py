"""Latent targets: the outputs of a slow copy's last blocks, as each method wants them."""

import pytest
import torch
import torch.nn.functional as F

from mimkit.core.errors import UserError
from mimkit.model.build import EncoderConfig
from mimkit.model.latents import LatentTarget, LatentTargetConfig, standardized
from mimkit.model.vit import Encoder


def tiny() -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=16, depth=3, heads=2)
    encoder = config.build((16, 16), 3)
    assert isinstance(encoder, Encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def blocks(encoder: Encoder) -> list[torch.Tensor]:
    """What timm's own blocks give, without the class token."""
    outputs = []
    x = encoder.timm._pos_embed(encoder.timm.patch_embed(IMAGES))
    for block in encoder.timm.blocks:
        x = block(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("standardize", ["none", "each", "mean", "both"])
def test_means_of_the_last_blocks(standardize):
    encoder = tiny().eval()
    outputs = [x[:, 1:] for x in blocks(encoder)[-2:]]
    if standardize in ("each", "both"):
        outputs = [F.layer_norm(x, (16,)) for x in outputs]
    expected = sum(outputs) / 2
    if standardize in ("mean", "both"):
        expected = F.layer_norm(expected, (16,))
    target = LatentTarget(encoder, LatentTargetConfig(layers=2, standardize=standardize))
    torch.testing.assert_close(target(IMAGES), expected, atol=1e-5, rtol=1e-5)


def test_behind_the_norm_it_is_timm_s_features():
    encoder = tiny().eval()
    tokens = LatentTarget(encoder, LatentTargetConfig(normed=True)).tokens(IMAGES)
    torch.testing.assert_close(torch.cat(tokens, dim=1), encoder.timm.forward_features(IMAGES), atol=1e-5, rtol=1e-5)


def test_targets_get_no_gradient_and_follow_slowly():
    encoder = tiny()
    target = LatentTarget(encoder, LatentTargetConfig(standardize="mean"))
    before = target(IMAGES)
    assert not before.requires_grad and not any(p.requires_grad for p in target.parameters())
    assert before.mean(dim=2).abs().max() < 1e-5
    torch.testing.assert_close(before.var(dim=2, correction=0), torch.ones(2, 16), atol=1e-2, rtol=0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    assert torch.equal(target(IMAGES), before)
    target.update(encoder, 0.0)
    assert not torch.allclose(target(IMAGES), before)
    assert not target.train().training


def test_a_constant_meets_standardized_targets_at_one():
    x = standardized(torch.randn(5, 64))
    assert x.square().mean() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("settings", [{"layers": 4}, {"layers": 0}, {"layers": 2, "normed": True}])
def test_what_the_encoder_cannot_give_is_refused(settings):
    with pytest.raises(UserError):
        LatentTarget(tiny(), LatentTargetConfig(**settings))
