"""--data as a URL: folders, archives, tables and lists in a store are what they are on a disk."""

import os
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mimkit.core.errors import UserError
from mimkit.data import blocks, remote
from mimkit.data.sources import open_measured, open_pictures
from sets import packed, parquet, png, put
from stores import Store, store  # noqa: F401  a fixture


def assert_same(here, there) -> None:
    assert [int(here.read(i)[0, 0, 0]) for i in range(len(here))] == [
        int(there.read(i)[0, 0, 0]) for i in range(len(there))
    ]
    assert here.classes == there.classes and here.has_test == there.has_test and here.no_labels == there.no_labels
    assert (here.labels is None) == (there.labels is None)
    assert here.labels is None or here.labels.tolist() == there.labels.tolist()
    assert [os.path.basename(here.where(i)) for i in range(len(here))] == [
        os.path.basename(there.where(i)) for i in range(len(there))
    ]


def both(url: str, path: Path, split: str):
    return open_pictures([url], split), open_pictures([str(path)], split)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = put(tmp_path / "set", "train/ant/*3.png", "train/bee/*2.png", "val/bee/*2.png", "unlabeled2017/x.png")
    put(root, ".hidden/y.png")
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_folders_and_archives(split, folder, store):  # noqa: F811
    here, there = both(store.put_folder("set", folder), folder, split)
    assert_same(here, there)
    assert here.notes == there.notes and here.where(0).startswith("s3://bucket/set/")
    for name in ("x.zip", "x.tar"):
        file = packed(folder, folder.parent / name)
        here, there = both(store.put(name, file), file, split)
        assert_same(here, there)
        assert here.where(0).startswith(f"s3://bucket/{name}/")


def test_what_a_bucket_holds_is_its_fingerprint(folder, store):  # noqa: F811
    url = store.put_folder("set", folder)
    first = open_pictures([url])
    requests = len(store.gets())
    assert first.fingerprint == open_pictures([url]).fingerprint and len(store.gets()) == requests
    store.put("set/train/ant/0.png", png(200))
    assert open_pictures([url]).fingerprint != first.fingerprint
    with pytest.raises(UserError, match=r"0.png changed while it was read"):
        first.read(0)


def test_labels_of_metadata(store, tmp_path):  # noqa: F811
    root = put(tmp_path / "set", "*4.png")
    (root / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n2.png,cat\n3.png,dog\n")
    assert_same(*both(store.put_folder("set", root), root, "all"))


def test_parquet_files(store, tmp_path):  # noqa: F811
    for split, labels in (("train", [0, 1, 0, 1]), ("test", [1, 0])):
        for number in range(2):
            parquet(tmp_path / "set" / "data" / f"{split}-0000{number}-of-00002.parquet", labels, names=["ant", "bee"])
    url = store.put_folder("set", tmp_path / "set")
    for split in ("train", "test", "all"):
        assert_same(*both(url, tmp_path / "set", split))
    files = [f"data/train-0000{number}-of-00002.parquet" for number in range(2)]
    here = open_pictures([f"{url}/{file}" for file in files], "all")
    assert_same(here, open_pictures([str(tmp_path / "set" / file) for file in files], "all"))
    assert here.where(5) == f"{url}/{files[1]} row 1"
    first = here.fingerprint
    store.put(f"set/{files[0]}", parquet(tmp_path / "other.parquet", [1, 1, 0, 1]))
    assert open_pictures([f"{url}/{file}" for file in files], "all").fingerprint != first


def test_lists(store, tmp_path):  # noqa: F811
    root = put(tmp_path / "set", "a/*3.png")
    text = "path,label\na/0.png,cat\na/1.png,dog\na/2.png,cat\n"
    (root / "list.csv").write_text(text)
    url = store.put_folder("set", root)
    here, there = both(f"{url}/list.csv", root / "list.csv", "all")
    assert_same(here, there)
    (root / "far.csv").write_text(text.replace("a/", f"{url}/a/"))
    far = open_pictures([str(root / "far.csv")], "all")
    assert_same(far, there)
    assert far.fingerprint == open_pictures([str(root / "far.csv")], "all").fingerprint
    with pytest.raises(UserError, match=r"there is no file or folder s3://bucket/set/b.csv"):
        open_pictures([f"{url}/b.csv"])


class Hub(MemoryFileSystem):
    """Stands for the file system of huggingface_hub: no network here."""

    protocol = "hf"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("hf:/").removeprefix("hf://"))


@pytest.mark.parametrize("layout", ["data/{split}-00000-of-00001.parquet", "default/{split}/0000.parquet"])
def test_a_set_of_the_hub(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub = Hub(skip_instance_cache=True)
    monkeypatch.setattr(remote, "_filesystems", {(os.getpid(), "hf"): hub})
    monkeypatch.setattr(hub, "store", {})
    for split, labels in (("train", [0, 1, 0, 1]), ("validation", [1, 0])):
        file = parquet(tmp_path / "set" / layout.format(split=split), labels, names=["ant", "bee"])
        hub.pipe_file(f"/datasets/owner/name/{layout.format(split=split)}", file.read_bytes())
    hub.pipe_file("/datasets/owner/name/README.md", b"# A set")
    train, test, _ = open_measured(["hf://datasets/owner/name"])
    assert (len(train), len(test), train.classes) == (4, 2, ("ant", "bee"))
    assert_same(train, open_measured([str(tmp_path / "set")]).train)


def test_what_is_no_data(store, tmp_path, monkeypatch):  # noqa: F811
    store.put("set/readme.md", b"text")
    for place, line in {
        "s3://bucket/nothing": "there is no file or folder s3://bucket/nothing",
        "s3://nobody/set": "there is no file or folder s3://nobody/set",
        "s3://bucket/set": r"s3://bucket/set holds 1 files, none of them pictures.*: \.md",
        "s3://bucket/set/readme.md": "cannot read s3://bucket/set/readme.md: give a folder, a list or an archive",
        store.put("x.tar.gz", b"\x1f\x8b and more"): "s3://bucket/x.tar.gz cannot be read picture by picture",
        store.put("x.zip", b"no archive"): "s3://bucket/x.zip cannot be read as an archive",
        store.put("x.parquet", b"no table"): "s3://bucket/x.parquet is not a Parquet file that can be read",
    }.items():
        with pytest.raises(UserError, match=line):
            open_pictures([place])
    url = store.put_folder("many", put(tmp_path / "many", "*20.png"))
    monkeypatch.setenv(blocks.SETTING, "0.000001")
    assert "in each epoch they are fetched again" in open_pictures([url]).notes[-1]
