"""State folders: the state of a run enters as shares; a folder of safetensors and JSON leaves, and back.

`state.json` holds all that is no tensor, with the checksum of every other file and of itself; without it a folder is
no checkpoint. Nothing is unpickled.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mimkit.core import distributed
from mimkit.core.files import read_regular
from mimkit.core.integrity import Damaged
from mimkit.core.pieces import Piece, Pieces

STATE = "state.json"


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first: files, and folders of runs with machine.sharding."""
    saves = folder / "checkpoints"
    folders = [path.parent for path in saves.glob(f"step-*/{STATE}") if not path.parent.suffix]
    return sorted([*saves.glob("step-*.pt"), *folders], key=age)


def age(checkpoint: Path) -> tuple[str, str]:
    """The larger, the newer; of a step's folder and file the file counts as newer."""
    return checkpoint.stem, checkpoint.suffix


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state by name (`model.NAME`, `optimizer.NUMBER.NAME`), and all else, which JSON can hold."""
    of_parameters = state["optimizer"]["state"]
    tensors = {f"model.{name}": value for name, value in state["model"].items()}
    plain: dict[str, dict[str, Any]] = {}
    for number, values in of_parameters.items():
        plain[str(number)] = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        tensors |= {f"optimizer.{number}.{name}": v for name, v in values.items() if isinstance(v, Tensor)}
    return tensors, {**state, "model": {}, "optimizer": {**state["optimizer"], "state": plain}}


def joined(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The state again that `split` took apart."""
    optimizer = rest["optimizer"]
    of_parameters = {int(number): dict(values) for number, values in optimizer["state"].items()}
    model: dict[str, Tensor] = {}
    for name, value in tensors.items():
        owner, _, key = name.partition(".")
        if owner == "model":
            model[key] = value
        else:
            number, _, key = key.partition(".")
            of_parameters[int(number)][key] = value
    # JSON knows no tuples, which a group has but for its list of parameters.
    groups = [
        {key: tuple(v) if isinstance(v, list) and key != "params" else v for key, v in group.items()}
        for group in optimizer["param_groups"]
    ]
    return {**rest, "model": model, "optimizer": {**optimizer, "state": of_parameters, "param_groups": groups}}


def pieces_of(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
    """What this process has to write of some tensors: its shares, and in the main process what all have alike.

    They are copies on the CPU: training may go on.
    """
    pieces = {}
    for name, tensor in tensors.items():
        mine = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if _writes(tensor) and (mine.numel() or not isinstance(tensor, DTensor)):
            pieces[name] = Piece(mine.detach().to("cpu", copy=True).contiguous(), block(tensor)[0])
    return pieces


def block(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where what this process holds of a tensor begins along each axis, and its shape."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.ndim, tuple(tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset), tuple(shape)


def _writes(tensor: Tensor) -> bool:
    """Whether of several processes that hold the same this one writes it."""
    if not isinstance(tensor, DTensor):
        return distributed.is_main()
    coordinates = tensor.device_mesh.get_coordinate() or ()
    places = zip(coordinates, tensor.placements, strict=True)
    return all(coordinate == 0 for coordinate, placement in places if placement.is_replicate())


def write_state(
    folder: Path, state: Mapping[str, Any], shapes: Mapping[str, list[int]], sums: Mapping[str, str]
) -> None:
    """Write state.json and flush the folder to disk. Raises OSError.

    Args:
        state: all that is no tensor.
        shapes: of the whole tensors.
        sums: the checksum of each other file.
    """
    content = {"state": state, "shapes": shapes, "files": sums}
    with open(folder / STATE, "w", encoding="utf-8") as file:
        json.dump({**content, "sha256": _checksum(content)}, file)
        file.flush()
        os.fsync(file.fileno())


def read_state(
    folder: Path, device: torch.device | str = "cpu", like: Mapping[str, DTensor] = MappingProxyType({})
) -> dict[str, Any]:
    """The state of a run; of tensors that `like` has by name, this process's share alone.

    A name is `model.NAME`, or `optimizer.NUMBER` for all tensors of a parameter's state that have its shape.

    Raises:
        Damaged, or whatever else a file that is not what was written makes of it.
    """
    content = json.loads(read_regular(folder / STATE))
    if content.pop("sha256") != _checksum(content):
        raise Damaged(f"checksum of {STATE}")
    pieces, tensors = Pieces(folder, content["files"]), {}
    for name, shape in content["shapes"].items():
        shared = like.get(name, like.get(name.rpartition(".")[0]))
        if shared is None or list(shared.shape) != shape:
            tensors[name] = pieces.read(name, (0,) * len(shape), tuple(shape)).to(device)
            continue
        mine = pieces.read(name, *block(shared)).to(device)
        tensors[name] = DTensor.from_local(
            mine, shared.device_mesh, shared.placements, run_check=False, shape=shared.shape, stride=shared.stride()
        )
    return joined(tensors, content["state"])


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
