"""The head of a fine-tuned dense task beside its backbone: tensors and words go into two files and come back."""

import json
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mimkit.core.annotation import Joints
from mimkit.core.errors import UserError
from mimkit.core.files import read_json

HEAD, WORDS = "head.safetensors", "head.json"
_OF_BACKBONE = "encoder.timm."  # in a task, what the export's own model.safetensors holds


class Skeleton(TypedDict):
    """`core.annotation.Joints` as JSON."""

    names: list[str]
    mirrored: list[int]
    bones: list[list[int]]
    sigmas: list[float]


class Words(TypedDict):
    """head.json: what rebuilds a task, and what its numbers stand for."""

    task: str
    categories: list[str]
    joints: Skeleton | None
    size: tuple[int, int]
    channels: int
    mean: list[float]
    std: list[float]
    encoder: dict[str, Any]
    method: dict[str, Any]


def skeleton(joints: Joints) -> Skeleton:
    """As head.json has it."""
    return Skeleton(
        names=list(joints.names),
        mirrored=list(joints.mirrored),
        bones=[list(bone) for bone in joints.bones],
        sigmas=list(joints.sigmas),
    )


def joints_of(words: Skeleton | None) -> Joints | None:
    """Undo `skeleton`."""
    return words and Joints(
        names=tuple(words["names"]),
        mirrored=tuple(words["mirrored"]),
        bones=tuple((start, end) for start, end in words["bones"]),
        sigmas=tuple(words["sigmas"]),
    )


class Head(NamedTuple):
    """All of a task but its backbone."""

    tensors: dict[str, Tensor]
    words: Words


def head_tensors(task: nn.Module) -> dict[str, Tensor]:
    """Everything of a task's state but the backbone, contiguous, on the CPU."""
    state = task.state_dict()
    return {name: value.cpu().contiguous() for name, value in state.items() if not name.startswith(_OF_BACKBONE)}


def write_head(head: Head, folder: Path) -> None:
    """Put both files beside an export."""
    save_file(head.tensors, folder / HEAD)
    (folder / WORDS).write_text(json.dumps(head.words, indent=2), encoding="utf-8")


def read_words(folder: Path) -> Words:
    """head.json of an export. Raises UserError for one without, or a damaged one."""
    if not (folder / WORDS).is_file():
        raise UserError(f"{folder} is of no dense task: it holds no {WORDS}; train one with 'mimkit evaluate segment'")
    return read_json(folder / WORDS, Words)


def fill(task: nn.Module, folder: Path) -> None:
    """Load an export's backbone and head into a task that head.json describes. Raises UserError where they misfit."""
    try:
        state = load_file(folder / HEAD)
        backbone = load_file(folder / "model.safetensors")
        state |= {_OF_BACKBONE + name: value for name, value in backbone.items()}
        task.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} holds no complete model ({reason}): export the run again") from error
    bad = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise UserError(f"{folder}: {bad[0]} is not finite, so nothing is measured: the training has diverged")
