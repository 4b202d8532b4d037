"""Export for Hugging Face: a trained MAE enters, a folder that transformers loads leaves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from mimkit import __version__
from mimkit.core.errors import UserError
from mimkit.data.reading import Reading
from mimkit.masks.masker import at
from mimkit.methods.mae import MAE
from mimkit.methods.targets.pixels import Pixels
from mimkit.model.decoder import Decoder
from mimkit.weights.folder import MARK, replaced
from mimkit.weights.load import HUGGING_FACE


def export_huggingface(
    method: MAE,
    folder: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    card: str,
    reading: Reading = Reading(),
    identity: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write an MAE so that `transformers.ViTMAEForPreTraining.from_pretrained(FOLDER)` gives equal outputs.

    The names are those of the released checkpoints, which transformers 4 and 5 read.

    Args:
        folder: as in `export_timm`.
        mean, std: per channel, of pixels in [0, 1], for `preprocessor_config.json`.
        card: the README, see `model_card`.
        reading: how files became pictures; black and white go into the mean and std of `preprocessor_config.json`, so
            that a processor takes raw values, without clipping them.
        identity: as in `export_timm`.

    Raises:
        UserError: Hugging Face's ViTMAE cannot express this model (with the reasons), or the folder cannot be
            written.
    """
    if reasons := _inexpressible(method):
        raise UserError(
            f"Hugging Face's ViTMAE cannot express this model: {'; '.join(reasons)}. Export it with --to timm"
        )
    height, width = method.encoder.size
    pairs = reading.value_range or (0.0, 255.0)
    black, white = (torch.tensor(ends).double().expand(len(mean)) for ends in (pairs[::2], pairs[1::2]))
    raw_mean = (black + (white - black) * torch.tensor(mean).double()) / 255
    raw_std = (white - black) * torch.tensor(std).double() / 255
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # PIL's bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean) if reading.value_range is None else raw_mean.tolist(),
        "image_std": list(std) if reading.value_range is None else raw_std.tolist(),
    }
    with replaced(folder, identity) as partial:
        save_file(huggingface_state(method), partial / "model.safetensors", metadata={"format": "pt"})
        _write_json(partial / "config.json", huggingface_config(method))
        _write_json(partial / "preprocessor_config.json", preprocessor)
        (partial / "README.md").write_text(card, encoding="utf-8")


def huggingface_config(method: MAE) -> dict[str, Any]:
    """The config.json of a `ViTMAEForPreTraining` of the same shape."""
    encoder, decoder = method.encoder, method.decoder
    assert isinstance(decoder, Decoder)  # or `_inexpressible` has refused
    sizes = {}
    for prefix, blocks in (("", encoder.timm.blocks), ("decoder_", decoder.blocks)):
        # All blocks are alike, or `_inexpressible` has refused.
        first: Any = blocks[0]
        sizes |= {
            f"{prefix}hidden_size": first.attn.qkv.in_features,
            f"{prefix}num_hidden_layers": len(blocks),
            f"{prefix}num_attention_heads": first.attn.num_heads,
            f"{prefix}intermediate_size": first.mlp.fc1.out_features,
        }
    square = encoder.size[0] == encoder.size[1]
    return sizes | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "hidden_act": "gelu",
        "layer_norm_eps": decoder.norm.eps,
        "image_size": encoder.size[0] if square else list(encoder.size),
        "patch_size": encoder.patch[0],
        "num_channels": encoder.channels,
        "qkv_bias": True,
        "mask_ratio": float(at(method.mask_sampler.guide.ratio or 0.75, 1.0)),
        "norm_pix_loss": isinstance(method.target, Pixels) and method.target.norm,
        "torch_dtype": "float32",
        "description": f"{MARK} {__version__}",
    }


def huggingface_state(method: MAE) -> dict[str, Tensor]:
    """Weights under the names of released ViTMAE checkpoints; queries, keys and values apart."""
    vit = method.encoder.timm.state_dict()
    width, rows = method.encoder.width, method.encoder.grid[0] * method.encoder.grid[1]
    zeros = vit["patch_embed.proj.weight"].new_zeros
    table = vit.setdefault("pos_embed", zeros(1, 1 + rows, width))
    # Hugging Face adds a position to the class token too: one of zeros where timm's table has no row for it.
    vit["pos_embed"] = torch.cat([zeros(1, 1 + rows - table.shape[1], width), table], dim=1)
    vit.setdefault("patch_embed.proj.bias", zeros(width))
    decoder = method.decoder.state_dict()
    # Hugging Face's table has a row for the class token, which MAE fills with zeros.
    positions = decoder["positions"]
    decoder["positions"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    state = {}
    for prefix, tensors in (("vit", vit), ("decoder", decoder)):
        for key, value in tensors.items():
            if ".attn.qkv." in key:
                for letter, third in zip(
                    "qkv", value.chunk(3), strict=True
                ):  # timm fuses what Hugging Face keeps apart
                    state[f"{prefix}.{key.replace('.qkv.', f'.{letter}.')}"] = third
            else:
                state[f"{prefix}.{key}"] = value
    for ours, theirs in HUGGING_FACE:
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    return {key: value.float().contiguous().cpu() for key, value in state.items()}


def _inexpressible(method: MAE) -> list[str]:
    """Why Hugging Face's ViTMAE cannot be this model; empty when it can."""
    if not isinstance(method.decoder, Decoder):
        return ["its decoder reads by cross-attention"]
    encoder, vit = method.encoder, method.encoder.timm
    blocks: list[Any] = [*vit.blocks, *method.decoder.blocks]
    norms = [module for module in method.modules() if isinstance(module, nn.LayerNorm)]
    # Exact types: a subclass may compute something else with the same names.
    plain = all(type(block) is Block and type(block.attn) is Attention for block in blocks)
    reasons = {
        "it predicts something else than pixels": not isinstance(method.target, Pixels),
        "it has no class token": vit.cls_token is None,
        "it has register tokens": vit.reg_token is not None,
        f"its images are no squares ({encoder.size[0]}x{encoder.size[1]})": encoder.size[0] != encoder.size[1],
        "its patches are no squares": encoder.patch[0] != encoder.patch[1],
        "it normalizes tokens before the blocks": not isinstance(vit.norm_pre, nn.Identity)
        or not isinstance(vit.patch_embed.norm, nn.Identity),
        "its norms are no LayerNorms of one eps": not isinstance(vit.norm, nn.LayerNorm)
        or len({norm.eps for norm in norms}) > 1,
        "its blocks are of another kind": not plain,
    }
    if plain:
        inner = [(b.attn.q_norm, b.attn.k_norm, b.attn.norm, getattr(b.mlp, "norm", None)) for b in blocks]
        scales = [(b.ls1, b.ls2) for b in blocks]
        reasons |= {
            "it normalizes queries and keys or inside attention and MLP": _any_active(inner),
            "it has LayerScale": _any_active(scales),
            "its attention has no bias": any(b.attn.qkv.bias is None or b.attn.proj.bias is None for b in blocks),
            "its MLP is no linear-GELU-linear": any(
                type(b.mlp) is not Mlp or type(b.mlp.act) is not nn.GELU or b.mlp.act.approximate != "none"
                for b in blocks
            ),
        }
    return [reason for reason, holds in reasons.items() if holds]


def _any_active(modules: list[tuple]) -> bool:
    return any(not isinstance(module, nn.Identity) for row in modules for module in row if module is not None)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
