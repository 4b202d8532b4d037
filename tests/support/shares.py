"""Folders of shares without processes: a state enters; what several processes would write of it leaves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mimkit.core.pieces import Piece, write_pieces
from mimkit.core.state_folder import split, write_state


def write_shares(folder: Path, state: Mapping[str, Any], world: int) -> Path:
    """Each tensor by its rows, shared as FSDP2 does it: the last processes may hold less, or nothing."""
    folder.mkdir(parents=True)
    tensors, rest = split(state)
    sums = {}
    for rank in range(world):
        name = f"shard-{rank + 1:05d}.safetensors"
        sums[name] = write_pieces(folder / name, dict(shared(tensors, rank, world)))
    write_state(folder, rest, {key: list(value.shape) for key, value in tensors.items()}, sums)
    return folder


def shared(tensors: Mapping[str, Tensor], rank: int, world: int):
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or not tensor.numel():
            if rank == 0:
                yield name, Piece(tensor.clone(), (0,) * tensor.ndim)
            continue
        rows = -(-len(tensor) // world)
        mine = tensor[rank * rows : (rank + 1) * rows].clone()
        if len(mine):
            yield name, Piece(mine, (rank * rows, *[0] * (tensor.ndim - 1)))
