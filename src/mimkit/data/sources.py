"""What a person says with --data: folders, lists, Parquet files or a name enter, Pictures leave."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from mimkit.core.errors import UserError, unknown
from mimkit.data.folders import open_folder, open_list
from mimkit.data.named import NAMES, open_named
from mimkit.data.parquet import open_parquet, parquet_files
from mimkit.data.pictures import Joined, Pictures, Split
from mimkit.data.reading import Reading
from mimkit.data.tiles import Tiled
from mimkit.data.values import DEPTHS

__all__ = ["Pictures", "Split", "open_pictures"]


def open_pictures(
    data: Sequence[str],
    split: Split = "train",
    reading: Reading = Reading(),
    *,
    channels: int | None = None,
) -> Pictures:
    """The pictures of one or several sources.

    Args:
        data: each a folder (flat, nested, class folders, or these under train/ and val/), a text file of
            paths, a Parquet file or a folder of them, or one of `named.NAMES` (a folder of that name: write
            `./name`).
        split: `train` or `test`: the source's own, else 80 % and 20 % of it by address. `all`: the train
            split where there is a test split of its own, else everything; what pre-training without labels
            wants.
        reading: how files become pictures.
        channels: in short for `Reading(channels=...)`.

    Raises UserError.
    """
    data = [data] if isinstance(data, str) else list(data)
    if not data:
        raise UserError(f"--data is missing: give a folder of pictures or one of {', '.join(NAMES)}")
    sources: list[list[str]] = []
    for parquet, group in groupby(data, key=_is_parquet):  # Parquet files in a row are one set, anything else its own
        places = list(group)
        sources += [places] if parquet else [[place] for place in places]

    reading = reading if channels is None else replace(reading, channels=channels)
    opened = [_open(source, split, reading) for source in sources]
    if len(opened) == 1:
        return _cut(opened[0], reading)
    counts = sorted({pictures.channels for pictures in opened})
    if counts == [1, 3]:
        # Gray becomes color: nothing is lost.
        opened = [_open(source, split, replace(reading, channels=3)) for source in sources]
    elif len(counts) > 1:
        listed = " and ".join(map(str, counts))
        raise UserError(f"{' + '.join(data)}: pictures with {listed} channels do not go together; set images.channels")
    depths = sorted({DEPTHS[pictures.storage.dtype] for pictures in opened})
    if len(depths) > 1:
        raise UserError(f"{' + '.join(data)}: {' and '.join(depths)} pictures do not go together: give them one depth")
    return _cut(Joined(opened), reading)


def _cut(pictures: Pictures, reading: Reading) -> Pictures:
    """In tiles, where the reading says so."""
    return pictures if reading.tile is None else Tiled(pictures, reading.tile)


def _is_parquet(source: str) -> bool:
    return source.endswith(".parquet") and not Path(source).is_dir()


def _open(source: list[str], split: Split, reading: Reading) -> Pictures:
    for place in source:
        if place not in NAMES and not Path(place).expanduser().exists():
            if "/" in place or "." in place:
                raise UserError(f"there is no file or folder {place}")
            raise unknown("folder or data set", place, NAMES, see=f"Valid names: {', '.join(NAMES)}.")
    name, path = source[0], Path(source[0]).expanduser()
    if _is_parquet(name):
        return open_parquet(" ".join(source), [Path(place).expanduser() for place in source], split, reading)
    if name in NAMES:
        return open_named(name, split, reading)
    if path.is_dir():
        files = parquet_files(path)
        return open_parquet(name, files, split, reading) if files else open_folder(path, split, reading)
    if path.suffix.lower() in (".txt", ".lst", ".tsv"):
        return open_list(path, split, reading)
    raise UserError(f"cannot read {name}: give a folder, a .txt list of paths, Parquet files, or {', '.join(NAMES)}")
