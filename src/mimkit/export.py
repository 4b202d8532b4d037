"""Export: a trained encoder or MAE enters, a folder that timm or Hugging Face loads leaves.

A folder is written beside its place, flushed to disk and swapped in, so that a complete export stands there
at any moment, also when the process is killed or the disk is full.
"""

import ctypes
import html
import json
import os
import re
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.layers import Mlp
from timm.models import save_for_hf
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from mimkit import __version__
from mimkit.errors import UserError
from mimkit.masks.masker import at
from mimkit.methods.mae import MAE
from mimkit.model.encoder import Backbone
from mimkit.targets import Pixels
from mimkit.weights import HUGGING_FACE

FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
MARK = "pre-trained with mimkit"  # in config.json: this folder is ours to replace


def export_timm(
    encoder: Backbone,
    folder: Path,
    *,
    model_args: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    card: str,
    name: str,
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
) -> None:
    """Write `encoder.vit` for `timm.create_model("local-dir:FOLDER", pretrained=True)`, with equal outputs.

    Args:
        folder: replaced when it holds an earlier export; refused when it holds something else.
        model_args: what `timm.create_model(name, ...)` needs to build this ViT (`EncoderConfig.timm_args`).
        mean, std: per channel, of pixels in [0, 1].
        card: the README, see `model_card`.
        name: the timm architecture.
        interpolation: resizing that the pictures were prepared with, as timm calls it.
        crop_pct: share of the resized picture that evaluation crops; MAE's evaluation has 0.875.

    Raises:
        UserError: the folder cannot be written.
    """
    vit = encoder.vit
    pool = getattr(vit.global_pool, "pool_type", vit.global_pool)
    args = dict(model_args) | {"num_classes": vit.num_classes, "global_pool": pool}
    if hasattr(vit, "fc_norm"):  # where the last norm stands
        args["fc_norm"] = not isinstance(vit.fc_norm, nn.Identity)
    size = (encoder.channels, *encoder.size)
    data = {
        "input_size": size,
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    # What the architecture's released weights say about themselves is not true of these.
    about = dict.fromkeys(("tag", "license", "origin_url", "paper_name", "paper_ids", "notes"))
    about["description"] = f"{MARK} {__version__}"
    config = {"architecture": name.split(".")[0], "pretrained_cfg": about}
    with replaced(folder) as partial:
        save_for_hf(vit, str(partial), model_config=config, model_args=args, safe_serialization=True, data_config=data)
        (partial / "README.md").write_text(card, encoding="utf-8")


def export_huggingface(method: MAE, folder: Path, *, mean: Sequence[float], std: Sequence[float], card: str) -> None:
    """Write an MAE so that `transformers.ViTMAEForPreTraining.from_pretrained(FOLDER)` gives equal outputs.

    The names are those of the released checkpoints, which transformers 4 and 5 read.

    Args:
        folder: as in `export_timm`.
        mean, std: per channel, of pixels in [0, 1], for `preprocessor_config.json`.
        card: the README, see `model_card`.

    Raises:
        UserError: Hugging Face's ViTMAE cannot express this model (with the reasons), or the folder cannot be
            written.
    """
    if reasons := _inexpressible(method):
        raise UserError(
            f"Hugging Face's ViTMAE cannot express this model: {'; '.join(reasons)}. Export it with --to timm"
        )
    height, width = method.encoder.size
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # PIL's bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    with replaced(folder) as partial:
        save_file(huggingface_state(method), partial / "model.safetensors", metadata={"format": "pt"})
        _write_json(partial / "config.json", huggingface_config(method))
        _write_json(partial / "preprocessor_config.json", preprocessor)
        (partial / "README.md").write_text(card, encoding="utf-8")


def huggingface_config(method: MAE) -> dict[str, Any]:
    """The config.json of a `ViTMAEForPreTraining` of the same shape."""
    encoder, decoder = method.encoder, method.decoder
    sizes = {}
    for prefix, blocks in (("", encoder.vit.blocks), ("decoder_", decoder.blocks)):
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
        "mask_ratio": float(at(getattr(method.observer.guide, "ratio", 0.75), 1.0)),
        "norm_pix_loss": method.target.norm,
        "torch_dtype": "float32",
        "description": f"{MARK} {__version__}",
    }


def huggingface_state(method: MAE) -> dict[str, Tensor]:
    """Weights under the names of released ViTMAE checkpoints; queries, keys and values apart."""
    vit = method.encoder.vit.state_dict()
    width, rows = method.encoder.width, method.encoder.grid[0] * method.encoder.grid[1]
    zeros = vit["patch_embed.proj.weight"].new_zeros
    table = vit.setdefault("pos_embed", zeros(1, 1 + rows, width))
    vit["pos_embed"] = torch.cat([zeros(1, 1 + rows - table.shape[1], width), table], dim=1)
    vit.setdefault("patch_embed.proj.bias", zeros(width))
    decoder = method.decoder.state_dict()
    positions = decoder["positions"]
    decoder["positions"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    state = {}
    for prefix, part in (("vit", vit), ("decoder", decoder)):
        for key, value in part.items():
            if ".attn.qkv." in key:
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    state[f"{prefix}.{key.replace('.qkv.', f'.{letter}.')}"] = third
            else:
                state[f"{prefix}.{key}"] = value
    for ours, theirs in HUGGING_FACE:
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    return {key: value.float().contiguous().cpu() for key, value in state.items()}


def _inexpressible(method: MAE) -> list[str]:
    """Why Hugging Face's ViTMAE cannot be this model; empty when it can."""
    encoder, vit = method.encoder, method.encoder.vit
    blocks: list[Any] = [*vit.blocks, *method.decoder.blocks]
    norms = [part for part in method.modules() if isinstance(part, nn.LayerNorm)]
    plain = all(type(block) is Block and type(block.attn) is Attention for block in blocks)
    reasons = {
        "it predicts something else than pixels": not isinstance(method.target, Pixels),
        "it has no class token": vit.cls_token is None,
        "it has register tokens": vit.reg_token is not None,
        f"its images are no squares ({encoder.size[0]}x{encoder.size[1]})": encoder.size[0] != encoder.size[1],
        "its patches are no squares": encoder.patch[0] != encoder.patch[1],
        "it normalises tokens before the blocks": not isinstance(vit.norm_pre, nn.Identity)
        or not isinstance(vit.patch_embed.norm, nn.Identity),
        "its norms are no LayerNorms of one eps": not isinstance(vit.norm, nn.LayerNorm)
        or len({norm.eps for norm in norms}) > 1,
        "its blocks are of another kind": not plain,
    }
    if plain:
        inner = [(b.attn.q_norm, b.attn.k_norm, b.attn.norm, getattr(b.mlp, "norm", None)) for b in blocks]
        scales = [(b.ls1, b.ls2) for b in blocks]
        reasons |= {
            "it normalises queries and keys or inside attention and MLP": _any_active(inner),
            "it has LayerScale": _any_active(scales),
            "its attention has no bias": any(b.attn.qkv.bias is None or b.attn.proj.bias is None for b in blocks),
            "its MLP is no linear-GELU-linear": any(
                type(b.mlp) is not Mlp or type(b.mlp.act) is not nn.GELU or b.mlp.act.approximate != "none"
                for b in blocks
            ),
        }
    return [reason for reason, holds in reasons.items() if holds]


def _any_active(modules: list[tuple]) -> bool:
    return any(not isinstance(part, nn.Identity) for row in modules for part in row if part is not None)


def model_card(
    *,
    architecture: str,
    recipe: str,
    data: str,
    pictures: int,
    steps: int,
    epochs: float,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    measured: Mapping[str, float | tuple[float, float, float]],
    library: str = "timm",
    supervised: bool = False,
    masked: bool = True,
) -> str:
    """The README of an export in Markdown: how to load it, what was run, what was measured.

    Args:
        data, pictures: name and number of the pictures it learned from; any text, it is escaped.
        size: height and width in pixels; `mean` and `std` of pixels in [0, 1], one a channel.
        measured: what was measured, as a value or (value, low, high).
        library: `timm` or `transformers`, which loads the folder.
        supervised: it learned the labels of the pictures, and has a classifier.
        masked: it learned by masked image modelling.
    """
    load = {
        "timm": 'import timm\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)',
        "transformers": "from transformers import ViTMAEForPreTraining\n"
        'model = ViTMAEForPreTraining.from_pretrained("FOLDER")',
    }[library]
    facts = {
        "Architecture": architecture,
        "Recipe": recipe,
        "Data": f"{data}, {pictures:,} pictures, {'with' if supervised else 'no'} labels",
        "Training": f"{steps:,} steps, {epochs:.4g} epochs",
        "Images": f"{size[0]} x {size[1]} pixels, {len(mean)} channel{'s' if len(mean) > 1 else ''}",
        "Mean": ", ".join(f"{value:.4f}" for value in mean),
        "Standard deviation": ", ".join(f"{value:.4f}" for value in std),
        "Made with": f"mimkit {__version__}",
    }
    numbers = {
        key: f"{value[0]:.4g} ({value[1]:.4g} to {value[2]:.4g})" if isinstance(value, tuple) else f"{value:.4g}"
        for key, value in measured.items()
    }
    kinds = ["image-classification"] if supervised else ["image-feature-extraction"]
    kinds += ["masked-image-modeling"] if masked and not supervised else []
    tags = [library, *kinds, "mimkit"]
    front = [f"library_name: {library}", "tags:", *(f"- {tag}" for tag in tags)]
    rows = [f"| {_escaped(key)} | {_escaped(value)} |" for key, value in facts.items()]
    table = [f"| {_escaped(key)} | {value} |" for key, value in numbers.items()]
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# {_escaped(architecture)}, {'fine-tuned' if supervised else 'pre-trained'} on {_escaped(data)}",
        "A classifier, all of whose weights learned the labels of these pictures."
        if supervised
        else "A vision transformer that learned from unlabelled pictures by masked image modelling."
        if masked
        else "A network that learned from unlabelled pictures.",
        f"## Load it\n\n```python\n{load}\n```\n\nFOLDER is where this file lies. Pixels in [0, 1], minus "
        "the mean, divided by the standard deviation.",
        "## What was run\n\n| | |\n|-|-|\n" + "\n".join(rows),
        "## What was measured\n\n" + ("| | |\n|-|-|\n" + "\n".join(table) if table else "Nothing yet."),
        "These weights belong to the person who trained them, who decides on their licence.",
    ]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Any text as one line of Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replaced(folder: Path) -> Generator[Path]:
    """A folder to write an export into, which takes the place of `folder` when the block ends well.

    Other files that a person put beside an earlier export move along.

    Raises:
        UserError: `folder` holds what no export of mimkit wrote, or cannot be written.
    """
    folder = folder.resolve()
    if not _replaceable(folder):
        raise UserError(f"'{folder}' holds no export of mimkit to replace: give a new or empty folder")
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    try:
        _clear(partial)
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        for file in (partial / name for name in os.listdir(partial) if name in FILES):
            shutil.copymode(partial / "README.md", file)  # safetensors writes for the owner alone
            _flush(file)
        _flush(partial)
        if _exchange(partial, folder):
            old = partial
        else:
            _clear(old)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        _flush(folder.parent)
        for file in old.iterdir() if old.exists() else ():
            if file.name not in FILES:
                file.rename(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the export '{folder}' cannot be written: {error}; an earlier one is unchanged") from error
    finally:
        _clear(partial)
        _clear(old)


def _replaceable(folder: Path) -> bool:
    """Whether nothing of other origin is lost when an export takes this place."""
    try:
        return not folder.exists() or not any(folder.iterdir()) or MARK in (folder / "config.json").read_text()
    except (OSError, UnicodeDecodeError):  # a file, or no readable config.json
        return False


def _clear(folder: Path) -> None:
    """Remove the files of an export, and the folder when nothing else is in it."""
    with suppress(OSError):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux's renameat2); False where it cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
