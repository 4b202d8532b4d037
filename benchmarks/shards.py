"""What one million pictures cost in shards: packing, indexing, opening, shuffling and reading, beside plain files.

    python benchmarks/shards.py [--pictures N] [--decoded N] [--workers N] [--json FILE] [--place DIR]

Makes N tiny JPEG files in class folders, packs them, indexes the shards by their headers, opens the set, draws an
epoch's order and reads all pictures: at random and in order from the shards, at random from the plain files, and in
order with webdataset's own reader, where it is installed. Each step runs in a process of its own, whose growth of
private memory is noted; CPU time counts, since other work on the machine lengthens wall time alone. Files are in the
system's cache.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from mimkit.data.decode import decode
from mimkit.data.order import Order
from mimkit.data.pictures import Pictures
from mimkit.data.shards.index import open_index, write_index
from mimkit.data.shards.others import index_tars
from mimkit.data.shards.pack import Packing, pack, splits_of
from mimkit.data.sources import open_pictures
from mimkit.data.stream import stream
from mimkit.data.values import Storage

SIDE, PER_FOLDER, DIFFERENT = 32, 1000, 2000


def make(root: Path, pictures: int, workers: int) -> None:
    """JPEG files of a few thousand different pictures, each with its number in a comment."""
    rng = np.random.default_rng(0)
    bodies = []
    for _ in range(DIFFERENT):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(data, "JPEG", quality=85)
        bodies.append(data.getvalue())

    def fill(start: int) -> None:
        folder = root / f"class{start // PER_FOLDER:04}"
        folder.mkdir()
        for number in range(start, min(start + PER_FOLDER, pictures)):
            comment = b"\xff\xfe" + (2 + 8).to_bytes(2, "big") + number.to_bytes(8, "big")
            body = bodies[number % DIFFERENT]
            (folder / f"{number:08}.jpg").write_bytes(body[:2] + comment + body[2:])

    for _ in stream(lambda i: fill(i * PER_FOLDER), -(-pictures // PER_FOLDER), workers):
        pass


def private() -> int:
    """Bytes of memory that this process alone holds and cannot give back."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1000 for line in file if line.startswith("RssAnon"))


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(os.times()[:4])


def measured(what: str, do: Callable[[], Any], count: int) -> dict[str, Any]:
    """Time and memory of a call in a process of its own."""

    def inside(answers: Any) -> None:
        torch.set_num_threads(1)
        memory, wall, cpu = private(), time.perf_counter(), cpu_seconds()
        content = do()
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        answers.put((wall, cpu, private() - memory))
        del content

    context: Any = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=inside, args=(answers,))
    process.start()
    wall, cpu, memory = answers.get()
    process.join()
    row = {"what": what, "pictures": count, "seconds": wall, "cpu_seconds": cpu, "private_mb": memory / 1e6}
    row["per_cpu_second"] = count / max(cpu, 1e-9)
    print(f"{what}: {wall:.1f} s, {cpu:.1f} CPU s", flush=True)
    return row


def epoch(n: int) -> torch.Tensor:
    """All pictures in the order of an epoch, drawn in stretches as readers do it."""
    order = Order(seed=0, n=n, batch_size=1)
    return torch.cat([order.at(torch.arange(first, min(first + 4096, n)))[1] for first in range(0, n, 4096)])


def read_all(pictures: Pictures, numbers: torch.Tensor, decoded: bool = False) -> None:
    for number in numbers.tolist():
        pictures.read(number) if decoded else pictures.data(number)


def read_webdataset(shards: list[str], limit: int, *, buffer: int = 0, decoded: bool = False) -> None:
    import webdataset

    samples = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    if buffer:
        samples = samples.shuffle(buffer)
    storage, count = Storage(3), 0
    for sample in samples:
        if decoded:
            decode(sample["jpg"], storage)
        count += 1
        if count == limit:
            break
    assert count == limit, count


def size_of(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file())


def run(place: Path, n: int, few: int, workers: int) -> list[dict[str, Any]]:
    plain, packed = place / "plain", place / "packed"
    plain.mkdir()
    rows = [measured("making the files", lambda: make(plain, n, workers), n)]

    def pack_all() -> None:
        pack(splits_of(lambda split: open_pictures([str(plain)], split)), packed, Packing(), workers=workers)

    rows.append(measured("pack: decode, check, write, read back", pack_all, n))
    shards = sorted(map(str, packed.glob("*.tar")))
    own = place / "own.index.npz"
    rows.append(
        measured("index by headers, of others' tar files", lambda: write_index(own, *index_tars(shards, "", None)), n)
    )
    assert len(open_index(str(own))) == n

    def opened(folder: Path) -> Pictures:
        return open_pictures([str(folder)], "all", channels=3)

    rows.append(measured("open the shards, with labels", lambda: opened(packed), n))
    rows.append(measured("open the plain files, from the cache", lambda: opened(plain), n))
    rows.append(measured("the order of an epoch", lambda: epoch(n), n))
    order = epoch(n)
    files, tars = opened(plain), opened(packed)
    files.storage, tars.storage  # noqa: B018  # looks at headers once
    rows.append(measured("plain files at random", lambda: read_all(files, order), n))
    rows.append(measured("shards at random", lambda: read_all(tars, order), n))
    rows.append(measured("shards in order", lambda: read_all(tars, torch.arange(n)), n))
    rows.append(measured("plain files at random, decoded", lambda: read_all(files, order[:few], True), few))
    rows.append(measured("shards at random, decoded", lambda: read_all(tars, order[:few], True), few))
    try:
        import webdataset  # noqa: F401
    except ImportError:
        print("webdataset is not installed: left out")
    else:
        rows.append(measured("webdataset in order", lambda: read_webdataset(shards, n), n))
        rows.append(measured("webdataset, buffer of 10,000", lambda: read_webdataset(shards, n, buffer=10_000), n))
        rows.append(
            measured("webdataset in order, our decoder", lambda: read_webdataset(shards, few, decoded=True), few)
        )
    for what, size in (
        ("bytes of the plain files", size_of(plain, "*.jpg")),
        ("bytes of the shards", size_of(packed, "*.tar")),
        ("bytes of the index", size_of(packed, "*.npz")),
    ):
        rows.append({"what": what, "bytes": size, "bytes_per_picture": size / n})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--decoded", type=int, default=100_000, help="how many are decoded, where that is measured")
    parser.add_argument("--workers", type=int, default=2, help="processes that make files and pack; others are one")
    parser.add_argument("--place", help="a folder with room for 6 GB and as many files; by default a temporary one")
    parser.add_argument("--json", help="a file")
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=args.place))
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    try:
        rows = run(place, args.pictures, min(args.decoded, args.pictures), args.workers)
    finally:
        shutil.rmtree(place)
    table = Table(
        "", "s", "CPU s", "us of CPU", "pictures a CPU second", "MB private", title=f"{args.pictures:,} pictures"
    )
    for row in rows:
        if "seconds" in row:
            per = row["cpu_seconds"] / row["pictures"] * 1e6
            cells = row["seconds"], row["cpu_seconds"], per, row["per_cpu_second"], row["private_mb"]
            table.add_row(row["what"], *(f"{value:,.1f}" for value in cells))
        else:
            table.add_row(row["what"], f"{row['bytes'] / 1e6:,.0f} MB", "", f"{row['bytes_per_picture']:.0f} B each")
    Console(width=120).print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
