"""Depth maps of folder pairs: every way to store them gives the same meters, and unknown is NaN."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.data.annotations.sources import open_annotated
from scenes import save, scenes, write_depth

SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", "../shared/data"))
SETS = scenes({"train": 6, "val": 5})


def opened(folder: Path, **settings):
    return open_annotated([str(folder)], "depth", **settings)


@pytest.mark.parametrize("ending", ["png", "npy", "units"])
def test_meters_leave_however_they_are_stored(tmp_path, ending):
    scale = 500.0 if ending == "units" else 1000.0
    write_depth(tmp_path, SETS, "npy" if ending == "npy" else "png", scale)
    train, test = opened(tmp_path, depth_scale=scale if ending == "units" else None)
    for annotated, members in ((train, SETS["train"]), (test, SETS["val"])):
        for number, member in enumerate(members):
            annotation = annotated.annotation(number)
            assert annotation.size == member.depth.shape and annotation.depth.dtype == torch.float32
            assert np.array_equal(annotation.depth.isnan().numpy(), np.isnan(member.depth))
            assert np.nanmax(np.abs(annotation.depth.numpy() - member.depth)) <= 0.5 / scale + 1e-6


def test_zero_negative_and_infinite_depths_are_unknown(tmp_path):
    write_depth(tmp_path, SETS, "npy")
    depth = np.full((48, 64), 2.0, np.float64)
    depth[0, :4] = 0, -1, np.inf, np.nan
    np.save(tmp_path / "depth" / "train" / "000.npy", depth)
    values = opened(tmp_path).train.annotation(0).depth
    assert values[0, :4].isnan().all() and bool((values.flatten()[4:] == 2).all())


def test_kitti_says_its_unit_by_its_folder(tmp_path):
    for number, member in enumerate(scenes({"": 6})[""]):
        save(member.picture, tmp_path / "image" / f"{number}.png")
        stored = np.nan_to_num(np.rint(member.depth * 256)).astype(np.uint16)
        save(stored, tmp_path / "groundtruth_depth" / f"{number}.png")
    train, _ = opened(tmp_path)
    member = scenes({"": 6})[""][int(Path(train.where(0)).stem)]
    assert np.nanmax(np.abs(train.annotation(0).depth.numpy() - member.depth)) < 0.5 / 256 + 1e-6


def test_what_is_no_depth_is_refused(tmp_path):
    write_depth(tmp_path, SETS)
    shades = np.full((48, 64), 100, np.uint8)
    for file in tmp_path.glob("depth/*/*.png"):
        Image.fromarray(shades).save(file)
    with pytest.raises(UserError, match=r"every depth map, as depth/train/000.png, holds 8-bit values"):
        opened(tmp_path)
    assert float(opened(tmp_path, depth_scale=50).train.annotation(0).depth.max()) == 2
    with pytest.raises(UserError, match="above 0; got -1"):
        opened(tmp_path, depth_scale=-1)
    write_depth(tmp_path, SETS)
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(tmp_path / "depth" / "train" / "003.png")
    with pytest.raises(UserError, match=r"1 depth maps cannot be used: depth/train/003.png \(holds no depth"):
        opened(tmp_path)
    assert len(opened(tmp_path, bad_fraction=0.2).train) == 5
    write_depth(tmp_path, SETS)
    Image.fromarray(np.ones((24, 64), np.uint16)).save(tmp_path / "depth" / "val" / "003.png")
    with pytest.raises(
        UserError, match=r"1 depth maps have another shape .*val/003.png \(64x24 for a picture of 64x48"
    ):
        opened(tmp_path)


def test_a_kitchen_has_depths_in_meters_of_which_a_tenth_is_unknown():
    if not (SHARED / "kitchen_depth").is_dir():
        pytest.skip("no kitchen_depth here")
    train, test = opened(SHARED / "kitchen_depth")
    assert (len(train), len(test)) == (120, 37)
    depth = torch.stack([test.annotation(i).depth for i in range(len(test))])
    assert float(depth.isnan().float().mean()) == pytest.approx(0.1, abs=0.03)
    known = depth[~depth.isnan()]
    assert float(known.min()) > 0.5 and float(known.max()) < 5
