"""A set in shards: read at random by all workers, refused by name when a shard changed, found by what one types."""

import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mimkit.core.errors import UserError
from mimkit.data.decode import BadPicture
from mimkit.data.shards import shards as module
from mimkit.data.shards.index import write_index
from mimkit.data.shards.others import index_tars
from mimkit.data.shards.pack import Packing, pack, splits_of
from mimkit.data.shards.shards import Shards, expanded, find
from mimkit.data.sources import open_pictures
from mimkit.data.stored import open_stored
from mimkit.data.stream import stream
from sets import png, put
from stores import store  # noqa: F401  a fixture
from tars import tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five shards of forty pictures each, with an index."""
    files = []
    for shard in range(5):
        members = {f"{'ant' if i % 2 else 'bee'}/{i:04}.png": png(i) for i in range(shard * 40, shard * 40 + 40)}
        files.append(str(tar(tmp_path / "set" / f"a-{shard:03}.tar", members)))
    write_index(tmp_path / "set" / "x.index.npz", *index_tars(files, str(tmp_path / "set"), None))
    return tmp_path / "set"


def shade(pictures, i: int) -> int:
    return int(pictures.read(i)[0, 0, 0])


def test_processes_and_threads_read_at_random(folder, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 2)  # fewer than there are shards
    pictures = open_pictures([str(folder)], "all")
    assert len(pictures) == 200 and pictures.classes == ("ant", "bee")
    assert [shade(pictures, i) for i in range(200)] == list(range(200))
    assert pictures.labels.tolist() == [1 - i % 2 for i in range(200)]
    again = pickle.loads(pickle.dumps(pictures))
    assert [shade(again, i) for i in (199, 3, 120)] == [199, 3, 120] and torch.equal(again.labels, pictures.labels)
    assert len(pickle.dumps(pictures)) < 1000  # neither columns nor labels are sent
    with ThreadPoolExecutor(4) as pool:
        order = [(i * 73) % 200 for i in range(200)]
        assert list(pool.map(lambda i: shade(pictures, i), order)) == order
    assert list(stream(lambda i: shade(pictures, (i * 73) % 200), 200, workers=2)) == order
    assert pictures.where(41) == f"{folder}/a-001.tar/ant/0041.png" and pictures.size(0) == (12, 16)


def test_shards_stay_open_but_not_all(folder, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 2)
    opened = []
    monkeypatch.setattr(module, "open_stored", lambda place: opened.append(place) or open_stored(place))
    pictures = open_pictures([str(folder)], "all")
    for i in [*range(200), *range(120, 200)]:
        pictures.data(i)
    assert len(opened) == 5 and len(pictures._opened) == 2
    pictures.data(0)
    assert opened[-1] == str(folder / "a-000.tar") and len(opened) == 6


def test_what_one_types_finds_the_set(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for place in (str(folder), "set", "set/x.index.npz", "./set/"):
        assert isinstance(open_pictures([place], "all"), Shards)
    (folder / "x.index.npz").unlink()
    expected = open_pictures(["set"], "all").fingerprint
    for place in ("set/a-{000..004}.tar", "set/a-*.tar", str(folder / "a-00[0-4].tar")):
        pictures = open_pictures([place], "all")
        assert len(pictures) == 200
    assert open_pictures(["set"], "all").fingerprint == expected
    assert len(open_pictures(["set/a-{001..002}.tar"], "all")) == 80
    with pytest.raises(UserError, match=r"no tar file set/a-005\.tar: .*a range as 'a-\{00\.\.12\}\.tar'"):
        open_pictures(["set/a-{000..005}.tar"], "all")
    for name in "yz":
        shutil.copy(folder / "a-000.tar", folder / f"{name}.index.npz")
    with pytest.raises(UserError, match=r"set holds several indexes: name one, as set/y\.index\.npz"):
        open_pictures(["set"], "all")


def test_tars_without_an_index_are_indexed_once(folder, monkeypatch):
    (folder / "x.index.npz").unlink()
    assert len(open_pictures([str(folder)], "all")) == 200
    monkeypatch.setattr(module, "index_tars", lambda *args: pytest.fail("indexed again although nothing changed"))
    assert len(open_pictures([str(folder)], "all")) == 200
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    tar(folder / "a-005.tar", {"ant/9.png": png(9)})
    assert len(open_pictures([str(folder)], "all")) == 201
    assert not list(folder.glob("*.npz"))  # the folder of others stays as it is


def test_words_with_braces():
    assert list(expanded("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expanded("s3://b/{train,val}-{0..1}.tar")) == [
        f"s3://b/{s}-{i}.tar" for s in ("train", "val") for i in (0, 1)
    ]
    assert list(expanded("plain.tar")) == ["plain.tar"]
    assert find(["s3://b/x-{0..1}.tar"]) == ["s3://b/x-0.tar", "s3://b/x-1.tar"]
    with pytest.raises(UserError, match=r"s3://b/x-1\.tar is named twice"):
        find(["s3://b/x-{0..1}.tar", "s3://b/x-1.tar"])


def test_a_copy_is_the_same_set_and_another_file_is_refused_by_name(folder, tmp_path):
    before = open_pictures([str(folder)], "all")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)  # with other times
    copy = open_pictures([str(tmp_path / "copy")], "all")
    assert [shade(copy, i) for i in range(200)] == list(range(200)) and copy.fingerprint == before.fingerprint
    changed = tmp_path / "copy" / "a-002.tar"
    data = changed.read_bytes()
    tar(changed, {f"{'ant' if i % 2 else 'bee'}/{i:04}.png": png(i + 1) for i in range(80, 120)})
    assert len(data) == changed.stat().st_size  # not by its size alone
    fix = "copy it again, or make the index anew with 'mimkit shards index'"
    copy = open_pictures([str(tmp_path / "copy")], "all")
    with pytest.raises(UserError, match=rf"copy/a-002\.tar is not the shard .* it holds something else; {fix}"):
        copy.read(85)
    changed.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"a-002\.tar .* it has [\d,]+ bytes instead of [\d,]+; {fix}"):
        open_pictures([str(tmp_path / "copy")], "all").read(85)
    changed.unlink()
    with pytest.raises(UserError, match=r"cannot read the shard .*a-002\.tar \(No such file"):
        open_pictures([str(tmp_path / "copy")], "all").read(85)
    with pytest.raises(UserError, match=r"a-002\.tar"):  # through workers too
        list(stream(lambda i: shade(copy, i), 200, workers=2))


def test_one_flipped_bit_of_a_packed_picture_is_a_bad_picture(tmp_path):
    plain = put(tmp_path / "plain", "*30.png")
    pack(splits_of(lambda split: open_pictures([str(plain)], split)), tmp_path / "packed", Packing())
    pictures = open_pictures([str(tmp_path / "packed")], "all")
    file = tmp_path / "packed" / "train-00000.tar"
    data = bytearray(file.read_bytes())
    row = int(pictures._index.rows.offset[10])
    data[row + 30] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadPicture, match="damaged in the shard"):
        open_pictures([str(tmp_path / "packed")], "all").read(10)
    assert open_pictures([str(tmp_path / "packed")], "all").read(11) is not None


def test_a_set_in_a_store_is_the_same_set(store, tmp_path):  # noqa: F811
    plain = put(tmp_path / "plain", "train/ant/*30.png", "train/bee/*30.png", "val/ant/*8.png", "val/bee/*8.png")
    packed = tmp_path / "packed"
    pack(splits_of(lambda split: open_pictures([str(plain)], split)), packed, Packing(shard_mb=0.02))
    url = store.put_folder("in1k", packed)
    for place in (f"{url}/shards.index.npz", url):
        for split in ("train", "test"):
            here, there = open_pictures([place], split), open_pictures([str(packed)], split)
            assert here.fingerprint == there.fingerprint and torch.equal(here.labels, there.labels)
            assert all(torch.equal(here.read(i), there.read(i)) for i in range(len(there)))
            assert here.remote and not there.remote and here.where(0) == there.where(0).replace(str(packed), url)
    order = [(i * 7) % 60 for i in range(60)]
    train = open_pictures([url], "train")
    expected = [shade(train, i) for i in order]
    assert list(stream(lambda i: shade(train, order[i]), 60, workers=2)) == expected
    store.put("in1k/train-00001.tar", (packed / "train-00000.tar").read_bytes() + bytes(10_240))
    with pytest.raises(UserError, match=r"s3://bucket/in1k/train-00001\.tar is not the shard that was indexed"):
        [shade(open_pictures([url], "train"), i) for i in range(60)]
    store.client().delete_object(Bucket="bucket", Key="in1k/train-00001.tar")
    with pytest.raises(UserError, match=r"in1k/train-00001\.tar"):
        [shade(open_pictures([url], "train"), i) for i in range(60)]


def test_tars_of_others_in_a_store(folder, store, monkeypatch):  # noqa: F811
    url = store.put_folder("wds", folder)
    there = open_pictures([str(folder)], "all")
    store.client().delete_object(Bucket="bucket", Key="wds/x.index.npz")
    here = open_pictures([f"{url}/a-{{000..004}}.tar"], "all")  # indexed into the cache
    assert [shade(here, i) for i in (0, 77, 199)] == [0, 77, 199] and torch.equal(here.labels, there.labels)
    files = find([f"{url}/a-{{000..004}}.tar"])
    write_index(folder / "own.index.npz", *index_tars(files, str(folder), None))
    store.put("wds/own.index.npz", folder / "own.index.npz")
    assert torch.equal(open_pictures([f"{url}/own.index.npz"], "all").read(150), there.read(150))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_without_a_test_split_is_split_by_address(folder, split):
    pictures = open_pictures([str(folder)], split)
    assert len(pictures) == {"train": 160, "test": 40}[split] and not pictures.has_test


FLAT = """
import os, sys
from mimkit.data.sources import open_pictures
pictures = open_pictures([sys.argv[1]], "all")
def private():
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":") for line in file if ":" in line and "kB" in line)
    return sum(int(fields[name].split()[0]) for name in ("Private_Dirty", "Private_Clean")) * 1024
n, sizes = len(pictures), []
for epoch in range(3):
    for i in range(n):
        pictures.data(i * 7919 % n)
        pictures.where(i)
    sizes.append(private())
print(*sizes)
"""


def test_memory_of_a_reader_is_flat(tmp_path):
    data = png(1)
    files = []
    for shard in range(4):
        members = {f"{i:06}-{'k' * 80}.png": data for i in range(shard * 5000, shard * 5000 + 5000)}
        files.append(str(tar(tmp_path / "set" / f"{shard}.tar", members)))
    write_index(tmp_path / "set" / "x.index.npz", *index_tars(files, str(tmp_path / "set"), None))
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[3])}
    said = subprocess.run(
        [sys.executable, "-c", FLAT, str(tmp_path / "set")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    first, *_, last = map(int, said.stdout.split())
    assert last - first < 1_000_000
