"""Fine-grained sets in their published form: labels, names and splits are those of their lists."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from mimkit.core.errors import UserError
from mimkit.data.sources import open_measured, open_pictures
from sets import put


def cub(folder: Path) -> dict[str, tuple[str, str]]:
    """Ten pictures of two birds, every third for the test; path: class and split."""
    names = {"1": "001.Albatross", "2": "002.Wren"}
    rows = {f"{names[str(n % 2 + 1)]}/bird_{n}.png": (names[str(n % 2 + 1)], "01"[n % 3 > 0]) for n in range(10)}
    put(folder / "images", *rows)
    (folder / "images.txt").write_text("".join(f"{n} {path}\n" for n, path in enumerate(rows, 1)))
    labels = [name[2] for name, _ in rows.values()]
    (folder / "image_class_labels.txt").write_text("".join(f"{n} {label}\n" for n, label in enumerate(labels, 1)))
    (folder / "classes.txt").write_text("".join(f"{n} {name}\n" for n, name in names.items()))
    splits = [split for _, split in rows.values()]
    (folder / "train_test_split.txt").write_text("".join(f"{n} {split}\n" for n, split in enumerate(splits, 1)))
    return {f"images/{path}": (name, {"1": "train", "0": "test"}[split]) for path, (name, split) in rows.items()}


def flowers(folder: Path) -> dict[str, tuple[str, str]]:
    """Twelve pictures of classes 1, 2 and 10; val trains too."""
    labels = [(1, 2, 10)[n % 3] for n in range(12)]
    splits = {"trnid": [1, 5, 9], "valid": [2, 6, 10], "tstid": [3, 4, 7, 8, 11, 12]}
    put(folder / "jpg", *(f"image_{n:05d}.jpg" for n in range(1, 13)))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(folder / "setid.mat", {name: np.array([numbers]) for name, numbers in splits.items()})
    return {
        f"jpg/image_{n:05d}.jpg": (str(labels[n - 1]), "test" if name == "tstid" else "train")
        for name, numbers in splits.items()
        for n in numbers
    }


def pets(folder: Path) -> dict[str, tuple[str, str]]:
    """Ten pictures of two breeds, with a list that begins with remarks."""
    rows = {f"{('great_pyrenees', 'Bengal')[n % 2]}_{n}": ("train", "test")[n > 6] for n in range(10)}
    put(folder / "images", *(f"{stem}.jpg" for stem in rows))
    (folder / "annotations").mkdir()
    for name, split in (("trainval.txt", "train"), ("test.txt", "test")):
        lines = [f"{stem} {1 + (stem[0] == 'B')} 1 1" for stem, of in rows.items() if of == split]
        (folder / "annotations" / name).write_text("\n".join(["#Image CLASS-ID SPECIES BREED ID", *lines]))
    return {f"images/{stem}.jpg": (stem.rpartition("_")[0], split) for stem, split in rows.items()}


def food(folder: Path) -> dict[str, tuple[str, str]]:
    """Eight pictures of two dishes."""
    rows = {f"{('pad_thai', 'apple_pie')[n % 2]}/{n}": ("train", "test")[n > 5] for n in range(8)}
    put(folder / "images", *(f"{stem}.jpg" for stem in rows))
    (folder / "meta").mkdir()
    for split in ("train", "test"):
        lists: dict[str, list[str]] = {"pad_thai": [], "apple_pie": []}
        for stem, of in rows.items():
            lists[stem.partition("/")[0]] += [stem] if of == split else []
        (folder / "meta" / f"{split}.json").write_text(json.dumps(lists))
    return {f"images/{stem}.jpg": (stem.partition("/")[0], split) for stem, split in rows.items()}


SETS = {"cub": cub, "flowers": flowers, "pets": pets, "food": food}


@pytest.mark.parametrize("kind", SETS)
def test_labels_and_splits_are_those_of_the_lists(tmp_path, kind):
    truth = SETS[kind](tmp_path)
    sets = open_measured([str(tmp_path)])
    assert not sets.unlabeled and sets.train.has_test
    for split, pictures in (("train", sets.train), ("test", sets.test)):
        classes, labels = pictures.classes, pictures.labels.tolist()
        rows = {
            str(Path(pictures.where(i)).relative_to(tmp_path)): (classes[labels[i]], split)
            for i in range(len(pictures))
        }
        assert rows == {path: row for path, row in truth.items() if row[1] == split}
        assert pictures.read(0).shape == (3, 12, 16)
    assert sets.train.classes == sets.test.classes and sets.train.named == (kind != "flowers")
    assert len(open_pictures([str(tmp_path)], "all")) == len(sets.train)


def test_flowers_have_names_where_a_file_gives_them(tmp_path):
    flowers(tmp_path)
    assert open_pictures([str(tmp_path)]).classes == ("1", "2", "10")
    (tmp_path / "cat_to_name.json").write_text(json.dumps({"1": "rose", "2": "daisy", "10": "iris"}))
    train = open_pictures([str(tmp_path)])
    assert train.classes == ("daisy", "iris", "rose") and train.named
    names = [train.classes[label] for label in train.labels.tolist()]
    assert names == ["rose", "daisy", "iris", "daisy", "iris", "rose"]  # pictures 1, 5, 9, 2, 6, 10


def test_pictures_that_are_not_there_are_counted_and_none_at_all_is_refused(tmp_path):
    truth = pets(tmp_path)
    (tmp_path / "images" / "Bengal_1.jpg").unlink()
    train = open_pictures([str(tmp_path)])
    assert len(train) == sum(split == "train" for _, split in truth.values()) - 1
    assert any("1 pictures that the lists name are not there: images/Bengal_1.jpg" in note for note in train.notes)
    for file in (tmp_path / "images").iterdir():
        file.rename(file.with_name(f"{file.stem}x.jpg"))
    with pytest.raises(UserError, match=r"holds none of the 7 pictures that its lists name, as images/great_"):
        open_pictures([str(tmp_path)])


@pytest.mark.parametrize(
    ("kind", "file", "text", "line"),
    [
        ("cub", "images.txt", "1 a b\n", "images.txt line 1 has 3 words, not 2"),
        ("cub", "train_test_split.txt", "1 1\n", "picture 2 has no class or no split"),
        ("flowers", "setid.mat", "nothing", "imagelabels.mat or setid.mat cannot be read"),
        ("pets", "annotations/test.txt", "Bengal_1\n", "test.txt line 1 has 1 words, not 4"),
        ("food", "meta/train.json", "[]", "train.json: "),
    ],
)
def test_damaged_lists_are_one_line(tmp_path, kind, file, text, line):
    SETS[kind](tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=line) as stop:
        open_pictures([str(tmp_path)])
    assert "\n" not in str(stop.value)


def test_numbers_of_flowers_without_a_label_are_refused(tmp_path):
    flowers(tmp_path)
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[1, 2]], np.uint8)})
    with pytest.raises(UserError, match=r"setid.mat names pictures that imagelabels.mat lacks"):
        open_pictures([str(tmp_path)])


def test_species_in_folders_are_classes_as_any(tmp_path):
    put(tmp_path, "train/00001_Animalia_a/*3.png", "train/00002_Animalia_b/*2.png", "val/00001_Animalia_a/*1.png")
    put(tmp_path, "val/00002_Animalia_b/*1.png")
    sets = open_measured([str(tmp_path)])
    assert (len(sets.train), len(sets.test)) == (5, 2) and sets.train.classes[0] == "00001_Animalia_a"
