"""Packing: pictures from anywhere enter; tar files in which they are shuffled once, with an index, leave.

What a shard holds follows from the pictures and the settings alone. It is written beside and renamed, so that the same
command goes on behind the last whole shard, to the same bytes as without an interruption.
"""

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimkit.core.errors import UserError
from mimkit.core.files import read_json
from mimkit.core.randomness import rng_keys
from mimkit.data.classes import UNLABELED
from mimkit.data.folders import Paths
from mimkit.data.pictures import Joined, Pictures, Split, digest, first_few
from mimkit.data.shards.encode import AT_ONCE, Entries, Packing, class_folders, ending_of, refuse_deep
from mimkit.data.shards.index import About, Rows, open_index, write_index
from mimkit.data.shards.shards import NAME
from mimkit.data.shards.write import Packed, Writer, read_back, settle
from mimkit.data.stream import stream

_WORK = ".packing"  # folder of what is not finished, in the folder of the shards


def pack(
    splits: dict[str, Pictures],
    out: Path,
    packing: Packing,
    *,
    workers: int = 0,
    bad_fraction: float = 0.01,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write shards and their index, or go on where that was interrupted, and say what became of it.

    Args:
        splits: `train`, and `test` where the set has one.
        out: a folder that is new, empty, or was begun by the same pictures and settings.
        workers: processes that read, decode and encode.
        bad_fraction: the share of pictures that may be left out because they cannot be read.
        announce: is handed a line for each shard.

    Raises UserError.
    """
    packing.check()
    settings = _settings(splits, packing)
    for pictures in splits.values():
        refuse_deep(pictures, packing)
    if _finished(out, settings):
        announce(f"{out} is packed already")
        return _summary(out)
    try:
        with _work_folder(out, settings) as work:
            every: dict[str, list[Packed]] = {}
            left_out: dict[str, dict[int, str]] = {}
            for split, pictures in splits.items():
                every[split], left_out[split] = _pack_split(split, pictures, packing, out, work, workers, announce)
                _refuse_bad(pictures, left_out[split], bad_fraction)
            about, rows = _index(splits, every, left_out, settings)
            write_index(work / NAME, about, rows)
            os.replace(work / NAME, out / NAME)
            settle(out)
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write shards to {out} ({reason}): mend it and give the same command again") from error
    return _summary(out)


def _settings(splits: dict[str, Pictures], packing: Packing) -> dict[str, Any]:
    """All that the bytes of the shards follow from, as JSON has it."""
    pictures = {}
    for split, content in splits.items():
        labels = content.get_labels()
        numbers = b"" if labels.numbers is None else labels.numbers.numpy().tobytes()
        pictures[split] = [len(content), content.fingerprint, digest(numbers, labels.classes), str(content.storage)]
    return json.loads(json.dumps({"pictures": pictures, "packing": asdict(packing)}))


def _finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the same is packed there already. Raises UserError where something else is."""
    if not (out / NAME).exists():
        return False
    if open_index(str(out / NAME)).about.packed != settings:
        raise UserError(f"{out} holds shards of other pictures or settings: name another folder")
    shutil.rmtree(out / _WORK, ignore_errors=True)  # of a process that ended just before it would have done so
    return True


@contextmanager
def _work_folder(out: Path, settings: dict[str, Any]) -> Generator[Path]:
    """The folder of what is not finished, which no other process works in meanwhile. Raises UserError, OSError."""
    work, noted = out / _WORK, out / _WORK / "settings.json"
    if not noted.exists():
        if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - {_WORK}):
            raise UserError(f"{out} holds other files already: name a folder that is new or empty")
        work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process packs into {out}: wait for it, or name another folder") from None
        if not noted.exists():
            (work / "settings.packed").write_text(json.dumps(settings))
            os.replace(work / "settings.packed", noted)
        elif read_json(noted) != settings:
            raise UserError(
                f"{out} holds shards of other pictures, or was begun with other settings: name another folder, or "
                "remove that one"
            )
        yield work


def _pack_split(
    split: str,
    pictures: Pictures,
    packing: Packing,
    out: Path,
    work: Path,
    workers: int,
    announce: Callable[[str], None],
) -> tuple[list[Packed], dict[int, str]]:
    """The shards of a split, and the pictures that are left out with the reasons."""
    order = rng_keys("shards", split, torch.arange(len(pictures))).argsort()
    folders = class_folders(pictures)
    labels = pictures.labels
    written: list[Packed] = []
    left_out: dict[int, str] = {}
    begin = 0  # place in the order
    while (out / _name(split, len(written))).exists():
        written.append(read_back(out, _name(split, len(written))))
        end = int((order == int(written[-1].numbers[-1])).nonzero()) + 1
        missing = set(order[begin:end].tolist()) - set(written[-1].numbers.tolist())
        entries = Entries(pictures, order, packing)
        left_out |= {number: entries.entry(number).reason or "could not be read" for number in missing}
        begin = end
    if written:
        announce(f"{len(written)} shards of {split} are there already")
    writer: Writer | None = None
    rest = Entries(pictures, order[begin:], packing)
    chunks = stream(rest, -(-(len(order) - begin) // AT_ONCE), workers)
    for entry in itertools.chain.from_iterable(chunks):
        if entry.reason:
            left_out[entry.number] = entry.reason
            continue
        folder = folders[UNLABELED if labels is None else int(labels[entry.number])]
        name = f"{folder}{entry.number:09}.{ending_of(entry.data, pictures.where(entry.number))}"
        if writer is not None and writer.full(len(entry.data), packing.shard_mb):
            written.append(writer.finish(out, _name(split, len(written)), announce))
            writer = None
        writer = Writer(work / f"{split}.tar") if writer is None else writer
        writer.add(name, entry.data)
    if writer is not None:
        written.append(writer.finish(out, _name(split, len(written)), announce))
    return written, left_out


def _name(split: str, number: int) -> str:
    return f"{split}-{number:05}.tar"


def _refuse_bad(pictures: Pictures, left_out: dict[int, str], bad_fraction: float) -> None:
    """Raises UserError where too many pictures cannot be read."""
    if len(left_out) <= bad_fraction * len(pictures) and len(left_out) < len(pictures):
        return
    lines = [f"{pictures.where(number)}: {reason}" for number, reason in sorted(left_out.items())[:3]]
    fix = f"--bad-fraction {min(1, len(left_out) / len(pictures) + 0.01):.2f} leaves them out"
    if len(left_out) == len(pictures):
        fix = "give other pictures"
    raise UserError(
        f"{len(left_out):,} of {len(pictures):,} pictures of {pictures.name} cannot be read, as {first_few(lines, 1)}: "
        f"mend them, or {fix}"
    )


def _index(
    splits: dict[str, Pictures],
    every: dict[str, list[Packed]],
    left_out: dict[str, dict[int, str]],
    settings: dict[str, Any],
) -> tuple[About, Rows]:
    """What the index of the shards holds."""
    shards = [(split, packed) for split, several in every.items() for packed in several]
    counts = [len(packed.numbers) for _, packed in shards]
    labels = [_labels(splits[split], packed) for split, packed in shards]
    lines = [
        f"{splits[split].where(number)}: {reason}"
        for split, bad in left_out.items()
        for number, reason in sorted(bad.items())
    ]
    ends = np.cumsum([0, *(len(packed.names.buffer) for _, packed in shards)])
    rows = Rows(
        shard=np.repeat(np.arange(len(shards)), counts),
        offset=np.concatenate([packed.offsets for _, packed in shards]),
        size=np.concatenate([packed.sizes for _, packed in shards]),
        label=np.concatenate(labels),
        checksum=np.concatenate([packed.checksums for _, packed in shards]),
        names=Paths(
            np.concatenate([packed.names.buffer for _, packed in shards]),
            np.concatenate([packed.names.ends + end for (_, packed), end in zip(shards, ends, strict=False)]),
        ),
    )
    of = splits["train"].get_labels()
    about = About(
        shards=tuple(packed.shard for _, packed in shards),
        train=sum(len(packed.numbers) for packed in every["train"]),
        classes=of.classes,
        named=of.named,
        no_labels=of.reason,
        notes=(f"left out when it was packed: {len(lines):,} pictures, as {lines[0]}",) if lines else (),
        left_out=tuple(lines),
        packed=settings,
    )
    return about, rows


def _labels(pictures: Pictures, packed: Packed) -> np.ndarray:
    numbers = pictures.labels
    return np.full(len(packed.numbers), UNLABELED) if numbers is None else numbers.numpy()[packed.numbers]


def _summary(out: Path) -> dict[str, Any]:
    index = open_index(str(out / NAME))
    about = index.about
    return {
        "out": str(out),
        "pictures": len(index),
        "train": about.train,
        "test": len(index) - about.train,
        "classes": len(about.classes or ()),
        "shards": len(about.shards),
        "bytes": sum(shard.size for shard in about.shards),
        "left_out": list(about.left_out),
    }


def splits_of(opened: Callable[[Split], Pictures]) -> dict[str, Pictures]:
    """The splits of a set that is to be packed: all as `train` where it has no test split of its own.

    Args:
        opened: makes the pictures of a split.

    Raises UserError where of several sources only some have a test split.
    """
    train = opened("all")
    if isinstance(train, Joined) and len(kinds := {source.has_test for source in train.sources}) > 1:
        sources: Sequence[Pictures] = train.sources
        listed = [next(source.name for source in sources if source.has_test == kind) for kind in sorted(kinds)]
        raise UserError(f"{listed[1]} has a test split and {listed[0]} has none: pack them into folders of their own")
    return {"train": train, "test": opened("test")} if train.has_test else {"train": train}
