"""ADE20K and Cityscapes: their void, their classes and their numbers."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.core.annotation import VOID
from mimkit.core.errors import UserError
from mimkit.data.annotations.known import CITYSCAPES
from mimkit.data.annotations.sources import open_annotated
from scenes import save, scenes

SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", "../shared/data"))
SETS = scenes({"training": 6, "validation": 5})


def write(folder: Path) -> Path:
    """ADE20K's layout: sky is void, 0; the others are 1, 2 and 150."""
    for split, members in SETS.items():
        for number, member in enumerate(members):
            save(member.picture, folder / "images" / split / f"ADE_{number}.png")
            numbers = np.array([1, 2, 150, 0], np.uint8)[member.segments]
            save(numbers, folder / "annotations" / split / f"ADE_{number}.png")
    return folder


def test_ade20k_has_150_classes_from_1_and_void_0(tmp_path):
    train, test = open_annotated([str(write(tmp_path))], "segment")
    assert (len(train), len(test), train.has_test, len(train.categories)) == (6, 5, True, 150)
    expected = np.array([0, 1, 149, VOID])[SETS["validation"][2].segments]
    assert np.array_equal(test.annotation(2).segments.numpy(), expected)
    assert any("0 is void, as in ADE20K" in note for note in train.notes)
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{i}\t0.1\t5\t5\t1\tthing {i}, stuff" for i in range(1, 151))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    assert open_annotated([str(tmp_path)], "segment").train.categories[149] == "thing 150, stuff"
    (tmp_path / "objectInfo150.txt").unlink()
    (tmp_path / "classes.txt").write_text("\n".join(f"name {i}" for i in range(1, 151)))
    assert open_annotated([str(tmp_path)], "segment").train.categories[:2] == ("name 1", "name 2")
    Image.fromarray(np.full((48, 64), 151, np.uint8)).save(tmp_path / "annotations" / "training" / "ADE_0.png")
    with pytest.raises(UserError, match=r"training/ADE_0.png holds the class 151, which is none of the classes of"):
        open_annotated([str(tmp_path)], "segment")


def test_photographs_in_its_layout_have_their_133_classes_and_a_tenth_of_void():
    if not (SHARED / "semseg_mini").is_dir():
        pytest.skip("no semseg_mini here")
    train, test = open_annotated([str(SHARED / "semseg_mini")], "segment")
    assert (len(train), len(test), len(train.categories)) == (70, 68, 133)
    assert train.categories[0] == "person"
    pixels = train.pixels + test.pixels
    assert pixels[-1] / pixels.sum() == pytest.approx(0.1, abs=0.01)  # of its README
    file = Path(test.where(0).replace("images", "annotations")).with_suffix(".png")
    numbers = np.asarray(Image.open(file)).astype(int)
    assert torch.equal(test.annotation(0).segments.long(), torch.from_numpy(np.where(numbers == 0, VOID, numbers - 1)))


@pytest.mark.parametrize("kind", ["labelTrainIds", "labelIds"])
def test_cityscapes_has_19_classes_of_either_numbers(tmp_path, kind):
    ids = list(CITYSCAPES)
    table = np.array([ids[0], ids[18], 1, 0] if kind == "labelIds" else [0, 18, 255, 255], np.uint8)
    for split, members in (("train", SETS["training"]), ("val", SETS["validation"])):
        for number, member in enumerate(members):
            stem = f"{split}/bonn/bonn_{number}"
            save(member.picture, tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png")
            save(table[member.segments], tmp_path / "gtFine" / f"{stem}_gtFine_{kind}.png")
            save(table[member.segments], tmp_path / "gtFine" / f"{stem}_gtFine_instanceIds.png")
    train, test = open_annotated([str(tmp_path)], "segment")
    assert (len(train), len(test), len(train.categories)) == (6, 5, 19)
    assert (train.categories[0], train.categories[18]) == ("road", "bicycle")
    expected = np.array([0, 18, VOID, VOID])[SETS["validation"][3].segments]
    assert np.array_equal(test.annotation(3).segments.numpy(), expected)
