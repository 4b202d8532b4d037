"""Parquet files of large row groups: laid out in little memory, and read as they were written."""

import numpy as np
import pytest

from mimkit.data import parquet
from mimkit.data.sources import open_pictures

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ROWS, SIZE = 12_000, 5_000


@pytest.fixture(scope="module")
def one_group(tmp_path_factory):
    """A file of 60 MB in one row group; its first picture is missing, and the last ones are equal."""
    data = np.random.default_rng(0).integers(0, 256, (ROWS, SIZE), np.uint8)
    data[-2] = data[-1]
    values = [None, *(row.tobytes() for row in data[1:])]
    file = tmp_path_factory.mktemp("parquet") / "one.parquet"
    table = pa.table({"image": [{"bytes": value, "path": None} for value in values], "label": np.arange(ROWS) % 3})
    pq.write_table(table, file, row_group_size=ROWS)
    return file, values


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_row_group_is_never_in_memory_as_a_whole(one_group, in_memory, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(parquet, "IN_MEMORY", parquet.IN_MEMORY if in_memory else 0)
    file, values = one_group
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        pictures = open_pictures([str(file)], "all")
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < 25_000_000
    assert [pictures.data(i) for i in (0, 1, 777, ROWS - 2, ROWS - 1)] == [
        b"",
        *(values[i] for i in (1, 777, ROWS - 2, ROWS - 1)),
    ]
    assert len(pictures) == ROWS and pictures.labels.tolist() == [i % 3 for i in range(ROWS)]


def test_more_bytes_than_the_footer_says_are_held(tmp_path):
    same = bytes(range(256)) * 40
    file = tmp_path / "same.parquet"
    pq.write_table(pa.table({"image": [same] * 500, "label": [1, 2] * 250}), file)
    pictures = open_pictures([str(file)], "all")
    assert all(pictures.data(i) == same for i in range(500))
