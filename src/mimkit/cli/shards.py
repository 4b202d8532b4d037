"""`mimkit shards`: pictures or tar files enter; shards with an index, an index alone, or whether all is well leaves."""

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.cli.reading import ReadingFlags
from mimkit.core.errors import UserError, at_least, within
from mimkit.core.flags import Arguments, parse

PACKS = {"shorter_side": None, "quality": None, "shard_mb": 256.0, "bad_fraction": 0.01}
"""Flags of pack alone, and their defaults."""
_SHOWN = 5  # lines of a kind


@dataclass(kw_only=True)
class ShardsArguments(Arguments):
    """Pictures in tar files, which every command takes as --data: pack writes some, index reads those that others made,
    check verifies them."""

    kind: Positional[Literal["pack", "index", "check"]]
    """Write shuffled shards with an index; write an index of tar files that are there, as WebDataset's; or compare
    shards with their index, decode every picture and look for copies."""
    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA ...")]]
    """To pack: pictures, as for pretrain. To index: tar files, folders of them, globs and ranges as
    'train-{0000..0146}.tar'. To check: an index, or the folder that holds one."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """To pack: the folder to write, new or empty. To index: a file that ends in .index.npz, by default beside the tar
    files."""
    shorter_side: int | None = PACKS["shorter_side"]
    """To pack: shrink pictures whose shorter side is longer to it, as JPEG; by default every file is kept as it is."""
    quality: int | None = PACKS["quality"]
    """To pack: of JPEG, by default 95; without --shorter-side every picture is encoded anew."""
    shard_mb: float = 256.0
    """To pack: millions of bytes in a tar file."""
    bad_fraction: float = 0.01
    """To pack: the share of pictures that may be left out since they cannot be read."""
    label_column: str | None = None
    """The column of labels in Parquet files, lists and metadata, or the name in JSON members; by default label, labels,
    fine_label, class, ..."""
    images: ReadingFlags = field(default_factory=ReadingFlags)
    """How files become pictures, as for pretrain; packed files stay what they are, unless they are encoded anew."""
    workers: int = 2
    """Processes that read, decode and encode."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return ShardsArguments, None


def run(args: list[str]) -> int:
    """Pack, index or check; status 2 where something is bad."""
    arguments = parse(ShardsArguments, args, "mimkit shards")
    at_least(0, workers=arguments.workers)
    if arguments.kind == "pack":
        return _pack(arguments)
    for flag, default in PACKS.items():
        if vars(arguments)[flag] != default:
            raise UserError(f"--{flag.replace('_', '-')} is for 'mimkit shards pack': leave it out")
    return _index(arguments) if arguments.kind == "index" else _check(arguments)


def _pack(arguments: ShardsArguments) -> int:
    from mimkit.data.shards.pack import Packing, pack, splits_of
    from mimkit.data.sources import open_pictures

    within(0, 1, **{"bad-fraction": arguments.bad_fraction})
    if arguments.out is None or "://" in arguments.out:
        raise UserError("--out is missing: name a folder on a disk of this machine; into a store it is copied as it is")
    packing = Packing(shorter_side=arguments.shorter_side, quality=arguments.quality, shard_mb=arguments.shard_mb)
    packing.check()
    reading = arguments.images.reading(arguments.label_column)
    splits = splits_of(lambda split: open_pictures(arguments.data, split, reading))
    result = pack(
        splits,
        Path(arguments.out),
        packing,
        workers=arguments.workers,
        bad_fraction=arguments.bad_fraction,
        announce=lambda line: print(line, file=sys.stderr, flush=True),
    )
    lines = [f"wrote {_counted(result)}; --data {result['out']} takes them"]
    lines += _few("left out, since they cannot be read", result["left_out"])
    show(result, arguments.json, escape("\n".join(lines)))
    return 0


def _index(arguments: ShardsArguments) -> int:
    from mimkit.data.shards.index import ENDING, open_index, write_index
    from mimkit.data.shards.others import index_tars
    from mimkit.data.shards.shards import NAME, find

    files = find(arguments.data)
    out = Path(arguments.out) if arguments.out else _beside(files) / NAME
    if not out.name.endswith(ENDING) or "://" in (arguments.out or ""):
        raise UserError(f"--out is a file that ends in {ENDING} on a disk of this machine, got {out}")
    if out.exists() and open_index(str(out)).about.packed:
        raise UserError(f"{out} was written by 'mimkit shards pack' and says more: name another file with --out")
    about, rows = index_tars(files, str(out.absolute().parent), arguments.label_column, arguments.workers)
    try:
        write_index(out, about, rows)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}): name another file with --out") from None
    result = {
        "out": str(out),
        "pictures": len(rows.offset),
        "train": about.train,
        "test": len(rows.offset) - about.train,
        "classes": len(about.classes or ()),
        "shards": len(about.shards),
        "bytes": sum(shard.size for shard in about.shards),
        "notes": list(about.notes),
    }
    lines = [f"wrote {_counted(result)}; --data {out} takes them", *(f"  {note}" for note in about.notes)]
    if about.no_labels:
        lines.append(f"  no labels: {about.no_labels}")
    show(result, arguments.json, escape("\n".join(lines)))
    return 0


def _beside(files: list[str]) -> Path:
    """The folder of the tar files. Raises UserError where they lie in a store."""
    if any("://" in file for file in files):
        raise UserError("--out is missing: an index of tar files in a store is written here, and copied there by you")
    return Path(os.path.commonpath([os.path.dirname(os.path.abspath(os.path.expanduser(file))) for file in files]))


def _check(arguments: ShardsArguments) -> int:
    from mimkit.data.shards.check import check_shards

    if len(arguments.data) > 1 or arguments.out is not None:
        raise UserError("wanted: mimkit shards check DATA, an index or the folder that holds one")
    result = check_shards(arguments.data[0], arguments.images.reading(), workers=arguments.workers)
    bad = [f"{entry['where']}: {entry['reason']}" for entry in result["bad"]]
    lines = [f"{result['readable']:,} of {result['pictures']:,} pictures in {result['shards']:,} shards can be read"]
    lines += _few("bad", bad) + _few("equal, byte for byte", [" = ".join(places) for places in result["copies"]])
    lines += _few("left out when the set was packed", result["left_out"])
    show(result, arguments.json, escape("\n".join(lines)))
    if bad:
        more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
        raise UserError(f"{result['index']} does not hold what it says: {bad[0]}{more}")
    return 0


def _counted(result: dict[str, Any]) -> str:
    counts = Counter({split: result[split] for split in ("train", "test") if result[split]})
    listed = " and ".join(f"{count:,} to {split}" for split, count in counts.items())
    classes = f", {result['classes']:,} classes" if result["classes"] else ""
    size = result["bytes"] / 1e6
    pictures = f"{result['pictures']:,} pictures ({listed}{classes})"
    return f"{result['out']}: {pictures} in {result['shards']:,} shards, {size:,.0f} MB"


def _few(title: str, lines: list[str]) -> list[str]:
    """The first of some lines below a title; nothing where there are none."""
    if not lines:
        return []
    more = [f"    and {len(lines) - _SHOWN:,} more (--json lists all)"] if len(lines) > _SHOWN else []
    return [f"  {title}: {len(lines):,}", *(f"    {line}" for line in lines[:_SHOWN]), *more]
