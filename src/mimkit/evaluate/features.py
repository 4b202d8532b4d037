"""Features: an extractor and pictures enter, one row a picture for each pool leaves; kept in a cache."""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.memory import memory_budget
from mimkit.data.folders import cache_folder
from mimkit.data.loader import evaluation_batches
from mimkit.data.pictures import Pictures, digest, sample
from mimkit.data.stream import all_bad
from mimkit.evaluate.pools import WIDE, with_both
from mimkit.evaluate.target import Extractor

VERSION = 3  # of what this file computes; raise it when the numbers change
CACHE_LIMIT = 4 << 30  # bytes


@dataclass(frozen=True)
class Features:
    """One row for each picture that could be read."""

    values: dict[str, Float[Tensor, "N D"]]
    """By pool, float32, on the CPU."""
    labels: Int64[Tensor, " N"] | None
    skipped: int
    """Pictures that could not be read."""

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


def extract(
    extractor: Extractor,
    pictures: Pictures,
    *,
    device: torch.device | str,
    pools: Collection[str] | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Features:
    """Features of `pictures`, of `limit` of them spread over the set if given, in these pools or in all.

    Of tiles (`limit` of them), the mean over those of each picture.

    They are kept in `mimkit/features` of the user's cache, by the fingerprints of weights and pictures, up to
    4 GB; pixels are not kept, because reading the pictures is all there is to them. One pass makes them all, but
    `grid` and `blocks`, which take 4 and 8 times the room, are kept from the first time they are asked for.

    Raises UserError when no picture can be read, or half of the memory does not hold the features.
    """
    # All that the numbers depend on names their file, so what is there is right and nothing is ever updated.
    of = (pictures.fingerprint, len(pictures), pictures.channels, pictures.reading, limit)
    key = digest(VERSION, extractor.fingerprint, extractor.view, *of)
    # Pixels are as quickly read as their features would be.
    file = None if extractor.model is None else cache_folder() / "features" / f"{key}.safetensors"
    names = extractor.pools if pools is None else tuple(pools)
    needed = set(names) - {"both"} | ({"class", "mean"} if "both" in names else set())  # `both` is put together below
    rows = None if file is None else _load(file, needed | {"index"})
    if rows is None:
        computed = needed | {pool for pool in extractor.pools if pool not in (*WIDE, "both")}
        computed |= set() if file is None else _kept(file)  # the file is written anew, and loses nothing by it
        rows = _compute(extractor, pictures, torch.device(device), computed, limit, batch_size, workers)
        if file is not None:
            _save(file, rows)
    index = rows["index"]
    count = len(pictures) if limit is None else min(limit, len(pictures))
    skipped = count - len(index)
    if pictures.owners is not None:
        means = {key: mean_of_tiles(rows[key], pictures.owners[index]) for key in rows if key != "index"}
        rows = {key: mean for key, (mean, _) in means.items()}
        index = index[next(iter(means.values()))[1]]
    labels = None if pictures.labels is None else pictures.labels[index]
    pooled = with_both(rows) if "both" in names else rows
    return Features({pool: pooled[pool] for pool in names}, labels, skipped)


def mean_of_tiles(
    values: Float[Tensor, "N *shape"], owners: Int64[Tensor, " N"]
) -> tuple[Float[Tensor, "M *shape"], Int64[Tensor, " M"]]:
    """The mean over the tiles of each picture, and the place of its first one.

    Args:
        owners: which picture each tile is of.
    """
    _, group = owners.unique(return_inverse=True)
    count = group.bincount()
    total = values.new_zeros(len(count), *values.shape[1:]).index_add_(0, group, values)
    first = torch.full_like(count, len(owners)).scatter_reduce(0, group, torch.arange(len(owners)), "amin")
    return total / count.view(-1, *[1] * (values.ndim - 1)), first


def batches_for(
    extractor: Extractor,
    pictures: Pictures,
    title: str,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    limit: int,
    skipped: dict[int, str],
    shuffle: bool = False,
) -> Iterable[tuple[Tensor, Tensor | None, Tensor]]:
    """Batches of `evaluation_batches` as the extractor wants them, under a bar called `what` where one can be seen."""
    batches = evaluation_batches(
        pictures,
        size=extractor.size,
        mean=extractor.mean,
        std=extractor.std,
        device=device,
        view=extractor.view,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        shuffle=shuffle,
        skipped=skipped,
    )
    # A bar is for people: on the standard output it would mix with what a program reads.
    console = Console(stderr=True)
    if not console.is_terminal:
        return batches  # a bar that is disabled ends with an empty line before rich 14.3
    return track(batches, title, total=-(-min(limit, len(pictures)) // batch_size), console=console, transient=True)


@torch.inference_mode()
def _compute(
    extractor: Extractor,
    pictures: Pictures,
    device: torch.device,
    pools: Collection[str],
    limit: int | None,
    batch_size: int,
    workers: int,
) -> dict[str, Tensor]:
    """Features by pool, and under `index` the numbers of the pictures."""
    if extractor.model is not None:
        extractor.model.to(device)
    count = len(sample(len(pictures), len(pictures) if limit is None else limit))
    skipped: dict[int, str] = {}
    rows: dict[str, Tensor] = {}
    done = 0
    settings: dict[str, Any] = dict(device=device, batch_size=batch_size, limit=count, skipped=skipped)
    title = f"features of {escape(pictures.name)}"
    for images, _, index in batches_for(extractor, pictures, title, workers=workers, **settings):
        features = {pool: values for pool, values in extractor(images).items() if pool in pools}
        # The first batch tells what a picture takes; before it, only the model would know.
        if not rows:
            refuse_too_large(
                "features", count, sum(values[0].nbytes for values in features.values()), 2 * memory_budget()
            )
        for name, values in (features | {"index": index}).items():
            if name not in rows:
                rows[name] = torch.empty(count, *values.shape[1:], dtype=values.dtype)
            rows[name][done : done + len(values)] = values
        done += len(index)
    if not done:
        raise all_bad(pictures, skipped)
    return {name: values[:done] for name, values in rows.items()}


def refuse_too_large(kind: str, pictures: int, each: int, room: int) -> None:
    """Refuse what takes more bytes than there is room for in memory, and say how many pictures do not."""
    if pictures * each > room:
        raise UserError(
            f"the {kind} of {pictures:,} pictures take {pictures * each / 1e9:,.1f} GB, and this machine has "
            f"{room / 1e9:,.1f} GB for them: take {max(1, room // each):,} with --limit-train and --limit-test"
        )


def _kept(file: Path) -> set[str]:
    """Names of what a file holds, none when there is no file or it is damaged."""
    with suppress(OSError, SafetensorError), safe_open(file, framework="pt") as opened:
        return {name for name in opened.keys() if name != "index"}  # noqa: SIM118
    return set()


def _load(file: Path, names: Collection[str]) -> dict[str, Tensor] | None:
    """What was kept under these names, or None when something is not there or damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            if not set(names) <= set(opened.keys()):
                return None
            rows = {name: opened.get_tensor(name) for name in names}
        with suppress(OSError):
            os.utime(file)  # used now: the least recently used go first
        return rows
    except (OSError, SafetensorError):
        return None


def _save(file: Path, rows: dict[str, Tensor]) -> None:
    """Keep features, and drop the least recently used ones beyond the limit.

    A cache that cannot be written is none.
    """
    # What is larger than the whole cache would only push everything else out.
    size = sum(values.nbytes for values in rows.values())
    # Written beside and renamed: two evaluations of one target may run at the same time.
    partial = file.with_name(f".{file.stem}.{os.getpid()}")
    if size > CACHE_LIMIT:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _prune(file.parent, CACHE_LIMIT - size)
        save_file({name: values.contiguous() for name, values in rows.items()}, partial)
        os.replace(partial, file)
    except (OSError, SafetensorError):
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _prune(folder: Path, limit: int) -> None:
    """Remove the oldest files until the others take at most `limit` bytes."""
    entries = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # another process removed it
            entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, Path(entry)))
    # By time of last use, oldest first.
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        with suppress(OSError):
            path.unlink(missing_ok=True)
            total -= size
