"""Pools: images enter a frozen timm model; its tokens or its map leave, or one row a picture for each way to pool.

| pool | row | numbers |
|-|-|-|
| `mean` | mean of the patch tokens; of other models than ViTs what they pool themselves | D |
| `class` | class token | D |
| `both` | class token, then the mean: DINO's linear protocol for ViT-B | 2 D |
| `grid` | patch tokens, averaged over 2 x 2 cells, row by row | 4 D |
| `blocks` | of each of the last 4 blocks its class token, then its mean | 8 D |

All are behind the model's last norm, blocks before the last too. Where timm normalizes behind the pooling
(`fc_norm`), so does each row here, part by part. Register tokens are in no pool.
"""

import inspect
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import ResNet, SwinTransformer, SwinTransformerV2
from torch import Tensor, nn

from mimkit.core.errors import UserError

Pool = Literal["mean", "class", "both", "grid", "blocks", "pixels"]
WIDE = ("grid", "blocks")  # rows of several widths
BLOCKS = 4  # DINO's linear protocol for ViT-S: the class tokens of the last four blocks, without our means
CELLS = 2  # along each side of the grid; one where the grid has one patch


def pools_of(model: nn.Module | None) -> tuple[Pool, ...]:
    """The pools that a model has: of no model `pixels`; `class` and `both` with a class token, `blocks` of a ViT.

    Swins and ResNets have `mean`, and the `grid` of their last feature map; of other models than ViTs `mean`, and
    `class` and `both` where there is one.
    """
    if model is None:
        return ("pixels",)
    by_block: tuple[Pool, ...] = ("grid", "blocks") if _plain(model) else ("grid",) if _mapped(model) else ()
    return ("mean", *(("class", "both") if _has_class(model) else ()), *by_block)


def pooled(model: nn.Module, images: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, "B _"]]:
    """Rows of all pools that the model has, by one pass, in float32."""
    norm: Any = getattr(model, "fc_norm", None) or nn.Identity()  # timm's: only some models norm behind the pooling
    if _plain(model):
        blocks: list[list[Tensor]] = []
        for prefix, patches in _last_blocks(model, images, BLOCKS):
            parts = [prefix[:, 0].float()] if prefix is not None and _has_class(model) else []
            blocks.append([norm(row).float() for row in (*parts, patches.float().mean(dim=(2, 3)))])
        cells = norm(_cells(patches)).float().flatten(1)
        features = {
            "mean": blocks[-1][-1],
            "grid": cells,
            "blocks": torch.cat([row for block in blocks for row in block], dim=1),
        }
        return with_both(features | {"class": blocks[-1][0]}) if _has_class(model) else features
    anything: Any = model
    tokens = anything.forward_features(images)
    if _has_class(model):  # CaiT, XCiT and others, whose class token is not in every block
        patches = tokens[:, anything.num_prefix_tokens :].float().mean(dim=1)
        return with_both({"class": norm(tokens[:, 0].float()).float(), "mean": norm(patches).float()})
    features = {"mean": anything.forward_head(tokens, pre_logits=True).flatten(1).float()}
    return features | ({"grid": _cells(_channels_first(model, tokens)).flatten(1)} if _mapped(model) else {})


def with_both(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add `both`, of `class` and `mean` (N D) side by side, to what there is by name, whatever its shape."""
    return rows | {"both": torch.cat([rows["class"], rows["mean"]], dim=1)}


def tokens_of(model: nn.Module | None, images: Float[Tensor, "B C H W"], name: str) -> Float[Tensor, "B T D"]:
    """Tokens of the last block: the class token where there is one, then the patch tokens, row by row.

    Of Swins and ResNets the places of the last feature map. Raises UserError for what has no tokens, called `name`.
    """
    if model is not None and _plain(model):
        ((prefix, patches),) = _last_blocks(model, images, 1)
        patches = patches.flatten(2).transpose(1, 2)
        return torch.cat([prefix[:, :1], patches], dim=1) if prefix is not None and _has_class(model) else patches
    if model is None or not _mapped(model):
        raise UserError(
            f"'{name}' has no tokens to attend to: the attentive probe measures ViTs, Swins and ResNets; use "
            "'mimkit evaluate probe'"
        )
    anything: Any = model
    return _channels_first(model, anything.forward_features(images)).flatten(2).transpose(1, 2)


def maps_of(model: nn.Module, images: Float[Tensor, "B C H W"], name: str) -> Float[Tensor, "B D h w"]:
    """Patch tokens of the last block where they lie in the picture, in float32; of Swins and ResNets the last map.

    Behind the norms that rows have. Raises UserError for what has no map, called `name`.
    """
    anything: Any = model
    if _plain(model):
        norm: Any = getattr(model, "fc_norm", None) or nn.Identity()
        ((_, patches),) = _last_blocks(model, images, 1)
        return norm(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).float()
    if not _mapped(model):
        raise UserError(
            f"'{name}' has no map of features that is known here: segment and depth measure ViTs, Swins and ResNets"
        )
    return _channels_first(model, anything.forward_features(images)).float()


def _plain(model: nn.Module) -> bool:
    """Whether timm tells class and patch tokens of every block of this model apart: ViTs, EVA, BEiT and kin."""
    forward: Any = getattr(model, "forward_intermediates", None)
    return (
        hasattr(model, "num_prefix_tokens") and "return_prefix_tokens" in inspect.signature(forward or repr).parameters
    )


def _mapped(model: nn.Module) -> bool:
    """Whether the model is no ViT, and its last feature map is known."""
    return isinstance(model, (ResNet, SwinTransformer, SwinTransformerV2))


def _has_class(model: nn.Module) -> bool:
    return getattr(model, "cls_token", None) is not None and hasattr(model, "num_prefix_tokens")


def _last_blocks(
    model: Any, images: Float[Tensor, "B C H W"], count: int
) -> list[tuple[Float[Tensor, "B P D"] | None, Float[Tensor, "B D h w"]]]:
    """Prefix tokens, where there are any, and the grid of patch tokens of so many last blocks behind the last norm.

    Of all blocks where there are fewer.
    """
    # timm refuses to return prefix tokens of a model that has none.
    prefixed = model.num_prefix_tokens > 0
    outputs = model.forward_intermediates(
        images,
        indices=min(count, len(model.blocks)),
        return_prefix_tokens=prefixed,
        norm=True,
        intermediates_only=True,
    )
    return [(prefix, patches) for patches, prefix in outputs] if prefixed else [(None, patches) for patches in outputs]


def _channels_first(model: nn.Module, features: Tensor) -> Float[Tensor, "B D h w"]:
    return features if isinstance(model, ResNet) else features.permute(0, 3, 1, 2)


def _cells(patches: Float[Tensor, "B D h w"]) -> Float[Tensor, "B cells D"]:
    """Means of 2 x 2 cells of the grid, row by row; those of an odd side share its middle."""
    cells = min(CELLS, patches.shape[2]), min(CELLS, patches.shape[3])
    return F.adaptive_avg_pool2d(patches.float(), cells).flatten(2).transpose(1, 2)
