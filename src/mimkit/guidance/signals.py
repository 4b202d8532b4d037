"""Signals: an encoder and patches enter, what a masker asked to see of them leaves."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers import DropPath
from torch import Tensor, nn

from mimkit.core.symmetry import MIRRORED, TRANSPOSED, UPENDED
from mimkit.masks.masker import Signal
from mimkit.model.attention import class_attention
from mimkit.model.backbone import Backbone
from mimkit.model.vit import Encoder


def compute_signal(
    kind: Signal, encoder: Backbone, patches: Float[Tensor, "B N P"], layer: int = -1
) -> Float[Tensor, "B N C"]:
    """The signal of an encoder that sees all patches: without gradient, without dropping anything.

    A fifth signal is one member of `Signal` and one branch here.

    Args:
        layer: the block whose output `Signal.FEATURES` is, counted from the end.
    """
    if kind is Signal.NONE:
        return patches[..., :0]
    assert isinstance(encoder, Encoder), "refused by methods that train other encoders"
    with nothing_dropped(encoder):
        tokens = encoder.embed(patches)
        if kind is Signal.PATCHES:
            return tokens.patches
        blocks = encoder.timm.blocks
        if kind is Signal.FEATURES:
            return encoder.through(tokens, len(blocks) + 1 + layer).patches
        before_last = torch.cat(encoder.through(tokens, len(blocks) - 1), dim=1)
        return class_attention(blocks[-1], before_last, tokens.prefix.shape[1])


@contextmanager
def nothing_dropped(encoder: Encoder) -> Generator[None]:
    """Evaluation mode for an encoder in training, and back; modules that were in evaluation mode stay in it.

    Where nothing drops anyway nothing is switched, for a compiled step would guard on every switch.
    """
    in_training = [module for module in encoder.modules() if module.training]
    drops = any(
        (isinstance(module, nn.Dropout) and module.p > 0) or (isinstance(module, DropPath) and bool(module.drop_prob))
        for module in in_training
    )
    switched = in_training if drops else []
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True


def warp_to_view(
    score_maps: Float[Tensor, "B N M"],
    crop: Float[Tensor, "B 4"],
    flip: Bool[Tensor, " B"],
    grid: tuple[int, int],
    symmetry: Int64[Tensor, " B"] | None = None,
) -> Float[Tensor, "B N M"]:
    """Maps of whole pictures through crop, mirror and symmetry of their views, bilinearly; the identity for no crop.

    `crop` holds top, left, height and width as shares of the picture; `symmetry` is one of `core.symmetry`.
    """
    rows, columns = grid
    device = score_maps.device
    down = ((torch.arange(rows, device=device) + 0.5) / rows).view(1, rows, 1)
    across = ((torch.arange(columns, device=device) + 0.5) / columns).view(1, 1, columns)
    flip = flip.view(-1, 1, 1)
    # Where each place of the view lies in the crop, in shares of it.
    if symmetry is None:
        v, u = down, torch.where(flip, across.flip(2), across)
    else:
        bits = symmetry.to(device).view(-1, 1, 1)
        transposed = (bits & TRANSPOSED) > 0
        # What was mirrored before rows and columns were exchanged is upended behind that.
        upended, mirrored = ((bits & UPENDED) > 0) ^ (flip & transposed), ((bits & MIRRORED) > 0) ^ (flip & ~transposed)
        v, u = torch.where(upended, down.flip(1), down), torch.where(mirrored, across.flip(2), across)
        v, u = torch.where(transposed, u, v), torch.where(transposed, v, u)
    top, left, height, width = crop.view(-1, 4, 1, 1).unbind(1)
    y, x = top + height * v, left + width * u
    places = torch.stack([x.expand(-1, rows, columns), y.expand(-1, rows, columns)], dim=3)
    square = score_maps.mT.reshape(len(score_maps), -1, rows, columns)
    out = F.grid_sample(square, 2 * places - 1, mode="bilinear", padding_mode="border", align_corners=False)
    return out.flatten(2).mT
