"""Integrity: a folder of weights, or weights, enter; a UserError leaves where they are not what was written."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.files import open_regular, read_json

IDENTITY = "identity.json"  # beside an export's files: of which run and step they are, and their checksums
SIGNED = ("config.json", "model.safetensors", "preprocessor_config.json", "head.json", "head.safetensors", "model.py")
SIGNED += ("model.onnx", "model.onnx.data")


class Damaged(ValueError):
    """A file is not what was written; the message is what does not agree."""


class Signed(TypedDict):
    """identity.json, as far as it is used."""

    sha256: dict[str, str]


def sign(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write identity.json: of which run and step the files of an export are, and their checksums."""
    files = {name: sha256(folder / name) for name in SIGNED if (folder / name).is_file()}
    text = json.dumps({**identity, "sha256": files}, indent=2) + "\n"
    (folder / IDENTITY).write_text(text, encoding="utf-8")


def refuse_changed(folder: Path) -> None:
    """Raises UserError when a file of an export is not the one that was written; of a folder without identity nothing.

    A folder that another library wrote, or an earlier version, has no identity.json.
    """
    if not os.path.lexists(folder / IDENTITY):
        return
    sums = read_json(folder / IDENTITY, Signed)["sha256"]
    if not sums:
        raise UserError(f"{folder / IDENTITY} notes no checksums: write it anew with 'mimkit export RUN --out DIR'")
    for name, checksum in sums.items():
        file = folder / Path(name).name
        if file.is_file() and sha256(file) != checksum:
            raise UserError(
                f"{file} is damaged (its checksum is not the one in {IDENTITY}): write it anew with 'mimkit export "
                f"RUN --out DIR', or remove {IDENTITY} if you changed it yourself"
            )


def sha256(file: Path) -> str:
    """The checksum of a file."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def not_finite(state: Mapping[str, Any]) -> str:
    """The name of the first tensor with a number that is not finite; empty when there is none."""
    tensors = ((name, value) for name, value in state.items() if isinstance(value, Tensor))
    return next((name for name, value in tensors if not value.isfinite().all()), "")


def refuse_bad_weights(state: Mapping[str, Any], source: object) -> None:
    """Raises UserError when a weight is not finite, or when all are zero: what is measured then is no model."""
    if name := not_finite(state):
        raise UserError(f"the weights of '{source}' are not all finite ({name}): export or download them again")
    if state and not any(value.any() for value in state.values() if isinstance(value, Tensor)):
        raise UserError(f"the weights of '{source}' are all zero: export or download them again")


def refuse_bad_statistics(mean: Sequence[float], std: Sequence[float], source: object) -> None:
    """Raises UserError for a mean or standard deviation by which no picture can be normalized."""
    if not all(map(math.isfinite, (*mean, *std))) or min(std, default=1.0) <= 0:
        raise UserError(
            f"'{source}' notes the mean {list(mean)} and std {list(std)}, which cannot be: mend pretrained_cfg in its "
            "config.json, or export it again"
        )
