"""Layouts that everyone knows: a folder enters; whose layout it is, its pairs, and what its numbers mean, leave."""

import os
from collections.abc import Sequence
from pathlib import Path

from mimkit.core.errors import UserError
from mimkit.data.annotations.names import Names
from mimkit.data.annotations.pairs import Pairs, list_files, pairs_of

ADE_CLASSES = 150
_VOC = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant"
VOC = ("background", *_VOC.split(), "sheep", "sofa", "train", "tvmonitor")
"""Classes of pixels of Pascal VOC, from 0."""
CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The 19 classes that are measured, by their `labelIds`; their `labelTrainIds` are 0 to 18 in this order."""
CITYSCAPES_IDS = range(34)


def is_ade(root: Path) -> bool:
    """Whether a folder is laid out as ADE20K's scene parsing: there 0 is void, and classes count from 1."""
    splits = [f"{kind}/{split}" for kind in ("images", "annotations") for split in ("training", "validation")]
    return all((root / split).is_dir() for split in splits)


def voc_root(root: Path) -> Path:
    """The folder with JPEGImages in it: this one, or the only one in VOCdevkit. Raises UserError for several."""
    if (root / "JPEGImages").is_dir():
        return root
    years = sorted({*root.glob("VOC20*/JPEGImages"), *root.glob("VOCdevkit/VOC20*/JPEGImages")})
    if len(years) > 1:
        raise UserError(f"{root} holds {' and '.join(each.parent.name for each in years)}: name one of them")
    return years[0].parent if years else root


def is_voc(root: Path) -> bool:
    """Whether a folder is Pascal VOC's."""
    return (root / "JPEGImages").is_dir() and (root / "ImageSets").is_dir()


def is_cityscapes(root: Path) -> bool:
    """Whether a folder is Cityscapes'."""
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def cityscapes(root: Path) -> tuple[Pairs, Names, frozenset[int]]:
    """Pairs, names by number, and the numbers that are void; of `labelTrainIds` where there are some.

    Raises UserError.
    """
    paths = list_files(root, frozenset())
    images = _keyed(paths, b"leftImg8bit/", "_leftImg8bit.png")
    for kind in ("labelTrainIds", "labelIds"):
        files = _keyed(paths, b"gtFine/", f"_gtFine_{kind}.png")
        if files:
            break
    else:
        raise UserError(f"{root}/gtFine holds neither _gtFine_labelTrainIds.png nor _gtFine_labelIds.png files")
    by_id = CITYSCAPES if kind == "labelIds" else dict(enumerate(CITYSCAPES.values()))
    void = (
        frozenset(number for number in CITYSCAPES_IDS if number not in CITYSCAPES)
        if kind == "labelIds"
        else frozenset()
    )
    return pairs_of(images, files, "masks", root, root), Names(root, by_id=by_id), void


def _keyed(paths: Sequence[bytes], start: bytes, end: str) -> dict[bytes, bytes]:
    suffix = os.fsencode(end)
    return {path[len(start) : -len(suffix)]: path for path in paths if path.startswith(start) and path.endswith(suffix)}
