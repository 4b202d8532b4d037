"""How long mimkit takes to find the pictures of a large folder: the first time, and from its cache.

    python benchmarks/indexing.py [--files N] [--per-folder N] [--json FILE]

Makes N tiny files in class folders in a temporary folder, indexes them in this process (CPU and wall time;
the system's own cache of directories is warm after making them), and once more from mimkit's cache.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mimkit.data import folders
from mimkit.data.sources import open_pictures


def make(root: Path, files: int, per_folder: int) -> None:
    for start in range(0, files, per_folder):
        folder = root / f"class{start // per_folder:05}"
        folder.mkdir()
        for number in range(start, min(start + per_folder, files)):
            (folder / f"picture_{number:08}.jpg").write_bytes(b"\xff\xd8")


def timed(name: str, do: Callable[[], object], files: int) -> dict[str, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    do()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"what": name, "seconds": wall, "cpu_seconds": cpu, "us_per_file": wall / files * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--per-folder", type=int, default=1000)
    parser.add_argument("--json", help="a file, or - for standard output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = str(Path(place) / "cache")
        root = Path(place) / "pictures"
        root.mkdir()
        results = [timed("making the files", lambda: make(root, args.files, args.per_folder), args.files)]
        time.sleep(folders.SETTLED / 1e9 + 0.1)  # a folder changed just now is not cached
        for name in ("index, first time", "index, cached"):
            results.append(timed(name, lambda: folders.index(root), args.files))
        assert len(folders.index(root).pictures) == args.files
        results.append(
            timed(
                "open_pictures with labels, cached",
                lambda: open_pictures([str(root)], "all", channels=3),
                args.files,
            )
        )
        (root / "class00000" / "another.jpg").write_bytes(b"\xff\xd8")
        results.append(timed("index after one new file", lambda: folders.index(root), args.files))
        assert len(folders.index(root).pictures) == args.files + 1
        size = sum(file.stat().st_size for file in (Path(place) / "cache").rglob("*") if file.is_file())
    results.append({"what": "cache file", "bytes": size, "bytes_per_file": size / args.files})
    table = Table("", "s", "CPU s", "us / file", title=f"{args.files:,} files, {args.per_folder:,} a folder")
    for row in results[:-1]:
        table.add_row(row["what"], *(f"{row[key]:.2f}" for key in ("seconds", "cpu_seconds", "us_per_file")))
    table.add_row("cache file", f"{size / 1e6:.1f} MB", "", f"{size / args.files:.0f} bytes")
    Console(stderr=args.json == "-").print(table)
    if args.json:
        text = json.dumps(results, indent=1)
        print(text) if args.json == "-" else Path(args.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
