"""Drawn scenes: a number enters; a picture with exact masks, boxes, depth and joints leaves, or a set of files.

Boxes and balls stand on a floor in perspective, the nearer before the farther. All is a function of the number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mimkit.core.randomness import rng_keys, uniform

CLASSES = ("box", "ball")
JOINTS = ("top", "bottom", "left_side", "right_side")
COLORS = ((214, 96, 77), (67, 147, 195))
FLOOR, SKY = 2, 3  # classes of pixels behind those of objects
SEGMENTS = (*CLASSES, "floor", "sky")
FARTHEST = 8.0  # meters; of the sky nothing is known


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) uint8 with n objects, nearest last; places are continuous, (0, 0) the outer corner."""

    picture: np.ndarray
    masks: np.ndarray
    """(n, H, W) bool, what can be seen of each."""
    labels: np.ndarray
    """(n) of CLASSES."""
    boxes: np.ndarray
    """(n, 4) left, top, right, bottom of the masks."""
    segments: np.ndarray
    """(H, W) of SEGMENTS."""
    depth: np.ndarray
    """(H, W) meters, NaN in the sky."""
    keypoints: np.ndarray
    """(n, 4, 3) column and row of the middle of a pixel, 0 (not labeled: all 0), 1 (hidden) or 2."""


def scene(number: int, size: tuple[int, int] = (48, 64), objects: int = 3) -> Scene:
    """One scene; an object that others hide is left out, so that n may be smaller."""
    height, width = size
    draws = uniform(rng_keys("scene", number, torch.arange(objects)), 4).numpy()
    rows, columns = np.mgrid[:height, :width] + 0.5
    horizon = 0.35 * height
    floor = rows > horizon
    depth = np.where(floor, np.minimum(FARTHEST, 0.65 * height / np.maximum(rows - horizon, 1e-3)), np.nan)
    segments = np.where(floor, FLOOR, SKY)
    picture = np.where(floor[..., None], (120, 150, 90), (200, 215, 235)) + 25 * np.sin(columns / 3 + number)[..., None]
    shapes, labels, owner = [], [], np.full(size, -1)
    # Farther ones first: those that stand higher in the picture.
    for place, (kind, across, down, width_of) in enumerate(draws[np.argsort(draws[:, 2])]):
        label = int(kind < 0.5)
        bottom = horizon + (0.25 + 0.7 * down) * (height - horizon)
        half = (0.08 + 0.1 * width_of) * width * (0.5 + 0.5 * down)
        middle, center = (0.15 + 0.7 * across) * width, bottom - half
        square = (abs(columns - middle) < half) & (abs(rows - center) < half)
        shape = square if label == 0 else (columns - middle) ** 2 + (rows - center) ** 2 < half**2
        owner[shape], depth[shape], segments[shape] = place, 0.65 * height / (bottom - horizon), label
        shade = 0.75 + 0.25 * (columns - middle) / max(half, 1)
        picture = np.where(shape[..., None], np.array(COLORS[label]) * shade[..., None], picture)
        shapes.append(shape)
        labels.append(label)
    masks = [owner == place for place in range(objects)]
    seen = [place for place in range(objects) if masks[place].sum() >= 12]  # the others are scenery
    joints = [_joints(shapes[place], masks[place], number + place) for place in seen]
    return Scene(
        picture=np.clip(picture, 0, 255).astype(np.uint8),
        masks=np.array([masks[place] for place in seen], bool).reshape(len(seen), *size),
        labels=np.array([labels[place] for place in seen], np.int64),
        boxes=np.array([box_of(masks[place]) for place in seen], np.float32).reshape(len(seen), 4),
        segments=segments.astype(np.int64),
        depth=depth.astype(np.float32),
        keypoints=np.array(joints, np.float32).reshape(len(seen), len(JOINTS), 3),
    )


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a mask (H, W)."""
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _joints(shape: np.ndarray, mask: np.ndarray, number: int) -> list[tuple[float, float, int]]:
    """The four ends of a shape; hidden where another object stands before them, some not labeled."""
    left, top, right, bottom = box_of(shape)
    middle, center = (left + right) // 2, (top + bottom) // 2
    ends = [(middle, top), (middle, bottom - 1), (left, center), (right - 1, center)]
    labeled = uniform(rng_keys("joints", number), len(ends)).numpy() > 0.15
    rows = zip(ends, labeled, strict=True)
    return [(x + 0.5, y + 0.5, 2 if mask[y, x] else 1) if known else (0.0, 0.0, 0) for (x, y), known in rows]


def scenes(counts: Mapping[str, int], size: tuple[int, int] = (48, 64), objects: int = 3) -> dict[str, list[Scene]]:
    """So many scenes of each split, all different."""
    starts = np.cumsum([0, *counts.values()]).tolist()
    return {
        split: [scene(start + i, size, objects) for i in range(count)]
        for start, (split, count) in zip(starts, counts.items(), strict=False)
    }


def save(array: np.ndarray, file: Path, mode: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if mode == "P":
        picture = picture.convert("L").copy()
        picture.putpalette([shade * 7 % 256 for shade in range(768)])
    picture.save(file)


def write_pairs(folder: Path, sets: Mapping[str, Sequence[Scene]], mode: str | None = None) -> Path:
    """images/SPLIT/NUMBER.png and masks/SPLIT/NUMBER.png of SEGMENTS; of mode P with a palette."""
    for split, members in sets.items():
        for number, member in enumerate(members):
            save(member.picture, folder / "images" / split / f"{number:03d}.png")
            save(member.segments.astype(np.uint8), folder / "masks" / split / f"{number:03d}.png", mode)
    return folder


def write_depth(folder: Path, sets: Mapping[str, Sequence[Scene]], ending: str = "png", scale: float = 1000) -> Path:
    """images/SPLIT/NUMBER.png and depth/SPLIT/NUMBER: 16-bit PNG with `scale` units a meter, or npy in meters."""
    for split, members in sets.items():
        for number, member in enumerate(members):
            save(member.picture, folder / "images" / split / f"{number:03d}.png")
            file = folder / "depth" / split / f"{number:03d}.{ending}"
            if ending == "png":
                save(np.nan_to_num(np.rint(member.depth * scale)).astype(np.uint16), file)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, member.depth)
    return folder


def counts_of(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths of a mask (H, W), column by column, as COCO has them: zeros first."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    turns = np.flatnonzero(np.diff(flat))
    ends = [0, *turns.tolist()]
    runs = np.diff([*ends, mask.size]).tolist()
    return runs[:-1] if runs[-1] == 0 else runs


def write_coco(
    folder: Path, sets: Mapping[str, Sequence[Scene]], *, first_id: int = 1, keypoints: bool = False
) -> Path:
    """SPLIT2017/NUMBER.png and annotations/instances_SPLIT2017.json, or person_keypoints_, with ids of 7 and 3."""
    kind = "person_keypoints" if keypoints else "instances"
    first_image = 1
    for split, members in sets.items():
        file = folder / "annotations" / f"{kind}_{split}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        for number, member in enumerate(members, first_image):
            save(member.picture, folder / f"{split}2017" / f"{number:06d}.png")
        file.write_text(json.dumps(coco(members, first_id=first_id, first_image=first_image, keypoints=keypoints)))
        first_image += len(members)
    return folder


def coco(members: Sequence[Scene], *, first_id: int = 1, first_image: int = 1, keypoints: bool = False) -> dict:
    """COCO's JSON of scenes. Joints are indices of pixels there."""
    ids = {0: 7, 1: 3}  # with holes, and not in the order of CLASSES
    images, annotations = [], []
    for image, member in enumerate(members, first_image):
        height, width = member.picture.shape[:2]
        images.append({"id": image, "file_name": f"{image:06d}.png", "height": height, "width": width})
        for mask, label, box, joints in zip(member.masks, member.labels, member.boxes, member.keypoints, strict=True):
            left, top, right, bottom = map(float, box)
            entry = {
                "id": first_id + len(annotations),
                "image_id": image,
                "category_id": 1 if keypoints else ids[int(label)],
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": counts_of(mask)},
            }
            if keypoints:
                rows = [(x - 0.5, y - 0.5, int(v)) if v else (0, 0, 0) for x, y, v in joints.tolist()]
                entry |= {
                    "keypoints": [value for row in rows for value in row],
                    "num_keypoints": int((joints[:, 2] > 0).sum()),
                }
            annotations.append(entry)
    categories: list[dict] = [{"id": ids[place], "name": name} for place, name in enumerate(CLASSES)]
    if keypoints:
        categories = [{"id": 1, "name": "person", "keypoints": list(JOINTS), "skeleton": [[1, 2], [3, 4]]}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_voc(folder: Path, sets: Mapping[str, Sequence[Scene]]) -> Path:
    """Pascal VOC: JPEGImages (PNG here), Annotations, SegmentationClass with palettes, ImageSets of both kinds."""
    for split, members in sets.items():
        names = [f"{split}_{number:03d}" for number in range(len(members))]
        for name, member in zip(names, members, strict=True):
            save(member.picture, folder / "JPEGImages" / f"{name}.png")
            save(member.segments.astype(np.uint8), folder / "SegmentationClass" / f"{name}.png", "P")
            file = folder / "Annotations" / f"{name}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(voc_xml(member, f"{name}.png"))
        for kind in ("Main", "Segmentation"):
            file = folder / "ImageSets" / kind / f"{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(names) + "\n")
    return folder


def voc_xml(member: Scene, name: str) -> str:
    """The XML of a scene; its boxes are 1-based and inclusive."""
    height, width = member.picture.shape[:2]
    objects = [
        f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{left + 1:g}</xmin>"
        f"<ymin>{top + 1:g}</ymin><xmax>{right:g}</xmax><ymax>{bottom:g}</ymax></bndbox></object>"
        for label, (left, top, right, bottom) in zip(member.labels.tolist(), member.boxes.tolist(), strict=True)
    ]
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def write_yolo(folder: Path, sets: Mapping[str, Sequence[Scene]]) -> Path:
    """images/SPLIT/NUMBER.png, labels/SPLIT/NUMBER.txt and data.yaml."""
    for split, members in sets.items():
        for number, member in enumerate(members):
            save(member.picture, folder / "images" / split / f"{number:03d}.png")
            height, width = member.picture.shape[:2]
            lines = [
                f"{label} {(left + right) / 2 / width:.8f} {(top + bottom) / 2 / height:.8f} "
                f"{(right - left) / width:.8f} {(bottom - top) / height:.8f}"
                for label, (left, top, right, bottom) in zip(member.labels.tolist(), member.boxes.tolist(), strict=True)
            ]
            file = folder / "labels" / split / f"{number:03d}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines) + "\n")
    names = "\n".join(f"  {place}: {name}" for place, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}\n")
    return folder
