"""Files of weights as authors release them: a file enters; the plain ViT that it is of, with those weights, leaves."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer

from mimkit.core.errors import UserError
from mimkit.model.build import EncoderConfig
from mimkit.model.vit import Encoder
from mimkit.weights.load import State, load_weights, read_weights

ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Of ViT-Ti, S, B, L, H and g by their width; others are taken to have a head for each 64 numbers."""
NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224"}
HEAD = ("vit.head.", "vit.head_dist.", "vit.mask_token", "vit.decoder")
"""Beginnings of what belongs to no encoder: classifiers and decoders."""


@dataclass(frozen=True, kw_only=True)
class Official:
    """What the shapes in a file say about the ViT that they are of."""

    file: Path
    config: EncoderConfig
    """With everything but the size of the images; its `weights` are the file."""
    size: tuple[int, int]
    """Height and width in pixels of the images that the positions are for."""
    channels: int

    @property
    def assumed(self) -> str:
        """What the file does not say, in words."""
        config, statistics = (
            self.config,
            "ImageNet's mean and std" if self.channels == 3 else "mean and std of the data",
        )
        return (
            f"a plain ViT of {config.depth} blocks, {config.width} wide, with {config.heads} heads and patches of "
            f"{config.patch}; {statistics}"
        )

    def build(self, size: tuple[int, int]) -> VisionTransformer:
        """timm's model with these weights for images of `size` (height, width); positions are resampled to it.

        Raises UserError when a tensor has no place in it, or none is there for a place.
        """
        with torch.random.fork_rng(devices=[]):  # timm draws weights that are replaced
            vit: Any = timm.create_model(self.config.name, **self.config.timm_args(size, self.channels))
        encoder = Encoder(vit)
        report = load_weights(str(self.file), encoder)
        extra = [key for key in report.unexpected if key.startswith("vit.") and not key.startswith(HEAD)]
        if strange := [*report.missing, *extra]:
            verb = "lacks" if report.missing else "also holds"
            raise UserError(
                f"'{self.file}' is not the plain ViT that its shapes speak of: it {verb} "
                f"{strange[0].removeprefix('vit.')}; give a file of MAE's layout, or a timm model"
            )
        return encoder.timm


def official(file: Path) -> Official:
    """The ViT that a file of weights is of, from the shapes of its tensors.

    Args:
        file: of tensors under timm's names, below `model` or not, as the authors of MAE (facebookresearch/mae), DeiT
            and DINO release theirs, a decoder among them or not; or Hugging Face's ViTMAE.

    Raises:
        UserError: it cannot be read, or its tensors have other names.
    """
    state, _ = read_weights(file)
    embedding, positions = state.get("vit.patch_embed.proj.weight"), state.get("vit.pos_embed")
    blocks = {int(match[1]) for key in state if (match := re.match(r"vit\.blocks\.(\d+)\.attn\.qkv\.weight$", key))}
    if embedding is None or embedding.ndim != 4 or positions is None or positions.ndim != 3 or not blocks:
        names = ", ".join(key.removeprefix("vit.") for key in list(state)[:3]) or "no tensors"
        raise UserError(
            f"'{file}' has a layout that mimkit does not know ({names}, ...): give a file with the names of timm's or "
            "MAE's plain ViTs (patch_embed, pos_embed, blocks.0.attn.qkv, ...)"
        )
    width, channels, height, side = embedding.shape
    prefix = sum(state[key].shape[1] for key in ("vit.cls_token", "vit.reg_token") if key in state)
    grid = round((positions.shape[1] - prefix) ** 0.5)
    if height != side or grid < 1 or positions.shape[1] not in (grid * grid, prefix + grid * grid):
        raise UserError(f"'{file}' is of patches or images that are not square, which its shapes cannot tell apart")
    config = EncoderConfig(
        name=NAMES.get(width, "vit_base_patch16_224"),
        patch=side,
        width=width,
        depth=max(blocks) + 1,
        heads=HEADS.get(width, max(1, width // 64)),
        positions="learned",
        weights=str(file.resolve()),
        model_args=_model_args(state, width),
    )
    return Official(file=file, config=config, size=(grid * side, grid * side), channels=channels)


def _model_args(state: State, width: int) -> dict[str, object]:
    """What else timm has to know, by which tensors there are."""
    args: dict[str, object] = {}
    if "vit.cls_token" not in state:
        args["class_token"] = False
    if "vit.reg_token" in state:
        args["reg_tokens"] = state["vit.reg_token"].shape[1]
    if "vit.blocks.0.attn.qkv.bias" not in state:
        args["qkv_bias"] = False
    if "vit.blocks.0.ls1.gamma" in state:
        args["init_values"] = 1e-5
    if "vit.fc_norm.weight" in state:  # fine-tuned by the mean: the last norm stands behind the pooling
        args["fc_norm"] = True
    hidden = state.get("vit.blocks.0.mlp.fc1.weight")
    if hidden is not None and hidden.shape[0] != 4 * width:
        args["mlp_ratio"] = hidden.shape[0] / width
    return args
