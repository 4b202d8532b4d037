"""The doctor of annotated sets: what it counts are the scenes that were drawn, and what is broken is one line."""

import json

import numpy as np
import pytest
from PIL import Image

from commandline import mimkit, refused
from mimkit.analysis.annotations import examine_annotations, rows
from scenes import CLASSES, scenes, write_coco, write_depth, write_pairs

SETS = scenes({"train": 6, "val": 5}, (96, 128))
SPLITS = {"train": "train", "test": "val"}


def text_of(result: dict) -> str:
    return "\n".join(f"{name}: {text}" for name, text in rows(result))


def test_objects_are_counted_by_size_and_class(tmp_path):
    write_coco(tmp_path, SETS)
    file = tmp_path / "annotations" / "instances_train2017.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(data))
    result = examine_annotations([str(tmp_path)], "detect").result
    for split, name in SPLITS.items():
        about, members = result["splits"][split], SETS[name]
        areas = np.concatenate([member.masks.sum((1, 2)) for member in members])[int(split == "train") :]
        assert about["objects"] == len(areas) and about["crowds"] == int(split == "train")
        assert about["sizes"] == {
            "small": int((areas < 1024).sum()),
            "medium": int(((areas >= 1024) & (areas < 9216)).sum()),
            "large": int((areas >= 9216).sum()),
        }
        assert about["sizes"]["small"] and about["sizes"]["medium"]
        assert about["readable"] == about["pictures"] == len(members)
    labels = np.concatenate([member.labels for member in SETS["val"]])
    counts = {each["name"]: each["test"] for each in result["classes"]}
    assert counts == {name: int((labels == number).sum()) for number, name in enumerate(CLASSES)}
    assert "crowds, which nothing learns: 1 in train and 0 in test" in text_of(result)


def test_joints_are_counted(tmp_path):
    result = examine_annotations([str(write_coco(tmp_path, SETS, keypoints=True))], "keypoints").result
    for split, name in SPLITS.items():
        visible = np.concatenate([member.keypoints[..., 2] for member in SETS[name]])
        labeled = result["splits"][split]["labeled"]
        assert labeled["joints"] == (visible > 0).sum(0).tolist() and labeled["hidden"] == int((visible == 1).sum())
        assert labeled["people"] == int((visible > 0).any(1).sum())
    assert "joints: top " in text_of(result)


def test_pixels_are_counted_and_classes_that_a_split_lacks_are_named(tmp_path):
    write_pairs(tmp_path, SETS)
    Image.fromarray(np.full((96, 128), 9, np.uint8)).save(tmp_path / "masks" / "val" / "000.png")
    (tmp_path / "classes.txt").write_text("0 box\n1 ball\n2 floor\n3 sky\n8 moon\n9 sun\n")
    result = examine_annotations([str(tmp_path)], "segment", void=3).result
    segments = np.concatenate([member.segments.ravel() for member in SETS["train"]])
    by_name = {each["name"]: each for each in result["classes"]}
    assert by_name["floor"]["train"] == int((segments == 2).sum())
    assert result["splits"]["train"]["void"] == pytest.approx((segments == 3).mean())
    text = text_of(result)
    assert "no pixels in train, measured and never learned: sun" in text and "no pixels at all: moon" in text


def test_depths_have_their_range_and_what_is_unknown(tmp_path):
    result = examine_annotations([str(write_depth(tmp_path, SETS, "npy"))], "depth").result
    depth = np.stack([member.depth for member in SETS["train"]])
    about = result["splits"]["train"]["depth"]
    assert about["least"] == pytest.approx(np.nanmin(depth)) and about["most"] == pytest.approx(np.nanmax(depth))
    assert about["median"] == pytest.approx(np.nanmedian(depth), rel=0.1)
    assert about["unknown"] == pytest.approx(np.isnan(depth).mean(), abs=0.02)
    assert "% unknown in train" in text_of(result)


def test_pictures_that_cannot_be_read_are_named_and_limits_hold(tmp_path):
    write_coco(tmp_path, SETS)
    (tmp_path / "train2017" / "000002.png").write_bytes(b"nothing")
    result = examine_annotations([str(tmp_path)], "detect").result
    assert list(result["splits"]["train"]["bad"].values()) == ["not a picture that can be read"]
    assert "bad: 1 in train cannot be read, as " in text_of(result)
    assert examine_annotations([str(tmp_path)], "detect", limit=2).result["splits"]["train"]["read"] == 2


def test_the_command_prints_writes_json_and_answers_what_cannot_be_meant(tmp_path):
    place, file = write_coco(tmp_path / "coco", SETS), tmp_path / "result.json"
    answer = mimkit(f"doctor {place} --task detect --json {file}")
    assert answer.status == 0 and "6 in train and 5 in test" in answer.out
    assert json.loads(file.read_text())["task"] == "detect"
    assert "COCO's JSON holds objects" in refused(f"doctor {place} --task segment")
    assert "--void is for annotated pictures: give --task" in refused(f"doctor {place} --void 3")
    assert "--batch-size says nothing of annotations" in refused(f"doctor {place} --task detect --batch-size 4")
    assert "--depth-scale is for depth" in refused(f"doctor {place} --task detect --depth-scale 4")
    (place / "annotations" / "instances_val2017.json").write_text("{")
    assert "cannot be read as JSON" in refused(f"doctor {place} --task detect")
