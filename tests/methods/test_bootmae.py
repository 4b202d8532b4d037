"""BootMAE: masks, both losses against NumPy, what each decoder reads, and what follows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mimkit.core.batch import Batch
from mimkit.core.display import Display
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import PartitionMasker, RandomMasker, SelfGuidedMasker, ToppedBlockMasker
from mimkit.masks.structured import BlockMasker
from mimkit.methods.bootmae import BootMAE, BootMAEConfig
from mimkit.methods.losses import hidden_around
from mimkit.methods.targets.pixels import standardized_channels
from mimkit.model.build import EncoderConfig
from mimkit.model.patches import patchify
from mimkit.recipes import find_recipe
from mimkit.train.drawing import prediction_grid

torch.set_num_threads(1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=3, heads=2)
SMALL = BootMAEConfig(masker=RandomMasker(), width=16)


def built(size: tuple[int, int] = (16, 16), **changes) -> BootMAE:
    torch.manual_seed(0)
    encoder = VIT.build(size, 3)
    method = replace(SMALL, **changes).build(encoder)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def batch(rows: int = 4, size: tuple[int, int] = (16, 16)) -> Batch:
    images = torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(1))
    order = torch.arange(rows)
    return Batch(images, rng_keys("test", order), order)


# ---- masks


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (4, 4), (3, 5), (1, 2)])
@pytest.mark.parametrize("roll", [0, 3])
def test_blocks_are_topped_up(grid, roll):
    n, keys = grid[0] * grid[1], rng_keys("m", torch.arange(100))
    masker = ToppedBlockMasker(roll=roll)
    mask = masker(torch.zeros(100, n, 0), keys, 0.0, grid)
    blocks = BlockMasker(ratio=masker.count(n)[1] / n - 0.5 / n)(torch.zeros(100, n, 0), keys, 0.0, grid).hidden
    spared = (blocks & ~mask.hidden).sum(dim=1)
    assert len(mask.hidden.sum(dim=1).unique()) == 1 and mask.visible.shape[1] + int(mask.hidden[0].sum()) == n
    assert spared.max() <= roll and (grid != (14, 14) or set(spared.tolist()) == set(range(roll + 1)))
    if grid == (14, 14):
        assert (mask.hidden.sum(dim=1) == 147).all() and (blocks.sum(dim=1) == 120).all()


def test_blocks_hide_no_more_than_all():
    with pytest.raises(
        UserError, match=r"masker.blocks is a share of the hidden patches, above 0 and up to 1, got 1.2"
    ):
        ToppedBlockMasker(blocks=1.2)
    assert ToppedBlockMasker().count(196) == (147, 120) and ToppedBlockMasker().count(64) == (48, 39)


# ---- losses


def standard(x: np.ndarray, axis: int) -> np.ndarray:
    return (x - x.mean(axis=axis, keepdims=True)) / np.sqrt(x.var(axis=axis, keepdims=True) + 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("inside", [True, False])
def test_both_losses_are_the_formula(inside):
    method, one = built(inside=inside), batch()
    patches, mask, _ = method.sample(one, 0.1)
    pixels, latents = (x.double().numpy() for x in method.predict(patches, mask))
    target = standard(patches.double().numpy().reshape(4, 16, 16, 3), 2).reshape(4, 16, 48)
    vit = method.slow.module.timm
    x = vit.blocks(vit._pos_embed(vit.patch_embed(one.images)))[:, 1:]
    taught = standard(x.double().numpy(), 2)
    m = mask.hidden.double().numpy()
    weights = m.copy()
    if inside:
        padded = np.pad(m.reshape(4, 4, 4), ((0, 0), (1, 1), (1, 1)))
        mean = sum(padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)) / 9
        weights = m * mean.reshape(4, 16) + m
    first = (((pixels - target) ** 2).mean(axis=2) * weights).mean() / m.mean()
    second = (((standard(latents, 2) - taught) ** 2).mean(axis=2) * weights).mean() / m.mean()
    step = method(one, 0.1)
    assert step.logs["pixels"].item() == pytest.approx(first, rel=1e-5)
    assert step.logs["latents"].item() == pytest.approx(second, rel=1e-5)
    assert step.loss.item() == pytest.approx(first + 0.4 * second, rel=1e-5)  # 0.1 of a ramp over 0.25


def test_a_lone_patch_counts_less_than_one_inside():
    hidden = torch.zeros(1, 5, 5)
    hidden[0, 2, 2] = 1
    assert hidden_around(hidden.flatten(1), (5, 5))[0, 12].item() == pytest.approx(1 / 9)
    hidden[0, :3, 1:4] = 1
    inside = hidden_around(hidden.flatten(1), (5, 5))[0]
    assert inside[7].item() == pytest.approx(1) and inside[2].item() == pytest.approx(6 / 9)
    assert inside[6].item() == pytest.approx(6 / 9) and inside[11].item() == pytest.approx(4 / 9)


@torch.no_grad()
def test_a_constant_prediction_of_latents_costs_one():
    method = built(inside=False)
    method.latents.head.weight.zero_()
    method.latents.head.bias.zero_()
    assert method(batch(), 0.5).logs["latents"].item() == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
def test_the_weight_of_latents_rises_and_stays():
    method, one = built(weight=2.0), batch()
    weights = [float(method.weight(one, progress)) for progress in (0.0, 0.125, 0.25, 0.9)]
    assert weights == pytest.approx([0.0, 1.0, 2.0, 2.0])
    assert built(ramp=0.0).weight(one, 0.0) == 1.0


# ---- who sees what


@torch.no_grad()
def test_hidden_pixels_reach_targets_alone():
    method, one = built(), batch()
    patches, mask, _ = method.sample(one, 0.5)
    changed = torch.where(mask.hidden.unsqueeze(2), 3.0, patches)
    for before, after in zip(method.predict(patches, mask), method.predict(changed, mask), strict=True):
        assert torch.equal(before, after)
    for before, after in zip(method.predict(patches, mask), method.predict(-patches, mask), strict=True):
        assert not torch.equal(before, after)


def test_pixels_read_the_first_block_and_latents_the_last():
    method, one = built(), batch()
    patches, mask, _ = method.sample(one, 0.5)
    blocks = []
    handles = [b.register_forward_hook(lambda m, i, o: blocks.append(o)) for b in method.encoder.timm.blocks]
    reads: dict[str, torch.Tensor] = {}
    for name in ("pixels", "latents"):
        getattr(method, name).reader.blocks[0].norm_keys.register_forward_hook(
            lambda m, i, o, name=name: reads.update({name: i[0]})
        )
    method.predict(patches, mask)
    for handle in handles:
        handle.remove()
    assert torch.equal(reads["pixels"], blocks[0]) and torch.equal(reads["latents"], blocks[-1])
    step = method(one, 0.5)
    step.loss.backward()
    assert not [name for name, p in method.named_parameters() if p.requires_grad and not p.grad.any()]
    assert all(p.grad is None for p in method.slow.parameters())


@torch.no_grad()
def test_a_mask_token_alone_has_positions():
    method = built()
    assert method.pixels.mask_token.shape == (1, 1, 16) and method.latents.mask_token.shape == (1, 1, 32)
    caught = []
    method.pixels.reader.register_forward_hook(lambda m, inputs, o: caught.append(inputs[0]))
    patches, mask, _ = method.sample(batch(), 0.5)
    method.predict(patches, mask)
    tokens = caught[0][:, 1:]
    expected = (method.pixels.mask_token + method.pixels.positions).expand_as(tokens)
    torch.testing.assert_close(tokens[mask.hidden], expected[mask.hidden])
    latents = method.encoder.encode(method.encoder.embed(patches, mask), mask)
    torch.testing.assert_close(mask.take(tokens), method.pixels.embed(latents.patches), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_views_share_one_pass_of_the_teacher():
    method, one = built(masker=PartitionMasker(parts=4)), batch()
    calls = []
    method.slow.register_forward_hook(lambda m, i, o: calls.append(o.shape))
    assert method(one, 0.5).loss.isfinite() and calls == [(4, 16, 32)]


# ---- what follows


def test_the_student_leaves_and_the_teacher_follows():
    method = built()
    assert method.encoder is not method.slow.module
    slow, fast = method.slow.module.timm.norm.weight.clone(), method.encoder.timm.norm.weight
    method.after_step(0.0)
    torch.testing.assert_close(method.slow.module.timm.norm.weight, (0.999 * slow + 0.001 * fast).detach())
    momentum = find_recipe("bootmae_vit_b16").method.momentum
    assert [momentum.at(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.999, 0.99999, 0.99999])


@torch.no_grad()
def test_pixels_are_drawn_with_the_true_patch_s_statistics():
    method, one = built(), batch()
    display = Display(mean=(0.0,) * 3, std=(1.0,) * 3)
    assert prediction_grid(method, method.encoder, one, display) is not None
    patches = patchify(one.images, (4, 4))
    method.predict = lambda *_: (standardized_channels(patches, 3), None)
    torch.testing.assert_close(method.reconstruct(one, 0.0)[0], one.images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 18}, r"method.width 18 must be divisible by 4 and at least 2"),
        ({"ramp": 2.0}, r"method.ramp is a share of training between 0 and 1, got 2"),
        ({"masker": SelfGuidedMasker(trigger="exploitation")}, r"exploitation of a decoder and BootMAE has no decoder"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        built(**changes)
