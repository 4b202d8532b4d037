"""COCO's JSON: one file and the folder of its pictures enter; pictures and their objects leave as arrays."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mimkit.core.errors import UserError
from mimkit.core.files import read_regular
from mimkit.data.annotations.maps import header_sizes
from mimkit.data.annotations.mended import few, note_of
from mimkit.data.annotations.objects import ObjectTable, check_boxes, check_listed
from mimkit.data.annotations.outlines import BadOutline, Outlines, coco_masks, outline
from mimkit.data.annotations.remembered import Arrays, remembered
from mimkit.data.folders import Files, Paths
from mimkit.data.reading import Reading

LARGEST = 2**31  # whole numbers in such a file are below


@dataclass(frozen=True)
class CocoFile:
    """What one file holds, with its own numbers of categories."""

    pictures: Files
    image_ids: np.ndarray
    """(n) whole numbers, or texts."""
    table: ObjectTable
    categories: list[dict[str, Any]]
    """As the file has them; labels are places in this list."""
    notes: tuple[str, ...]


def load_json(file: Path) -> dict[str, Any]:
    """The JSON of an annotated set. Raises UserError for what is none."""
    try:
        data = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{file} cannot be read as JSON ({reason}): get it anew") from error
    for key in ("images", "annotations", "categories"):
        rows = data.get(key) if isinstance(data, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{file} has no list of {key}: COCO's JSON holds images, annotations and categories")
        if not rows and key != "annotations":
            raise UserError(f"{file} lists no {key}: give a file that holds some")
    for place, row in enumerate(data["categories"]):
        _check_category(row, f"{file}: categories.{place}")
    return data


def _check_category(row: dict[str, Any], place: str) -> None:
    """Refuse a category whose id, name, joints or skeleton are none. Raises UserError."""
    row.setdefault("name", f"class {row.get('id')}")
    joints, bones = row.get("keypoints") or [], row.get("skeleton") or []
    right = (
        isinstance(row.get("id"), (int, str))
        and not isinstance(row.get("id"), bool)
        and isinstance(row["name"], str)
        and isinstance(row.get("supercategory") or "", str)
        and isinstance(joints, list)
        and all(isinstance(name, str) for name in joints)
        and isinstance(bones, list)
    )
    if not right:
        raise UserError(f"{place}: expected an id, a name, and of joints keypoints and skeleton, got {str(row)[:80]}")


def read_coco(
    file: Path,
    find: Callable[[str], bytes | None],
    root: Path,
    paths: Sequence[bytes],
    *,
    name: str,
    reading: Reading,
    masks: bool,
    joints: bool,
    bad_fraction: float,
) -> CocoFile:
    """Pictures and objects of a file; from a cache while neither it nor its pictures have changed.

    Args:
        find: the path below `root` of a picture that the file names; None where there is none.
        paths: all pictures below `root`.
        masks, joints: whether outlines and joints are wanted.

    Raises UserError, also where masks are wanted and pycocotools is not installed.
    """
    purpose = f"coco 1 {root} {reading} {masks} {joints} {bad_fraction}"
    stamped = [os.fsencode(file), *(os.path.join(os.fsencode(root), path) for path in paths)]

    def load() -> Arrays:
        return _Load(file, root, find, name, reading, bad_fraction).arrays(masks, joints)

    arrays = remembered(purpose, stamped, load)
    pictures = Files(name, root, Paths(arrays["paths"], arrays["path_ends"]), reading=reading)
    table = ObjectTable(
        **{key: arrays[key] for key in ("sizes", "ends", "boxes", "labels", "areas", "crowd")},
        outlines=Outlines(arrays["runs"], arrays["run_ends"]) if "runs" in arrays else None,
        keypoints=arrays.get("keypoints"),
    )
    categories = json.loads(str(arrays["categories"]))
    return CocoFile(pictures, arrays["image_ids"], table, categories, tuple(arrays["notes"].tolist()))


@dataclass
class _Rows:
    """Annotations as they come: one entry an object, in each list."""

    numbers: list[int] = field(default_factory=list)
    """Places in the file."""
    owners: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float] | None] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)


class _Load:
    """The steps from a file to arrays, and the notes that they leave."""

    def __init__(
        self,
        file: Path,
        root: Path,
        find: Callable[[str], bytes | None],
        name: str,
        reading: Reading,
        bad_fraction: float,
    ) -> None:
        self.file, self.root, self.find, self.bad_fraction = file, root, find, bad_fraction
        self.name, self.reading = name, reading
        self.notes: list[str] = []
        data = load_json(file)
        self.images, self.annotations, self.categories = data["images"], data["annotations"], data["categories"]

    def arrays(self, masks: bool, joints: bool) -> Arrays:
        """All that is held. Raises UserError."""
        paths, ids, listed, numbers = self.pictures()
        pictures = Files(self.name, self.root, Paths.pack(paths), reading=self.reading)
        sizes = header_sizes(pictures)
        self.notes += check_listed(listed, sizes, pictures.where)
        sizes = np.where(sizes > 0, sizes, listed)  # those that cannot be read the loader meets
        rows = self.rows(numbers)
        drawn = masks or None in rows.boxes
        texts, pixels = self.outlines(rows, sizes, listed) if drawn else ([], [])
        boxes = self.boxes(rows, sizes, texts)
        owners = np.array(rows.owners, np.int64)
        clipped, good, notes = check_boxes(
            boxes, sizes[owners], lambda k: self.place(rows.numbers[k]), self.bad_fraction
        )
        self.notes += notes
        if masks and texts:
            good &= self.with_outline(rows, texts)
        order = np.argsort(owners, kind="stable")
        order = order[good[order]]
        of_boxes = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
        areas = np.array(rows.areas, np.float64)
        of_masks = np.array(pixels) if drawn else np.zeros(len(rows))
        possible = (areas > 0) & (areas <= sizes[owners].prod(1))  # nothing is larger than its picture
        areas = np.where(possible, areas, np.where(of_masks > 0, of_masks, of_boxes))
        arrays = {
            "paths": pictures.paths.buffer,
            "path_ends": pictures.paths.ends,
            "image_ids": np.array(ids),
            "sizes": sizes.astype(np.int32),
            "ends": np.cumsum(np.bincount(owners[order], minlength=len(paths))),
            "boxes": clipped[order].astype(np.float32),
            "labels": np.array(rows.labels, np.int64)[order],
            "areas": areas[order].astype(np.float32),
            "crowd": np.array(rows.crowd, bool)[order],
            "categories": np.array(json.dumps(self.categories)),
        }
        if masks and any(text is not None for text in texts):
            packed = Outlines.pack([texts[number] or b"" for number in order.tolist()])
            arrays |= {"runs": packed.buffer, "run_ends": packed.ends}
        if joints:
            arrays["keypoints"] = self.joints(rows, sizes)[order]
        return arrays | {"notes": np.array(self.notes, str)}

    def place(self, number: int) -> str:
        """An annotation, for messages."""
        entry = self.annotations[number]
        return f"annotation {entry.get('id', f'number {number}')} of picture {entry.get('image_id')}"

    def wrong(self, place: str, expected: str, value: Any) -> UserError:
        """The error for a value of another type."""
        return UserError(f"{self.file}: {place}: expected {expected}, got {json.dumps(value, default=str)[:60]}")

    def pictures(self) -> tuple[list[bytes], list[Any], np.ndarray, dict[str, int]]:
        """Paths, ids and listed sizes (n, 2) of the pictures that are there, and the number of each id."""
        paths, ids, listed, missing = [], [], [], []
        numbers: dict[str, int] = {}
        for place, entry in enumerate(self.images):
            name, key = entry.get("file_name"), str(entry.get("id"))
            if not isinstance(name, str) or not isinstance(entry.get("id"), (int, str)):
                raise self.wrong(f"images.{place}", "an id and a file_name", entry)
            if key in numbers:
                raise UserError(f"{self.file}: two pictures have the id {key}: give each its own")
            path = self.find(name)
            numbers[key] = -1 if path is None else len(paths)
            if path is None:
                missing.append(place)
                continue
            paths.append(path)
            ids.append(entry["id"])
            sides = (entry.get("height"), entry.get("width"))
            usable = all(isinstance(side, int) and 0 < side < LARGEST for side in sides)
            listed.append(sides if usable else (0, 0))
        names = [str(entry["file_name"]) for entry in self.images]
        if not paths:
            raise UserError(f"{self.root} holds none of the {len(names):,} pictures of {self.file}, as {names[0]}")
        if missing:
            where = names.__getitem__
            kind = f"pictures of {self.file.name} are not in {self.root}"
            self.notes.append(note_of(missing, len(names), kind, where, self.bad_fraction))
        ids = ids if all(isinstance(each, int) and abs(each) < 2**63 for each in ids) else [str(each) for each in ids]
        return paths, ids, np.array(listed, np.int64).reshape(-1, 2), numbers

    def rows(self, numbers: dict[str, int]) -> _Rows:
        """Owner, category, box, area and crowd of each annotation of a picture that is there."""
        places = {str(entry.get("id")): place for place, entry in enumerate(self.categories)}
        rows, strays, bare, seen_ids, copies = _Rows(), [], [], {}, []
        for number, entry in enumerate(self.annotations):
            owner = numbers.get(str(entry.get("image_id")))
            if owner is None or owner < 0:
                strays += [number] if owner is None else []
                continue
            key = str(entry.get("id", f"number {number}"))
            if key in seen_ids and self.annotations[seen_ids[key]] == entry:
                copies.append(number)
                continue
            seen_ids[key] = number
            label = places.get(str(entry.get("category_id")))
            if label is None:
                raise UserError(
                    f"{self.file}: {self.place(number)} names the category {entry.get('category_id')}, which its "
                    f"categories lack: they are {', '.join(list(places)[:12])}"
                )
            box = self.box(entry, number)
            if box is None and not entry.get("segmentation"):
                bare.append(number)
                continue
            area, crowd = entry.get("area"), entry.get("iscrowd") or 0
            if crowd not in (0, 1):
                raise self.wrong(self.place(number), "0 or 1 in iscrowd", crowd)
            rows.numbers.append(number)
            rows.owners.append(owner)
            rows.labels.append(label)
            rows.boxes.append(box)
            rows.areas.append(float(area) if _is_number(area) else 0.0)
            rows.crowd.append(bool(crowd))
        total = len(self.annotations)
        for broken, kind in (
            (strays, f"annotations are of pictures that {self.file.name} does not list"),
            (bare, "annotations have neither box nor outline"),
        ):
            if broken:
                self.notes.append(note_of(broken, total, kind, self.place, self.bad_fraction))
        if copies:
            self.notes.append(f"left out: {len(copies):,} annotations stand there twice: {few(copies, self.place)}")
        return rows

    def box(self, entry: dict[str, Any], number: int) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom of an annotation; None without a box. Raises UserError for what is no box."""
        box = entry.get("bbox")
        if box is None or box == []:
            return None
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value, finite=False) for value in box):
            raise self.wrong(self.place(number), "a bbox of four numbers", box)
        left, top, width, height = box
        return left, top, left + width, top + height

    def outlines(self, rows: _Rows, sizes: np.ndarray, listed: np.ndarray) -> tuple[list[bytes | None], list[int]]:
        """Run lengths of each object, None without an outline, and its pixels."""
        texts: list[bytes | None] = []
        pixels, small = [], []
        for number, owner in zip(rows.numbers, rows.owners, strict=True):
            size, as_listed = tuple(sizes[owner].tolist()), tuple(listed[owner].tolist())
            try:
                text, area, dropped = outline(self.annotations[number].get("segmentation"), size, as_listed)
            except BadOutline as error:
                if "for a picture of" in str(error):
                    raise UserError(f"{self.file}: {self.place(number)} has {error}: make its mask anew") from None
                texts.append(None)
                pixels.append(0)
                continue
            small += [number] * bool(dropped)
            texts.append(text)
            pixels.append(area)
        if small:
            self.notes.append(
                f"left out: polygons of fewer than three points in {len(small):,} annotations: {few(small, self.place)}"
            )
        return texts, pixels

    def boxes(self, rows: _Rows, sizes: np.ndarray, texts: Sequence[bytes | None]) -> np.ndarray:
        """(N, 4) left, top, right, bottom; of the outline where there is no box, empty where that is broken too."""
        boxes = np.zeros((len(rows), 4))
        for number, box in enumerate(rows.boxes):
            if box is not None:
                boxes[number] = box
            elif texts[number] is not None:
                size = sizes[rows.owners[number]].tolist()
                left, top, width, height = coco_masks().toBbox({"size": size, "counts": texts[number]}).tolist()
                boxes[number] = left, top, left + width, top + height
        return boxes

    def with_outline(self, rows: _Rows, texts: list[bytes | None]) -> np.ndarray:
        """Which objects stay (N): where most have an outline, those that have one; where few have one, none is held."""
        lacking = [number for number, text in enumerate(texts) if text is None]
        if len(lacking) > self.bad_fraction * len(texts):
            self.notes.append(
                f"masks are not read: {len(lacking):,} of {len(texts):,} objects have none, as "
                f"{few(lacking, lambda k: self.place(rows.numbers[k]))}"
            )
            texts[:] = [None] * len(texts)
            return np.ones(len(texts), bool)
        if lacking:
            where = lambda k: self.place(rows.numbers[k])  # noqa: E731
            self.notes.append(note_of(lacking, len(texts), "objects have no mask", where, self.bad_fraction))
        return np.array([text is not None for text in texts])

    def joints(self, rows: _Rows, sizes: np.ndarray) -> np.ndarray:
        """(N, J, 3) continuous places: COCO's are indices of pixels, whose middle lies half a pixel further."""
        lengths = [len(entry.get("keypoints") or ()) for entry in self.categories]
        count = max(lengths, default=0)
        if not count:
            raise UserError(f"{self.file} has no joints: none of its categories names keypoints")
        joints = np.zeros((len(rows), count, 3))
        for place, number in enumerate(rows.numbers):
            values = self.annotations[number].get("keypoints")
            if not values:
                continue
            numeric = isinstance(values, list) and all(_is_number(value) for value in values)
            if not numeric or len(values) != 3 * count:
                raise self.wrong(self.place(number), f"3 x {count} numbers in keypoints", values)
            joints[place] = np.array(values, np.float64).reshape(count, 3)
        if not np.isin(joints[..., 2], (0, 1, 2)).all():
            wrong = np.flatnonzero(~np.isin(joints[..., 2], (0, 1, 2)).all(1))
            raise UserError(
                f"{self.file}: {len(wrong):,} people have joints that are neither 0 nor 1 nor 2: "
                f"{few(wrong.tolist(), lambda k: self.place(rows.numbers[k]))}"
            )
        joints[..., :2] += 0.5
        limits = sizes[np.array(rows.owners, np.int64)][:, None, ::-1]
        outside = ((joints[..., :2] < -1) | (joints[..., :2] > limits + 1)).any(2) & (joints[..., 2] > 0)
        if outside.any():
            people = np.flatnonzero(outside.any(1)).tolist()
            self.notes.append(
                f"not labeled: {int(outside.sum()):,} joints outside of their picture: "
                f"{few(people, lambda k: self.place(rows.numbers[k]))}"
            )
        joints[outside | (joints[..., 2] == 0)] = 0
        return joints.astype(np.float32)


def _is_number(value: Any, finite: bool = True) -> bool:
    """Whether a value of JSON is a number; NaN and infinite ones are none where `finite`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if isinstance(value, int):
        return abs(value) < LARGEST**2
    return not finite or abs(value) < float("inf")
