"""Zip and tar files: read by offset, laid out as folders, and refused with the reason."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mimkit.core.errors import UserError
from mimkit.data import archive as archives
from mimkit.data.decode import BadPicture
from mimkit.data.sources import open_pictures
from mimkit.data.stream import stream
from sets import packed, png, put

ANT_BEE = ("ant", "bee")


def shades(pictures) -> list[int]:
    return [int(pictures.read(i)[0, 0, 0]) for i in range(len(pictures))]


def folder(root: Path) -> Path:
    return put(root / "folder", "train/ant/*3.png", "train/bee/*2.png", "val/bee/*2.png", "unlabeled2017/x.png")


@pytest.mark.parametrize("prefix", ["", "my data/", "./", "a/b/"])
@pytest.mark.parametrize(("name", "stored"), [("x.zip", False), ("x.zip", True), ("x.tar", True)])
def test_an_archive_is_read_as_its_folder(name, stored, prefix, tmp_path):
    plain = folder(tmp_path)
    (plain / "notes.txt").write_text("no picture")
    put(plain, ".hidden/y.png", "__MACOSX/z.png")
    (plain / "__MACOSX" / "z.png").unlink()  # which a folder would take for a picture
    file = packed(plain, tmp_path / name, stored=stored, prefix=prefix)
    for split in ("train", "test", "all"):
        there, here = open_pictures([str(plain)], split), open_pictures([str(file)], split)
        assert shades(here) == shades(there) and here.labels.tolist() == there.labels.tolist()
        assert here.classes == there.classes == ANT_BEE and here.has_test and here.notes == there.notes
        assert [os.path.basename(here.where(i)) for i in range(len(here))] == [
            os.path.basename(there.where(i)) for i in range(len(there))
        ]
    assert here.where(0) == f"{file}/{'' if prefix == './' else prefix}train/ant/0.png"
    assert here.size(0) == (12, 16) and here.channels == 3 and here.fingerprint != there.fingerprint
    assert here.fingerprint == open_pictures([str(file)], "all").fingerprint


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_processes_and_threads_read_at_the_same_time(name, tmp_path):
    file = packed(put(tmp_path / "set", "*200.png"), tmp_path / name)
    pictures = open_pictures([str(file)], "all")
    expected = shades(pictures)
    assert sorted(expected) == list(range(200))
    assert shades(pickle.loads(pickle.dumps(pictures))) == expected
    assert len(pickle.dumps(pictures)) < 200 * 60 + 2000
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: int(pictures.read(i)[0, 0, 0]), range(200))) == expected
    for _ in range(2):
        read = stream(lambda i: torch.tensor(int(pictures.read(i)[0, 0, 0])), 200, workers=2)
        assert [int(value) for value in read] == expected


def test_metadata_in_an_archive_has_the_labels(tmp_path):
    plain = put(tmp_path / "set", "train/*2.png", "test/*2.png")
    for split, names in (("train", "xy"), ("test", "zx")):
        rows = "".join(f"{i}.png,{name}\n" for i, name in enumerate(names))
        (plain / split / "metadata.csv").write_text("file_name,label\n" + rows)
    for place in (plain, packed(plain, tmp_path / "x.zip"), packed(plain, tmp_path / "x.tar", prefix="top/")):
        train, test = (open_pictures([str(place)], split) for split in ("train", "test"))
        assert train.classes == test.classes == ("x", "y", "z")
        assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [2, 0]


def test_a_long_list_of_members_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(archives, "MANY", 5)
    file = packed(put(tmp_path / "set", "ant/*4.png", "bee/*4.png"), tmp_path / "x.tar")
    first = open_pictures([str(file)], "all")
    monkeypatch.setattr(archives, "_tar_members", lambda file: pytest.fail("listed again although nothing changed"))
    again = open_pictures([str(file)], "all")
    assert shades(again) == shades(first) and again.fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed(put(tmp_path / "set", "cow/*1.png"), tmp_path / "x.tar")
    assert len(open_pictures([str(file)], "all")) == 9
    for kept in (tmp_path / "cache" / "mimkit" / "archives").iterdir():
        kept.write_bytes(b"damaged")
    assert len(open_pictures([str(file)], "all")) == 9


def test_members_that_are_damaged_are_bad_pictures(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", png(i))
    data = bytearray(file.read_bytes())
    second = data.index(png(1))
    data[second + 40] ^= 255
    data[data.index(png(2)) - 35] ^= 255  # in the header of the third
    file.write_bytes(data)
    pictures = open_pictures([str(file)], "all")
    assert int(pictures.read(0)[0, 0, 0]) == 0
    for bad in (1, 2):
        with pytest.raises(BadPicture, match=r"cannot be opened: (damaged|the file)"):
            pictures.read(bad)
    file.write_bytes(data[: second + 10])  # shorter than when it was opened
    with pytest.raises(BadPicture, match="the file ends before it"):
        pictures.read(1)


def test_a_member_is_never_larger_than_it_says(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(50_000_000))
    data = bytearray(file.read_bytes())
    for place in (data.index(b"PK\3\4") + 22, data.index(b"PK\1\2") + 24):
        data[place : place + 4] = struct.pack("<I", 1000)
    file.write_bytes(data)
    pictures = open_pictures([str(file)], "all")
    tracemalloc.start()
    with pytest.raises(BadPicture, match="damaged"):
        pictures.read(0)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_what_cannot_be_read_is_skipped_and_said(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", png(1))
        archive.writestr(zipfile.ZipInfo("b.png"), png(2), zipfile.ZIP_LZMA)
        archive.writestr("c.png", png(3))
        archive.writestr("win\\d.png", png(4))
    data = bytearray(file.read_bytes())
    entry = data.rindex(b"c.png") - 46
    data[entry + 8] |= 1  # encrypted
    file.write_bytes(data)
    pictures = open_pictures([str(file)], "all")
    assert shades(pictures) == [1, 4]
    assert pictures.notes == ("skipped, compressed by method 14: 1, as b.png", "skipped, encrypted: 1, as c.png")
    plain = put(tmp_path / "set", "a.png")
    (plain / "b.png").symlink_to("a.png")
    assert "skipped, no regular files: 1" in open_pictures([str(packed(plain, tmp_path / "x.tar"))], "all").notes[0]


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
def test_what_is_compressed_as_a_whole_is_refused_with_the_fix(name, tmp_path):
    file = packed(put(tmp_path / "set", "a.png"), tmp_path / "x.tgz").rename(tmp_path / name)
    with pytest.raises(UserError, match=r"cannot be read picture by picture.*: unpack it, or pack it again as \.zip"):
        open_pictures([str(file)])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.zip", b"no archive", "cannot be read as an archive"),
        ("x.tar", b"no archive" * 100, "cannot be read as an archive"),
        ("x.zip", b"", "cannot be read as an archive"),
        ("x.zip", None, "holds no pictures that can be read"),
    ],
)
def test_what_is_no_archive_of_pictures_is_refused(name, content, says, tmp_path):
    file = tmp_path / name
    if content is None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("notes.txt", "none")
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        open_pictures([str(file)])
    assert "\n" not in str(caught.value)


def test_archives_join_with_folders(tmp_path):
    plain = put(tmp_path / "set", "ant/*3.png", "bee/*3.png")
    file = packed(put(tmp_path / "other", "bee/*3.png", "cow/*3.png"), tmp_path / "x.zip")
    joined = open_pictures([str(plain), str(file)], "all")
    assert joined.classes == ("ant", "bee", "cow") and joined.labels.tolist() == np.repeat([0, 1, 1, 2], 3).tolist()
