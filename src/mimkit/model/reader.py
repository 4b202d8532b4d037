"""Reader: queries and an encoder's tokens enter, what the queries read in them leaves; CrossMAE's decoder is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.layers import Mlp
from torch import Tensor, nn

from mimkit.masks.mask import Mask
from mimkit.model.backbone import Tokens
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import sincos_positions
from mimkit.model.vit import Encoder, initialize

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm asks for a class and takes any callable


class CrossAttention(nn.Module):
    """Attention of queries to the tokens of another sequence, or of their own.

    Heads are `width // heads` wide, also where that leaves a rest (BootMAE: 12 heads of 42 of 512 channels).
    """

    def __init__(self, width: int, heads: int, keys_width: int) -> None:
        super().__init__()
        inner = heads * (width // heads)
        self.heads, self.fused_attn = heads, True  # the name by which the engine chooses between the two ways
        self.q, self.kv = nn.Linear(width, inner), nn.Linear(keys_width, 2 * inner)
        self.proj = nn.Linear(inner, width)

    def forward(
        self,
        queries: Float[Tensor, "B M W"],
        keys: Float[Tensor, "B T D"],
        values: Float[Tensor, "B T D"] | None = None,
        bias: Float[Tensor, "B 1 1 T"] | None = None,
    ) -> Float[Tensor, "B M W"]:
        """`values`: if other than the keys. `bias`: added to the scores; -inf hides a key."""
        if values is None:
            k, v = self.kv(keys).chunk(2, dim=2)
        else:
            (of_keys, of_values), (k_bias, v_bias) = self.kv.weight.chunk(2), self.kv.bias.chunk(2)
            k, v = F.linear(keys, of_keys, k_bias), F.linear(values, of_values, v_bias)
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (self.q(queries), k, v))
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q * q.shape[3] ** -0.5 @ k.transpose(2, 3)
            x = (scores if bias is None else scores + bias).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).flatten(2))


class ReadingBlock(nn.Module):
    """Self-attention where asked for, cross-attention, and an MLP, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, keys_width: int, *, self_attention: bool, norm_keys: bool) -> None:
        super().__init__()
        self.norm0 = LayerNorm(width) if self_attention else None
        self.attn = CrossAttention(width, heads, width) if self_attention else None
        self.norm1, self.cross = LayerNorm(width), CrossAttention(width, heads, keys_width)
        self.norm_keys = LayerNorm(keys_width) if norm_keys else nn.Identity()
        self.norm2, self.mlp = LayerNorm(width), Mlp(width, 4 * width)

    def forward(
        self, x: Float[Tensor, "B M W"], keys: Float[Tensor, "B T D"], bias: Float[Tensor, "B 1 1 T"] | None = None
    ) -> Float[Tensor, "B M W"]:
        if self.norm0 is not None and self.attn is not None:
            own = self.norm0(x)
            x = x + self.attn(own, own)
        x = x + self.cross(self.norm1(x), self.norm_keys(keys), bias=bias)
        return x + self.mlp(self.norm2(x))


class Reader(nn.Module):
    """Blocks in which queries look at keys, and a norm.

    Without self-attention a query knows nothing of the others: any of them may be left away (CrossMAE, CAPI).

    Args:
        width, depth, heads: of the blocks.
        keys_width: of the tokens that are read.
        self_attention: queries look at each other first (BootMAE).
        norm_keys: each block normalizes the keys for itself.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        keys_width: int,
        *,
        self_attention: bool = False,
        norm_keys: bool = False,
    ) -> None:
        super().__init__()
        options = dict(self_attention=self_attention, norm_keys=norm_keys)
        self.blocks = nn.ModuleList(ReadingBlock(width, heads, keys_width, **options) for _ in range(depth))
        self.norm = LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "B M W"],
        keys: Sequence[Float[Tensor, "B T D"]],
        bias: Float[Tensor, "B 1 1 T"] | None = None,
    ) -> Float[Tensor, "B M W"]:
        """`keys`: those of each block. `bias`: what hides keys, see `Encoder.surplus`."""
        for block, tokens in zip(self.blocks, keys, strict=True):
            x = block(x, tokens, bias)
        return self.norm(x)


class Queries(nn.Module):
    """A learned token with fixed sine-cosine positions, at the places that are to be predicted."""

    positions: Float[Tensor, "N W"]

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", sincos_positions(grid, width))

    def forward(self, places: Int64[Tensor, "B M"]) -> Float[Tensor, "B M W"]:
        return self.mask_token + self.positions[places]


def hidden_places(mask: Mask) -> Int64[Tensor, "BK M"]:
    """Where patches are to be predicted: the hidden ones, in order.

    Where rows hide unequally many, all that are decoded: visible ones too, whose predictions count nowhere.
    """
    rows, n = mask.hidden.shape
    if mask.ragged:
        return torch.arange(n, device=mask.hidden.device).expand(rows, n) if mask.decoded is None else mask.decoded
    count = (n if mask.decoded is None else mask.decoded.shape[1]) - mask.visible.shape[1]
    return (~mask.hidden).byte().argsort(dim=1, stable=True)[:, :count]


class Predictor(nn.Module):
    """As wide as the encoder, whose normalized output queries read to say what hidden patches are (CAPI)."""

    def __init__(self, encoder: Encoder, depth: int, heads: int) -> None:
        super().__init__()
        self.queries = Queries(encoder.grid, encoder.width)
        self.reader = Reader(encoder.width, depth, heads, encoder.width)
        initialize(self.reader)

    def forward(
        self, encoder: Encoder, patches: Float[Tensor, "B N P"], mask: Mask
    ) -> tuple[Float[Tensor, "BK M D"], Int64[Tensor, "BK M"]]:
        """What it reads for each hidden patch, and where that is (`hidden_places`)."""
        keys = torch.cat(encoder.encode(encoder.embed(patches, mask), mask), dim=1)
        places, bias = hidden_places(mask), encoder.surplus(keys, mask)
        return self.reader(self.queries(places), [keys] * len(self.reader.blocks), bias), places


class Restorer(nn.Module):
    """A decoder over all places, which also reads other tokens of the encoder than it begins with (BootMAE).

    Mask tokens have positions, latents have them already.
    """

    positions: Float[Tensor, "1 N W"]

    def __init__(self, encoder: Encoder, width: int, depth: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(encoder.grid, width).unsqueeze(0))
        self.reader = Reader(width, depth, heads, encoder.width, self_attention=True, norm_keys=True)
        self.head = nn.Linear(width, outputs)
        initialize(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        latents: Tokens,
        features: Float[Tensor, "BK T D"],
        mask: Mask,
        bias: Float[Tensor, "BK 1 1 T"] | None = None,
    ) -> Float[Tensor, "BK N O"]:
        """Predictions for all patches, zeros for thrown ones. `features`: what is read, class token included."""
        prefix, visible = self.embed(torch.cat(latents, dim=1)).split([x.shape[1] for x in latents], dim=1)
        patches = mask.take_decoded(mask.put(visible, self.mask_token + self.positions))
        x = self.reader(torch.cat([prefix, patches], dim=1), [features] * len(self.reader.blocks), bias)
        return mask.put_decoded(self.head(x[:, prefix.shape[1] :]))


def put_at(x: Float[Tensor, "B M O"], places: Int64[Tensor, "B M"], n: int) -> Float[Tensor, "B N O"]:
    """Rows of `x` at their places of `n`, and zeros elsewhere."""
    full = x.new_zeros(x.shape[0], n, x.shape[2])
    return full.scatter(1, places.unsqueeze(2).expand_as(x), x)


@dataclass(kw_only=True, slots=True)
class CrossDecoderConfig(DecoderConfig):
    """CrossMAE's decoder (Fu et al. 2024, arXiv:2401.14391; TonyLianLong/CrossMAE:models_cross.py).

    Mask tokens look at visible tokens alone, never at each other: what is thrown away (`masker.throw`) costs nothing
    and changes no other prediction.
    """

    depth: int = 12
    """Number of blocks."""
    keys: Literal["mix", "last"] = "mix"
    """What is read: for each block a learned `mix` of the embedded patches and all blocks of the encoder, or the
    encoder's `last` output."""

    def build(self, encoder: Encoder, outputs: int) -> "CrossDecoder":  # type: ignore[bad-override]
        self.check()
        return CrossDecoder(self, encoder, outputs)


class CrossDecoder(nn.Module):
    """Predicts hidden patches by cross-attention; with a mix of blocks the encoder's last norm is left as it starts.

    Nothing reads behind that norm then, so it would have no gradient.
    """

    def __init__(self, config: CrossDecoderConfig, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        mixes = config.keys == "mix"
        self.queries = Queries(encoder.grid, config.width)
        self.reader = Reader(config.width, config.depth, config.heads, encoder.width, norm_keys=mixes)
        # Xavier's, as of every linear layer: it overwrites the code's own Normal(0, 1 / sqrt(maps)).
        self.mix = nn.Linear(len(encoder.timm.blocks) + 1, config.depth, bias=False) if mixes else None
        self.head = nn.Linear(config.width, outputs)
        initialize(self)
        if mixes:
            encoder.timm.norm.requires_grad_(False)

    def keys(self, encoder: Encoder, tokens: Tokens, mask: Mask) -> Sequence[Float[Tensor, "BK T D"]]:
        """What each block reads of embedded visible patches."""
        if self.mix is None:
            return [torch.cat(encoder.encode(tokens, mask), dim=1)] * len(self.reader.blocks)
        outputs = [tokens, *encoder.by_block(tokens, mask)]
        maps = torch.stack([torch.cat(block, dim=1) for block in outputs])
        # One product for all blocks, with no copy that has the maps as its last axis.
        return (self.mix.weight @ maps.flatten(1)).unflatten(1, maps.shape[1:]).unbind()

    def predict(self, encoder: Encoder, tokens: Tokens, mask: Mask) -> Float[Tensor, "BK N O"]:
        """Predictions of the places that are hidden, from embedded visible patches; zeros elsewhere."""
        keys, places = self.keys(encoder, tokens, mask), hidden_places(mask)
        bias = encoder.surplus(keys[0], mask)
        return put_at(self.head(self.reader(self.queries(places), keys, bias)), places, mask.hidden.shape[1])
