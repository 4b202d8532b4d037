"""The file of an index: written alike, mapped and not read, copied from a store, and refused when it is damaged."""

import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from mimkit.core.errors import UserError
from mimkit.data.folders import Paths
from mimkit.data.shards import index as module
from mimkit.data.shards.index import About, Rows, Shard, open_index, write_index
from mimkit.data.stored import LocalFile

SHARDS = (Shard("a.tar", 10, "10 1"), Shard("b/c.tar", 20, "20 1", (0, 512), "x"), Shard("s3://store/d.tar", 5, "tag"))


def rows(n: int = 9, classes: int = 2) -> Rows:
    number = np.arange(n)
    return Rows(
        shard=number * 3 // max(n, 1),
        offset=number * 1000 + 2**40,
        size=number + 7,
        label=number % classes - 1 if classes else np.full(n, -1),
        checksum=number,
        names=Paths.pack([b"\xff%d.jpg" % i for i in range(n)]),
    )


def about(**more) -> About:
    return About(shards=SHARDS, train=6, classes=("ü", "x"), named=True, notes=("\udcff",), packed={"a": [1]}, **more)


def test_what_is_read_is_what_was_written(tmp_path):
    write_index(tmp_path / "x.index.npz", about(), rows())
    index = open_index(str(tmp_path / "x.index.npz"))
    assert replace(index.about, fingerprint="") == about() and len(index) == 9 and len(index.about.fingerprint) == 20
    for name, column in rows().columns().items():
        assert np.array_equal(index.rows.columns()[name], column), name
    assert list(index.rows.names) == [b"\xff%d.jpg" % i for i in range(9)]
    assert [index.place(i) for i in range(3)] == [f"{tmp_path}/a.tar", f"{tmp_path}/b/c.tar", "s3://store/d.tar"]
    assert index.labels(2, 5).tolist() == [-1, 0, -1]
    with np.load(tmp_path / "x.index.npz", allow_pickle=False) as archive:  # others can read it
        assert np.array_equal(archive["offset"], rows().offset)


def test_equal_sets_make_equal_files_and_fingerprints_leave_out_where_and_when(tmp_path):
    for name in "ab":
        write_index(tmp_path / f"{name}.index.npz", about(), rows())
    assert (tmp_path / "a.index.npz").read_bytes() == (tmp_path / "b.index.npz").read_bytes()

    def fingerprint(changed: About, columns: Rows) -> str:
        write_index(tmp_path / "x.index.npz", changed, columns)
        return open_index(str(tmp_path / "x.index.npz")).about.fingerprint

    before = fingerprint(about(), rows())
    copied = replace(about(), shards=tuple(replace(shard, version="other") for shard in SHARDS))
    assert fingerprint(copied, rows()) == before
    larger = replace(about(), shards=(*SHARDS[:2], replace(SHARDS[2], size=6)))
    assert len({before, fingerprint(larger, rows()), fingerprint(about(), replace(rows(), label=-rows().label))}) == 3


def test_columns_are_mapped_and_lie_at_multiples_of_64(tmp_path):
    write_index(tmp_path / "x.index.npz", about(), rows())
    index = open_index(str(tmp_path / "x.index.npz"))
    for name in ("shard", "offset", "size", "label", "checksum"):
        column = vars(index.rows)[name]
        base = column
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap) and (column.ctypes.data - base.ctypes.data) % 64 == 0
    assert len(pickle.dumps(index)) < 500
    again = pickle.loads(pickle.dumps(index))
    assert again.about == index.about and again.rows.offset.tolist() == index.rows.offset.tolist()


def test_pictures_of_a_shard(tmp_path):
    write_index(tmp_path / "x.index.npz", about(), replace(rows(), shard=np.array([0, 0, 1, 2, 2, 2, 0, 1, 1])))
    index = open_index(str(tmp_path / "x.index.npz"))
    assert [index.of_shard(i).tolist() for i in range(3)] == [[0, 1, 6], [2, 7, 8], [3, 4, 5]]


def test_an_index_in_a_store_is_copied_once(tmp_path, monkeypatch):
    class Object(LocalFile):
        reads = 0

        def __init__(self, place: str) -> None:
            super().__init__(tmp_path / place.rpartition("/")[2])
            self.place = place

        def read(self, offset: int, size: int) -> bytes:
            Object.reads += 1
            return super().read(offset, size)

    class Remote(module.StoredFile):
        def __init__(self, place: str) -> None:
            self._file, self.place = Object(place), place

        size = property(lambda self: self._file.size)
        version = property(lambda self: self._file.version)

        def read(self, offset: int, size: int) -> bytes:
            return self._file.read(offset, size)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "open_stored", Remote)
    write_index(tmp_path / "x.index.npz", about(), rows())
    first = open_index("s3://store/in1k/x.index.npz")
    assert first.place(0) == "s3://store/in1k/a.tar" and Object.reads == 1
    assert open_index("s3://store/in1k/x.index.npz").rows.size.tolist() == rows().size.tolist() and Object.reads == 1
    write_index(tmp_path / "x.index.npz", about(), rows(6))
    assert len(open_index("s3://store/in1k/x.index.npz")) == 6 and Object.reads == 2


def test_what_is_damaged_is_refused_in_one_line(tmp_path):
    file = tmp_path / "x.index.npz"
    write_index(file, about(), rows())
    good = file.read_bytes()
    broken = {
        "short": good[: len(good) // 2],
        "empty": b"",
        "text": b"no index" * 100,
        "format": good.replace(b'"format": 1', b'"format": 2'),
    }
    for data in broken.values():
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"x\.index\.npz is (damaged|an index of another version)") as caught:
            open_index(str(file))
        assert "\n" not in str(caught.value)
    for wrong in (
        replace(rows(), shard=np.full(9, 3)),
        replace(rows(), label=np.full(9, 2)),
        replace(rows(), size=np.arange(8)),
        replace(rows(), checksum=np.arange(2)),
    ):
        write_index(file, about(), wrong)
        with pytest.raises(UserError, match="damaged, or no index"):
            open_index(str(file))
    np.savez_compressed(file, **rows().columns())
    with pytest.raises(UserError, match="damaged, or no index"):
        open_index(str(file))
    with pytest.raises(UserError, match=r"cannot read .*none\.index\.npz: No such file"):
        open_index(str(tmp_path / "none.index.npz"))
    assert zipfile.is_zipfile(file) and [path.name for path in tmp_path.glob(".*")] == []
