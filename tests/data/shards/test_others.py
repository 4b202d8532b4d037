"""Tar files that others made: samples, labels of every kind, splits, and what is left out and said."""

import json
import tarfile

import pytest

from mimkit.core.errors import UserError
from mimkit.data.shards.index import open_index, write_index
from mimkit.data.shards.others import index_tars, stem
from mimkit.data.sources import open_pictures
from sets import png, put
from tars import tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def samples(first: int, count: int, **notes) -> dict[str, bytes]:
    """WebDataset's samples: a picture, and members that functions of its number make."""
    members = {}
    for number in range(first, first + count):
        members |= {f"{number:05}.{ending}": make(number) for ending, make in notes.items()}
        members[f"{number:05}.png"] = png(number)
    return members


def shades(pictures) -> list[int]:
    return [int(pictures.read(i)[0, 0, 0]) for i in range(len(pictures))]


def label(number: int) -> bytes:
    return json.dumps({"caption": f"picture {number}", "label": ["bee", "ant"][number % 2]}).encode()


NOTES = {
    "numbers": ({"cls": lambda number: str(3 + number % 2 * 10).encode()}, ("3", "13"), False),
    "words": ({"cls": lambda number: b"ant\n" if number % 2 else b"bee"}, ("ant", "bee"), True),
    "json": ({"json": label}, ("ant", "bee"), True),
    "both": ({"json": label, "cls": lambda number: b"" if number == 3 else b"x%d" % (number % 2)}, ("x0", "x1"), True),
}


@pytest.mark.parametrize(("notes", "classes", "named"), NOTES.values(), ids=NOTES)
def test_labels_are_those_of_the_samples(notes, classes, named, tmp_path):
    for shard in range(2):
        tar(tmp_path / "set" / f"{shard:06}.tar", samples(shard * 4, 4, **notes))
    pictures = open_pictures([str(tmp_path / "set")], "all")
    assert shades(pictures) == list(range(8)) and pictures.classes == classes and pictures.named == named
    odd = classes.index({"3": "13", "ant": "ant", "x0": "x1"}[classes[0]])
    expected = [odd if number % 2 else 1 - odd for number in range(8)]
    if "x0" in classes:
        expected[3] = -1
    assert pictures.labels.tolist() == expected and not pictures.has_test


def test_a_named_column_of_json(tmp_path):
    notes = {"json": lambda number: json.dumps({"label": 1, "kind": "uv"[number % 2]}).encode()}
    file = tar(tmp_path / "a.tar", samples(0, 4, **notes))
    about, rows = index_tars([str(file)], str(tmp_path), "kind")
    assert about.classes == ("u", "v") and rows.label.tolist() == [0, 1, 0, 1]
    with pytest.raises(UserError, match="has no column 'sort' for --label-column: it has label"):
        index_tars([str(file)], str(tmp_path), "sort")
    write_index(tmp_path / "a.index.npz", about, rows)
    with pytest.raises(UserError, match=r"stand in its index: 'mimkit shards index \.\.\. --label-column other'"):
        open_pictures([str(tmp_path / "a.index.npz")], "all", reading_of("other"))


def reading_of(column: str):
    from mimkit.data.reading import Reading

    return Reading(label_column=column)


def test_a_column_that_measures_is_no_label(tmp_path):
    notes = {"json": lambda number: json.dumps({"target": number + 0.25}).encode()}
    about, rows = index_tars([str(tar(tmp_path / "a.tar", samples(0, 6, **notes)))], "", None)
    assert about.classes is None and set(rows.label.tolist()) == {-1}
    assert any("labels are not used: of 'target'" in note for note in about.notes)


def test_class_folders_and_splits_in_names_of_members(tmp_path):
    plain = put(tmp_path / "plain", "train/ant/*3.png", "train/bee/*2.png", "val/bee/*2.png")
    files = sorted(path for path in plain.rglob("*.png"))
    for number in range(2):
        members = {f"top/{path.relative_to(plain)}": path.read_bytes() for path in files[number::2]}
        tar(tmp_path / "set" / f"{number}.tar", members)
    for split in ("train", "test"):
        there, here = open_pictures([str(plain)], split), open_pictures([str(tmp_path / "set")], split)
        assert here.classes == there.classes == ("ant", "bee") and here.has_test
        pairs = [sorted(zip(shades(one), one.labels.tolist(), strict=True)) for one in (here, there)]
        assert pairs[0] == pairs[1]


def test_splits_in_names_of_tar_files(tmp_path):
    number = 0
    for name in ("in1k-train-000", "in1k-train-001", "in1k-validation-00", "in1k-test-00"):
        tar(tmp_path / "set" / f"{name}.tar", samples(number, 3, cls=lambda number: b"%d" % (number % 2)))
        number += 3
    train, test = (open_pictures([str(tmp_path / "set")], split) for split in ("train", "test"))
    assert shades(train) == [0, 1, 2, 3, 4, 5] and shades(test) == [6, 7, 8]
    assert any("left out: test/ (3)" in note for note in train.notes)
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1] and test.labels.tolist() == [0, 1, 0]


def test_one_picture_a_sample_and_what_is_left_out_is_said(tmp_path):
    members = {
        "a.seg.png": png(1),
        "a.png": png(2),
        "a.txt": b"caption",
        "dir.v2/b.png": png(3),
        ".hidden/c.png": png(4),
        "__MACOSX/d.png": png(5),
        "./e.json": b"no json",
        "./e.png": png(6),
        "f.cls": b"1",
    }
    file = tar(tmp_path / "a.tar", members)
    with tarfile.open(file, "a") as archive:
        about = tarfile.TarInfo("link.png")
        about.type, about.linkname = tarfile.SYMTYPE, "a.png"
        archive.addfile(about)
    about, rows = index_tars([str(file)], "", None)
    assert list(rows.names) == [b"a.seg.png", b"dir.v2/b.png", b"e.png"]
    assert set(about.notes) >= {
        "skipped, further pictures of a sample: 1, as a.png",
        "skipped, no JSON: 1, as ./e.json",
        "skipped, no regular files: 1, as link.png",
    }
    assert stem(b"dir.v2/b.jpg.png") == b"dir.v2/b"


def test_tars_without_pictures_are_refused(tmp_path):
    file = tar(tmp_path / "a.tar", {"a.txt": b"x"})
    with pytest.raises(UserError, match=r"a\.tar holds no pictures that can be read"):
        index_tars([str(file)], "", None)
    with pytest.raises(UserError, match=r"cannot read .*b\.tar: No such file"):
        index_tars([str(tmp_path / "b.tar")], "", None)


def test_workers_change_nothing(tmp_path):
    files = [str(tar(tmp_path / f"{shard}.tar", samples(shard * 5, 5, cls=label))) for shard in range(5)]
    for workers in (0, 2):
        about, rows = index_tars(files, str(tmp_path), None, workers)
        write_index(tmp_path / f"{workers}.index.npz", about, rows)
    first, second = ((tmp_path / f"{workers}.index.npz").read_bytes() for workers in (0, 2))
    assert first == second and [shard.name for shard in open_index(str(tmp_path / "0.index.npz")).about.shards] == [
        f"{shard}.tar" for shard in range(5)
    ]
