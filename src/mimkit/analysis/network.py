"""Layers of a target: an extractor and images enter, each layer's tokens and attention pass by and are not kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from timm.models import SwinTransformer, SwinTransformerV2
from torch import Tensor, nn

from mimkit.analysis.attention import among_patches
from mimkit.core.errors import UserError
from mimkit.evaluate.target import Extractor
from mimkit.model.attention import attention_weights

_AT_ONCE = 1 << 22  # attention weights computed at once


@dataclass(frozen=True)
class Layer:
    """What passes one block of a ViT, or one stage of a Swin, for a batch."""

    number: int
    tokens: Float[Tensor, "B N D"]
    """Of the patches, as they leave it: the residual stream before the final norm."""
    grid: tuple[int, int]
    whole: Float[Tensor, "B T D"]
    """With class and register tokens."""
    entered: Tensor
    block: nn.Module
    prefix: int

    def attention(self) -> Iterator[tuple[slice, Float[Tensor, "b H N N"]]]:
        """Attention among patches, row-stochastic and in float32, for some pictures after the other."""
        # Heads times tokens squared: that of a whole batch would take more memory than the model.
        pictures, tokens = self.entered.shape[:2]
        heads: Any = self.block.attn.num_heads  # type: ignore[union-attr]
        step = max(1, _AT_ONCE // (heads * tokens * tokens))
        for start in range(0, pictures, step):
            here = slice(start, start + step)
            yield here, among_patches(attention_weights(self.block, self.entered[here]), self.prefix)


class Network:
    """A ViT or a Swin as a row of layers. timm's own forward runs; hooks look at what passes.

    Raises:
        UserError: the model is neither.
    """

    def __init__(self, extractor: Extractor) -> None:
        model: Any = extractor.model
        self.extractor, self.model = extractor, model
        self.windows = isinstance(model, (SwinTransformer, SwinTransformerV2))
        self.layers: nn.Sequential
        if self.windows:
            self.layers, self.prefix = model.layers, 0
        elif isinstance(getattr(model, "blocks", None), nn.Sequential) and hasattr(model, "num_prefix_tokens"):
            self.layers, self.prefix = model.blocks, model.num_prefix_tokens
            self.grid: tuple[int, int] = tuple(model.patch_embed.grid_size)
            self.patch: tuple[int, int] = tuple(model.patch_embed.patch_size)
        else:
            kind = "pixels" if model is None else type(model).__name__
            raise UserError(
                f"'{extractor.name}' ({kind}) has no row of blocks over patch tokens to analyze: give a run, an export "
                "or a vit_*, deit* or swin* model"
            )

    def __len__(self) -> int:
        return len(self.layers)

    @cached_property
    def refusals(self) -> dict[str, str]:
        """Groups of metrics that this model cannot have, each with the reason."""
        if self.windows:
            reason = "attention runs in windows, and stages have tokens of unequal number and width"
            return dict.fromkeys(("attention", "drop", "swap"), reason)
        try:
            for block in self.layers:
                # Tried on one token of zeros: who refuses, and why, is known in one place alone.
                attention_weights(block, torch.zeros(1, 1, self.model.embed_dim, device=self.device))
        except UserError as error:
            return {"attention": str(error)}
        return {}

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    def run(self, images: Float[Tensor, "B C H W"], visit: Callable[[Layer], None]) -> None:
        """Show every layer, first to last, to `visit` while the images pass."""

        def look(number: int, block: nn.Module, entered: tuple[Tensor, ...], output: Tensor) -> None:
            grid = (output.shape[1], output.shape[2]) if self.windows else self.grid
            whole = output.flatten(1, 2) if self.windows else output
            visit(Layer(number, whole[:, self.prefix :], grid, whole, entered[0], block, self.prefix))

        # Hooks, so that timm's own forward runs, whatever it does between its blocks.
        handles = [layer.register_forward_hook(partial(look, n)) for n, layer in enumerate(self.layers)]
        try:
            self.model.forward_features(images)
        finally:
            for handle in handles:
                handle.remove()

    def pooled(self, layer: Layer) -> Float[Tensor, "B D"]:
        """What the features would be if this were the last layer: final norm and the extractor's `headline`.

        That is the class token where it was trained, else the mean of the patches; of a stage, the mean.
        """
        if self.windows:
            return layer.tokens.mean(dim=1)
        # As if the later blocks were cut off; the final norm was not trained for it, which all layers have in common.
        tokens = self.model.norm(layer.whole)
        pooled = tokens[:, 0] if self.extractor.headline == "class" else tokens[:, self.prefix :].mean(dim=1)
        norm = getattr(self.model, "fc_norm", None)
        return pooled if norm is None else norm(pooled)
