"""Embed: a target and pictures enter; a vector of each picture or patch leaves, in memory or written to a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor

from mimkit.api.embedding_files import About, VectorRows, open_writer
from mimkit.api.embeddings import Embeddings
from mimkit.api.results import Result
from mimkit.core.errors import UserError, at_least
from mimkit.data.loader import memory_budget, statistics
from mimkit.data.pictures import Pictures, Split, sample
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.stream import all_bad
from mimkit.data.tiles import Tiled
from mimkit.evaluate.features import batches_for
from mimkit.evaluate.run import choose_pools, usual_size
from mimkit.evaluate.target import Extractor, export_folder, open_target
from mimkit.train.machine import Machine

BATCH = 256  # pictures at once


def open_for(
    target: str, data: Sequence[str], split: Split = "all", label_column: str | None = None
) -> tuple[Extractor, Pictures]:
    """A target as evaluation opens it for these data, and their pictures as it wants them. Raises UserError."""
    export = export_folder(target)  # before pictures are opened, which can take long
    pictures = open_pictures(data, "all", Reading(label_column=label_column))
    mean, std = statistics(pictures) if export is None else ((), ())
    extractor = open_target(target, size=usual_size(pictures), channels=pictures.channels, mean=mean, std=std)
    if not pictures.read_as(extractor.reading) or split != "all":
        pictures = open_pictures(data, split, replace(extractor.reading, label_column=label_column))
    return extractor, pictures


def embed(
    target: str,
    data: Sequence[str],
    *,
    pool: str = "auto",
    split: Split = "all",
    limit: int | None = None,
    device: str = "auto",
    workers: int = 0,
    batch_size: int = BATCH,
    label_column: str | None = None,
) -> Embeddings:
    """A vector of each picture that can be read, in memory.

    Args:
        target: see `open_target`.
        data: see `open_pictures`.
        pool: which vector of a picture, see `evaluate.pools`; `auto` is the one that was trained.
        split: `all` (of data with a test split of its own the train split), `train` or `test`.
        limit: so many pictures, spread over the set.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that read pictures; 0 reads here.
        batch_size: pictures at once.
        label_column: of labels in Parquet files, lists and metadata; by default the first with a usual name.

    Raises:
        UserError: anything a person can mend, as vectors that half of the memory does not hold.
    """
    work = _Work.open(target, data, pool, split, limit, device, workers, batch_size, label_column)
    total, done = work.count, 0
    vectors, numbers = np.empty((0, 0), np.float32), np.empty(total, np.int64)
    for block in work.vectors():
        if not done:
            _refuse_too_large(total, block.values.shape[1])
            vectors = np.empty((total, block.values.shape[1]), np.float32)
        vectors[done : done + len(block.values)] = block.values
        numbers[done : done + len(block.values)] = block.numbers
        done += len(block.values)
    if not done:
        raise all_bad(work.pictures, work.skipped)
    numbers = numbers[:done]
    return Embeddings(
        vectors[:done],
        work.paths(numbers),
        work.labels(numbers),
        work.pictures.classes,
        about=work.about,
        pictures=work.pictures,
        numbers=numbers,
    )


def embed_to_file(
    target: str,
    data: Sequence[str],
    out: Path,
    *,
    tokens: bool = False,
    pool: str = "auto",
    split: Split = "all",
    limit: int | None = None,
    device: str = "auto",
    workers: int = 0,
    batch_size: int = BATCH,
    label_column: str | None = None,
) -> Result:
    """A vector of each picture, or of each patch, written as pictures are read: a set is never held whole.

    Args:
        target, data, pool, split, limit, device, workers, batch_size, label_column: see `embed`.
        out: a .parquet, .npz or .csv file, complete or absent at any moment.
        tokens: a row of each patch token of the last block behind its norm: picture, row, column and vector. Class and
            register tokens are left out.

    Returns:
        JSON: out, target, data, pool (`tokens` of patches), pictures, skipped, rows, width (numbers of a vector), and
        what was assumed about the target where something was.

    Raises:
        UserError: anything a person can mend.
    """
    if tokens and pool != "auto":
        raise UserError(f"tokens are not pooled: leave out tokens or the pool '{pool}'")
    with open_writer(out) as writer:  # refuses a wrong ending before the work
        work = _Work.open(target, data, pool, split, limit, device, workers, batch_size, label_column, tokens)
        writer.about = work.about
        pictures, rows, width = 0, 0, 0
        for block in work.tokens() if tokens else work.vectors():
            names = work.paths(block.numbers)
            writer.write(VectorRows(block.values, names, work.labels(block.numbers), block.places))
            pictures, rows, width = pictures + len(names), rows + len(block.values), block.values.shape[1]
        if not pictures:
            raise all_bad(work.pictures, work.skipped)
    result: dict[str, Any] = {"out": str(out), "target": target, "data": work.pictures.name, "pool": work.about.pool}
    result |= {"pictures": pictures, "skipped": len(work.skipped), "rows": rows, "width": width}
    if work.extractor.assumed:
        result["assumed"] = work.extractor.assumed
    return Result(result)


@dataclass(frozen=True)
class _Block:
    """Vectors of a batch of pictures."""

    values: np.ndarray  # (rows, D) float32
    numbers: np.ndarray  # (pictures,) which pictures of the set
    places: np.ndarray | None = None  # (patches, 2) row and column of the patches, the same for each picture


@dataclass(frozen=True)
class _Work:
    """An opened target and pictures, and the one pass over them."""

    extractor: Extractor
    pictures: Pictures
    about: About
    count: int
    """Pictures to look at."""
    settings: dict[str, Any]
    skipped: dict[int, str]
    """Pictures that could not be read, with the reasons."""

    @classmethod
    def open(
        cls,
        target: str,
        data: Sequence[str],
        pool: str,
        split: Split,
        limit: int | None,
        device: str,
        workers: int,
        batch_size: int,
        label_column: str | None,
        tokens: bool = False,
    ) -> "_Work":
        at_least(1, limit=limit, batch_size=batch_size)
        at_least(0, workers=workers)
        where = Machine(device=device).find_device()
        extractor, pictures = open_for(target, data, split, label_column)
        if pool == "all":
            raise UserError("a picture has one vector: name one pool, or 'auto' for the one that was trained")
        name = "tokens" if tokens else choose_pools(extractor, [pool])[0]  # type: ignore[bad-argument-type]
        if tokens and "grid" not in extractor.pools:
            raise UserError(f"'{target}' has no patch tokens: leave tokens out")
        if extractor.model is not None:
            extractor.model.to(where)
        about = About(target=target, data=pictures.name, pool=name, classes=pictures.classes)
        count = len(sample(len(pictures), len(pictures) if limit is None else limit))
        settings: dict[str, Any] = dict(device=where, workers=workers, batch_size=batch_size, limit=count)
        return cls(extractor, pictures, about, count, settings, {})

    def _batches(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Normalized images and the numbers of their pictures."""
        title = f"embedding {escape(self.pictures.name)}"
        for images, _, numbers in batches_for(
            self.extractor, self.pictures, title, skipped=self.skipped, **self.settings
        ):
            yield images, numbers.numpy()

    def vectors(self) -> Iterator[_Block]:
        """A row of each picture; of tiles, the mean of those of a picture."""
        blocks = self._rows()
        yield from blocks if self.pictures.owners is None else _of_pictures(blocks, self.pictures.owners.numpy())

    def _rows(self) -> Iterator[_Block]:
        for images, numbers in self._batches():
            with torch.inference_mode():
                values = self.extractor(images)[self.about.pool]
            yield _Block(values.float().cpu().numpy(), numbers)

    def tokens(self) -> Iterator[_Block]:
        """A row of each patch of each picture, row by row of the grid."""
        height, width = self.extractor.size
        for images, numbers in self._batches():
            with torch.inference_mode():
                values = self.extractor.tokens(images).float().cpu()
            if "class" in self.extractor.pools:
                values = values[:, 1:]
            rows = round((values.shape[1] * height / width) ** 0.5)  # cells of the grid are as square as patches
            columns = values.shape[1] // rows
            grid = np.indices((rows, columns)).reshape(2, -1).T
            yield _Block(values.flatten(0, 1).numpy(), numbers, grid)

    def paths(self, numbers: np.ndarray) -> list[str]:
        """Where these pictures lie."""
        if isinstance(self.pictures, Tiled) and self.about.pool != "tokens":
            owners = self.pictures.owners[torch.from_numpy(numbers)]
            return [self.pictures.whole.where(number) for number in owners.tolist()]
        return [self.pictures.where(number) for number in numbers.tolist()]

    def labels(self, numbers: np.ndarray) -> np.ndarray | None:
        """Their labels, if the set has some."""
        return None if self.pictures.labels is None else self.pictures.labels.numpy()[numbers]


def _of_pictures(blocks: Iterator[_Block], owners: np.ndarray) -> Iterator[_Block]:
    """Means over the tiles of each picture, which come one after the other, with the number of the first of them."""
    total, count, first = np.zeros(0), 0, -1
    for block in blocks:
        values, numbers = [], []
        for row, number in zip(block.values, block.numbers.tolist(), strict=True):
            if count and owners[number] != owners[first]:
                values.append(total / count)
                numbers.append(first)
                count = 0
            total, first = (total + row, first) if count else (row.astype(np.float64), number)
            count += 1
        if values:
            yield _Block(np.stack(values).astype(np.float32), np.array(numbers))
    if count:
        yield _Block((total / count).astype(np.float32)[None], np.array([first]))


def _refuse_too_large(pictures: int, width: int) -> None:
    """Refuse vectors that half of the memory does not hold."""
    room = 2 * memory_budget()
    if pictures * width * 4 > room:
        raise UserError(
            f"the vectors of {pictures:,} pictures take {pictures * width * 4 / 1e9:,.1f} GB, and this machine has "
            f"{room / 1e9:,.1f} GB for them: write them into a file ('mimkit embed', embed_to) or give a limit"
        )
