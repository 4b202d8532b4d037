"""Attention weights against those that timm's own unfused path multiplies the values with."""

import copy

import jaxtyping
import pytest
import timm
import torch
from timm.layers import Attention, LayerNorm
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn

from mimkit.core.errors import UserError
from mimkit.model.attention import attention_weights, class_attention

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32, "patch_size": 8}
FAMILIES = {
    "vit": ("vit_small_patch16_224", {}),
    "qk norm": ("vit_small_patch16_224", {"qk_norm": True}),
    "no bias": ("vit_small_patch16_224", {"qkv_bias": False}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "layer scale": ("deit3_small_patch16_224", {"init_values": 0.5}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.5}),
    "no class token": ("vit_base_patch16_siglip_224", {"global_pool": "map"}),
}


def seen_and_used(name: str) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A timm model with random weights, what enters each of its blocks, and the weights that each block uses."""
    architecture, settings = FAMILIES[name]
    vit = timm.create_model(architecture, **SMALL, **settings).eval()
    generator = torch.Generator().manual_seed(0)
    for value in vit.state_dict().values():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.2)
    seen, used, hooked = [], [], copy.deepcopy(vit)
    for block in hooked.blocks:
        block.attn.fused_attn = False
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        block.attn.attn_drop.register_forward_pre_hook(lambda _, inputs: used.append(inputs[0]))
    with torch.no_grad():
        hooked.forward_features(torch.randn(3, 3, 32, 32, generator=generator))
    return vit, seen, used


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_weights_are_those_that_the_block_uses(name):
    vit, seen, used = seen_and_used(name)
    assert len(seen) == len(used) == 2
    prefix = vit.num_prefix_tokens
    for block, x, expected in zip(vit.blocks, seen, used, strict=True):
        assert expected.std() > 1e-3  # far from uniform
        weights = attention_weights(block, x)
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)
        if prefix:
            alone = class_attention(block, x, prefix)
            torch.testing.assert_close(alone, expected[:, :, 0, prefix:].mT, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(alone.sum(dim=1), 1 - expected[:, :, 0, :prefix].sum(dim=2))  # true shares


@torch.no_grad()
def test_fused_attention_averages_values_with_these_weights():
    vit, seen, _ = seen_and_used("qk norm")
    block, x = vit.blocks[0], seen[0]
    attn: Attention = block.attn
    assert attn.fused_attn
    values = attn.qkv(block.norm1(x)).chunk(3, dim=2)[2].unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
    mixed = (attention_weights(block, x) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attn.proj(mixed), attn(block.norm1(x)), atol=1e-5, rtol=1e-5)


def block_and_tokens() -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    return Block(32, 4, qkv_bias=True, attn_drop=0.5), torch.randn(2, 9, 32)


def test_autocast_and_training_change_nothing():
    block, x = block_and_tokens()
    expected = attention_weights(block.eval(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = attention_weights(block.train(), x)
        ours = class_attention(block, x.bfloat16(), 1)
    assert again.dtype == ours.dtype == torch.float32
    assert torch.equal(again, expected)
    assert (ours - expected[:, :, 0, 1:].mT).abs().max() < 0.01  # the input itself was rounded


@pytest.fixture
def no_shape_checks(monkeypatch):
    """The compiler cannot trace the checks that the tests switch on."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()


def test_attention_compiles_without_a_break(no_shape_checks):
    block, x = block_and_tokens()
    for function in (attention_weights, lambda block, x: class_attention(block, x, 2)):
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(block, x), function(block, x))


def test_blocks_that_are_not_understood_are_refused():
    x = torch.zeros(1, 3, 32)
    for block in (ParallelScalingBlock(32, 4), ResPostBlock(32, 4), nn.Identity()):
        with pytest.raises(UserError, match=f"{type(block).__name__}.*plain vit"):
            attention_weights(block, x)
    with pytest.raises(UserError, match="Block with DiffAttention"):  # has all that is asked of it, but two softmaxes
        attention_weights(Block(32, 4, attn_layer="diff"), x)
    with pytest.raises(UserError, match="no class token"):
        class_attention(Block(32, 4, norm_layer=LayerNorm), x, 0)
