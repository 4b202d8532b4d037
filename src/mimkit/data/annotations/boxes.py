"""Boxes in a file a picture, Pascal VOC's XML or YOLO's text: pairs of files enter, both splits leave."""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mimkit.core.errors import UserError
from mimkit.core.files import read_regular
from mimkit.data.annotations.maps import header_sizes
from mimkit.data.annotations.mended import few, leave_out, note_of
from mimkit.data.annotations.names import Names
from mimkit.data.annotations.objects import Objects, ObjectTable, check_boxes, check_listed
from mimkit.data.annotations.outlines import BadOutline, Outlines, can_draw, coco_masks, outline
from mimkit.data.annotations.pairs import Pairs
from mimkit.data.annotations.remembered import Arrays, in_threads, remembered
from mimkit.data.classes import in_order
from mimkit.data.reading import Reading

Kind = Literal["voc", "yolo"]
LARGEST_FILE = 10_000_000  # bytes; a file of one picture has some hundred
LARGEST_ID = 100_000  # of a class


class BadFile(Exception):
    """A file of boxes that is none. The message is a short reason."""


@dataclass(frozen=True)
class Row:
    """An object of a file."""

    label: str
    """The name of its class, or its number."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels; in YOLO's files as shares of the picture."""
    ignored: bool = False
    polygon: tuple[float, ...] = ()
    """Columns and rows in turn, as shares."""


Rows = tuple[list[Row], tuple[int, int]]
"""Objects of a picture, and its height and width as the file says, 0 where it does not."""


def voc_rows(data: bytes) -> Rows:
    """Objects of a VOC file; its boxes count pixels from 1, and the last pixel is inside. Raises BadFile."""
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise BadFile(f"is no XML: {error}") from None
    rows = []
    for entry in tree.iter("object"):
        box = entry.find("bndbox")
        label = (entry.findtext("name") or "").strip()
        if box is None or not label:
            raise BadFile("has an object without name or bndbox")
        try:
            ends = [float(box.findtext(name) or "none") for name in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            raise BadFile("has a bndbox whose xmin, ymin, xmax and ymax are not all numbers") from None
        corners = (ends[0] - 1, ends[1] - 1, ends[2], ends[3])
        rows.append(Row(label, corners, ignored=(entry.findtext("difficult") or "0").strip() == "1"))
    sides = [(tree.findtext(f"size/{name}") or "0").strip() for name in ("height", "width")]
    height, width = (int(side) if side.isdecimal() else 0 for side in sides)
    return rows, (height, width)


def yolo_rows(data: bytes) -> Rows:
    """Objects of a YOLO file, a line each: class, then middle, width and height, or a polygon. Raises BadFile."""
    rows = []
    for number, line in enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            raise BadFile(f"line {number} holds more than numbers") from None
        if not words[0].isdecimal() or int(words[0]) > LARGEST_ID:
            raise BadFile(f"line {number} begins with {words[0][:20]}, which is no number of a class")
        if any(abs(value) > 2 for value in values):
            raise BadFile(f"line {number} holds pixels, where shares of the picture between 0 and 1 are due")
        label = str(int(words[0]))
        if len(values) == 4:
            middle, center, width, height = values
            box = (middle - width / 2, center - height / 2, middle + width / 2, center + height / 2)
            rows.append(Row(label, box))
        elif len(values) >= 6 and len(values) % 2 == 0:
            columns, lines = values[0::2], values[1::2]
            rows.append(Row(label, (min(columns), min(lines), max(columns), max(lines)), polygon=tuple(values)))
        else:
            raise BadFile(f"line {number} has {len(words)} numbers: 5 are a box, 7, 9, 11 and so on a polygon")
    return rows, (0, 0)


_PARSE = {"voc": voc_rows, "yolo": yolo_rows}


def open_boxes(
    pairs: Pairs, kind: Kind, reading: Reading, names: Names | None, masks: bool | None, bad_fraction: float
) -> tuple[Objects, Objects]:
    """Both splits of pictures with a file of boxes each.

    Args:
        names: of YOLO's numbers; of VOC's names, which they are and in which order.
        masks: whether polygons become masks; None: where pycocotools is installed.

    Raises UserError.
    """
    everything = range(len(pairs.images))
    parsed = in_threads(lambda path: _parse(path, kind), [pairs.files(everything).path(i) for i in everything])
    bad = [number for number, rows in enumerate(parsed) if isinstance(rows, str)]
    reasons = [rows if isinstance(rows, str) else "" for rows in parsed]
    rest = leave_out(pairs, bad, reasons, "files of boxes cannot be read", bad_fraction)
    good: list[Rows] = [rows for rows in parsed if not isinstance(rows, str)]
    categories, ids = _classes(rest, good, kind, names)
    polygons = any(row.polygon for rows, _ in good for row in rows)
    notes: list[str] = []
    if masks:
        coco_masks()
        if not polygons:
            raise UserError(f"{pairs.label_root} holds boxes without masks: learn boxes, or give polygons")
    elif polygons and masks is None and not can_draw():
        notes.append("masks are not read: pip install 'mimkit[detect]'")
    polygons = polygons and (bool(masks) or (masks is None and can_draw()))
    paths = [*_paths(rest, "images"), *_paths(rest, "labels")]
    purpose = f"boxes 1 {kind} {reading} {polygons} {bad_fraction} {categories}"
    numbers = {str(key): place for place, key in enumerate(ids)}
    arrays = remembered(purpose, paths, lambda: _table(rest, kind, good, numbers, reading, polygons, bad_fraction))
    table = ObjectTable(
        **{key: arrays[key] for key in ("sizes", "ends", "boxes", "labels", "areas", "crowd")},
        outlines=Outlines(arrays["runs"], arrays["run_ends"]) if "runs" in arrays else None,
    )
    if not table.pick(rest.train).counts.any():
        raise UserError(f"{rest.name} has no object to train on in {len(rest.train):,} pictures")
    train = Objects(rest.pictures(rest.train, reading), table.pick(rest.train), categories)
    test = Objects(rest.pictures(rest.test, train.whole.resolved), table.pick(rest.test), categories)
    empty = int((train.table.counts == 0).sum())
    notes += [f"left out of training: {empty:,} pictures without objects"] if empty else []
    train.notes = (*rest.notes, *notes, *arrays["notes"].tolist())
    train.category_ids = test.category_ids = ids
    return train, test


def _paths(pairs: Pairs, which: Literal["images", "labels"]) -> list[bytes]:
    root = os.fsencode(pairs.image_root if which == "images" else pairs.label_root)
    return [os.path.join(root, path) for path in (pairs.images if which == "images" else pairs.labels)]


def _parse(path: bytes, kind: Kind) -> Rows | str:
    """Objects of a file, or why it has none."""
    try:
        data = read_regular(path)
        if len(data) > LARGEST_FILE:
            return f"is larger than {LARGEST_FILE:,} bytes"
        return _PARSE[kind](data)
    except OSError as error:
        return error.strerror or "cannot be opened"
    except BadFile as error:
        return str(error)


def _classes(
    pairs: Pairs, parsed: Sequence[Rows], kind: Kind, names: Names | None
) -> tuple[tuple[str, ...], tuple[int | str, ...]]:
    """Names of the classes, and what the files call them. Raises UserError for one that the file of names lacks."""
    used = in_order(row.label for rows, _ in parsed for row in rows)
    if not used:
        raise UserError(f"{pairs.label_root} holds no object in {len(parsed):,} files of boxes")
    by_id = names.of_ids(False) if names is not None else {}
    if kind == "voc":
        classes = tuple(by_id[number] for number in sorted(by_id)) or used
        labels: tuple[int | str, ...] = classes
    else:
        labels = tuple(sorted(by_id)) if by_id else tuple(range(int(used[-1]) + 1))
        classes = tuple(by_id[number] for number in sorted(by_id)) or tuple(f"class {number}" for number in labels)
    strange = [label for label in used if label not in {str(each) for each in labels}]
    if strange:
        place = next(number for number, (rows, _) in enumerate(parsed) if any(row.label == strange[0] for row in rows))
        raise UserError(
            f"{os.fsdecode(pairs.labels[place])} names the class {strange[0]}, which "
            f"{names.file if names else pairs.label_root} lacks: it has {', '.join(classes[:12])}"
        )
    return classes, labels


def _table(
    pairs: Pairs,
    kind: Kind,
    parsed: Sequence[Rows],
    numbers: dict[str, int],
    reading: Reading,
    polygons: bool,
    bad_fraction: float,
) -> Arrays:
    """Objects of all pairs as arrays, and notes; `numbers` are those of the classes by what files call them."""
    pictures = pairs.pictures(range(len(pairs.images)), reading)
    listed = np.array([size for _, size in parsed], np.int64).reshape(-1, 2)
    sizes = header_sizes(pictures)
    notes = check_listed(listed, sizes, pictures.where)
    sizes = np.where(sizes > 0, sizes, listed)  # those that cannot be read the loader meets
    rows = [row for entries, _ in parsed for row in entries]
    owners = np.repeat(np.arange(len(parsed)), [len(entries) for entries, _ in parsed])

    def where(k: int) -> str:
        return f"object {k - int(np.searchsorted(owners, owners[k])) + 1} of {os.fsdecode(pairs.labels[owners[k]])}"

    boxes = np.array([row.box for row in rows], float).reshape(-1, 4)
    early = np.flatnonzero((boxes[:, :2] < 0).any(1)).tolist() if kind == "voc" else []
    if early:
        line = "boxes begin at 0, where VOC's begin at 1, and may lie a pixel off"
        notes.append(f"{len(early):,} {line}: {few(early, where)}")
    scale = sizes[owners][:, [1, 0, 1, 0]] if kind == "yolo" else 1
    clipped, good, more = check_boxes(boxes * scale, sizes[owners], where, bad_fraction)
    notes += more
    areas = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    texts: list[bytes] = []
    if polygons:
        texts, drawn, note = _outlines(rows, sizes[owners], where, bad_fraction)
        notes += [note] if note else []
        if texts:
            pixels = np.array([len(text) > 0 for text in texts])
            good, areas = good & pixels, drawn
    ignored = np.array([row.ignored for row in rows], bool)
    if ignored.any():
        notes.append(f"{int(ignored.sum()):,} objects are difficult: not trained on, and ignored when measuring")
    index = np.flatnonzero(good)
    packed = Outlines.pack([texts[k] for k in index.tolist()]) if texts else None
    return {
        "sizes": sizes.astype(np.int32),
        "ends": np.cumsum(np.bincount(owners[index], minlength=len(parsed))),
        "boxes": clipped[index],
        "labels": np.array([numbers[rows[k].label] for k in index.tolist()], np.int64),
        "areas": areas[index].astype(np.float32),
        "crowd": ignored[index],
        "notes": np.array(notes, str),
    } | ({} if packed is None else {"runs": packed.buffer, "run_ends": packed.ends})


def _outlines(
    rows: Sequence[Row], sizes: np.ndarray, where: Callable[[int], str], bad_fraction: float
) -> tuple[list[bytes], np.ndarray, str]:
    """Run lengths of polygons, empty where there is none, pixels (N), and a line about those that lack one.

    Where more than a few lack one, none are held. Raises UserError.
    """
    texts, pixels = [], np.zeros(len(rows))
    for number, (row, size) in enumerate(zip(rows, sizes.tolist(), strict=True)):
        scaled = (np.array(row.polygon).reshape(-1, 2) * size[::-1]).ravel().tolist()
        try:
            text, pixels[number], _ = outline([scaled], tuple(size), tuple(size))
        except BadOutline:
            text = b""
        texts.append(text)
    lacking = [number for number, text in enumerate(texts) if not text]
    if len(lacking) > bad_fraction * len(texts):
        line = f"masks are not read: {len(lacking):,} of {len(texts):,} objects have none, as {few(lacking, where)}"
        return [], pixels, line
    line = note_of(lacking, len(texts), "objects have no mask", where, bad_fraction) if lacking else ""
    return texts, pixels, line
