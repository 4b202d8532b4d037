"""What a person says with --data and --labels of an annotated set enters; its two splits leave."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mimkit.core.annotation import DenseTask
from mimkit.core.errors import UserError
from mimkit.core.files import refuse_no_name
from mimkit.core.urls import is_url
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.annotations.boxes import Kind, open_boxes
from mimkit.data.annotations.coco_sets import find_json, open_coco
from mimkit.data.annotations.depths import open_depths
from mimkit.data.annotations.known import ADE_CLASSES, VOC, cityscapes, is_ade, is_cityscapes, is_voc, voc_root
from mimkit.data.annotations.maps import ENDINGS
from mimkit.data.annotations.mended import BAD_FRACTION
from mimkit.data.annotations.names import Names, find_names
from mimkit.data.annotations.pairs import BOXES, DEPTHS, MASKS, by_image_sets, ending_of, find_pairs, list_files
from mimkit.data.annotations.segments import name_folders, open_segments
from mimkit.data.reading import Reading

_XML = frozenset({b".xml"})


class AnnotatedSplits(NamedTuple):
    """Both splits of an annotated set, with the same classes."""

    train: Annotated
    test: Annotated


def open_annotated(
    data: Sequence[str],
    task: DenseTask,
    *,
    labels: str | None = None,
    reading: Reading = Reading(),
    void: int | None = None,
    depth_scale: float | None = None,
    masks: bool | None = None,
    bad_fraction: float = BAD_FRACTION,
) -> AnnotatedSplits:
    """The pictures of a set with what a task asks for.

    Args:
        data: one folder: of a layout that docs/annotations.md lists, or of pictures alone beside `labels`.
        labels: a folder of masks, depths, boxes or JSON files, or one JSON file; None: they lie in `data`.
        reading: how files become pictures.
        void: the number of pixels without a class in masks, besides 255; None: 0 in ADE20K's layout.
        depth_scale: stored units of a meter; None: as the layout says, else millimeters in whole numbers, meters in
            fractions.
        masks: whether masks of objects are read; None: where the set has some and pycocotools is installed.
        bad_fraction: the share of annotations that may be broken; they are left out and counted in `notes`.

    Splits are the set's own (train and val or test), else 20 % of the pictures by address are tested on, which a note
    says. Raises UserError.
    """
    root = _folder(data)
    beside = None if labels is None else _place(labels)
    reading.check()
    if reading.tile is not None:
        raise UserError("annotated pictures are not cut into tiles: leave images.tile away")
    if void is not None and task != "segment":
        raise UserError(f"--void is for masks of classes: leave it out of {task}")
    if depth_scale is not None and task != "depth":
        raise UserError(f"--depth-scale is for depth: leave it out of {task}")
    if task == "segment":
        return _open_segments(root, beside, reading, void, bad_fraction)
    if task == "depth":
        pairs = find_pairs(root, beside, DEPTHS, ENDINGS, "depth maps")
        return AnnotatedSplits(*open_depths(pairs, reading, depth_scale, bad_fraction))
    root = voc_root(root)
    json_files = find_json(root, beside, task)
    if json_files is not None:
        sets = open_coco(root, json_files, task, reading, masks=masks, bad_fraction=bad_fraction)
        return AnnotatedSplits(*sets)
    if task == "keypoints":
        raise UserError(f"{beside or root} holds no JSON file of joints: give COCO's person_keypoints with --labels")
    kind: Kind = "voc" if any(ending_of(path) == ".xml" for path in list_files(beside or root, _XML)) else "yolo"
    pairs = find_pairs(root, beside, BOXES, (".xml",) if kind == "voc" else (".txt",), "boxes")
    pairs = by_image_sets(pairs, root, ("Main", "")) if kind == "voc" else pairs
    names = find_names(name_folders(pairs))
    return AnnotatedSplits(*open_boxes(pairs, kind, reading, names, masks, bad_fraction))


def _open_segments(
    root: Path, beside: Path | None, reading: Reading, void: int | None, bad_fraction: float
) -> AnnotatedSplits:
    """Masks of classes, in a known layout or any other. Raises UserError."""
    root = voc_root(root)
    _refuse_objects(root, beside)
    voids = frozenset() if void is None else frozenset({void})
    if beside is None and is_cityscapes(root):
        pairs, names, never = cityscapes(root)
        return AnnotatedSplits(*open_segments(pairs, reading, names, bad_fraction, void=voids | never, named=void))
    pairs = find_pairs(root, beside, MASKS, ENDINGS, "masks")
    names = find_names(name_folders(pairs))
    if beside is None and is_voc(root):
        pairs = by_image_sets(pairs, root, ("Segmentation", "Main", ""))
        names = names or Names(root, listed=VOC)
    if beside is not None or not is_ade(root):
        return AnnotatedSplits(*open_segments(pairs, reading, names, bad_fraction, void=voids, named=void))
    voids = voids or frozenset({0})
    both = open_segments(pairs, reading, names, bad_fraction, void=voids, named=void, every=ADE_CLASSES)
    sets = AnnotatedSplits(*both)
    sets.train.notes += ("0 is void, as in ADE20K, whose layout this is",) if 0 in voids else ()
    return sets


def _refuse_objects(root: Path, labels: Path | None) -> None:
    """Refuse COCO's JSON where masks are due, if there is nothing else. Raises UserError."""
    named = labels is not None and labels.suffix == ".json"
    masks = any(folder.name.lower() in MASKS and any(folder.rglob("*.png")) for folder in root.iterdir())
    if named or (labels is None and not masks and find_json(root, None, "detect")):
        raise UserError(
            f"{labels or root}: COCO's JSON holds objects, not the class of each pixel: give a folder of masks with "
            "--labels, or learn detect from it"
        )


def _folder(data: Sequence[str]) -> Path:
    """The one folder of pictures. Raises UserError."""
    places = [data] if isinstance(data, str) else list(data)
    if len(places) != 1:
        raise UserError(f"annotated pictures come from one folder: give --data FOLDER, not {len(places)} of them")
    path = _place(places[0])
    if not path.is_dir():
        raise UserError(f"{places[0]} is no folder: annotated pictures come from a folder")
    return path


def _place(name: str) -> Path:
    refuse_no_name(name)
    if is_url(name):
        raise UserError(f"annotated pictures lie in a folder of this machine: copy {name} here")
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"there is no file or folder {name}")
    return path
