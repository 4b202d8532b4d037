"""The reader: attention equals PyTorch's own, queries are alone where they should be, a mix of blocks is the sum."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mimkit.core.errors import UserError
from mimkit.masks import Mask
from mimkit.model.build import EncoderConfig
from mimkit.model.patches import patchify
from mimkit.model.reader import CrossAttention, CrossDecoder, CrossDecoderConfig, Reader, hidden_places, put_at


def noisy(module: nn.Module, seed: int = 0) -> nn.Module:
    """No tensor of it is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_pytorchs(fused):
    ours = noisy(CrossAttention(12, 3, 8))
    theirs = nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True)
    theirs.q_proj_weight.copy_(ours.q.weight)
    theirs.k_proj_weight.copy_(ours.kv.weight[:12])
    theirs.v_proj_weight.copy_(ours.kv.weight[12:])
    theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    ours.fused_attn = fused
    queries, keys, values = tokens(2, 5, 12), tokens(2, 7, 8, seed=1), tokens(2, 7, 8, seed=2)
    torch.testing.assert_close(ours(queries, keys), theirs(queries, keys, keys)[0])
    torch.testing.assert_close(ours(queries, keys, values), theirs(queries, keys, values)[0])
    hidden = torch.tensor([[False] * 5 + [True] * 2, [False] * 6 + [True]])
    bias = torch.zeros(2, 7).masked_fill(hidden, float("-inf"))[:, None, None]
    torch.testing.assert_close(ours(queries, keys, bias=bias), theirs(queries, keys, keys, key_padding_mask=hidden)[0])


def test_heads_may_leave_a_rest():
    attention = CrossAttention(16, 3, 8)
    assert attention.q.out_features == 15 and attention(tokens(2, 5, 16), tokens(2, 7, 8)).shape == (2, 5, 16)


@torch.no_grad()
@pytest.mark.parametrize("self_attention", [False, True])
def test_queries_are_alone_without_self_attention(self_attention):
    reader = noisy(Reader(16, 2, 2, 8, self_attention=self_attention, norm_keys=True))
    queries, keys = tokens(2, 6, 16), [tokens(2, 7, 8, seed=seed) for seed in (1, 2)]
    whole, few = reader(queries, keys), reader(queries[:, [4, 1]], keys)
    assert torch.allclose(few, whole[:, [4, 1]], atol=1e-5) == (not self_attention)
    assert not torch.allclose(whole, reader(queries, keys[::-1]), atol=1e-3)  # each block reads its own keys


def test_hidden_places_and_back():
    scores = torch.rand(3, 10, generator=torch.Generator().manual_seed(0))
    for mask in (Mask.from_scores(scores, 6), Mask.from_scores(scores, 3, throw=4)):
        places = hidden_places(mask)
        assert torch.equal(put_at(torch.ones(3, places.shape[1], 1), places, 10)[..., 0] > 0, mask.hidden)
    ragged = Mask.from_scores(scores, torch.tensor([3, 4, 5]), least=3)
    assert torch.equal(hidden_places(ragged), torch.arange(10).expand(3, 10))


def build(**settings) -> tuple:
    torch.manual_seed(0)
    config = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=16, depth=3, heads=2)
    encoder = noisy(config.build((16, 16), 3))
    decoder = CrossDecoderConfig(width=8, depth=2, heads=2, **settings).build(encoder, 5)
    return encoder, noisy(decoder, 1)


@torch.no_grad()
@pytest.mark.parametrize("keys", ["mix", "last"])
def test_the_decoder_is_the_formula(keys):
    """Written anew from the description: maps, mixes, norms, attention of hidden places to them."""
    encoder, decoder = build(keys=keys)
    patches = patchify(tokens(2, 3, 16, 16), (4, 4))
    mask = Mask.from_scores(tokens(2, 16, seed=3), 4, throw=8)
    prediction = decoder.predict(encoder, encoder.embed(patches, mask), mask)

    vit = encoder.timm
    x = torch.cat(encoder.embed(patches, mask), dim=1)
    maps = [x]
    for block in vit.blocks:
        maps.append(block(maps[-1]))
    for row in range(2):
        for place in mask.hidden[row].nonzero()[:, 0]:
            y = decoder.queries.mask_token[0, 0] + decoder.queries.positions[place]
            for i, block in enumerate(decoder.reader.blocks):
                if keys == "mix":
                    mixed = sum(weight * one[row] for weight, one in zip(decoder.mix.weight[i], maps, strict=True))
                    mixed = block.norm_keys(mixed)
                else:
                    mixed = vit.norm(maps[-1][row])
                q = block.cross.q(block.norm1(y)).view(2, 1, 4)
                k, v = (part.view(-1, 2, 4).transpose(0, 1) for part in block.cross.kv(mixed).chunk(2, dim=1))
                read = (q @ k.transpose(1, 2) / 2).softmax(dim=2) @ v
                y = y + block.cross.proj(read.reshape(8))
                hidden = F.gelu(F.linear(block.norm2(y), block.mlp.fc1.weight, block.mlp.fc1.bias))
                y = y + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
            torch.testing.assert_close(prediction[row, place], decoder.head(decoder.reader.norm(y)))
    assert not prediction[~mask.hidden].any()


def test_with_a_mix_the_encoders_norm_rests():
    for keys, trained in (("mix", False), ("last", True)):
        encoder, decoder = build(keys=keys)
        assert isinstance(decoder, CrossDecoder)
        assert encoder.timm.norm.weight.requires_grad == trained
        mask = Mask.from_scores(tokens(2, 16, seed=3), 12)
        prediction = decoder.predict(encoder, encoder.embed(patchify(tokens(2, 3, 16, 16), (4, 4)), mask), mask)
        prediction.square().sum().backward()
        modules = [*encoder.named_parameters(), *decoder.named_parameters()]
        assert not [name for name, p in modules if p.requires_grad and (p.grad is None or not p.grad.any())]


@torch.no_grad()
def test_rows_of_unequal_numbers_are_those_of_one_picture_alone():
    encoder, decoder = build()
    patches, scores = patchify(tokens(3, 3, 16, 16), (4, 4)), tokens(3, 16, seed=3)
    mask = Mask.from_scores(scores, torch.tensor([9, 11, 14]), least=9)
    prediction = decoder.predict(encoder, encoder.embed(patches, mask), mask)
    for row, hide in enumerate((9, 11, 14)):
        one = Mask.from_scores(scores[[row]], hide)
        alone = decoder.predict(encoder, encoder.embed(patches[[row]], one), one)
        torch.testing.assert_close(prediction[[row]][one.hidden], alone[one.hidden], rtol=1e-4, atol=1e-5)


def test_sizes_that_cannot_be_built():
    encoder, _ = build()
    with pytest.raises(UserError, match=r"decoder.width 9 must be divisible by 4 and by decoder.heads 2"):
        CrossDecoderConfig(width=9, depth=1, heads=2).build(encoder, 5)
    with pytest.raises(UserError, match=r"decoder.depth must be"):
        CrossDecoderConfig(width=8, depth=0, heads=2).build(encoder, 5)
