"""Attention of a block: tokens that enter a timm block enter, the softmax weights that it gives them leave."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit.core.distributed import is_sharded, plain_type, whole
from mimkit.core.errors import UserError


def attention_weights(block: nn.Module, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T T"]:
    """The weights of every head, as the block uses them on its input `x`: row `i` is what token `i` looks at.

    Computed explicitly in float32 whatever autocast says, since fused attention gives none out; each row sums to 1.
    Dropout of weights is left out, as in eval mode.

    Raises:
        UserError: the block is no plain pre-norm block of timm.
    """
    return _weights(block, x, x.shape[1])


def class_attention(block: nn.Module, x: Float[Tensor, "B T D"], prefix: int) -> Float[Tensor, "B N H"]:
    """The class token's attention to the patches, per head; only its own row is computed.

    Args:
        block: a plain pre-norm block of timm, most often the last.
        x: its input; token 0 is the class token.
        prefix: class and register tokens before the patches. Their columns are dropped and nothing is renormalized:
            a patch's value is its true share, and the values of a head sum to less than 1.

    Raises:
        UserError: there is no class token, or the block is no plain pre-norm block of timm.
    """
    if prefix < 1:
        raise UserError("this encoder has no class token whose attention could be read: use a vit_* model with one")
    return _weights(block, x, 1)[:, :, 0, prefix:].transpose(1, 2)


def _weights(block: nn.Module, x: Float[Tensor, "B T D"], queries: int) -> Float[Tensor, "B H Q T"]:
    """Attention of the first `queries` tokens to all; values are never computed."""
    if plain_type(block) is not Block or type(block.attn) is not Attention:
        # Exact types: a subclass may compute its attention otherwise, and the weights read here would be wrong
        # silently.
        kind = f"{type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}"
        raise UserError(f"attention cannot be read from this encoder's blocks ({kind}): use a plain vit_* model")
    if not is_sharded(block):  # asked for here, since a compiled step cannot follow what gathers
        return _weights_of(block, x, queries)
    with whole(block):
        return _weights_of(block, x, queries)


def _weights_of(block: Any, x: Float[Tensor, "B T D"], queries: int) -> Float[Tensor, "B H Q T"]:
    attn = block.attn
    # Queries and keys as the block makes them, but without its values and output: half of the products, and only the
    # rows of `queries` tokens are ever weighed.
    with torch.autocast(x.device.type, enabled=False):
        x = block.norm1(x.float())
        weight = attn.qkv.weight.float().chunk(3)
        bias = (None, None, None) if attn.qkv.bias is None else attn.qkv.bias.float().chunk(3)
        q = F.linear(x[:, :queries], weight[0], bias[0]).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
        k = F.linear(x, weight[1], bias[1]).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
        return (attn.q_norm(q) * attn.scale @ attn.k_norm(k).transpose(2, 3)).softmax(dim=-1)
