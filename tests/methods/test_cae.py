"""CAE: regressor and losses written anew, who sees what, a copy that is one step behind, and what is refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import BlockMasker, PartitionMasker, RandomMasker, SalienceMasker, SelfGuidedMasker
from mimkit.methods.cae import CAE, CAEConfig
from mimkit.methods.targets.tokens import LoadedTokenIds
from mimkit.model.build import EncoderConfig
from mimkit.model.frozen import Frozen
from mimkit.model.patches import patchify

torch.set_num_threads(1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=2, heads=2)


class Shades(nn.Module):
    """A tokenizer: how bright a square of `side` pixels is, in eight steps."""

    classes = 8

    def __init__(self, side: int = 4) -> None:
        super().__init__()
        self.side = side

    def ids(self, images: torch.Tensor) -> torch.Tensor:
        return (F.avg_pool2d(images.mean(dim=1), self.side) * 7.99).long()


def target(side: int = 4) -> LoadedTokenIds:
    return LoadedTokenIds(tokenizer="shades", network=Frozen(Shades(side)), cell=side)


SMALL = CAEConfig(masker=RandomMasker(ratio=0.5), target=target(), depth=2, decoder_depth=1)


def built(**changes) -> CAE:
    torch.manual_seed(0)
    encoder = VIT.build((16, 16), 3)
    encoder.mean, encoder.std = (0.5,) * 3, (0.25,) * 3
    method = replace(SMALL, **changes).build(encoder)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def batch(rows: int = 4) -> Batch:
    images = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    order = torch.arange(rows)
    return Batch(images, rng_keys("test", order), order)


def attention(cross, q, k, v):
    """Two heads of 16 by hand."""
    weights, biases = cross.kv.weight.chunk(2), cross.kv.bias.chunk(2)
    q, k, v = cross.q(q), F.linear(k, weights[0], biases[0]), F.linear(v, weights[1], biases[1])
    heads = []
    for part in (slice(0, 16), slice(16, 32)):
        heads.append((q[..., part] @ k[..., part].mT / 4).softmax(dim=-1) @ v[..., part])
    return cross.proj(torch.cat(heads, dim=-1))


def by_hand(method: CAE, one: Batch):
    """Latents and scores picture by picture, in the words of the released code."""
    patches, mask, _ = method.sample(one, 0.5)
    regressor, found = method.regressor, []
    for row in range(len(patches)):
        hidden = mask.hidden[row].nonzero()[:, 0]
        visible = mask.visible[row]
        tokens = method.encoder.encode(method.encoder.embed(patches, mask), mask).patches[row]
        here, there = regressor.positions[hidden], regressor.positions[visible]
        x = regressor.mask_token[0].expand(len(hidden), -1)
        for block in regressor.blocks:
            both, places = torch.cat([tokens, x]), torch.cat([there, here])
            q, k, v = block.norm_queries(x + here), block.norm_keys(both + places), block.norm_values(both)
            x = block.norm(x + block.scale1.gamma * attention(block.cross, q, k, v))
            x = x + block.scale2.gamma * block.mlp(x)
        latents = regressor.norm(x)
        y = regressor.decoder((latents + here).unsqueeze(0))[0]
        found.append((latents, regressor.head(regressor.decoder_norm(y)), hidden))
    return patches, mask, found


def test_both_losses_and_their_gradients_are_the_formula():
    method, one = built(), batch()
    _, mask, found = by_hand(method, one)
    ids = Shades().ids((one.images * 0.25 + 0.5).clamp(0, 1)).flatten(1)
    tokens = F.cross_entropy(
        torch.cat([scores for _, scores, _ in found]), torch.cat([ids[i, at] for i, (_, _, at) in enumerate(found)])
    )
    vit, taught = method.slow.module.timm, []
    for row in range(4):
        x = vit._pos_embed(vit.patch_embed(one.images[[row]]))
        x = torch.cat([x[:, :1], x[:, 1:][:, mask.hidden[row]]], dim=1)
        taught.append(vit.norm(vit.blocks(x))[0, 1:].detach())
    alignment = F.mse_loss(torch.stack([latents for latents, _, _ in found]), torch.stack(taught))
    step = method(one, 0.5)
    torch.testing.assert_close(step.logs["tokens"], tokens.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(step.logs["alignment"], alignment.detach(), rtol=1e-5, atol=1e-5)
    trained = [p for p in method.parameters() if p.requires_grad]
    expected = torch.autograd.grad(tokens + 2 * alignment, trained)
    torch.testing.assert_close(torch.autograd.grad(step.loss, trained), expected, rtol=1e-3, atol=1e-5)
    assert all(gradient.any() for gradient in expected)


@torch.no_grad()
def test_predictions_see_visible_and_targets_hidden_patches():
    method, one = built(), batch()
    patches, mask, _ = method.sample(one, 0.5)
    predicted = method.predict(patches, mask)
    taught = method.teach(patches, mask, predicted[2])
    for where, same in ((mask.hidden, True), (~mask.hidden, False)):
        changed = torch.where(where.unsqueeze(2), 3.0, patches)
        assert torch.equal(method.predict(changed, mask)[0], predicted[0]) == same
        assert torch.equal(method.predict(changed, mask)[1], predicted[1]) == same
        assert torch.equal(method.teach(changed, mask, predicted[2]), taught) != same


def test_the_copy_is_one_step_behind_and_gets_no_gradient():
    method, one = built(), batch()
    method(one, 0.5).loss.backward()
    assert all(p.grad is None for p in method.slow.parameters())
    before = method.encoder.timm.norm.weight.detach().clone()
    method.before_step(0.5)
    with torch.no_grad():
        method.encoder.timm.norm.weight.add_(1.0)
    method.after_step(0.5)
    assert torch.equal(method.slow.module.timm.norm.weight, before)
    assert method.slow.train().module.training and not method.slow.eval().module.training  # paths are dropped too


@torch.no_grad()
@pytest.mark.parametrize("masker", [BlockMasker(ratio=0.5), PartitionMasker(parts=2), RandomMasker(ratio=0.7)])
def test_maskers_of_exact_counts(masker):
    method, one = built(masker=masker), batch()
    step = method(one, 0.5)
    assert step.loss.isfinite() and step.logs["target_spread"] > 0
    values, mask = method.agreement(one, 0.5)
    assert torch.equal(values.isnan(), ~mask.hidden) and ((values >= 0) | values.isnan()).all()


@pytest.mark.parametrize(
    "masker", [RandomMasker(ratio=0.4, throw=0.2), SalienceMasker(spread=0.2, start=0.0), BlockMasker(exact=False)]
)
def test_other_maskers_are_refused_by_name(masker):
    method = built(masker=masker)
    with pytest.raises(UserError, match=f"{type(masker).__name__} throws patches away or hides unequally many"):
        method(batch(), 0.5)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(UserError, match=r"gives an id to squares of 8 pixels and patches are 4x4: CAE asks for one id"):
        built(target=target(8))
    with pytest.raises(UserError, match=r"exploitation of a decoder and CAE has no decoder"):
        built(masker=SelfGuidedMasker(trigger="exploitation"))
    with pytest.raises(UserError, match=r"method.weight must be"):
        built(weight=-1.0)


@torch.no_grad()
def test_rectangles_and_bfloat16():
    torch.manual_seed(0)
    encoder = replace(VIT, name="vit_base_patch16_siglip_224").build((16, 24), 3)  # without a class token
    method = SMALL.build(encoder)
    images = torch.randn(2, 3, 16, 24)
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, rng_keys("r", torch.arange(2)), torch.arange(2)), 0.5)
    assert step.loss.isfinite() and step.loss.dtype == torch.float32
    assert patchify(images, (4, 4)).shape[1] == 24
