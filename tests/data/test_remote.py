"""Files in a store: parts are read in blocks that a local cache keeps, failures are borne, changes are refused."""

import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest

from mimkit.core.errors import UserError
from mimkit.data import blocks as disk
from mimkit.data import remote
from mimkit.data.blocks import Blocks, blocks
from mimkit.data.remote import RemoteFile, listing
from mimkit.data.stored import as_file, open_stored
from stores import Store, store  # noqa: F401  a fixture

NOISE = np.random.default_rng(0).bytes(1 << 20)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 1 << 16)


@pytest.fixture
def noise(store: Store) -> str:  # noqa: F811
    return store.put("noise.bin", NOISE)


def test_parts_are_read_once(store, noise):  # noqa: F811
    file = open_stored(noise)
    assert file.size == len(NOISE) and file.place == noise
    for offset, size in [(0, 10), (5, 70_000), (len(NOISE) - 3, 3), (1 << 16, 1 << 16), (9, 0), (65_530, 12)]:
        assert file.read(offset, size) == NOISE[offset : offset + size]
    first = store.gets("noise")
    assert len(first) == len(set(first)) == 3  # blocks 0, 1 and the last
    again = pickle.loads(pickle.dumps(file))
    assert again.read(0, 100) == NOISE[:100] and again.version == file.version
    assert as_file(again).read() == NOISE
    assert len(store.gets("noise")) == len(set(store.gets("noise"))) == 16
    with pytest.raises(OSError, match="ends before"):
        file.read(len(NOISE) - 1, 2)


def test_many_parts_are_asked_for_at_the_same_time(store, noise):  # noqa: F811
    file, store.faults.pause = open_stored(noise), 0.05
    waiting: list[int] = []
    answer, active = store.application, threading.Semaphore(0)

    def counted(environ, start):
        active.release()
        waiting.append(active._value)
        body = list(answer(environ, start))
        active.acquire()
        return body

    store.application = counted
    ranges = [(i << 16, 500) for i in range(16)]
    assert file.read_many(ranges) == [NOISE[place : place + 500] for place, _ in ranges]
    assert max(waiting) > 1


def read_in_a_fork(file: RemoteFile, results) -> None:
    results.put([file.read(i << 16, 1 << 16) for i in range(16)] == [NOISE[i << 16 :][: 1 << 16] for i in range(16)])


def test_two_processes_share_the_cache_and_nothing_that_is_open(store, noise):  # noqa: F811
    file = open_stored(noise)
    file.read(0, 10)  # the parent has connections when it forks
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=read_in_a_fork, args=(file, results)) for _ in range(2)]
    for child in children:
        child.start()
    assert [results.get(timeout=60) for _ in children] == [True, True]
    for child in children:
        child.join(10)
    assert len(store.gets("noise")) == len(set(store.gets("noise"))) == 16


def test_the_bound_is_kept_and_the_oldest_go(store, noise, monkeypatch):  # noqa: F811
    monkeypatch.setenv(disk.SETTING, "0.0005")  # 500 kB of 1 MB
    file = open_stored(noise)
    for i in range(16):
        file.read(i << 16, 10)
        file.read(0, 10)  # in use all the time
        assert blocks().total() <= 500_000
    numbers = [extent for _, extent in store.gets("noise")]
    assert len(numbers) == 16  # block 0 never went
    file.read(1 << 16, 10)
    assert len(store.gets("noise")) == 17  # block 1 did
    monkeypatch.setenv(disk.SETTING, "0")
    assert file.read(3, 100) == NOISE[3:103] and store.gets("noise")[-1][1] == "bytes=3-102"
    monkeypatch.setenv(disk.SETTING, "much")
    with pytest.raises(UserError, match="MIMKIT_CACHE_GB=much is no number"):
        file.read(0, 1)


@pytest.mark.parametrize("damage", ["flip", "cut", "sums", "empty"])
def test_a_damaged_block_is_fetched_again(damage, store, noise):  # noqa: F811
    file = open_stored(noise)
    file.read(0, 10)
    (path,) = [path for path in (blocks().folder).rglob("*") if path.is_file() and path.suffix != ".lock"]
    data = bytearray(path.read_bytes())
    place = {"flip": 700, "sums": len(data) - 8}.get(damage, 0)
    data[place] ^= 1
    path.write_bytes({"cut": data[:-1], "empty": b""}.get(damage, data))
    assert file.read(500, 60_000) == NOISE[500:60_500]
    assert len(store.gets("noise")) == 2
    assert file.read(500, 60_000) == NOISE[500:60_500]
    assert len(store.gets("noise")) == 2


def test_a_full_disk_is_no_error(store, noise, monkeypatch):  # noqa: F811
    def full(self, path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Blocks, "_write", full)
    file = open_stored(noise)
    assert file.read(0, 100) == file.read(0, 100) == NOISE[:100]
    assert len(store.gets("noise")) == 2


def test_errors_and_cut_connections_are_borne(store, noise):  # noqa: F811
    store.faults.errors, store.faults.cuts = {"HEAD": 2, "GET": 2}, {"GET": 2}
    file = open_stored(noise)
    assert file.read(0, 1 << 16) == NOISE[: 1 << 16]
    store.faults.errors = {"HEAD": 3}  # behind the bytes
    assert file.read(1 << 16, 1 << 16) == NOISE[1 << 16 : 2 << 16]


def test_fewer_bytes_than_asked_for_are_no_answer(store, noise, monkeypatch):  # noqa: F811
    file, system = open_stored(noise), remote.filesystem(noise)
    answers, cat_file = list[int](), system.cat_file

    def short(*args, **extent) -> bytes:
        answers.append(1)
        return cat_file(*args, **extent)[: -1 if len(answers) == 1 else None]

    monkeypatch.setattr(system, "cat_file", short)
    assert file.read(0, 1 << 16) == NOISE[: 1 << 16] and len(answers) == 2


@pytest.mark.slow
def test_slow_answers_are_waited_for_and_dead_ones_not(store, noise, monkeypatch):  # noqa: F811
    file, store.faults.pause = open_stored(noise), 1.5
    assert file.read(0, 10) == NOISE[:10]
    store.faults.pause = 2.5
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    remote.filesystem(noise).s3.meta.config.read_timeout = 1
    remote.filesystem(noise).read_timeout = 1
    remote.filesystem(noise).connect(refresh=True)
    with pytest.raises(UserError, match=r"s3://bucket/noise.bin cannot be reached: .*2 times in a row"):
        file.read(1 << 16, 10)


def test_what_stays_wrong_is_one_line(store, noise, monkeypatch):  # noqa: F811
    file = open_stored(noise)
    store.faults.errors = {"GET": 99}
    with pytest.raises(UserError, match=r"^s3://bucket/noise.bin cannot be reached: the server answers 500, 5 times"):
        file.read(0, 10)
    assert 99 - store.faults.errors["GET"] == 5
    store.faults.errors = {}
    with pytest.raises(UserError, match=r"there is no file or folder s3://bucket/nothing.zip"):
        open_stored("s3://bucket/nothing.zip")
    with pytest.raises(UserError, match="no place that mimkit reads: give a path, or s3"):
        open_stored("gopher://bucket/x")
    store.faults.denied = True
    before = len(store.requests)
    with pytest.raises(UserError, match=r"access is denied \(AWS's own variables"):
        file.read(0, 10)
    assert len(store.requests) == before + 1  # which asking again does not mend
    store.server.shutdown()
    store.server.server_close()
    with pytest.raises(UserError, match=r"s3://bucket/noise.bin cannot be reached: .*5 times in a row") as refused:
        open_stored(noise)
    assert "\n" not in str(refused.value) and "hush" not in str(refused.value)


def test_a_changed_object_is_refused(store, noise):  # noqa: F811
    file = open_stored(noise)
    file.read(0, 10)
    store.put("noise.bin", NOISE[::-1])
    assert file.read(0, 10) == NOISE[:10]  # of the version that it was opened as
    with pytest.raises(UserError, match=r"noise.bin changed while it was read"):
        file.read(1 << 16, 10)
    assert open_stored(noise).read(0, 10) == NOISE[::-1][:10]
    store.client().delete_object(Bucket="bucket", Key="noise.bin")
    with pytest.raises(UserError, match="there is no file"):
        file.read(1 << 16, 10)


def test_a_file_without_a_version_is_not_kept(store, noise, monkeypatch):  # noqa: F811
    """Nobody could tell its blocks from those of another file that was there before."""
    size, version = remote.describe(noise)
    assert version and RemoteFile(noise).read(5, 9) == NOISE[5:14]
    monkeypatch.setattr(remote, "describe", lambda url: (size, ""))
    other = bytes(reversed(NOISE))
    file = RemoteFile(noise)
    assert file.read(5, 9) == NOISE[5:14]
    store.put("noise.bin", other)
    assert file.read(5, 9) == other[5:14]


def test_files_of_web_servers(store, noise):  # noqa: F811
    pytest.importorskip("aiohttp")
    url = store.client().generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "noise.bin"})
    assert "Signature" in url
    store.faults.errors, store.faults.cuts = {"HEAD": 1, "GET": 1}, {"GET": 1}
    file = open_stored(url)
    assert file.place == f"{store.url}/bucket/noise.bin" and file.read(7, 100) == NOISE[7:107]
    store.faults.errors = {"HEAD": 99, "GET": 99}
    with pytest.raises(UserError) as refused:
        file.read(1 << 16, 10)
    assert "noise.bin cannot be reached: the server answers 500" in str(refused.value)
    assert "Signature" not in str(refused.value)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_other_stores(protocol, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    folder = f"{protocol}://{tmp_path}/set"
    system = fsspec.filesystem(protocol)
    system.makedirs(f"{tmp_path}/set/deep", exist_ok=True)
    system.pipe_file(f"{tmp_path}/set/deep/x.bin", NOISE)
    file = open_stored(f"{folder}/deep/x.bin")
    assert file.read(65_000, 1000) == NOISE[65_000:66_000]
    assert listing(folder) == {"deep/x.bin": (len(NOISE), file.version)}


@pytest.mark.parametrize(("url", "extra"), [("s3://b/x", "s3"), ("gs://b/x", "gcs"), ("hf://datasets/a/b", "hub")])
def test_a_missing_extra_is_named(url, extra, monkeypatch):
    def absent(*args, **options):
        raise ImportError

    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(remote, "_filesystems", {})
    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(UserError, match=rf"pip install 'mimkit\[{extra}\]'"):
        open_stored(url)


def test_blocks_of_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    shared = Blocks(tmp_path / "file" / "blocks", 1 << 20)
    with shared.alone("00" * 10):
        shared.write("00" * 10, b"abc")
    assert shared.read("00" * 10, 3, 0, 3) is None and os.listdir(tmp_path) == ["file"]
