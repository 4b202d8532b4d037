"""Folder pairs of masks: every way to store numbers gives the same classes, and what is broken is answered."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.core.annotation import VOID
from mimkit.core.errors import UserError
from mimkit.data.annotations.sources import open_annotated
from mimkit.data.pictures import Decoded, split_by_address
from scenes import SEGMENTS, save, scenes, write_pairs

SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", "../shared/data"))
SETS = scenes({"train": 6, "val": 5})


def opened(folder: Path, **settings):
    return open_annotated([str(folder)], "segment", **settings)


def recolored(folder: Path, change, ending: str = "png") -> Path:
    """The same set with other masks: `change` makes a picture of the numbers."""
    write_pairs(folder, SETS)
    for file in folder.glob("masks/*/*.png"):
        picture = change(np.asarray(Image.open(file)))
        file.unlink()
        picture.save(file.with_suffix(f".{ending}"))
    return folder


def palette(numbers: np.ndarray) -> Image.Image:
    picture = Image.fromarray(numbers).copy()
    picture.putpalette([(37 * i) % 256 for i in range(768)])
    return picture


STORED = {
    "numbers": Image.fromarray,
    "palette": palette,
    "16 bits": lambda numbers: Image.fromarray(numbers.astype(np.uint16)),
    "thrice": lambda numbers: Image.fromarray(np.repeat(numbers[..., None], 3, 2)),
}


@pytest.mark.parametrize("stored", STORED)
def test_numbers_are_classes_however_they_are_stored(tmp_path, stored):
    train, test = opened(recolored(tmp_path, STORED[stored]))
    assert train.categories == test.categories == ("class 0", "class 1", "class 2", "class 3")
    assert (len(train), len(test), train.has_test) == (6, 5, True)
    for annotated, members in ((train, SETS["train"]), (test, SETS["val"])):
        for number, member in enumerate(members):
            annotation = annotated.annotation(number)
            assert annotation.size == member.segments.shape == annotated.read(number).shape[1:]
            assert torch.equal(annotation.segments.long(), torch.from_numpy(member.segments))


def test_small_gray_depths_of_png_are_not_spread(tmp_path):
    write_pairs(tmp_path, SETS)
    for file in tmp_path.glob("masks/*/*.png"):
        numbers = np.asarray(Image.open(file))
        write_png_of_4_bits(file, numbers)
        assert np.asarray(Image.open(file)).max() == 17 * numbers.max()  # what Pillow makes of it
    train, _ = opened(tmp_path)
    assert train.categories[1] == "class 1"
    assert np.array_equal(train.annotation(2).segments.numpy(), SETS["train"][2].segments)


def write_png_of_4_bits(file: Path, numbers: np.ndarray) -> None:
    import struct
    import zlib

    height, width = numbers.shape
    rows = b"".join(b"\0" + bytes(row[0::2] << 4 | row[1::2]) for row in numbers)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_colors_are_classes_in_the_order_of_their_codes(tmp_path):
    colors = np.array([[9, 0, 0], [0, 200, 1], [1, 2, 3], [255, 255, 255]], np.uint8)
    train, test = opened(recolored(tmp_path, lambda numbers: Image.fromarray(colors[numbers])))
    assert train.categories == test.categories == ("#00c801", "#010203", "#090000", "#ffffff")
    assert any("masks are colors: 4" in note for note in train.notes)
    order = np.array([2, 0, 1, 3])
    assert np.array_equal(train.annotation(1).segments.numpy(), order[SETS["train"][1].segments])
    (tmp_path / "label_colors.txt").write_text("9 0 0 box\n0 200 1\tball\n1 2 3 floor of wood\n255 255 255 Void\n")
    train, _ = opened(tmp_path)
    assert train.categories == ("box", "ball", "floor of wood")
    expected = np.where(SETS["train"][1].segments == 3, VOID, SETS["train"][1].segments)
    assert np.array_equal(train.annotation(1).segments.numpy(), expected)


def test_more_colors_than_256_and_mixed_masks_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    write_pairs(tmp_path, SETS)
    file = tmp_path / "masks" / "train" / "002.png"
    Image.fromarray(noise).save(file)
    with pytest.raises(UserError, match=r"some masks hold numbers \(.*000.png\) and some colors \(.*002.png\)"):
        opened(tmp_path)
    recolored(tmp_path / "b", lambda numbers: Image.fromarray(noise))
    with pytest.raises(UserError, match=r"the masks hold [\d,]+ colors, as .*: more than 256 are no classes"):
        opened(tmp_path / "b")


def test_void_is_255_and_what_a_person_says(tmp_path):
    recolored(tmp_path, lambda numbers: Image.fromarray(np.where(numbers == 1, 255, numbers).astype(np.uint8)))
    train, _ = opened(tmp_path, void=0)
    assert train.categories == ("class 2", "class 3")
    numbers = SETS["train"][3].segments
    expected = np.choose(numbers, [VOID, VOID, 0, 1])
    assert np.array_equal(train.annotation(3).segments.numpy(), expected)
    with pytest.raises(UserError, match="no mask holds 7, which --void says: they hold 0, 2, 3, 255"):
        opened(tmp_path, void=7)


def test_pixels_are_counted_over_each_split(tmp_path):
    train, test = opened(write_pairs(tmp_path, SETS), void=3)
    for annotated in (train, test):
        segments = torch.stack([annotated.annotation(i).segments for i in range(len(annotated))]).long()
        counts = [int((segments == label).sum()) for label in (0, 1, 2, VOID)]
        assert annotated.pixels.tolist() == counts


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "box\nball\nfloor\nsky\n"),
        ("labels.txt", "0: box\n1: ball\n2: floor\n3: sky"),
        ("classes.json", '["box", "ball", "floor", "sky"]'),
        ("id2label.json", '{"0": "box", "1": "ball", "2": "floor", "3": "sky"}'),
        ("classes.json", '{"classes": [{"index": 0, "name": "box"}, {"index": 1, "name": "ball"}, '
         '{"index": 2, "name": "floor"}, {"index": 3, "name": "sky"}]}'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [".", "masks"])
def test_classes_have_names_where_a_file_gives_them(tmp_path, file, text, place):
    write_pairs(tmp_path, SETS)
    (tmp_path / place / file).write_text(text)
    assert opened(tmp_path).train.categories == SEGMENTS


def test_a_class_that_the_file_of_names_lacks_is_refused_with_its_file(tmp_path):
    write_pairs(tmp_path, SETS)
    (tmp_path / "classes.txt").write_text("box\nball\nfloor\n")
    with pytest.raises(
        UserError, match=r"masks/train/000.png holds the class 3, which is none of the classes of .*txt"
    ):
        opened(tmp_path)
    (tmp_path / "classes.txt").write_text("box\nball\nfloor\nsky\nmoon\n")
    assert opened(tmp_path).train.categories == (*SEGMENTS, "moon")


@pytest.mark.parametrize("layout", ["below", "beside", "two folders", "classes", "suffix", "loose"])
def test_pairs_lie_in_many_ways(tmp_path, layout):
    for split, members in SETS.items():
        for number, member in enumerate(members):
            picture, mask = {
                "below": (f"images/{split}/{number}.png", f"masks/{split}/{number}.png"),
                "beside": (f"{split}/images/{number}.png", f"{split}/labels/{number}.png"),
                "two folders": (f"images/{split}/{number}.png", f"elsewhere/{split}/{number}.png"),
                "classes": (f"images/{split}/cat/{number}.png", f"masks/{split}/cat/{number}.png"),
                "suffix": (f"images/{split}/{number}_rgb.png", f"annotations/{split}/{number}_mask.png"),
                "loose": (f"{split}/{number}.png", f"masks/{split}/{number}.png"),
            }[layout]
            save(member.picture, tmp_path / picture)
            save(member.segments.astype(np.uint8), tmp_path / mask)
    (tmp_path / "images").mkdir(exist_ok=True)
    if layout == "two folders":
        train, test = opened(tmp_path / "images", labels=str(tmp_path / "elsewhere"))
    else:
        train, test = opened(tmp_path)
    assert (len(train), len(test)) == (6, 5)
    for annotated, members in ((train, SETS["train"]), (test, SETS["val"])):
        for number, member in enumerate(members):
            assert np.array_equal(annotated.read(number).permute(1, 2, 0).numpy(), member.picture)
            assert np.array_equal(annotated.annotation(number).segments.numpy(), member.segments)


def test_without_a_split_of_its_own_one_is_made_by_address(tmp_path):
    train, test = opened(write_pairs(tmp_path, scenes({"": 12})))
    whole = Decoded("whole", torch.arange(12).view(12, 1, 1, 1).expand(12, 1, 8, 8).to(torch.uint8))
    for annotated, split in ((train, "train"), (test, "test")):
        numbers = split_by_address(whole, split).tensor()[:, 0, 0, 0].tolist()
        assert [int(Path(annotated.where(i)).stem) for i in range(len(annotated))] == numbers
        assert not annotated.has_test
    assert any("20 % of the pictures, by address" in note for note in train.notes)
    with pytest.raises(UserError, match="3 annotated pictures: too few"):
        opened(write_pairs(tmp_path / "few", scenes({"": 3})))


def test_pictures_without_masks_and_masks_without_pictures_are_counted(tmp_path):
    write_pairs(tmp_path, SETS)
    (tmp_path / "masks" / "train" / "001.png").unlink()
    (tmp_path / "images" / "val" / "000.png").unlink()
    train, test = opened(tmp_path)
    assert (len(train), len(test)) == (5, 4)
    assert "left out: 1 pictures without masks, as images/train/001.png" in train.notes
    assert "not used: 1 masks without a picture, as masks/val/000.png" in train.notes


def test_masks_of_another_size_are_scaled_if_they_have_the_same_aspect(tmp_path):
    write_pairs(tmp_path, SETS)
    file = tmp_path / "masks" / "train" / "004.png"
    numbers = np.asarray(Image.open(file))
    Image.fromarray(np.kron(numbers, np.ones((2, 2), np.uint8))).save(file)
    train, _ = opened(tmp_path)
    assert np.array_equal(train.annotation(4).segments.numpy(), numbers)
    assert any("1 masks have another size than their picture, as" in note for note in train.notes)
    Image.fromarray(numbers.T.copy()).save(file)
    with pytest.raises(UserError, match=r"1 masks have another shape .*004.png \(48x64 for a picture of 64x48\)"):
        opened(tmp_path)


def test_broken_masks_stop_or_are_left_out(tmp_path):
    write_pairs(tmp_path, SETS)
    (tmp_path / "masks" / "train" / "001.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(
        UserError, match=r"1 masks cannot be read: masks/train/001.png \(cannot be .*of 11; more than 1 %"
    ):
        opened(tmp_path)
    train, _ = opened(tmp_path, bad_fraction=0.1)
    assert len(train) == 5 and any("masks cannot be read" in note for note in train.notes)
    assert np.array_equal(train.annotation(1).segments.numpy(), SETS["train"][2].segments)


def test_words_that_cannot_be_meant_are_refused(tmp_path):
    write_pairs(tmp_path, SETS)
    for settings, line in (
        (dict(depth_scale=5.0), "--depth-scale is for depth"),
        (dict(labels=str(tmp_path / "nowhere")), "there is no file or folder"),
        (dict(labels=str(tmp_path / "images")), "have one name|holds no masks|other|photograph|colors"),
    ):
        with pytest.raises(UserError, match=line):
            opened(tmp_path / "images", **settings)
    with pytest.raises(UserError, match="holds no masks: put them into masks/ beside images/"):
        opened(tmp_path / "images")


def test_a_changed_mask_changes_the_fingerprint_and_the_census(tmp_path):
    write_pairs(tmp_path, SETS)
    before = opened(tmp_path).train
    numbers = np.full((48, 64), 9, np.uint8)
    save(numbers, tmp_path / "masks" / "train" / "000.png")
    after = opened(tmp_path).train
    assert before.fingerprint != after.fingerprint
    assert after.categories == (*before.categories, "class 9")


def test_pets_have_animals_and_background_with_the_border_void():
    if not (SHARED / "pets_mini").is_dir():
        pytest.skip("no pets_mini here")
    train, test = opened(SHARED / "pets_mini", void=3)
    assert (len(train), len(test), train.categories) == (402, 198, ("class 1", "class 2"))
    share = test.pixels[1] / test.pixels[:2].sum()
    assert share / 2 == pytest.approx(0.34, abs=0.01)  # mIoU of background everywhere, in the README
