"""Weights: a name, folder or file of weights enters, an encoder (and decoder) that holds them leaves.

Three layouts are read, told apart by their keys: timm's (also that of our exports), the official MAE's, and
Hugging Face's ViTMAE in both generations of names. Here, every tensor is called `vit.*` or `decoder.*`, as in
the modules.
"""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.integrity import refuse_bad_weights, refuse_changed
from mimkit.model.backbone import Backbone
from mimkit.model.decoder import Decoder

State = dict[str, Tensor]

# Parts of names, ours and those of Hugging Face's ViTMAE checkpoints; the order holds in both directions.
HUGGING_FACE = (
    ("vit.cls_token", "vit.embeddings.cls_token"),
    ("vit.pos_embed", "vit.embeddings.position_embeddings"),
    ("vit.patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("vit.blocks.", "vit.encoder.layer."),
    ("vit.norm.", "vit.layernorm."),
    ("decoder.embed.", "decoder.decoder_embed."),
    ("decoder.positions", "decoder.decoder_pos_embed"),
    ("decoder.blocks.", "decoder.decoder_layers."),
    ("decoder.norm.", "decoder.decoder_norm."),
    ("decoder.head.", "decoder.decoder_pred."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.q.", ".attention.attention.query."),
    (".attn.k.", ".attention.attention.key."),
    (".attn.v.", ".attention.attention.value."),
    (".attn.proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
# transformers 5 renamed parts of it in memory; its writer (5.23) renames back, the decoder's blocks wrongly.
HUGGING_FACE_5 = (
    ("decoder.decoder_layers.", "decoder.decoder_encoder.layer."),
    ("vit.encoder.layer.", "vit.layers."),
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
# facebookresearch/mae:models_mae.py; its encoder has timm's names.
OFFICIAL_DECODER = (
    ("decoder.embed.", "decoder_embed."),
    ("decoder.positions", "decoder_pos_embed"),
    ("decoder.blocks.", "decoder_blocks."),
    ("decoder.norm.", "decoder_norm."),
    ("decoder.head.", "decoder_pred."),
    ("decoder.mask_token", "mask_token"),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of every tensor, by our names (`vit.*`, `decoder.*`)."""

    source: str
    matched: list[str]
    missing: list[str]  # here, not there: they keep their initialization
    unexpected: list[str]  # there, not here (or of another shape in the decoder): not used
    resampled: list[str]  # matched after resampling, with the two sizes

    def summary(self) -> str:
        """One line, and a second one when something was missing or left over."""
        line = f"{len(self.matched)} tensors loaded from {self.source}"
        if self.resampled:
            line += f"; resampled {', '.join(self.resampled)}"
        rest = (("kept their initialization", self.missing), ("were not used", self.unexpected))
        more = "; ".join(f"{len(names)} {fate}: {_some(names)}" for fate, names in rest if names)
        return f"{line}\n{more}" if more else line


def load_weights(source: str, encoder: Backbone, decoder: Decoder | None = None, *, name: str | None = None) -> Report:
    """Put released weights into an encoder, and into a decoder where the source has one.

    Position tables of another grid and patch embeddings of another patch size or number of channels are
    resampled (timm's bicubic, FlexiViT's pseudo-inverse, timm's rule for channels), which the report says.

    Args:
        source: `timm` (what timm released under `name`), a folder (run, export, any timm folder, Hugging
            Face's ViTMAE) or a file (`.safetensors`, `.pth`, `.bin`) in any of the three layouts.
        encoder, decoder: changed in place; untouched when this raises.
        name: the timm architecture, used with `timm` only.

    Raises:
        UserError: nothing readable there, another architecture, or less than half of the encoder's numbers.
    """
    state, grid = _released(name or "") if source == "timm" else read_weights(Path(source))
    head = f"{encoder.timm.pretrained_cfg.get('classifier', 'head')}."  # of other classes, and drawn for these
    own = encoder.timm.state_dict().items()
    here = {f"vit.{key}": value for key, value in own if not key.startswith(head)}
    if decoder is not None:
        here |= {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    resampled = _resample(state, here, grid, encoder)

    matched = [key for key in here if key in state and state[key].shape == here[key].shape]
    odd = [key for key in here if key in state and state[key].shape != here[key].shape]
    # Numbers, not tensors: a few biases that fit are no match.
    total = sum(value.numel() for key, value in here.items() if key.startswith("vit."))
    fitting = sum(here[key].numel() for key in matched if key.startswith("vit."))
    missing = [key for key in here if key not in matched]
    unexpected = [key for key in state if key not in matched]
    # A decoder of another shape is only left out, as its own can be trained anew; an encoder's would be another model.
    if wrong := next((key for key in odd if key.startswith("vit.")), None):
        raise UserError(
            f"the weights in '{source}' are of another architecture: {_plain(wrong)} is {list(state[wrong].shape)} "
            f"there and {list(here[wrong].shape)} here; choose theirs with --encoder.name, --encoder.width or "
            "--encoder.patch"
        )
    if 2 * fitting < total:
        raise UserError(
            f"the weights in '{source}' do not fit this encoder: {fitting / total:.0%} of its numbers found; "
            f"it needs {_some(missing)} but the source has {_some(unexpected)}"
        )
    refuse_bad_weights({key: state[key] for key in matched}, source)
    with torch.no_grad():  # only now that nothing can be refused any more: an encoder is changed wholly or not at all
        for key in matched:
            here[key].copy_(state[key])
    unused = [f"{key} ({list(state[key].shape)} there)" if key in odd else key for key in unexpected]
    return Report(source=source, matched=matched, missing=missing, unexpected=unused, resampled=resampled)


def _released(name: str) -> tuple[State, tuple[int, int] | None]:
    """timm's released weights under our names, and their grid of patches."""
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # timm, the hub's client and the network raise many kinds
        raise UserError(
            f"timm's weights of '{name}' could not be fetched ({_reason(error)}); names that have some: "
            "timm.list_pretrained(), or give a folder or a file"
        ) from error
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return _our_names(model.state_dict()), grid


def read_weights(path: Path) -> tuple[State, tuple[int, int] | None]:
    """The tensors of a folder or file under our names, and the grid of patches if a config.json tells it."""
    # A run folder means its export.
    if (path / "export" / "config.json").is_file():
        path = path / "export"
    file = path
    if path.is_dir():
        # Safetensors first: it holds tensors alone, and nothing is unpickled.
        names = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
        file = next((path / name for name in names if (path / name).is_file()), path)
    if not file.is_file():
        raise UserError(
            f"there are no weights at '{path}': give 'timm', a folder with model.safetensors or "
            "pytorch_model.bin, or a .safetensors or .pth file"
        )
    refuse_changed(file.parent)
    try:
        # Safetensors, or torch.load of tensors (and argparse.Namespace) alone; unwraps `model` and EMA.
        tensors = timm.models.load_state_dict(str(file))
        state = _our_names({key: value for key, value in tensors.items() if isinstance(value, Tensor)})
        config = file.with_name("config.json")
        config = json.loads(config.read_text()) if config.is_file() else {}
        return state, _config_grid(config, state)
    except Exception as error:  # unpickling what is no checkpoint raises anything
        raise UserError(
            f"'{file}' cannot be read as weights ({_reason(error)}); expected a .safetensors file or a "
            "checkpoint of torch.save that holds tensors only"
        ) from error


def _our_names(state: State) -> State:
    """Rename tensors of any of the layouts to ours, fusing separate queries, keys and values."""
    if any(key.startswith("embeddings.") for key in state):
        state = {f"vit.{key}": value for key, value in state.items()}  # Hugging Face's encoder saved alone
    if "vit.embeddings.patch_embeddings.projection.weight" not in state:
        official = {_renamed(key, OFFICIAL_DECODER, start=True): value for key, value in state.items()}
        return {key if key.startswith("decoder.") else f"vit.{key}": value for key, value in official.items()}
    state = {_renamed(_renamed(key, HUGGING_FACE_5), HUGGING_FACE): value for key, value in state.items()}
    for key in [key for key in state if ".attn.q." in key]:  # a list first: the loop takes keys out
        parts = [state.pop(key.replace(".attn.q.", f".attn.{letter}.")) for letter in "qkv"]
        state[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return state


def _renamed(key: str, table: Sequence[tuple[str, str]], *, start: bool = False) -> str:
    for ours, theirs in table:  # one after the other: what an entry makes may be what a later one looks for
        if not start or key.startswith(theirs):
            key = key.replace(theirs, ours)
    return key


def _config_grid(config: dict[str, Any], state: State) -> tuple[int, int] | None:
    """Rows and columns of patches, from the image size in a Hugging Face or timm config.json."""
    size = config.get("image_size") or config.get("model_args", {}).get("img_size")
    size = size or config.get("pretrained_cfg", config).get("input_size", ())[-2:]
    # The size of a patch is that of the convolution that embeds it; configs do not always say it.
    weight = state.get("vit.patch_embed.proj.weight")
    if not size or weight is None or weight.ndim != 4:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // weight.shape[-2], width // weight.shape[-1]


def _resample(state: State, here: State, grid: tuple[int, int] | None, encoder: Backbone) -> list[str]:
    """Fit position tables and the patch embedding in `state` to ours; says which."""
    prefix = sum(state[key].shape[1] for key in ("vit.cls_token", "vit.reg_token") if key in state)
    changes = []
    # timm's tables have rows for the prefix tokens or none, whatever the model: the number of rows has to tell.
    for key, candidates in (("vit.pos_embed", (prefix, 0)), ("decoder.positions", (1, 0))):
        changes += _resample_positions(key, candidates, state, here, grid, encoder)
    return changes + _resample_patches("vit.patch_embed.proj.weight", state, encoder)


def _resample_positions(
    key: str, candidates: Sequence[int], state: State, here: State, grid: tuple[int, int] | None, encoder: Backbone
) -> list[str]:
    """Fit one table; left as it is where its grid cannot be known, and reported as one of another shape."""
    table, target = state.get(key), here.get(key)
    if table is None or target is None or table.ndim != 3 or table.shape[-1] != target.shape[-1]:
        return []
    old = grid or _guess_grid(table.shape[1], candidates, encoder.grid)
    extra = -1 if old is None else table.shape[1] - old[0] * old[1]
    if old is None or extra < 0:
        return []
    rows, table = table[:, :extra], table[:, extra:]
    prefix_rows = target.shape[1] - encoder.grid[0] * encoder.grid[1]
    if extra != prefix_rows:
        # Rows of zeros add nothing and may come and go; others are part of what the model computes.
        if rows.any() and (encoder.timm.num_prefix_tokens or key == "decoder.positions"):
            fix = "another --encoder.name" if key == "vit.pos_embed" else "the encoder's weights alone"
            raise UserError(
                f"{_plain(key)} has {extra} non-zero rows for class and register tokens, this model has "
                f"{prefix_rows}: outputs would differ; use {fix}"
            )
        rows = table.new_zeros(1, prefix_rows, table.shape[-1])
    changes = []
    if tuple(old) != encoder.grid:
        changes.append(f"{_plain(key)} {_sides(old)} -> {_sides(encoder.grid)}")
        table = resample_abs_pos_embed(table, list(encoder.grid), list(old), num_prefix_tokens=0)
    state[key] = torch.cat([rows, table], dim=1)
    return changes


def _resample_patches(key: str, state: State, encoder: Backbone) -> list[str]:
    """Fit the patch embedding to our channels and patch size; left as it is where its width is another."""
    weight = state.get(key)
    if weight is None or weight.ndim != 4 or weight.shape[0] != encoder.width:
        return []
    changes = []
    if weight.shape[1] != encoder.channels:
        changes.append(f"{_plain(key)} {weight.shape[1]} -> {encoder.channels} channels")
        weight = adapt_input_conv(encoder.channels, weight, weight.shape[1])
    if tuple(weight.shape[-2:]) != encoder.patch:
        changes.append(f"{_plain(key)} {_sides(weight.shape[-2:])} -> {_sides(encoder.patch)}")
        weight = resample_patch_embed(weight, list(encoder.patch))
    state[key] = weight
    return changes


def _guess_grid(rows: int, prefixes: Sequence[int], ours: tuple[int, int]) -> tuple[int, int] | None:
    """The grid behind a table without a config: a square, else ours where the number of rows agrees."""
    for prefix in prefixes:
        # Nearly all tables are of square images.
        side = math.isqrt(max(rows - prefix, 0))
        if side and side * side == rows - prefix:
            return side, side
    return ours if any(rows - prefix == ours[0] * ours[1] for prefix in prefixes) else None


def _sides(sides: Sequence[int]) -> str:
    return f"{sides[0]}x{sides[1]}"


def _plain(key: str) -> str:
    return key.removeprefix("vit.")


def _some(names: list[str]) -> str:
    shown = ", ".join(_plain(name) for name in names[:3])
    return (shown or "nothing") + (", ..." if len(names) > 3 else "")


def _reason(error: Exception) -> str:
    """The first line of an error, with its kind."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 140, placeholder='...')}"
