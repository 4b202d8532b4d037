"""Pictures a second and requests: a zip of JPEGs on this disk and on a local S3 server, in one run.

    python benchmarks/stores.py [--pictures 4000]

Needs the extra [stores]. The server (moto) answers on this machine and shares its cores, so the first epoch tells what
its requests cost here, and no network's speed.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mimkit-stores-")

import numpy as np
from PIL import Image

from mimkit.data.sources import open_pictures
from mimkit.data.stream import stream
from stores import KEYS, Store


class Read:
    """Number of a chunk -> bytes of its decoded pictures. For workers."""

    def __init__(self, pictures, order) -> None:
        self.pictures, self.order = pictures, order

    def __call__(self, i: int) -> int:
        return sum(self.pictures.read(n).nbytes for n in self.order[i * 50 : (i + 1) * 50].tolist())


def rate(pictures, order) -> str:
    """Pictures a second, read and decoded by two workers in this order, and their CPU time, which other work spares."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in stream(Read(pictures, order), len(order) // 50, 2):
        pass
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{len(order) / seconds:6.0f} pictures/s, {1e3 * cpu / len(order):.2f} ms of CPU a picture"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4000)
    count = parser.parse_args().pictures
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(count):
                data = BytesIO()
                small = Image.fromarray(noise.integers(0, 256, (56, 56, 3), np.uint8))
                small.resize((224, 224)).save(data, "JPEG", quality=90)
                archive.writestr(f"{number:06d}.jpg", data.getvalue())
        store = Store()
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": store.url}
        url = store.put("set.zip", path)
        print(f"{count:,} JPEGs of 224 px, {path.stat().st_size / 1e6:.0f} MB, two readers, random order")
        order = noise.permutation(count)
        rate(open_pictures([str(path)], "all"), order)
        print(f"  this disk              {rate(open_pictures([str(path)], 'all'), order)}")
        for name in ("S3, nothing cached", "S3, from the cache", "S3, once more"):
            store.requests.clear()
            start = time.perf_counter()
            pictures = open_pictures([url], "all")
            seconds = time.perf_counter() - start
            speed = rate(pictures, order)
            gets, heads = len(store.gets()), sum(method == "HEAD" for method, *_ in store.requests)
            print(f"  {name:<22} {speed}, opened in {seconds:.2f} s, {gets} GETs, {heads} HEADs")


if __name__ == "__main__":
    main()
