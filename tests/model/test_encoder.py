"""The encoder against timm, and patches and positions against direct loops."""

import copy
import math
from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.masks import Mask
from mimkit.model.build import EncoderConfig
from mimkit.model.patches import patchify, sincos_positions, unpatchify
from mimkit.model.vit import Encoder


def noise(rows: int, patches: int) -> Tensor:
    return torch.rand(rows, patches, generator=torch.Generator().manual_seed(0))


def pictures(rows: int, size: tuple[int, int], channels: int = 3) -> Tensor:
    return torch.randn(rows, channels, *size, generator=torch.Generator().manual_seed(100))


SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
FAMILIES = {
    "vit": ("vit_small_patch16_224", {"patch_size": 8, "img_size": (32, 48)}),
    "deit3": ("deit3_small_patch16_224", {"patch_size": 8, "img_size": 32, "init_values": 0.5}),
    "clip": ("vit_base_patch16_clip_224", {"patch_size": 8, "img_size": 32}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"patch_size": 14, "img_size": 56, "init_values": 0.5}),
    "no class token": (
        "vit_base_patch16_siglip_224",
        {"patch_size": 8, "img_size": 32, "global_pool": "map"},
    ),
    "gray": ("vit_small_patch16_224", {"patch_size": (4, 8), "img_size": 32, "in_chans": 1}),
    "dynamic": ("vit_small_patch16_224", {"patch_size": 8, "img_size": 32, "dynamic_img_size": True}),
    "qk norm": ("vit_small_patch16_224", {"patch_size": 8, "img_size": 32, "qk_norm": True}),
}


def family(name: str) -> tuple[Encoder, torch.nn.Module, Tensor]:
    """An encoder, timm's model with the same random weights, and images for both."""
    architecture, settings = FAMILIES[name]
    vit = timm.create_model(architecture, **SMALL, **settings)
    generator = torch.Generator().manual_seed(2)
    for value in vit.state_dict().values():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    encoder = Encoder(copy.deepcopy(vit)).eval()
    return encoder, vit.eval(), pictures(3, encoder.size, encoder.channels)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_encoder_is_timm_when_nothing_is_masked(name):
    encoder, vit, images = family(name)
    expected = vit.forward_features(images)
    tokens = encoder(images)
    assert tokens.prefix.shape[1] == vit.num_prefix_tokens
    assert torch.equal(torch.cat(tokens, dim=1), expected)
    # Two steps through patches, as training goes: a matrix product in place of timm's convolution.
    tokens = encoder.encode(encoder.embed(patchify(images, encoder.patch)))
    torch.testing.assert_close(torch.cat(tokens, dim=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_masked_encoder_is_timm_on_the_visible_tokens(name):
    """Timm's own parts, run on the sequence with the hidden tokens cut out by hand."""
    encoder, vit, images = family(name)
    n = encoder.grid[0] * encoder.grid[1]
    mask = Mask.from_scores(noise(3, n), n // 2)
    tokens = encoder(images, mask)
    x = vit._pos_embed(vit.patch_embed(images))
    prefix = vit.num_prefix_tokens
    for row in range(3):
        kept = [*range(prefix), *(prefix + i for i in mask.visible[row].tolist())]
        expected = vit.norm(vit.blocks(vit.norm_pre(x[row : row + 1, kept])))
        found = torch.cat(tokens, dim=1)[row : row + 1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_patchify_against_a_loop():
    images = pictures(2, (8, 12), channels=5)
    found = patchify(images, (4, 6))
    expected = []
    for image in images.tolist():
        for top in range(0, 8, 4):
            for left in range(0, 12, 6):
                patch = [image[c][top + i][left + j] for i in range(4) for j in range(6) for c in range(5)]
                expected.append(patch)
    assert torch.equal(found.flatten(0, 1), torch.tensor(expected))
    assert torch.equal(unpatchify(found, (4, 6), (2, 2)), images)


@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_positions_against_a_loop(grid):
    table = sincos_positions(grid, 16)
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = []
            for position in (column, row):  # MAE's order of the halves; MoCo v3 has the row first
                angles = [position / 10000 ** (k / 4) for k in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[row * grid[1] + column], torch.tensor(expected))


def test_the_frozen_table_of_the_encoder_is_sine_cosine_with_zero_class_row():
    encoder = EncoderConfig(name="vit_small_patch16_224", patch=8, width=48, depth=1, heads=3).build((16, 32), 3)
    assert torch.equal(encoder.timm.pos_embed[0, 1:], sincos_positions((2, 4), 48))
    assert not encoder.timm.pos_embed[0, 0].any() and not encoder.timm.pos_embed.requires_grad


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "dynamic"])
@torch.no_grad()
def test_images_of_another_size_are_seen_with_timm_s_resampled_positions(name):
    encoder, vit, _ = family(name)
    architecture, settings = FAMILIES[name]
    free = timm.create_model(architecture, **SMALL, **settings, dynamic_img_size=True).eval()
    free.load_state_dict(vit.state_dict())
    for rows, columns in ((3, 2), (encoder.grid[0] + 1, encoder.grid[1] + 3)):
        images = pictures(2, (rows * encoder.patch[0], columns * encoder.patch[1]), encoder.channels)
        expected = free.forward_features(images)
        torch.testing.assert_close(torch.cat(encoder(images), dim=1), expected, rtol=1e-4, atol=1e-5)
        prefix, positions = encoder.positions((rows, columns))
        table = vit.pos_embed[:, -encoder.grid[0] * encoder.grid[1] :]
        resampled = resample_abs_pos_embed(table, [rows, columns], [*encoder.grid], num_prefix_tokens=0)
        assert torch.equal(positions, resampled) and torch.equal(prefix, encoder.positions().prefix)
    assert torch.equal(encoder.positions(encoder.grid).patches, table)


def test_an_uneven_view_is_refused_with_the_fix():
    encoder = EncoderConfig(name="vit_small_patch16_224", patch=8, width=48, depth=1, heads=3).build((32, 32), 3)
    with pytest.raises(UserError, match=r"20x20 do not divide into patches of 8x8: use view\.size 16 16"):
        encoder(pictures(2, (20, 20)))


def test_the_released_initialization_leaves_the_bias_of_the_patch_embedding():
    """facebookresearch/mae:models_mae.py: its convolution keeps PyTorch's bias, all else is as ever."""
    config = EncoderConfig(name="vit_tiny_patch16_224", width=48, depth=2, heads=2, patch=8)
    states = []
    for kind in ("mae", "mae-code"):
        torch.manual_seed(0)
        states.append(replace(config, initialization=kind).build((32, 32), 3).timm.state_dict())
    differing = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    bias, bound = states[1]["patch_embed.proj.bias"], (3 * 8 * 8) ** -0.5
    assert differing == ["patch_embed.proj.bias"]
    assert 0.9 * bound < bias.abs().max() <= bound and bias.std() == pytest.approx(bound / 3**0.5, rel=0.2)
    with pytest.raises(UserError, match="there is no initialization 'jax'"):
        replace(config, initialization="jax").build((32, 32), 3)


def test_simmim_s_initialization_is_a_cut_normal_with_smaller_residuals():
    """microsoft/SimMIM:models/vision_transformer.py, BEiT's: cut at one deviation, a normal has 0.54 of its own."""
    config = EncoderConfig(name="vit_tiny_patch16_224", width=96, depth=3, heads=3, patch=8, initialization="simmim")
    state = config.build((32, 32), 3).timm.state_dict()
    for key in ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "blocks.2.mlp.fc1.weight", "cls_token"):
        assert state[key].abs().max() <= 0.02 and state[key].std() == pytest.approx(0.0108, rel=0.2)
    for number in range(3):
        for key in ("attn.proj.weight", "mlp.fc2.weight"):
            whole = state[f"blocks.{number}.{key}"] * (2 * (number + 1)) ** 0.5
            assert whole.abs().max() <= 0.0200001 and whole.std() == pytest.approx(0.0108, rel=0.05)
    assert not state["patch_embed.proj.bias"].any() and (state["norm.weight"] == 1).all()
