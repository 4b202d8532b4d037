"""Walking through folders: what is no regular file, leads in a circle or cannot be reached is skipped and listed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimkit.core.errors import UserError
from mimkit.data import folders
from mimkit.data.decode import BadPicture
from mimkit.data.sources import open_pictures
from sets import parquet, put


@pytest.fixture
def deep(tmp_path) -> Iterator[Path]:
    """A folder that is removed at once: pytest cannot remove what is nested deeper than Python's calls."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def names(pictures) -> list[str]:
    return [Path(pictures.where(i)).name for i in range(len(pictures))]


def fifo(root: Path) -> None:
    os.mkfifo(root / "pipe.png")


def device(root: Path) -> None:
    (root / "zero.png").symlink_to("/dev/zero")


def socket(root: Path) -> None:
    import socket as sockets

    here = os.getcwd()
    os.chdir(root)  # names of sockets are short
    try:
        sockets.socket(sockets.AF_UNIX).bind("s.png")
    finally:
        os.chdir(here)


def self_link(root: Path) -> None:
    (root / "self.png").symlink_to("self.png")


def pair_of_links(root: Path) -> None:
    (root / "a.png").symlink_to("b.png")
    (root / "b.png").symlink_to("a.png")


def link_above(root: Path) -> None:
    (root / "inner").mkdir()
    (root / "inner" / "up").symlink_to(root)


def link_to_itself(root: Path) -> None:
    (root / "here").symlink_to(".")


def too_deep(root: Path) -> None:
    here = os.getcwd()
    os.chdir(root)
    try:
        for _ in range(40):  # 40 x 200 letters: more than the 4,096 that a path may have
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (fifo, "no regular files: 1, as pipe.png"),
        (device, "no regular files: 1, as zero.png"),
        (socket, "no regular files: 1, as s.png"),
        (self_link, "links in a loop: 1, as self.png"),
        (pair_of_links, "links in a loop: 2, as a.png"),
        (link_above, "links in a loop: 1, as inner/up"),
        (link_to_itself, "links in a loop: 1, as here"),
        (too_deep, "paths that are too long: 1, as ddd"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_picture_is_skipped_and_listed(make, says, deep, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(deep / "cache"))
    monkeypatch.setattr(folders, "SETTLED", 0)
    root = put(deep / "set", "good.png", "other/good.png")
    make(root)
    for _ in range(2):  # walked, then from the cache
        pictures = open_pictures([str(root)], "all")
        assert names(pictures) == ["good.png", "good.png"]
        assert len(pictures.notes) == 1 and says in pictures.notes[0] and "skipped, " in pictures.notes[0]
        assert all(pictures.read(i).shape == (3, 12, 16) for i in range(2))
        monkeypatch.setattr(folders, "walk", lambda root: pytest.fail("walked although nothing changed"))
    monkeypatch.undo()


def test_folders_nested_deeper_than_calls(deep):
    here = os.getcwd()
    os.chdir(deep)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    put(deep, "a.png")
    assert names(open_pictures([str(deep)], "all")) == ["a.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_listed_and_looked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SETTLED", 0)
    root = put(tmp_path / "set", "a.png", "secret/b.png")
    (root / "secret").chmod(0)
    try:
        assert "no permission: 1, as secret" in open_pictures([str(root)], "all").notes[0]
    finally:
        (root / "secret").chmod(0o700)
    assert names(open_pictures([str(root)], "all")) == ["a.png", "b.png"]


def test_an_unreadable_folder_is_listed_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "SETTLED", 0)
    root = put(tmp_path / "set", "a.png", "secret/b.png")
    scandir = os.scandir

    def refusing(path):
        if os.fsdecode(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    pictures = open_pictures([str(root)], "all")
    assert names(pictures) == ["a.png"] and pictures.notes == ("skipped, no permission: 1, as secret",)
    monkeypatch.setattr(os, "scandir", scandir)  # its time of change is that of before
    assert names(open_pictures([str(root)], "all")) == ["a.png", "b.png"]


def test_a_pipe_in_a_list_is_a_bad_picture_and_is_not_waited_for(tmp_path):
    put(tmp_path, "a.png")
    fifo(tmp_path)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "list.txt").write_text("a.png\npipe.png\nzero.png\n")
    pictures = open_pictures([str(tmp_path / "list.txt")], "all")
    for number in (1, 2):
        with pytest.raises(BadPicture, match="cannot be opened: it is no regular file"):
            pictures.read(number)
    assert pictures.read(0).shape == (3, 12, 16)


@pytest.mark.parametrize("name", ["pipe.txt", "pipe.zip", "pipe.csv", "pipe.tar"])
def test_a_pipe_as_the_data_is_refused_at_once(name, tmp_path):
    os.mkfifo(tmp_path / name)
    code = f"from mimkit.data.sources import open_pictures; open_pictures([{str(tmp_path / name)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert b"cannot read" in done.stderr


def test_only_odd_things_are_named_where_there_is_no_picture(tmp_path):
    fifo(tmp_path)
    with pytest.raises(UserError, match="1 files, none of them pictures: no regular files"):
        open_pictures([str(tmp_path)])


def test_pictures_beside_their_parquet_metadata_and_parquet_below_nothing_else(tmp_path):
    put(tmp_path / "set", "a.png")
    parquet(tmp_path / "set" / "deep" / "x.parquet", [0])
    assert len(open_pictures([str(tmp_path / "set")], "all")) == 1  # pictures come first
    parquet(tmp_path / "hidden" / ".cache" / "x.parquet", [0])
    with pytest.raises(UserError, match=r"none of them pictures|is empty"):
        open_pictures([str(tmp_path / "hidden")])
