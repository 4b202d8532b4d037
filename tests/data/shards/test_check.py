"""Verification of shards: whatever is changed in them or in the index is named, and so are copies."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mimkit.core.errors import UserError
from mimkit.data.folders import Paths
from mimkit.data.shards.check import check_shards
from mimkit.data.shards.index import open_index, write_index
from mimkit.data.shards.others import index_tars
from mimkit.data.shards.pack import Packing, pack, splits_of
from mimkit.data.sources import open_pictures
from sets import png, put
from tars import tar


@pytest.fixture
def packed(tmp_path) -> Path:
    plain = put(tmp_path / "plain", "train/ant/*30.png", "train/bee/*30.png", "val/ant/*10.png", "val/bee/*10.png")
    (plain / "train" / "bee" / "copy.png").write_bytes(png(65))  # also in val
    (plain / "train" / "bee" / "copy2.png").write_bytes(png(65))
    pack(splits_of(lambda split: open_pictures([str(plain)], split)), tmp_path / "packed", Packing(shard_mb=0.02))
    return tmp_path / "packed"


def named(result: dict) -> dict[str, str]:
    return {
        Path(entry["where"]).relative_to(Path(result["index"]).parent).as_posix(): entry["reason"]
        for entry in result["bad"]
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_a_good_set_is_good_and_copies_are_named(packed, workers):
    result = check_shards(str(packed), workers=workers)
    assert (result["bad"], result["pictures"], result["readable"]) == ([], 82, 82) and result["shards"] >= 5
    (copies,) = result["copies"]
    assert len(copies) == 3 and sum("/train-" in place for place in copies) == 2


def test_what_is_changed_is_named(packed):
    index = open_index(str(packed / "shards.index.npz"))
    shards = sorted(path.name for path in packed.glob("train-*.tar"))
    data = bytearray((packed / shards[0]).read_bytes())
    rows = index.of_shard(0)
    middle, last = int(rows[len(rows) // 3]), int(rows[-2])
    data[int(index.rows.offset[middle]) + 40] ^= 1  # in a picture
    data[int(index.rows.offset[last]) - 512] ^= 1  # in a name: the header no longer fits its checksum
    (packed / shards[0]).write_bytes(data)
    result = check_shards(str(packed))
    assert list(named(result)) == [shards[0]] and "damaged" in named(result)[shards[0]]
    data[int(index.rows.offset[last]) - 512] ^= 1
    (packed / shards[0]).write_bytes(data)
    os.truncate(packed / shards[1], (packed / shards[1]).stat().st_size - 10_240)
    (packed / "test-00000.tar").unlink()
    result = check_shards(str(packed))
    picture = index.rows.names[middle].decode()
    assert named(result).keys() == {shards[1], "test-00000.tar", f"{shards[0]}/{picture}"}
    assert "damaged in the shard" in named(result)[f"{shards[0]}/{picture}"]
    assert "bytes instead of" in named(result)[shards[1]] and "cannot read the shard" in named(result)["test-00000.tar"]
    gone = len(index.of_shard(1)) + len(
        index.of_shard([shard.name for shard in index.about.shards].index("test-00000.tar"))
    )
    assert result["readable"] == 82 - gone - 1


def test_an_index_that_names_other_members_is_named(tmp_path):
    file = tar(tmp_path / "set" / "a.tar", {f"{i:03}.png": png(i) for i in range(30)})
    about, rows = index_tars([str(file)], str(tmp_path / "set"), None)
    rows.offset[7] += 512
    names = Paths.pack([b"999.png" if name == b"020.png" else name for name in rows.names])
    write_index(tmp_path / "set" / "a.index.npz", about, replace(rows, names=names))
    result = check_shards(str(tmp_path / "set"))
    assert list(named(result)) == ["a.tar/007.png", "a.tar/999.png"]


def test_pictures_that_do_not_decode_are_named(tmp_path):
    members = {f"{i:03}.png": png(i) for i in range(6)} | {"bad.jpg": b"no picture", "short.png": png(9)[:45]}
    file = tar(tmp_path / "set" / "a.tar", members)
    write_index(tmp_path / "set" / "a.index.npz", *index_tars([str(file)], str(tmp_path / "set"), None))
    result = check_shards(str(tmp_path / "set" / "a.index.npz"))
    assert named(result).keys() == {"a.tar/bad.jpg", "a.tar/short.png"} and result["readable"] == 6


def test_without_an_index_the_command_is_named(tmp_path):
    tar(tmp_path / "set" / "a.tar", {"0.png": png(0)})
    with pytest.raises(UserError, match=r"set holds no index: write one with 'mimkit shards index .*set'"):
        check_shards(str(tmp_path / "set"))
