"""COCO's JSON: boxes, masks and joints are those of pycocotools, and each kind of bad input is answered in one line."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.data.annotations import outlines
from mimkit.data.annotations.coco_sets import mirrored
from mimkit.data.annotations.outlines import run_lengths
from mimkit.data.annotations.sources import open_annotated
from scenes import CLASSES, coco, save, scenes, write_coco, write_pairs

SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", "../shared/data"))
SETS = scenes({"train": 6, "val": 5})


def opened(folder: Path, **settings):
    return open_annotated([str(folder)], "detect", **settings)


def changed(folder: Path, change, split: str = "train", **settings) -> Path:
    """A written set of which `change` has altered the JSON of one split."""
    if not folder.exists() or not list(folder.iterdir()):
        write_coco(folder, SETS, **settings)
    file = next(folder.glob(f"annotations/*_{split}2017.json"))
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return folder


def first(data: dict) -> dict:
    return data["annotations"][0]


def pycocotools(file: Path):
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(file))


def test_objects_are_those_that_were_drawn(tmp_path):
    train, test = opened(write_coco(tmp_path, SETS))
    assert train.categories == test.categories == ("ball", "box")  # in the order of their ids, 3 and 7
    assert train.category_ids == (3, 7) and test.image_ids.tolist() == [7, 8, 9, 10, 11]
    assert (len(train), len(test), train.has_test, train.has_masks) == (6, 5, True, True)
    order = [train.categories.index(name) for name in CLASSES]
    for annotated, members in ((train, SETS["train"]), (test, SETS["val"])):
        for number, member in enumerate(members):
            annotation = annotated.annotation(number)
            assert annotation.size == annotated.read(number).shape[1:]
            assert np.array_equal(annotation.boxes.numpy(), member.boxes)
            assert annotation.labels.tolist() == [order[label] for label in member.labels]
            assert np.array_equal(annotation.masks.numpy(), member.masks)
            assert annotation.areas.tolist() == member.masks.sum((1, 2)).tolist()
            assert not annotation.crowd.any()


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_masks_and_areas_of_photographs_are_those_of_pycocotools(split):
    if not (SHARED / "coco_mini").is_dir():
        pytest.skip("no coco_mini here")
    sets = opened(SHARED / "coco_mini")
    annotated = sets.train if split == "train" else sets.test
    truth = pycocotools(SHARED / "coco_mini" / "annotations" / f"instances_{split}2017.json")
    objects = 0
    for number in range(len(annotated)):
        annotation = annotated.annotation(number)
        entries = truth.loadAnns(truth.getAnnIds(imgIds=int(annotated.image_ids[number])))
        assert len(entries) == len(annotation.labels)
        for place, entry in enumerate(entries):
            left, top, width, height = entry["bbox"]
            box = np.clip([left, top, left + width, top + height], 0, [*annotation.size[::-1]] * 2)
            assert annotation.boxes[place].numpy() == pytest.approx(box, rel=1e-6)
            assert np.array_equal(annotation.masks[place].numpy(), truth.annToMask(entry).astype(bool))
            assert float(annotation.areas[place]) == pytest.approx(entry["area"], rel=1e-6)
            assert bool(annotation.crowd[place]) == bool(entry["iscrowd"])
            assert annotated.category_ids[int(annotation.labels[place])] == entry["category_id"]
        objects += len(entries)
    assert (len(annotated), objects, int(annotated.table.crowd.sum())) == {
        "train": (163, 1373, 18),
        "val": (51, 440, 4),
    }[split]


def test_photographs_have_the_boxes_of_torchvisions_reader():
    if not (SHARED / "coco_mini").is_dir():
        pytest.skip("no coco_mini here")
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

    place = SHARED / "coco_mini"
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = CocoDetection(str(place / "images" / "val2017"), str(place / "annotations" / "instances_val2017.json"))
    theirs = wrap_dataset_for_transforms_v2(theirs, target_keys=("boxes", "labels", "image_id"))
    ours = opened(place).test
    by_id = {int(target["image_id"]): target for _, target in theirs}
    for number in range(len(ours)):
        target, annotation = by_id[int(ours.image_ids[number])], ours.annotation(number)
        assert torch.allclose(annotation.boxes, target["boxes"].float(), atol=0.02)
        ids = [ours.category_ids[label] for label in annotation.labels.tolist()]
        assert ids == target["labels"].tolist()


def test_polygons_of_drawn_boxes_are_the_masks_of_pycocotools(tmp_path):
    def polygons(data: dict) -> None:
        for entry in data["annotations"]:
            left, top, width, height = entry["bbox"]
            corner = [left + width / 3, top + height]
            entry["segmentation"] = [[left, top, left + width, top, *corner], [1, 1, 9.5, 1, 9, 9.25, 1, 8]]

    train, _ = opened(changed(tmp_path, polygons))
    truth = pycocotools(tmp_path / "annotations" / "instances_train2017.json")
    entries = truth.loadAnns(truth.getAnnIds())
    masks = torch.cat([train.annotation(i).masks for i in range(len(train))])
    assert np.array_equal(masks.numpy(), np.array([truth.annToMask(entry) for entry in entries]) > 0)


def test_compressed_run_lengths_are_read_as_they_are_written():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 1):
        drawn = np.asfortranarray((rng.random((37, 53)) < share).astype(np.uint8))
        encoded = mask.encode(drawn)
        runs = run_lengths(encoded["counts"])
        assert sum(runs) == drawn.size and sum(runs[1::2]) == drawn.sum()
        ours = outlines.Outlines.pack([encoded["counts"]])
        assert np.array_equal(ours.masks(0, 1, (37, 53))[0], drawn.astype(bool))
    for broken in (b"\x7f", b" ", b"oo"):
        with pytest.raises(ValueError):
            run_lengths(broken)


def test_without_pycocotools_boxes_are_read_and_masks_ask_for_the_extra(tmp_path, monkeypatch):
    write_coco(tmp_path, SETS)
    import sys

    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    train, _ = opened(tmp_path)
    assert np.array_equal(train.annotation(0).boxes.numpy(), SETS["train"][0].boxes)
    assert not train.has_masks and train.annotation(0).masks is None
    assert "masks are not read: pip install 'mimkit[detect]'" in train.notes
    with pytest.raises(UserError, match=r"reading masks of COCO needs an extra: pip install 'mimkit\[detect\]'"):
        opened(tmp_path, masks=True)
    assert opened(tmp_path, masks=False).train.notes == ()


LAYOUTS = {
    "coco": ("{split}2017/{name}", "annotations/instances_{split}2017.json"),
    "images": ("images/{split}2017/{name}", "annotations/instances_{split}2017.json"),
    "roboflow": ("{split}/{name}", "{split}/_annotations.coco.json"),
    "beside": ("images/{split}/{name}", "{split}.json"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    picture, file = LAYOUTS[layout]
    for split, members in SETS.items():
        for number, member in enumerate(members, 1):  # the same names in both splits
            save(member.picture, tmp_path / picture.format(split=split, name=f"{number:06d}.png"))
        place = tmp_path / file.format(split=split)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(coco(members)))
    train, test = opened(tmp_path)
    for annotated, members in ((train, SETS["train"]), (test, SETS["val"])):
        assert len(annotated) == len(members) and annotated.has_test
        for number, member in enumerate(members):
            assert np.array_equal(annotated.read(number).permute(1, 2, 0).numpy(), member.picture)
            assert np.array_equal(annotated.annotation(number).boxes.numpy(), member.boxes)


def test_one_file_of_all_is_parted_by_address_or_by_folders(tmp_path):
    members = scenes({"all": 10})["all"]
    for number, member in enumerate(members, 1):
        save(member.picture, tmp_path / "pictures" / f"{number:06d}.png")
    (tmp_path / "all.json").write_text(json.dumps(coco(members)))
    train, test = opened(tmp_path / "pictures", labels=str(tmp_path / "all.json"))
    assert (len(train), len(test), train.has_test) == (8, 2, False)
    assert sorted([*train.image_ids, *test.image_ids]) == list(range(1, 11))
    for annotated in (train, test):
        for number, image in enumerate(annotated.image_ids.tolist()):
            assert np.array_equal(annotated.annotation(number).boxes.numpy(), members[image - 1].boxes)
    assert any("by address" in note for note in train.notes)
    data = coco(members)
    for entry in data["images"]:
        name, split = entry["file_name"], "train" if entry["id"] < 7 else "val"
        entry["file_name"] = f"{split}/{name}"
        (tmp_path / "pictures" / split).mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).rename(tmp_path / "pictures" / split / name)
    (tmp_path / "all.json").write_text(json.dumps(data))
    train, test = opened(tmp_path / "pictures", labels=str(tmp_path / "all.json"))
    assert (train.image_ids.tolist(), test.image_ids.tolist(), test.has_test) == (
        [1, 2, 3, 4, 5, 6],
        [7, 8, 9, 10],
        True,
    )


def test_ids_with_holes_texts_zero_and_duplicates_are_mapped(tmp_path):
    def strange(data: dict) -> None:
        for entry in data["annotations"]:
            entry["id"] = 0
            entry["category_id"] = str(entry["category_id"])
            entry["image_id"] = str(entry["image_id"])
        data["categories"].append({"id": 2, "name": "ball"})

    train, _ = opened(changed(tmp_path, strange))
    assert train.categories == ("ball (2)", "ball (3)", "box") and train.category_ids == (2, 3, 7)
    for number, member in enumerate(SETS["train"]):
        assert np.array_equal(train.annotation(number).boxes.numpy(), member.boxes)


def test_an_annotation_that_stands_there_twice_counts_once(tmp_path):
    train, _ = opened(changed(tmp_path, lambda data: data["annotations"].append(first(data))))
    assert len(train.annotation(0).labels) == len(SETS["train"][0].labels)
    assert "left out: 1 annotations stand there twice: annotation 1 of picture 1" in train.notes


def test_what_is_missing_is_made(tmp_path):
    def bare(data: dict) -> None:
        for entry in data["annotations"]:
            del entry["area"], entry["iscrowd"], entry["bbox"]

    train, _ = opened(changed(tmp_path, bare))
    for number, member in enumerate(SETS["train"]):
        annotation = train.annotation(number)
        assert np.array_equal(annotation.boxes.numpy(), member.boxes)
        assert annotation.areas.tolist() == member.masks.sum((1, 2)).tolist() and not annotation.crowd.any()

    def boxes_alone(data: dict) -> None:
        for entry in data["annotations"]:
            del entry["area"], entry["segmentation"]

    train, test = opened(changed(tmp_path / "b", boxes_alone))
    boxes = SETS["train"][0].boxes
    assert train.annotation(0).areas.tolist() == ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    assert train.annotation(0).masks is None and test.annotation(0).masks is None and not test.has_masks
    assert sum("masks are not read: 1" in note for note in train.notes) == 1


def test_crowds_are_marked_and_pictures_of_nothing_else_do_not_train(tmp_path):
    def crowded(data: dict) -> None:
        for entry in data["annotations"]:
            entry["iscrowd"] = int(entry["image_id"] == 2)

    train, _ = opened(changed(tmp_path, crowded))
    assert len(train) == 6 and train.taught.image_ids.tolist() == [1, 3, 4, 5, 6]
    assert np.array_equal(train.taught.annotation(1).boxes.numpy(), SETS["train"][2].boxes)
    assert "left out of training: 1 pictures without objects" in train.notes
    _, test = opened(changed(tmp_path / "b", crowded), bad_fraction=0)
    changed(tmp_path / "b", lambda data: data["annotations"].clear(), "val")
    _, test = opened(tmp_path / "b")
    assert len(test) == 5 and test.annotation(3).boxes.shape == (0, 4) and test.annotation(3).labels.shape == (0,)


def of_first(**values):
    """A change of the first annotation."""
    return lambda data: first(data).update(values)


def of_picture(number: int, **values):
    """A change of the entry of a picture."""
    return lambda data: data["images"][number].update(values)


ONE = "annotation 1 of picture 1"
FILE = "instances_train2017.json"
BROKEN = {
    "outside": (
        of_first(bbox=[900, 5, 10, 10]),
        rf"1 boxes lie outside of their picture: {ONE} \(of \d+; more",
    ),
    "flat": (of_first(bbox=[5, 5, 0, 10]), f"1 boxes have no width or no height: {ONE}"),
    "negative": (of_first(bbox=[5, 5, -3, 10]), "1 boxes have no width or no height"),
    "nan": (of_first(bbox=[5, float("nan"), 3, 10]), f"1 boxes are no numbers: {ONE}: mend"),
    "texts": (of_first(bbox="5 5 3 10"), f'{ONE}: expected a bbox of four numbers, got "5 5'),
    "bools": (of_first(bbox=[True, 5, 3, 10]), "expected a bbox of four numbers"),
    "bare": (of_first(bbox=None, segmentation=None), "1 annotations have neither box nor outline"),
    "crowd": (of_first(iscrowd="yes"), 'expected 0 or 1 in iscrowd, got "yes"'),
    "category": (of_first(category_id=9), "names the category 9, which its categories lack: they are 7, 3"),
    "stray": (
        of_first(image_id=77),
        f"1 annotations are of pictures that {FILE} does not list: annotation 1 of picture 77",
    ),
    "missing": (of_picture(1, file_name="gone.png"), f"1 pictures of {FILE} are not in .*: gone.png"),
    "unnamed": (of_picture(1, file_name=None), r"images.1: expected an id and a file_name"),
    "same id": (of_picture(1, id=1), "two pictures have the id 1"),
    "size": (
        of_picture(2, width=128, height=96),
        r"1 pictures have another size than their annotations: .*3.png \(128x96 listed, is 64x48\); they were scaled",
    ),
    "turned": (of_picture(2, width=48, height=64), r"3.png \(48x64 listed, is 64x48\); they are turned as their EXIF"),
    "mask size": (
        of_first(segmentation={"size": [20, 20], "counts": [390, 10]}),
        f"{ONE} has a mask of 20x20 for a picture of 64x48: make its mask anew",
    ),
    "no list": (lambda data: data.update(annotations={}), "has no list of annotations"),
    "no pictures": (lambda data: data.update(images=[]), "lists no images"),
    "names": (lambda data: data["categories"][0].update(name="crate"), "the category 7 is crate and box"),
    "nothing": (lambda data: data["annotations"].clear(), "has no object to train on in 6 pictures"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_input_is_one_line_that_says_where(tmp_path, kind):
    change, line = BROKEN[kind]
    with pytest.raises(UserError, match=line) as stop:
        opened(changed(tmp_path, change))
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"images": 5}', "[" * 100_000, '{"images": [3]}', "\xff"]
)
def test_json_that_is_none_is_one_line(tmp_path, text):
    write_coco(tmp_path, SETS)
    (tmp_path / "annotations" / "instances_train2017.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        UserError, match=r"instances_train2017.json (cannot be read as JSON|has no list of images)"
    ) as stop:
        opened(tmp_path)
    assert "\n" not in str(stop.value) and len(str(stop.value)) < 500


@pytest.mark.parametrize("kind", ["outside", "flat", "bare", "stray", "missing"])
def test_a_small_share_of_broken_ones_is_left_out_and_counted(tmp_path, kind):
    change, _ = BROKEN[kind]
    train, _ = opened(changed(tmp_path, change), bad_fraction=0.2)
    count = sum(len(member.labels) for member in SETS["train"])
    gone = len(SETS["train"][1].labels) if kind == "missing" else 1
    assert sum(len(train.annotation(i).labels) for i in range(len(train))) == count - gone
    assert any("left out: 1 " in note for note in train.notes)


def test_boxes_that_reach_out_are_clipped(tmp_path):
    train, _ = opened(changed(tmp_path, lambda data: first(data).update(bbox=[-5, 40, 30, 30])))
    assert train.annotation(0).boxes[0].tolist() == [0, 40, 25, 48]
    assert "clipped: 1 boxes reach beyond their picture, as annotation 1 of picture 1" in train.notes


def test_the_pictures_own_size_counts(tmp_path):
    train, _ = opened(changed(tmp_path, lambda data: data["images"][0].update(width=70, height=10)))
    assert train.annotation(0).size == (48, 64)
    assert any("1 pictures have another size than listed, which counts" in note for note in train.notes)


def test_masks_of_another_size_and_the_same_aspect_are_scaled(tmp_path):
    mask = SETS["train"][0].masks[0]
    half = mask[::2, ::2]
    from scenes import counts_of

    runs = {"size": [24, 32], "counts": counts_of(half)}
    train, _ = opened(changed(tmp_path, lambda data: first(data).update(segmentation=runs)))
    assert np.array_equal(train.annotation(0).masks[0].numpy(), half.repeat(2, 0).repeat(2, 1))


def test_outlines_that_are_none_leave_their_object_out_or_all_masks(tmp_path):
    broken = (
        [],
        [[1, 2, 3, 4]],
        [[]],
        "nothing",
        {"size": [48, 64], "counts": [5]},
        [[1, 2, 3, 4, 5, "6"]],
        [[1e9] * 6],
    )
    for number, segmentation in enumerate(broken):
        train, _ = opened(
            changed(tmp_path / str(number), lambda data, s=segmentation: first(data).update(segmentation=s))
        )
        assert not train.has_masks and any("masks are not read: 1 of" in note for note in train.notes)
        train, _ = opened(tmp_path / str(number), bad_fraction=0.2)
        assert train.has_masks and len(train.annotation(0).labels) == len(SETS["train"][0].labels) - 1
    line = {"segmentation": [[0, 0, 20, 0, 20, 20], [1, 2, 3, 4]]}
    train, _ = opened(changed(tmp_path / "line", lambda data: first(data).update(line)))
    assert any("polygons of fewer than three points in 1 annotations" in note for note in train.notes)


def test_roboflows_name_of_the_whole_is_no_class(tmp_path):
    def roboflow(data: dict) -> None:
        for entry in data["categories"]:
            entry["supercategory"] = "things"
        data["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})

    write_coco(tmp_path, SETS)
    changed(tmp_path, roboflow, "train")
    changed(tmp_path, roboflow, "val")
    assert opened(tmp_path).train.categories == ("ball", "box")


def test_a_class_without_test_objects_stays_a_class(tmp_path):
    def only_balls(data: dict) -> None:
        data["annotations"] = [entry for entry in data["annotations"] if entry["category_id"] == 3]

    train, test = opened(changed(tmp_path, only_balls, "val"))
    assert train.categories == test.categories == ("ball", "box")


def test_val_is_measured_and_not_test_and_two_of_them_are_asked_about(tmp_path):
    write_coco(tmp_path, SETS | scenes({"test": 3}))
    assert len(opened(tmp_path).test) == 5
    folder = tmp_path / "annotations"
    (folder / "captions_val2017.json").write_text("{}")
    (folder / "person_keypoints_val2017.json").write_text("{}")
    assert len(opened(tmp_path).test) == 5
    (folder / "instances_val2014.json").write_text((folder / "instances_val2017.json").read_text())
    with pytest.raises(UserError, match="several files of annotations"):
        opened(tmp_path)


def test_several_files_and_pictures_of_one_name_are_asked_about(tmp_path):
    write_coco(tmp_path, SETS)
    (tmp_path / "annotations" / "instances_train2014.json").write_text(json.dumps(coco(SETS["train"])))
    with pytest.raises(UserError, match=r"several files of annotations .*: name one with --labels FILE"):
        opened(tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"
    save(SETS["train"][0].picture, tmp_path / "more" / "000001.png")
    with pytest.raises(UserError, match=r"names 000001.png, and .* has several of it"):
        opened(tmp_path, labels=str(file))


def test_a_json_of_objects_says_nothing_of_segmentation(tmp_path):
    with pytest.raises(UserError, match="COCO's JSON holds objects, not the class of each pixel"):
        open_annotated([str(write_coco(tmp_path, SETS))], "segment")
    write_pairs(tmp_path, SETS)
    assert len(open_annotated([str(tmp_path)], "segment").train) == 6


def test_the_second_opening_reads_nothing_and_notices_changes(tmp_path, monkeypatch):
    write_coco(tmp_path, SETS)
    for file in tmp_path.rglob("*"):
        os.utime(file, (1e9, 1e9))
    before = opened(tmp_path).train
    from mimkit.data.annotations import coco as module

    def never(file: Path) -> dict:
        raise AssertionError(file)

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_json", never)
        again = opened(tmp_path).train
    assert again.fingerprint == before.fingerprint
    assert np.array_equal(again.annotation(1).masks.numpy(), SETS["train"][1].masks)
    changed(tmp_path, lambda data: first(data).update(bbox=[1, 1, 5, 5]))
    after = opened(tmp_path).train
    assert after.annotation(0).boxes[0].tolist() == [1, 1, 6, 6] and after.fingerprint != before.fingerprint


def keypoints(folder: Path, **settings):
    return open_annotated([str(folder)], "keypoints", **settings)


def test_joints_are_the_middles_of_pixels(tmp_path):
    train, test = keypoints(write_coco(tmp_path, SETS, keypoints=True))
    assert train.joints.names == ("top", "bottom", "left_side", "right_side")
    assert train.joints.mirrored == (0, 1, 3, 2) and train.joints.bones == ((0, 1), (2, 3)) and not train.joints.sigmas
    assert train.categories == ("person",) and not train.has_masks
    for annotated, members in ((train, SETS["train"]), (test, SETS["val"])):
        for number, member in enumerate(members):
            assert np.array_equal(annotated.annotation(number).keypoints.numpy(), member.keypoints)


def test_joints_of_photographs_are_cocos_half_a_pixel_further():
    if not (SHARED / "coco_mini_keypoints").is_dir():
        pytest.skip("no coco_mini_keypoints here")
    from pycocotools.cocoeval import Params

    sets = keypoints(SHARED / "coco_mini" / "images", labels=str(SHARED / "coco_mini_keypoints"))
    assert sets.train.joints.sigmas == pytest.approx(Params("keypoints").kpt_oks_sigmas.tolist())
    for annotated, split in ((sets.train, "train"), (sets.test, "val")):
        truth = pycocotools(SHARED / "coco_mini_keypoints" / f"person_keypoints_{split}2017.json")
        labeled = 0
        for number in range(len(annotated)):
            entries = truth.loadAnns(truth.getAnnIds(imgIds=int(annotated.image_ids[number])))
            annotation = annotated.annotation(number)
            assert len(entries) == len(annotation.keypoints)
            for ours, entry in zip(annotation.keypoints.numpy(), entries, strict=True):
                theirs = np.array(entry["keypoints"], np.float32).reshape(17, 3)
                visible = theirs[:, 2] > 0
                assert np.allclose(ours[visible], theirs[visible] + [0.5, 0.5, 0]) and not ours[~visible].any()
                labeled += bool(visible.any())
        assert labeled == {"train": 66, "val": 39}[split]  # of its README


JOINTS = {
    "number": (of_first(keypoints=[1, 2, 3]), "expected 3 x 4 numbers in keypoints"),
    "nan": (of_first(keypoints=[float("nan")] * 12), "expected 3 x 4 numbers in keypoints"),
    "visible": (of_first(keypoints=[1, 2, 5] * 4), "1 people have joints that are neither 0 nor 1 nor 2"),
    "unnamed": (lambda data: data["categories"][0].pop("keypoints"), "has no joints: none of its categories names"),
}


@pytest.mark.parametrize("kind", JOINTS)
def test_joints_that_are_none_are_one_line(tmp_path, kind):
    change, line = JOINTS[kind]
    with pytest.raises(UserError, match=line):
        keypoints(changed(tmp_path, change, keypoints=True))


def test_joints_outside_of_the_picture_are_not_labeled(tmp_path):
    values = [3, 4, 2, 900, 4, 2, 0, 0, 0, 5, 6, 1]
    train, _ = keypoints(changed(tmp_path, lambda data: first(data).update(keypoints=values), keypoints=True))
    assert train.annotation(0).keypoints[0].tolist() == [[3.5, 4.5, 2], [0, 0, 0], [0, 0, 0], [5.5, 6.5, 1]]
    assert any("not labeled: 1 joints outside of their picture" in note for note in train.notes)


def test_joints_are_mirrored_by_their_names():
    assert mirrored(["nose", "Left-Eye", "right-eye", "l_hip", "r_hip", "leftKnee", "rightKnee", "left_tail"]) == (
        *(0, 2, 1, 4, 3, 6, 5, 7),
    )


def test_pictures_that_cannot_be_read_stay_for_the_loader(tmp_path):
    write_coco(tmp_path, SETS)
    (tmp_path / "train2017" / "000002.png").write_bytes(b"nothing")
    train, _ = opened(tmp_path)
    assert len(train) == 6 and train.annotation(1).size == (48, 64)


def test_gray_pictures_and_turned_ones_keep_their_objects(tmp_path):
    write_coco(tmp_path, SETS)
    file = tmp_path / "train2017" / "000001.png"
    picture = Image.open(file)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(file, exif=exif)
    with pytest.raises(UserError, match="they are turned as their EXIF says"):
        opened(tmp_path)
