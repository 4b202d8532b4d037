"""Pascal VOC and YOLO: boxes are those that were drawn, and each kind of bad file is answered in one line."""

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from mimkit.core.errors import UserError
from mimkit.data.annotations.sources import open_annotated
from scenes import CLASSES, SEGMENTS, save, scenes, voc_xml, write_voc, write_yolo

SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", "../shared/data"))
SETS = scenes({"train": 6, "val": 5})
WRITE = {"voc": write_voc, "yolo": write_yolo}


def opened(folder: Path, **settings):
    return open_annotated([str(folder)], "detect", **settings)


def check(annotated, members) -> None:
    """Every picture and its objects are those of the scenes, by name of class."""
    assert len(annotated) == len(members)
    for number, member in enumerate(members):
        annotation = annotated.annotation(number)
        assert np.array_equal(annotated.read(number).permute(1, 2, 0).numpy(), member.picture)
        assert annotation.size == member.picture.shape[:2]
        assert np.allclose(annotation.boxes.numpy(), member.boxes, atol=1e-4)
        names = [annotated.categories[label] for label in annotation.labels]
        assert names == [CLASSES[label] for label in member.labels]


@pytest.mark.parametrize("kind", WRITE)
def test_boxes_are_those_that_were_drawn(tmp_path, kind):
    train, test = opened(WRITE[kind](tmp_path, SETS))
    assert train.categories == test.categories == {"voc": ("ball", "box"), "yolo": CLASSES}[kind]
    assert train.has_test and not train.has_masks
    check(train, SETS["train"])
    check(test, SETS["val"])
    sides = SETS["train"][0].boxes
    areas = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
    assert np.allclose(train.annotation(0).areas, areas, rtol=1e-4)


def test_voc_has_masks_with_its_names_and_the_splits_of_its_lists(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", SETS)
    train, test = open_annotated([str(tmp_path)], "segment")
    assert train.categories[:4] == ("background", "aeroplane", "bicycle", "bird") and len(train.categories) == 21
    for annotated, members in ((train, SETS["train"]), (test, SETS["val"])):
        for number, member in enumerate(members):
            assert np.array_equal(annotated.annotation(number).segments.numpy(), member.segments)
    (tmp_path / "VOCdevkit" / "VOC2012" / "classes.txt").write_text("\n".join(SEGMENTS))
    assert open_annotated([str(tmp_path)], "segment").train.categories == SEGMENTS
    check(opened(tmp_path).test, SETS["val"])
    write_voc(tmp_path / "VOC2007", SETS)
    with pytest.raises(UserError, match="holds VOC2007 and VOC2012: name one of them"):
        opened(tmp_path)


def test_lists_that_name_nothing_or_too_much_are_told(tmp_path):
    write_voc(tmp_path, SETS)
    file = tmp_path / "ImageSets" / "Main" / "train.txt"
    file.write_text(file.read_text() + "gone -1\n")
    assert "left out: 1 of train.txt that have no annotation: gone" in opened(tmp_path).train.notes
    file.write_text("gone\n")
    with pytest.raises(UserError, match=r"train.txt names none of the 11 annotated pictures"):
        opened(tmp_path)


def test_xml_in_folders_beside_pictures_is_found_and_pictures_without_are_left_out(tmp_path):
    for split, members in SETS.items():
        for number, member in enumerate(members):
            save(member.picture, tmp_path / "images" / split / "cat" / f"{number}.png")
            save(member.picture, tmp_path / "masks" / split / "cat" / f"{number}.png")  # of another task
            if number != 2:
                file = tmp_path / "boxes" / split / "cat" / f"{number}.xml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(voc_xml(member, f"{number}.png"))
    labels = str(tmp_path / "boxes")
    for settings in ({"folder": tmp_path}, *({"folder": f, "labels": labels} for f in (tmp_path, tmp_path / "images"))):
        train, test = opened(**settings)
        check(train, [member for number, member in enumerate(SETS["train"]) if number != 2])
        check(test, [member for number, member in enumerate(SETS["val"]) if number != 2])
        assert any("left out: 2 pictures without boxes, as" in note for note in train.notes)


def test_files_right_beside_their_pictures_are_found(tmp_path):
    for number, member in enumerate([*SETS["train"], *SETS["val"]]):
        save(member.picture, tmp_path / f"{number}.png")
        (tmp_path / f"{number}.xml").write_text(voc_xml(member, f"{number}.png"))
    train, test = opened(tmp_path)
    assert (len(train), len(test)) == (9, 2) and any("by address" in note for note in train.notes)


def test_difficult_objects_are_ignored(tmp_path):
    write_voc(tmp_path, SETS)
    file = tmp_path / "Annotations" / "train_000.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    train, _ = opened(tmp_path)
    assert train.annotation(0).crowd.tolist() == [True] + [False] * (len(SETS["train"][0].labels) - 1)
    assert any("1 objects are difficult" in note for note in train.notes)


def test_parts_of_a_person_are_no_objects(tmp_path):
    write_voc(tmp_path, SETS)
    file = tmp_path / "Annotations" / "train_000.xml"
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    file.write_text(file.read_text().replace("<difficult>0</difficult>", head, 1))
    check(opened(tmp_path).train, SETS["train"])


def test_heads_of_pets_are_those_of_their_xml():
    if not (SHARED / "pets_mini").is_dir():
        pytest.skip("no pets_mini here")
    train, test = opened(SHARED / "pets_mini")
    assert (len(train), len(test), train.categories) == (198, 98, ("cat", "dog"))
    for number in range(len(test)):
        file = Path(test.where(number).replace("images", "boxes")).with_suffix(".xml")
        boxes = [
            [float(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            for entry in ElementTree.parse(file).iter("object")
        ]
        ours = test.annotation(number).boxes + torch.tensor([1.0, 1, 0, 0])
        assert torch.allclose(ours, torch.tensor(boxes), atol=1.0)


POLYGONS = {"train": ["0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75", "1 0 0 0.5 0 0 0.5"], "val": ["0 0 0 1 0 1 1"]}


def test_polygons_of_yolo_are_masks(tmp_path):
    write_yolo(tmp_path, SETS)
    for split, lines in POLYGONS.items():
        for file in tmp_path.glob(f"labels/{split}/*.txt"):
            file.write_text("\n".join(lines))
    train, test = opened(tmp_path)
    annotation = train.annotation(0)
    assert train.has_masks and test.has_masks and annotation.boxes[0].tolist() == [16, 12, 48, 36]
    drawn = np.zeros((48, 64), bool)
    drawn[12:36, 16:48] = True
    assert np.array_equal(annotation.masks[0].numpy(), drawn) and float(annotation.areas[0]) == drawn.sum()
    assert not opened(tmp_path, masks=False).train.has_masks
    file = tmp_path / "labels" / "train" / "000.txt"
    file.write_text("0 0.5 0.5 0.2 0.2\n" + file.read_text())
    train, _ = opened(tmp_path)
    assert not train.has_masks and any("masks are not read: 1 of" in note for note in train.notes)


def test_names_of_yolo_come_from_its_yaml_or_are_numbers(tmp_path):
    write_yolo(tmp_path, SETS)
    (tmp_path / "data.yaml").write_text("nc: 3\nnames: ['box', 'ball', 'cone']\n")
    assert opened(tmp_path).train.categories == ("box", "ball", "cone")
    (tmp_path / "data.yaml").write_text("names: [box]\n")
    with pytest.raises(UserError, match=r"labels/.*txt names the class 1, which .*data.yaml lacks: it has box"):
        opened(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [box\n")
    with pytest.raises(UserError, match=r"data.yaml is no YAML"):
        opened(tmp_path)
    (tmp_path / "data.yaml").unlink()
    assert opened(tmp_path).train.categories == ("class 0", "class 1")
    (tmp_path / "labels" / "classes.txt").write_text("box\nball\n")
    train, _ = opened(tmp_path)
    assert train.categories == CLASSES and train.category_ids == (0, 1) and not train.notes


def test_an_empty_file_is_a_picture_without_objects(tmp_path):
    write_yolo(tmp_path, SETS)
    (tmp_path / "labels" / "train" / "003.txt").write_text("\n")
    train, _ = opened(tmp_path)
    assert len(train) == 6 and len(train.taught) == 5 and train.annotation(3).boxes.shape == (0, 4)
    assert "left out of training: 1 pictures without objects" in train.notes


BROKEN = {
    "yolo": {
        "letters": ("0 a b c d", "line 1 holds more than numbers"),
        "class": ("cat 0.5 0.5 0.1 0.1", "line 1 begins with cat, which is no number of a class"),
        "negative": ("-1 0.5 0.5 0.1 0.1", "line 1 begins with -1"),
        "pixels": ("0 20 20 10 10", "line 1 holds pixels, where shares of the picture"),
        "length": ("0 0.5 0.5 0.1", "line 1 has 4 numbers"),
    },
    "voc": {
        "text": ("no xml", "is no XML: syntax error"),
        "box": ("<annotation><object><name>box</name></object></annotation>", "has an object without name or bndbox"),
        "numbers": (
            "<a><object><name>x</name><bndbox><xmin>a</xmin></bndbox></object></a>",
            "has a bndbox whose xmin, ymin, xmax and ymax are not all numbers",
        ),
    },
}


@pytest.mark.parametrize(("kind", "fault"), [(kind, fault) for kind, faults in BROKEN.items() for fault in faults])
def test_a_broken_file_stops_with_its_name_or_is_left_out(tmp_path, kind, fault):
    WRITE[kind](tmp_path, SETS)
    file = tmp_path / {"yolo": "labels/train/001.txt", "voc": "Annotations/train_001.xml"}[kind]
    text, line = BROKEN[kind][fault]
    file.write_text(text)
    with pytest.raises(UserError, match="1 files of boxes cannot be read") as stop:
        opened(tmp_path)
    assert line in str(stop.value) and file.name in str(stop.value) and "\n" not in str(stop.value)
    train, _ = opened(tmp_path, bad_fraction=0.2)
    check(train, SETS["train"][:1] + SETS["train"][2:])


VALUES = {
    "outside": ((900, 5, 910, 15), "1 boxes lie outside of their picture: object 1 of Annotations/train_001.xml"),
    "flat": ((9, 9, 5, 15), "1 boxes have no width or no height: object 1 of Annotations/train_001.xml"),
    "nan": (("nan", 5, 9, 15), "1 boxes are no numbers: object 1 of Annotations/train_001.xml"),
    "infinite": (("inf", 5, 9, 15), "1 boxes are no numbers"),
}


@pytest.mark.parametrize("fault", VALUES)
def test_a_broken_box_stops_with_its_place(tmp_path, fault):
    write_voc(tmp_path, SETS)
    values, line = VALUES[fault]
    sides = "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True))
    text = f"<annotation><object><name>box</name><bndbox>{sides}</bndbox></object></annotation>"
    (tmp_path / "Annotations" / "train_001.xml").write_text(text)
    with pytest.raises(UserError, match=line):
        opened(tmp_path)


def test_sizes_of_scaled_pictures_are_refused_and_boxes_from_zero_are_told(tmp_path):
    write_voc(tmp_path, SETS)
    file = tmp_path / "Annotations" / "train_001.xml"
    text = file.read_text()
    file.write_text(text.replace("<width>64</width><height>48", "<width>640</width><height>480"))
    with pytest.raises(UserError, match=r"train_001.png \(640x480 listed, is 64x48\); they were scaled"):
        opened(tmp_path)
    sides = "<xmin>0</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax>"
    file.write_text(f"<annotation><object><name>box</name><bndbox>{sides}</bndbox></object></annotation>")
    train, _ = opened(tmp_path)
    assert train.annotation(1).boxes.tolist() == [[0, 0, 9, 9]]
    assert any("1 boxes begin at 0, where VOC's begin at 1" in note for note in train.notes)


def test_nothing_to_learn_from_is_refused(tmp_path):
    write_yolo(tmp_path, SETS)
    for file in tmp_path.glob("labels/*/*.txt"):
        file.write_text("")
    with pytest.raises(UserError, match="holds no object in 11 files of boxes"):
        opened(tmp_path)
    with pytest.raises(UserError, match="holds boxes without masks: learn boxes, or give polygons"):
        opened(write_yolo(tmp_path / "b", SETS), masks=True)
    with pytest.raises(UserError, match="holds no JSON file of joints: give COCO's person_keypoints"):
        open_annotated([str(tmp_path)], "keypoints")
    with pytest.raises(UserError, match="holds no boxes: put them into boxes/ beside images/"):
        opened(tmp_path / "images")
