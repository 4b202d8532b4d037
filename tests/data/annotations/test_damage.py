"""Damaged annotations: whatever is written where, the answer is one line, or a set in which everything is in order."""

import copy
import json

import numpy as np
import pytest
import torch

from mimkit.core.annotation import Annotation
from mimkit.core.errors import UserError
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.annotations.sources import open_annotated
from scenes import scenes, write_coco, write_pairs, write_voc, write_yolo

SETS = scenes({"train": 2, "val": 1}, (24, 32), 2)
ODD = (None, "", "x", "7", -1, 0, 1.5, 1e300, float("nan"), float("inf"), 10**40, True, [], [1], [[]], {}, {"size": 3})


def in_order(annotation: Annotation, categories: tuple[str, ...]) -> None:
    """What torchvision and pycocotools would take in silence, and what would stop them far away."""
    height, width = annotation.size
    boxes, labels = annotation.boxes, annotation.labels
    assert boxes.shape == (len(labels), 4) and boxes.isfinite().all() and boxes.dtype == torch.float32
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert labels.dtype == torch.int64 and ((labels >= 0) & (labels < len(categories))).all()
    assert len(annotation.areas) == len(annotation.crowd) == len(labels) and annotation.areas.isfinite().all()
    if annotation.masks is not None:
        assert annotation.masks.shape == (len(labels), height, width) and annotation.masks.dtype == torch.bool
    if annotation.keypoints is not None:
        points = annotation.keypoints
        assert points.isfinite().all() and not points[points[..., 2] == 0].any()


def check(annotated: Annotated) -> None:
    for number in range(len(annotated)):
        in_order(annotated.annotation(number), annotated.categories)


def answered(folder, task: str) -> None:
    """Opened, or refused in one short line."""
    try:
        sets = open_annotated([str(folder)], task, bad_fraction=0.9)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600, error
        return
    check(sets.train)
    check(sets.test)


def places(value, path=()):
    """Paths of all values of JSON, of lists only the first two."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(data, path, value):
    """The same JSON with another value in a place."""
    if not path:
        return value
    data = copy.copy(data)
    data[path[0]] = replaced(data[path[0]], path[1:], value)
    return data


@pytest.mark.parametrize("keypoints", [False, True])
def test_any_value_in_any_place_of_a_json(tmp_path, keypoints):
    write_coco(tmp_path, SETS, keypoints=keypoints)
    file = next(tmp_path.glob("annotations/*_train2017.json"))
    whole = json.loads(file.read_text())
    whole["annotations"][1]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    whole["annotations"][0]["segmentation"]["counts"] = whole["annotations"][0]["segmentation"]["counts"][:3]
    every = [(path, value) for path in places(whole) for value in ODD]
    for path, value in every[:: 7 if keypoints else 5]:  # 17 values, so that in time each meets each kind of place
        file.write_text(json.dumps(replaced(whole, path, value)))
        answered(tmp_path, "keypoints" if keypoints else "detect")


def test_any_key_may_be_missing(tmp_path):
    write_coco(tmp_path, SETS)
    file = next(tmp_path.glob("annotations/*_train2017.json"))
    whole = json.loads(file.read_text())
    for path in places(whole):
        if path and isinstance(path[-1], str):
            data = copy.deepcopy(whole)
            holder = data
            for key in path[:-1]:
                holder = holder[key]
            del holder[path[-1]]
            file.write_text(json.dumps(data))
            answered(tmp_path, "detect")


@pytest.mark.parametrize("write", [write_voc, write_yolo])
def test_any_bytes_in_a_file_of_boxes(tmp_path, write):
    write(tmp_path, SETS)
    file = next(file for pattern in ("Annotations/*.xml", "labels/*/*.txt") for file in sorted(tmp_path.glob(pattern)))
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(50):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        cut = rng.integers(0, len(data)) if rng.random() < 0.3 else len(data)
        file.write_bytes(bytes(data[:cut]))
        answered(tmp_path, "detect")


@pytest.mark.parametrize("name", ["classes.txt", "classes.json", "data.yaml", "label_colors.txt", "objectInfo150.txt"])
def test_any_bytes_in_a_file_of_names(tmp_path, name):
    write_pairs(tmp_path, SETS)
    rng = np.random.default_rng(0)
    texts = [b"", b"\n\n", b"\0", b"[]", b"{}", b"[1]", b'{"0": 1}', b'["a"]', b"a: [", b"0 a\n0 b", b"Idx\tx\na\tb"]
    texts += [b"1 2 3 a", b'{"a": -1, "b": 1e400}']
    texts += [b"- {id: 0, name: [1]}", b"!!python/object/apply:os.getcwd []", b"9" * 5000 + b" a", b"names: {a: b}"]
    for text in (*texts, *(rng.bytes(30) for _ in range(30))):
        (tmp_path / name).write_bytes(text)
        try:
            sets = open_annotated([str(tmp_path)], "segment")
        except UserError as error:
            assert "\n" not in str(error), error
            continue
        assert int(sets.train.annotation(0).segments.max()) < len(sets.train.categories)


def test_any_bytes_in_a_mask(tmp_path):
    write_pairs(tmp_path, SETS)
    file = tmp_path / "masks" / "train" / "000.png"
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 2):
            data[place] = rng.integers(0, 256)
        file.write_bytes(bytes(data))
        try:
            sets = open_annotated([str(tmp_path)], "segment", bad_fraction=0.9)
        except UserError as error:
            assert "\n" not in str(error), error
            continue
        segments = sets.train.annotation(0).segments
        assert segments.shape == sets.train.size(0) and int(segments.max()) < len(sets.train.categories)
