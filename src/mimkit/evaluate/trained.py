"""A fine-tuned dense task: a run or an export enters; the task as it was trained, and its words, leave."""

from dataclasses import dataclass
from typing import Any

import torch

from mimkit.core.annotation import DenseTask, Joints
from mimkit.core.config import from_dict
from mimkit.core.errors import UserError
from mimkit.core.integrity import refuse_changed
from mimkit.data.reading import Reading
from mimkit.evaluate.target import export_folder
from mimkit.weights.exported import read_export
from mimkit.weights.folder import READING
from mimkit.weights.head import fill, joints_of, read_words


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A task that says something of pictures, and what pictures it wants."""

    name: str
    """The target as the user called it."""
    kind: DenseTask
    task: Any
    """A `methods.dense.DenseMethod` in evaluation mode."""
    size: tuple[int, int]
    """Height and width of its images in pixels."""
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reading: Reading
    """How files became the pictures that it learned from."""
    categories: tuple[str, ...]
    joints: Joints | None
    settings: Any
    """Of the method: a `methods.dense.DenseConfig`."""
    device: torch.device


def open_trained(target: str, device: torch.device) -> Trained:
    """The dense task of a run or an export, on a device. Raises UserError where there is none, or a damaged one."""
    folder = export_folder(target)
    if folder is None:
        raise UserError(f"'{target}' is no folder of a fine-tuned dense task: give a run, or its export")
    refuse_changed(folder)
    words = read_words(folder)
    encoder: Any = from_dict(words["encoder"])
    encoder.weights = None
    config: Any = from_dict(words["method"])
    size, channels = words["size"], words["channels"]
    with torch.random.fork_rng(devices=[]):
        task = config.build(encoder.build(tuple(size), channels))
    fill(task, folder)
    kind: Any = words["task"]
    return Trained(
        name=target,
        kind=kind,
        task=task.eval().requires_grad_(False).to(device),
        size=(size[0], size[1]),
        channels=channels,
        mean=tuple(words["mean"]),
        std=tuple(words["std"]),
        reading=Reading.from_json(read_export(folder).get(READING) or {}, READING),
        categories=tuple(words["categories"]),
        joints=joints_of(words["joints"]),
        settings=config,
        device=device,
    )
