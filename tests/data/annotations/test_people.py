"""One person an item: its pixels and joints are those of the picture, where `origin` says."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.data.annotations.people import People, person_boxes
from mimkit.data.annotations.sources import open_annotated
from scenes import scenes, write_coco

SETS = scenes({"train": 6, "val": 5})


def opened(folder):
    return open_annotated([str(write_coco(folder, SETS, keypoints=True))], "keypoints")


def test_boxes_have_the_aspect_and_the_margin():
    boxes = torch.tensor([[10.0, 20, 30, 100], [10, 20, 110, 40]])
    tall, wide = person_boxes(boxes, 4 / 3, 1.25).tolist()
    assert tall == [10, -18, 100, 75]  # 80 high: 100; 75 wide; the middle stays (20, 60)
    assert wide == [-53, -2, 167, 125]  # 100 wide: 125; 166.7 high


def test_each_labeled_person_is_an_item_with_its_own_pixels_and_joints(tmp_path):
    train = opened(tmp_path).train
    people = train.taught
    assert isinstance(people, People) and people.joints == train.joints
    members = SETS["train"]
    labeled = [(i, k) for i, scene in enumerate(members) for k, row in enumerate(scene.keypoints) if row[:, 2].any()]
    assert [people.origin(i)[:2] for i in range(len(people))] == labeled
    for number, (picture, person) in enumerate(labeled):
        top, left, height, width = people.origin(number)[2].tolist()
        pixels, annotation = people.read(number), people.annotation(number)
        assert tuple(pixels.shape[1:]) == people.size(number) == annotation.size == (height, width)
        assert height / width == pytest.approx(4 / 3, rel=0.1)
        scene = members[picture]
        padded = np.full((300, 300, 3), 128, np.uint8)
        padded[100:148, 100:164] = scene.picture
        expected = padded[100 + top : 100 + top + height, 100 + left : 100 + left + width]
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
        joints = annotation.keypoints[0].numpy()
        drawn = scene.keypoints[person]
        inside = (drawn[:, :2] >= [left, top]).all(1) & (drawn[:, :2] < [left + width, top + height]).all(1)
        labeled_here = inside & (drawn[:, 2] > 0)
        assert np.allclose(joints[labeled_here] + [left, top, 0], drawn[labeled_here])
        assert not joints[~labeled_here].any() and labeled_here.any()
        assert np.allclose(annotation.boxes[0].numpy() + [left, top, left, top], scene.boxes[person])
        assert f"person {person}" in people.where(number) and people.header(number)[:2] == (height, width)
    assert len(people.annotation(0).labels) == 1


def test_people_are_cheap_to_hand_on_and_have_a_fingerprint_of_their_boxes(tmp_path):
    train = opened(tmp_path).train
    people = People(train)
    again = pickle.loads(pickle.dumps(people))
    assert torch.equal(again.read(2), people.read(2)) and again.fingerprint == people.fingerprint
    assert People(train, aspect=1.0).fingerprint != people.fingerprint
    assert People(train, aspect=1.0).size(0)[0] == People(train, aspect=1.0).size(0)[1]


def test_of_other_depths_nothing_is_known_outside_or_it_is_gray(tmp_path):
    write_coco(tmp_path, SETS, keypoints=True)
    for file in tmp_path.glob("*2017/*.png"):
        gray = np.asarray(Image.open(file).convert("L"))
        Image.fromarray(gray.astype(np.uint16) * 16).save(file)
    people = People(open_annotated([str(tmp_path)], "keypoints").train, margin=6)
    number = next(i for i in range(len(people)) if people.origin(i)[2][1] < 0)
    values = people.values
    assert int(people.read(number)[0, 0, 0]) == round((values.low[0] + values.high[0]) / 2)


def test_crowds_are_nobody(tmp_path):
    write_coco(tmp_path, SETS, keypoints=True)
    file = tmp_path / "annotations" / "person_keypoints_train2017.json"
    data = json.loads(file.read_text())
    count = len(open_annotated([str(tmp_path)], "keypoints").train.taught)
    assert data["annotations"][0]["num_keypoints"]
    data["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(data))
    assert len(open_annotated([str(tmp_path)], "keypoints").train.taught) == count - 1


def test_without_a_labeled_joint_there_is_nobody(tmp_path):
    write_coco(tmp_path, SETS, keypoints=True)
    file = tmp_path / "annotations" / "person_keypoints_train2017.json"
    data = json.loads(file.read_text())
    for entry in data["annotations"]:
        entry["keypoints"] = [0] * 12
    file.write_text(json.dumps(data))
    train = open_annotated([str(tmp_path)], "keypoints").train
    with pytest.raises(UserError, match="has nobody with a labeled joint in 6 pictures"):
        People(train)
