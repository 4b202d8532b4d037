"""`mimkit export`: a run folder enters; a folder that timm, Hugging Face, torchvision or ONNX loads leaves."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class ExportArguments(Arguments):
    """Write the model of a run for timm, for Hugging Face's ViTMAE, for torchvision or as ONNX."""

    run: Positional[Path]
    """The folder that 'mimkit pretrain' wrote."""
    to: Literal["timm", "huggingface", "torchvision", "onnx"] = "timm"
    """Who loads it: timm, transformers, torchvision (of a detector), or a runtime of ONNX (of other dense tasks)."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return ExportArguments, None


def run(args: list[str]) -> int:
    """Leave with the model."""
    arguments = parse(ExportArguments, args, "mimkit export")
    from mimkit.train.run_folder import RunFolder

    folder = arguments.run
    if not RunFolder(folder).exists:
        raise UserError(f"{folder} holds no run of mimkit: give the folder that 'mimkit pretrain' wrote")
    if arguments.to == "timm":
        _for_timm(folder, arguments.out)
        load = f"timm.create_model('local-dir:{arguments.out.absolute()}', pretrained=True)"
    elif arguments.to == "torchvision":
        _for_torchvision(folder, arguments.out)
        load = f"cd {arguments.out}; python -c 'from model import load; detector = load()'"
    elif arguments.to == "onnx":
        _as_onnx(folder, arguments.out)
        load = f"onnxruntime.InferenceSession('{arguments.out / 'model.onnx'}')"
    else:
        _from_checkpoint(folder, arguments.out, "huggingface")
        load = f"transformers.ViTMAEForPreTraining.from_pretrained('{arguments.out}')"
    show(
        {"out": str(arguments.out), "to": arguments.to},
        arguments.json,
        escape(f"wrote {arguments.out}; load it with\n  {load}"),
    )
    return 0


def _for_timm(folder: Path, out: Path) -> None:
    """Copy the export of a run; where it is damaged, write it anew from the last checkpoint."""
    from mimkit.core.integrity import refuse_changed
    from mimkit.weights.folder import replaced

    if not (folder / "export" / "model.safetensors").exists():
        raise UserError(f"{folder} has no export yet: go on with 'mimkit pretrain --run {folder}'")
    try:
        refuse_changed(folder / "export")
    except UserError:
        _from_checkpoint(folder, out, "timm")
        return
    with replaced(out) as partial:
        shutil.copytree(folder / "export", partial, dirs_exist_ok=True)


def _for_torchvision(folder: Path, out: Path) -> None:
    """Write a detector that needs no mimkit."""
    from mimkit.weights.torchvision import export_torchvision

    export_torchvision(_dense_task(folder, "torchvision", ["detect"]), folder / "export", out)


def _as_onnx(folder: Path, out: Path) -> None:
    """Write a graph of a dense task."""
    from mimkit.weights.onnx import export_onnx

    export_onnx(_dense_task(folder, "onnx", ["segment", "depth", "keypoints"]), folder / "export", out)


def _dense_task(folder: Path, to: str, kinds: list[str]) -> Any:
    """The trained task of a run, on the CPU. Raises UserError where it is none of these kinds."""
    import torch

    from mimkit.evaluate.trained import open_trained
    from mimkit.train.run_folder import RunFolder

    learns = RunFolder(folder).read_config()["config"].method.learns
    if learns not in kinds:
        raise UserError(
            f"--to {to} is for runs of 'mimkit evaluate {'|'.join(kinds)} --train', and {folder} is none: use --to timm"
        )
    return open_trained(str(folder), torch.device("cpu")).task


def _from_checkpoint(folder: Path, out: Path, to: str) -> None:
    """Write the model of the last checkpoint, for Hugging Face encoder and decoder."""
    from mimkit.evaluate.transfer import note_scores
    from mimkit.train.checkpoint import checkpoints, load_checkpoint
    from mimkit.train.export import export_encoder
    from mimkit.train.identity import identity_of
    from mimkit.train.prepare import Prepared
    from mimkit.train.run_folder import MEASURED, RunFolder

    run_folder = RunFolder(folder)
    saved = run_folder.read_config()
    saves = checkpoints(folder)
    if not saves:
        raise UserError(f"{folder} has no checkpoint yet: go on with 'mimkit pretrain --run {folder}'")
    prepared = Prepared(saved["config"], saved["resolved"], begun=True)
    state = load_checkpoint(saves[-1])
    prepared.task.load_state_dict(state["model"])
    measured = {key: value for record in run_folder.metrics() for key, value in record.items() if key in MEASURED}
    about: Any = dict(recipe=saved["recipe"], step=state["step"], measured=measured, identity=identity_of(folder))
    export_encoder(prepared, out, to=to, **about)
    if run_folder.finished:
        note_scores(out / "README.md", run_folder.result())
