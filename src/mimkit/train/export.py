"""Leave with the model: a prepared run and what was measured enter; a folder for timm or Hugging Face leaves."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mimkit.core.annotation import DENSE_TASKS
from mimkit.core.config import to_dict
from mimkit.core.errors import UserError
from mimkit.core.metrics import class_names
from mimkit.methods.base import MaskedConfig
from mimkit.methods.mae import MAE
from mimkit.train.prepare import Prepared
from mimkit.weights.card import model_card
from mimkit.weights.head import Head, Words, head_tensors, skeleton
from mimkit.weights.huggingface import export_huggingface
from mimkit.weights.timm import export_timm


def export_encoder(
    prepared: Prepared,
    folder: Path,
    *,
    recipe: str,
    step: int,
    measured: Mapping[str, float],
    identity: Mapping[str, Any],
    to: str = "timm",
) -> None:
    """Write the model as it stands after `step` steps; `to` is `timm` or `huggingface` (MAE alone).

    `identity` is the run's, see `train.identity`.
    """
    identity = {**identity, "step": step}
    config, (mean, std), reading = prepared.config, prepared.statistics, prepared.resolved_reading
    classes, learns = output_names(prepared), config.method.learns
    task: Any = learns if learns in DENSE_TASKS else None
    card = model_card(
        architecture=config.encoder.name,
        recipe=recipe,
        data=prepared.name,
        pictures=prepared.count,
        steps=step,
        epochs=step * config.batch_size / prepared.count,
        size=prepared.size,
        mean=mean,
        std=std,
        measured=measured,
        reading=str(reading),
        library="timm" if to == "timm" else "transformers",
        supervised=config.method.supervised,
        masked=isinstance(config.method, MaskedConfig),
        classes=names_of(prepared) if task else classes,
        task=task,
    )
    if to == "timm":
        export_timm(
            prepared.encoder,
            folder,
            model_args=config.encoder.timm_args(prepared.size, prepared.channels),
            mean=mean,
            std=std,
            card=card,
            reading=reading,
            name=config.encoder.name,
            crop_pct=0.875 if min(prepared.size) >= 128 else 1.0,
            classes=classes,
            identity=identity,
            head=head_of(prepared),
        )
        return
    if not isinstance(prepared.task, MAE):
        raise UserError(f"{type(prepared.task).__name__} cannot be written for Hugging Face, an MAE can: use --to timm")
    export_huggingface(prepared.task, folder, mean=mean, std=std, card=card, reading=reading, identity=identity)


def head_of(prepared: Prepared) -> Head | None:
    """All of a dense task but its backbone, with what rebuilds it; None of other methods."""
    config, (mean, std) = prepared.config, prepared.statistics
    if config.method.learns not in DENSE_TASKS:
        return None
    train = prepared.annotated.train
    joints = train.joints
    return Head(
        head_tensors(prepared.task),
        Words(
            task=config.method.learns,
            categories=list(train.categories),
            joints=None if joints is None else skeleton(joints),
            size=prepared.size,
            channels=prepared.channels,
            mean=list(mean),
            std=list(std),
            encoder=to_dict(replace(config.encoder, weights=None)),
            method=to_dict(config.method),
        ),
    )


def names_of(prepared: Prepared) -> list[str]:
    """Of what a dense task tells apart: its joints or its classes; none of depths."""
    train = prepared.annotated.train
    return list(train.joints.names if train.joints is not None else train.categories)


def output_names(prepared: Prepared) -> list[str]:
    """What the outputs of a classifier are called, numbers where the pictures have no names; none of an encoder."""
    method: Any = prepared.config.method
    if method.learns != "classes":
        return []
    return class_names(prepared.pictures.classes, torch.tensor([method.classes - 1]))[: method.classes]
