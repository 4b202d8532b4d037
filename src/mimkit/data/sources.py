"""What a person says with --data: folders, lists, Parquet files or a name enter, Pictures leave."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mimkit.core.errors import UserError, unknown
from mimkit.core.files import refuse_no_name
from mimkit.core.urls import is_url, join, withhold_each
from mimkit.data.archive import KINDS as ARCHIVES
from mimkit.data.archive import PACKED, open_archive, refuse_packed
from mimkit.data.bucket import about_room, open_bucket
from mimkit.data.finegrained import open_finegrained
from mimkit.data.folders import ENDINGS, index, open_folder
from mimkit.data.labels import need_labels, only_labeled
from mimkit.data.lists import KINDS as LISTS
from mimkit.data.lists import open_list
from mimkit.data.named import NAMES, open_named
from mimkit.data.parquet import open_parquet, parquet_among, parquet_below, parquet_files
from mimkit.data.pictures import Joined, Pictures, Split, split_by_address
from mimkit.data.reading import Reading
from mimkit.data.remote import listing, look
from mimkit.data.shards.index import ENDING
from mimkit.data.shards.shards import are_shards, open_shards, tars_below
from mimkit.data.stored import open_stored
from mimkit.data.tiles import Tiled
from mimkit.data.values import DEPTHS

__all__ = ["Pictures", "Split", "open_measured", "open_pictures"]


def open_pictures(
    data: Sequence[str],
    split: Split = "train",
    reading: Reading = Reading(),
    *,
    channels: int | None = None,
    by_class: bool = True,
) -> Pictures:
    """The pictures of one or several sources.

    Args:
        data: each a folder (flat, nested, class folders, or these under train/ and val/; see `layout.arrange`), a
            zip or tar file of such a folder, a text file of paths (see `lists.open_list`), a Parquet file or a folder
            of them, a URL of any of these, or one of `named.NAMES` (a folder of that name: write `./name`).
        split: `train` or `test`: the source's own, else 80 % and 20 % of it by address. `all`: the train
            split where there is a test split of its own, else everything; what pre-training without labels
            wants.
        reading: how files become pictures.
        channels: in short for `Reading(channels=...)`.
        by_class: whether 20 % by address are 20 % of each class; not so before version 0.3.

    Raises UserError.
    """
    data = [data] if isinstance(data, str) else list(data)
    if not data:
        raise UserError(f"--data is missing: give a folder of pictures or one of {', '.join(NAMES)}")
    for place in data:
        refuse_no_name(place)
    data = withhold_each(data)
    sources: list[list[str]] = []
    # Parquet files in a row are one set, anything else its own.
    for (parquet, _), group in groupby(data, key=lambda place: (_is_parquet(place), is_url(place))):
        places = list(group)
        sources += [places] if parquet else [[place] for place in places]

    reading = reading if channels is None else replace(reading, channels=channels)
    reading.check()
    opened = [_open(source, split, reading, by_class) for source in sources]
    if len(opened) == 1:
        return _cut(opened[0], reading)
    counts = sorted({pictures.channels for pictures in opened})
    if counts == [1, 3]:
        # Gray becomes color: nothing is lost.
        opened = [_open(source, split, replace(reading, channels=3), by_class) for source in sources]
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


class Measured(NamedTuple):
    """Pictures of a measurement, all with labels."""

    train: Pictures
    test: Pictures
    unlabeled: int
    """How many more pictures there are, without labels."""


def open_measured(
    data: Sequence[str], reading: Reading = Reading(), *, purpose: str = "measuring", by_class: bool = True
) -> Measured:
    """The labeled pictures to learn from and to be tested on; see `open_pictures`.

    Where the test split has no labels, 20 % of each class of the train split are tested on, and a note says so. Raises
    UserError, also when there are no labels, in a line that begins with the purpose.
    """
    train = open_pictures(data, "train", reading, by_class=by_class)
    need_labels(train, purpose)
    # Black and white of the pictures to learn from are those of the others too.
    test = open_pictures(data, "test", train.resolved, by_class=by_class)
    unlabeled = train.unlabeled_count + (len(test) if test.labels is None else test.unlabeled_count)
    if test.labels is None:
        note = f"the test split has no labels ({test.no_labels}): 20 % of each class of train are tested on instead"
        train, test = _split(train, "train"), _split(train, "test")
        train.notes += (note,)
    return Measured(only_labeled(train), only_labeled(test), unlabeled)


def _split(pictures: Pictures, split: Split) -> Pictures:
    """A part by address; of tiles, the pictures are split."""
    if isinstance(pictures, Tiled):
        return Tiled(split_by_address(pictures.whole, split), pictures.side)
    return split_by_address(pictures, split)


def _is_parquet(source: str) -> bool:
    return source.endswith(".parquet") and (is_url(source) or not Path(source).is_dir())


def _open(source: list[str], split: Split, reading: Reading, by_class: bool) -> Pictures:
    """One source: its own split, else one by address."""
    pictures = _find(source, split, reading)
    return pictures if pictures.has_test else split_by_address(pictures, split, by_class=by_class)


def _find(source: list[str], split: Split, reading: Reading) -> Pictures:
    """One source, whole where it has no test split of its own."""
    if len(source) == 1 and source[0] not in NAMES and are_shards(source[0]):
        return open_shards(source[0], split, reading)
    if is_url(source[0]):
        return _find_remote(source, split, reading)
    for place in source:
        if place not in NAMES and not Path(place).expanduser().exists():
            if "/" in place or "." in place:
                raise UserError(f"there is no file or folder {place}")
            raise unknown("folder or data set", place, NAMES, see=f"Valid names: {', '.join(NAMES)}.")
    name, path = source[0], Path(source[0]).expanduser()
    if _is_parquet(name):
        return open_parquet(" ".join(source), [os.path.expanduser(place) for place in source], split, reading)
    if name in NAMES:
        return open_named(name, split, reading)
    if path.is_dir():
        finegrained = open_finegrained(path, split, reading)
        if finegrained is not None:
            return finegrained
        files = parquet_files(path)
        if not files and not len(index(path).pictures):
            files = parquet_below(path)
            if not files and tars_below(path):
                return open_shards(name, split, reading)
        return open_parquet(name, list(map(str, files)), split, reading) if files else open_folder(path, split, reading)
    if path.is_file():  # and no pipe, which would be waited for
        refuse_packed(str(path))
    if path.suffix.lower() in ARCHIVES and path.is_file():
        return open_archive(str(path), split, reading)
    if path.suffix.lower() in LISTS and path.is_file():
        return open_list(path, reading)
    raise _no_data(name)


def _find_remote(source: list[str], split: Split, reading: Reading) -> Pictures:
    """One source in a store."""
    url = source[0]
    ending = os.path.splitext(url)[1].lower()
    if _is_parquet(url):
        return open_parquet(" ".join(source), source, split, reading)
    if url.lower().endswith((*ARCHIVES, *PACKED)):
        refuse_packed(url)
        pictures = open_archive(url, split, reading)
        pictures.notes += about_room(open_stored(url).size)
        return pictures
    if ending in LISTS:
        return open_list(url, reading)
    if look(url)["type"] != "directory":
        raise _no_data(url)
    files = listing(url)
    if len(indices := [path for path in files if path.endswith(ENDING) and "/" not in path]) == 1:
        return open_shards(join(url, indices[0]), split, reading)
    pictures = any(os.path.splitext(path)[1].lower() in ENDINGS for path in files)
    tables = [] if pictures else parquet_among(url, list(files))
    return open_parquet(url, tables, split, reading) if tables else open_bucket(url, files, split, reading)


def _no_data(name: str) -> UserError:
    kinds = " ".join((*LISTS, *ARCHIVES))
    return UserError(
        f"cannot read {name}: give a folder, a list or an archive ({kinds}), Parquet files, or {', '.join(NAMES)}"
    )
