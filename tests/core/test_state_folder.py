"""States in folders come back bit for bit, also by other shares; torch reads them; what was changed is refused."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader

from mimkit.core.pieces import Pieces
from mimkit.core.state_folder import checkpoints, read_state, split
from shares import write_shares


def state() -> dict:
    torch.manual_seed(0)
    model = {
        "encoder.weight": torch.randn(7, 3),
        "encoder.token": torch.randn(1, 1, 5),
        "half": torch.randn(4, 2, 3).bfloat16(),
        "queue.count": torch.tensor(2**40 + 1),
        "mask": torch.tensor([True, False, True]),
        "nothing": torch.zeros(0, 3),
        "not.numbers": torch.tensor([math.nan, math.inf, -0.0]),
    }
    moments = {"step": torch.tensor(5.0), "exp_avg": torch.randn(7, 3), "calls": 3}
    group = {"lr": 0.1 + 0.2, "betas": (0.9, 0.95), "eps": 1e-08, "foreach": None, "fused": True, "params": [0, 1]}
    # The second parameter never had a gradient: it has no state.
    optimizer = {"state": {0: moments}, "param_groups": [group, {"peak": math.inf, "params": []}]}
    return {"format": 2, "identity": {"seed": 0}, "step": 5, "seconds": 1 / 3, "model": model, "optimizer": optimizer}


def same(one, other) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
def test_a_state_comes_back_whatever_shared_it(world, tmp_path):
    again = read_state(write_shares(tmp_path / "step", state(), world))
    expected = state()
    groups = [again["optimizer"].pop("param_groups"), expected["optimizer"].pop("param_groups")]
    assert groups[0] == groups[1] and isinstance(groups[0][0]["betas"], tuple)
    assert again["optimizer"]["state"][0].pop("calls") == expected["optimizer"]["state"][0].pop("calls") == 3
    same(again.pop("model"), expected.pop("model"))
    same(again.pop("optimizer"), expected.pop("optimizer"))
    assert again == expected


def test_any_block_is_read_of_any_shares(tmp_path):
    folder = write_shares(tmp_path / "step", state(), 3)
    tensors, _ = split(state())
    sums = json.loads((folder / "state.json").read_text())["files"]
    for name in ("model.encoder.weight", "optimizer.0.exp_avg", "model.half"):
        whole, chance = tensors[name], random.Random(0)
        for _ in range(20):
            low = [chance.randrange(n) for n in whole.shape]
            size = [chance.randint(1, n - a) for n, a in zip(whole.shape, low, strict=True)]
            block = Pieces(folder, sums).read(name, tuple(low), tuple(size))
            same(block, whole[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))])


def test_torch_reads_the_same_files(tmp_path):
    folder = write_shares(tmp_path / "step", state(), 3)
    tensors, _ = split(state())
    tensors = {name: value for name, value in tensors.items() if value.numel()}
    again = {name: torch.zeros_like(value) for name, value in tensors.items()}
    dcp.load(again, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    same(again, tensors)


def test_no_flipped_bit_is_read(tmp_path):
    """In no file; each is refused, or lies where nothing is read."""
    folder = write_shares(tmp_path / "step", state(), 3)
    whole, chance, refused = read_state(folder), random.Random(0), 0
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for _ in range(60):
            place = chance.randrange(len(content))
            flipped = bytes([content[place] ^ 1 << chance.randrange(8)])
            file.write_bytes(content[:place] + flipped + content[place + 1 :])
            try:
                again = read_state(folder)
            except Exception:
                refused += 1
            else:
                same(again["model"], whole["model"])
                assert again["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"], (file, place)
        file.write_bytes(content)
    assert refused > 230, refused
    same(read_state(folder)["model"], whole["model"])


def test_a_missing_file_and_a_file_of_another_step_are_refused(tmp_path):
    folder, other = (write_shares(tmp_path / name, state(), 3) for name in ("step", "other"))
    newer = state()
    newer["model"]["encoder.weight"] += 1
    shutil.rmtree(other)
    write_shares(other, newer, 3)
    shutil.copy(other / "shard-00002.safetensors", folder)
    with pytest.raises(ValueError, match=r"checksum of shard-00002\.safetensors"):
        read_state(folder)
    (folder / "shard-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        read_state(folder)


def test_a_block_of_which_a_part_is_missing_is_refused(tmp_path):
    folder = write_shares(tmp_path / "step", state(), 3)
    sums = json.loads((folder / "state.json").read_text())["files"]
    sums.pop("shard-00003.safetensors")
    pieces = Pieces(folder, sums)
    assert pieces.read("model.encoder.weight", (1, 0), (5, 3)).shape == (5, 3)
    with pytest.raises(ValueError, match=r"model\.encoder\.weight is not complete"):
        pieces.read("model.encoder.weight", (1, 0), (6, 3))


def test_checkpoints_are_what_is_complete(tmp_path):
    saves = tmp_path / "checkpoints"
    for step in (3, 12):
        write_shares(saves / f"step-{step:09d}", state(), 1)
    (saves / "step-000000009.pt").touch()
    for name in ("step-000000015.tmp", "step-000000016.bad", "step-000000017.old.tmp"):
        shutil.copytree(saves / "step-000000003", saves / name)
    (saves / "step-000000018").mkdir()  # without state.json
    (saves / "step-000000018" / "shard-00001.safetensors").touch()
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step-000000003", "step-000000009.pt", "step-000000012"]
    assert checkpoints(Path(tmp_path / "nowhere")) == []
