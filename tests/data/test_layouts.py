"""Layouts that people have: of each the numbers of pictures, the classes and the splits that it must give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mimkit.core.errors import UserError
from mimkit.data.sources import open_measured, open_pictures
from sets import parquet, png, put

ANT_BEE = ("ant", "bee")


class Case(NamedTuple):
    """A layout, and what it must give."""

    make: Callable[[Path], object]  # may return what --data names, if it is not the folder
    all: int  # pictures to pre-train on
    classes: tuple[str, ...] | None
    test: int | None = None  # pictures of its own test split; None: it has none
    unlabeled: int = 0  # of those to pre-train on
    says: str = ""  # in a note
    reason: str = ""  # why there are no labels


def text(name: str, content: str | bytes, *pictures: str) -> Callable[[Path], Path]:
    """A list beside pictures."""

    def make(root: Path) -> Path:
        put(root, *(pictures or ("bus/a*2.png", "car/a*2.png")))
        data = content.encode() if isinstance(content, str) else content
        (root / name).write_bytes(data)
        return root / name

    return make


def with_metadata(name: str, content: str, *pictures: str) -> Callable[[Path], None]:
    """A folder with a table of labels in it."""

    def make(root: Path) -> None:
        put(root, *pictures)
        (root / name).write_text(content)

    return make


def tables(**files) -> Callable[[Path], None]:
    """Parquet files: their names with __ for / and - for _, and their labels."""

    def make(root: Path) -> None:
        for name, labels in files.items():
            parquet(root / (name.replace("__", "/") + ".parquet"), labels)

    return make


def metadata_parquet(root: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    put(root, "a.png", "b.png")
    pq.write_table(pa.table({"file_name": ["b.png", "a.png"], "label": ["x", "y"]}), root / "metadata.parquet")


LISTED = "bus/a0.png{0}1\nbus/a1.png{0}1\ncar/a0.png{0}0\ncar/a1.png{0}0\n"
LAYOUTS = {
    # class folders
    "flat": Case(lambda r: put(r, "*6.png"), 6, None, reason="lie in no class folders"),
    "class folders": Case(lambda r: put(r, "ant/*4.png", "bee/x/*4.png"), 8, ANT_BEE),
    "numbers": Case(lambda r: put(r, "10/*2.png", "9/*2.png", "2/*2.png"), 6, ("2", "9", "10")),
    "numbers and words": Case(lambda r: put(r, "10/*2.png", "9/*2.png", "x/*2.png"), 6, ("9", "10", "x")),
    "one loose picture": Case(lambda r: put(r, "ant/*4.png", "bee/*4.png", "x.png"), 9, None, reason="1 of its pic"),
    "one folder": Case(lambda r: put(r, "ant/*6.png"), 6, None, reason="all its pictures lie in one folder, ant/"),
    "class unlabeled": Case(
        lambda r: put(r, "ant/*4.png", "bee/*4.png", "unlabeled/*3.png"), 11, ANT_BEE, unlabeled=3, says="unlabeled/"
    ),
    # a class called like a split
    "class train": Case(
        lambda r: put(r, "aeroplane/*4.png", "bus/*4.png", "train/*4.png"),
        *(12, ("aeroplane", "bus", "train"), None, 0, "train is taken for a class, since aeroplane, bus lie beside"),
    ),
    "class train, deep": Case(
        lambda r: put(r, "bus/day1/*4.png", "train/day1/*4.png"), 8, ("bus", "train"), says="taken for a class"
    ),
    "classes train and test": Case(
        lambda r: put(r, "exam/*2.png", "test/*2.png", "train/*2.png"), 6, ("exam", "test", "train"), says="a class"
    ),
    "classes with the same sessions": Case(
        lambda r: put(r, "bus/s1/*2.png", "test/s1/*2.png", "train/s1/*2.png"),
        6,
        ("bus", "test", "train"),
        says="bus lies",
    ),
    "class val": Case(lambda r: put(r, "ant/*3.png", "val/*3.png"), 6, ("ant", "val")),
    "class training in a split": Case(
        lambda r: put(r, "train/ant/*2.png", "train/training/*2.png", "val/ant/*1.png"), 4, ("ant", "training"), 1
    ),
    # splits
    "train and val": Case(lambda r: put(r, "train/ant/*4.png", "train/bee/*4.png", "val/bee/*3.png"), 8, ANT_BEE, 3),
    "years": Case(lambda r: put(r, "train2017/*5.png", "val2017/*2.png"), 5, None, 2),
    "capitals": Case(
        lambda r: put(r, "Training/ant/*4.png", "Training/bee/*4.png", "Testing/ant/*2.png"), 8, ANT_BEE, 2
    ),
    "unlabeled2017 aside": Case(
        lambda r: put(r, "train2017/*5.png", "val2017/*2.png", "unlabeled2017/*9.png"),
        *(5, None, 2, 0, "left out: unlabeled2017/ (9), since train2017/ and val2017/ are there"),
    ),
    "train, val and test": Case(
        lambda r: put(r, "train/ant/*4.png", "train/bee/*4.png", "val/ant/*2.png", "test/ant/*3.png"),
        *(8, ANT_BEE, 2, 0, "left out: test/ (3)"),
    ),
    "other folder beside agreeing splits": Case(
        lambda r: put(r, "train/ant/*2.png", "train/bee/*2.png", "val/bee/*2.png", "extra/*7.png"),
        *(4, ANT_BEE, 2, 0, "left out: extra/ (7)"),
    ),
    "flat folder beside a labeled train": Case(
        lambda r: put(r, "train/ant/*2.png", "train/bee/*2.png", "val/*2.png", "extra/*7.png"),
        *(4, ANT_BEE, 2, 0, "left out: extra/ (7)"),
    ),
    "train alone": Case(lambda r: put(r, "train/ant/*4.png", "train/bee/*4.png"), 8, ANT_BEE),
    "val and test alone": Case(lambda r: put(r, "val/*4.png", "test/*4.png"), 8, None, reason="no train beside them"),
    "val lacks a class": Case(
        lambda r: put(r, "train/ant/*4.png", "train/bee/*4.png", "train/cow/*2.png", "val/bee/*3.png"),
        *(10, ("ant", "bee", "cow"), 3),
    ),
    "val is flat": Case(lambda r: put(r, "train/ant/*5.png", "train/bee/*5.png", "val/*3.png"), 10, ANT_BEE, 3),
    "test/unknown": Case(
        lambda r: put(r, "train/ant/*5.png", "train/bee/*5.png", "test/unknown/*3.png"),
        *(10, ANT_BEE, 3, 0, "test pictures in unknown/"),
    ),
    "train is flat": Case(lambda r: put(r, "train/*5.png", "val/ant/*2.png", "val/bee/*2.png"), 5, None, 4),
    "a loose picture beside splits": Case(
        lambda r: put(r, "train/*5.png", "val/*2.png", "logo.png"), 5, None, 2, says="loose pictures (1)"
    ),
    # annotations
    "VOC": Case(
        lambda r: put(r, "JPEGImages/*6.jpg", "SegmentationClass/*2.png", "SegmentationObject/*2.png"),
        *(6, None, None, 0, "left out: SegmentationClass/ (2), SegmentationObject/ (2)"),
    ),
    "VOCdevkit": Case(
        lambda r: put(r, "VOC2007/JPEGImages/*6.jpg", "VOC2012/JPEGImages/*3.jpg", "VOC2012/SegmentationClass/*2.png"),
        *(9, None, None, 0, "left out: SegmentationClass/ (2)", "annotations, which are not read"),
    ),
    "COCO": Case(
        lambda r: put(r, "train2017/*5.jpg", "val2017/*2.jpg", "annotations/panoptic_val2017/*2.png"),
        *(5, None, 2, 0, "left out: annotations/ (2)"),
    ),
    "images and masks": Case(
        lambda r: put(r, "images/*6.png", "masks/*6.png"),
        6,
        None,
        says="left out: masks/ (6), since the pictures lie in",
    ),
    "ADE20K": Case(
        lambda r: put(r, "images/training/*5.jpg", "images/validation/*2.jpg", "annotations/training/*5.png"),
        *(5, None, 2, 0, "left out: annotations/ (5)"),
    ),
    # lists
    "tabs": Case(text("l.txt", LISTED.format("\t")), 4, ("0", "1")),
    "spaces": Case(text("l.txt", LISTED.format(" ")), 4, ("0", "1")),
    "commas": Case(text("l.txt", LISTED.format(",")), 4, ("0", "1")),
    "semicolons": Case(text("l.lst", LISTED.format("; ")), 4, ("0", "1")),
    "BOM": Case(text("l.txt", b"\xef\xbb\xbf" + LISTED.format("\t").encode()), 4, ("0", "1")),
    "UTF-16": Case(text("l.txt", LISTED.format("\t").encode("utf-16")), 4, ("0", "1")),
    "backslashes": Case(text("l.txt", LISTED.format("\t").replace("/", "\\")), 4, ("0", "1")),
    "Windows lines": Case(text("l.txt", LISTED.format(" ").replace("\n", "\r\n")), 4, ("0", "1")),
    "words with spaces": Case(
        text("l.txt", "bus/a0.png great white shark\nbus/a1.png no class\ncar/a0.png no class\n"),
        *(3, ("great white shark", "no class")),
    ),
    "paths with spaces": Case(text("l.txt", "my cat.png 1\nmy dog.png 0\n", "my cat.png", "my dog.png"), 2, ("0", "1")),
    "some lines without label": Case(text("l.txt", "bus/a0.png 1\nbus/a1.png\ncar/a0.png 0\n"), 3, ("0", "1"), None, 1),
    "paths alone": Case(text("l.txt", "bus/a0.png\ncar/a0.png\n"), 2, None, reason="its lines name none"),
    "hidden labels": Case(text("l.txt", LISTED.format(" ").replace("1\n", "-1\n")), 4, ("0",), None, 2),
    "CSV with a header": Case(text("l.csv", "path,label\n" + LISTED.format(",")), 4, ("0", "1")),
    "CSV without a header": Case(text("l.csv", LISTED.format(",")), 4, ("0", "1")),
    "CSV of Excel": Case(
        text("l.csv", "\ufeffFilename;Class\r\nbus/a0.png;bus\r\ncar/a0.png;car\r\n"), 2, ("bus", "car")
    ),
    "CSV with quotes": Case(
        text("l.csv", 'id,filename,label\n1,"a, b.png","x, y"\n2,c.png,z\n', "a, b.png", "c.png"), 2, ("x, y", "z")
    ),
    "CSV with more columns": Case(
        text("l.csv", "id,label,image\n7,bus,bus/a0.png\n8,,bus/a1.png\n9,car,car/a0.png\n"), 3, ("bus", "car"), None, 1
    ),
    "CSV that measures": Case(
        text("l.csv", "path,label\nbus/a0.png,0.5\nbus/a1.png,0.25\n"), 2, None, reason="0.5 is no whole number"
    ),
    "TSV with a header": Case(text("l.tsv", "path\tlabel\n" + LISTED.format("\t")), 4, ("0", "1")),
    "JSON lines": Case(
        text("l.jsonl", '{"file_name": "bus/a0.png", "label": "bus"}\n{"file_name": "car/a0.png", "label": "car"}\n'),
        *(2, ("bus", "car")),
    ),
    "JSON lines, null": Case(
        text("l.jsonl", '{"path": "bus/a0.png", "label": 3}\n{"path": "car/a0.png", "label": null}\n'),
        2,
        ("3",),
        None,
        1,
    ),
    # Hugging Face's image folders
    "metadata.csv": Case(
        with_metadata("metadata.csv", "file_name,label\nmy a.png,x\nb.png,y\n", "my a.png", "b.png", "c.png"),
        *(3, ("x", "y"), None, 1),
    ),
    "metadata.jsonl over folders": Case(
        with_metadata(
            "metadata.jsonl",
            "".join(
                json.dumps({"file_name": f"{p}.png", "text": "", "label": n}) + "\n"
                for p, n in (("p/a", "u"), ("q/b", "v"))
            ),
            "p/a.png",
            "q/b.png",
        ),
        *(2, ("u", "v")),
    ),
    "metadata.parquet": Case(metadata_parquet, 2, ("x", "y")),
    "metadata of captions": Case(
        with_metadata("metadata.csv", "file_name,text\nant/0.png,hello\n", "ant/*2.png", "bee/*2.png"),
        *(4, ANT_BEE, None, 0, "no column of labels among file_name, text"),
    ),
    # Parquet
    "Hub, converted": Case(tables(default__train__0000=[0, 1, 0], default__test__0000=[1]), 3, ("0", "1"), 1),
    "Hub, two configurations": Case(
        tables(default__train__0000=[0, 1], default__test__0000=[1], tiny__train__0000=[0]), 2, ("0", "1"), 1
    ),
    "data/": Case(lambda r: tables(train=["a", "b", "a"], test=["b"])(r / "data"), 3, ("a", "b"), 1),
    "train_0": Case(tables(train_0=[0, 1], train_1=[2], test_0=[1]), 3, ("0", "1", "2"), 1),
    "left out split": Case(
        tables(train=["a", "b"], validation=["a"], test=["b"]), 2, ("a", "b"), 1, says="left out: test.parquet"
    ),
    "test lacks a class": Case(tables(train=list("abcd"), test=list("bcd")), 4, tuple("abcd"), 3),
    "test has another class": Case(tables(train=list("abc"), test=list("bcd")), 3, tuple("abcd"), 3),
    "test is hidden": Case(tables(train=[0, 1] * 4, test=[-1, -1]), 8, ("0", "1"), 2),
    "half is hidden": Case(tables(train=[0, -1, 1, -1], test=[0, 1]), 4, ("0", "1"), 2, 2),
    "booleans": Case(tables(train=[True, False], test=[True]), 2, ("0", "1"), 1),
    "floats": Case(tables(train=[0.0, 1.0, None], test=[1.0]), 3, ("0", "1"), 1, 1),
    "huge ids": Case(tables(train=[3_000_684, 1_440_764, 7], test=[7]), 3, ("7", "1440764", "3000684"), 1),
    "measured": Case(
        tables(train=[0.5, 0.7]), 2, None, says="labels are not used", reason="of its column 'label', 0.5 is"
    ),
    "nested": Case(
        tables(train=[[1], [2]]), 2, None, says="labels are not used", reason="a label is a number or a word"
    ),
    "column class": Case(lambda r: parquet(r / "x.parquet", [0, 1], name="class"), 2, ("0", "1")),
    "column fine_label": Case(lambda r: parquet(r / "x.parquet", ["a", "b"], name="fine_label"), 2, ("a", "b")),
    "two columns": Case(
        lambda r: parquet(r / "x.parquet", ["a", "b"], columns={"category": ["u", "v"]}),
        2,
        ("a", "b"),
        says="(category)",
    ),
    "no column": Case(
        lambda r: parquet(r / "x.parquet", None, rows=2), 2, None, reason="no column of labels among image"
    ),
    "image called jpg": Case(lambda r: parquet(r / "x.parquet", [0, 1], image="jpg"), 2, ("0", "1")),
    "image called anything": Case(lambda r: parquet(r / "x.parquet", [0, 1], image="scan", binary=True), 2, ("0", "1")),
    "names in the schema": Case(
        lambda r: parquet(r / "x.parquet", [1, 0, -1], names=list("pqr")), 3, tuple("pqr"), None, 1
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_its_pictures_classes_and_splits(name, tmp_path):
    case = LAYOUTS[name]
    root = tmp_path / "set"
    root.mkdir()
    place = case.make(root)
    pictures = open_pictures([str(place or root)], "all")
    assert (len(pictures), pictures.classes) == (case.all, case.classes)
    assert pictures.has_test == (case.test is not None) and pictures.unlabeled_count == case.unlabeled
    assert (pictures.labels is None) == (pictures.classes is None) == bool(pictures.no_labels)
    assert case.reason in pictures.no_labels
    assert case.says in "; ".join(pictures.notes) and (case.says or not pictures.notes), pictures.notes
    assert all(pictures.read(i).shape == (3, 12, 16) for i in range(len(pictures)))
    if case.test is not None:
        test = open_pictures([str(place or root)], "test")
        assert len(test) == case.test and test.has_test
        assert test.classes in (None, case.classes) or case.classes is None
        # No picture is in both.
        assert {test.where(i) for i in range(len(test))}.isdisjoint(pictures.where(i) for i in range(len(pictures)))


@pytest.mark.parametrize("name", ["val is flat", "test is hidden", "test/unknown"])
def test_where_the_test_split_has_no_labels_a_part_of_train_is_tested_on(name, tmp_path):
    LAYOUTS[name].make(tmp_path)
    train, test, unlabeled = open_measured([str(tmp_path)])
    assert len(train) + len(test) == LAYOUTS[name].all and len(test) == 2 and not train.has_test
    assert unlabeled == LAYOUTS[name].test and any("the test split has no labels" in note for note in train.notes)
    assert sorted(test.labels.tolist()) == [0, 1] and train.classes == test.classes


def test_names_mean_more_than_their_source_only_where_they_are_words(tmp_path):
    assert open_pictures([str(put(tmp_path / "folders", "1/*2.png", "2/*2.png"))], "all").named
    for number, (labels, names, named) in enumerate(
        (([0, 1], None, False), (["a", "b"], None, True), ([0, 1], ["a", "b"], True), (["0", "1"], None, True))
    ):
        file = parquet(tmp_path / f"{number}.parquet", labels, names=names)
        assert open_pictures([str(file)], "all").named is named


def test_a_column_of_labels_can_be_named(tmp_path):
    from mimkit.data.reading import Reading

    file = parquet(tmp_path / "x.parquet", ["a", "b"], columns={"breed": ["u", "v"]})
    reading = Reading(label_column="breed")
    pictures = open_pictures([str(file)], "all", reading)
    assert pictures.classes == ("u", "v") and not pictures.notes and "label_column" not in reading.to_json()
    assert pictures.read_as(Reading(channels=3))
    with pytest.raises(UserError, match=r"no column 'kind' for --label-column: it has image, label, breed"):
        open_pictures([str(file)], "all", Reading(label_column="kind"))
    put(tmp_path / "folder", "ant/*2.png", "bee/*2.png")
    with pytest.raises(UserError, match="has no columns for --label-column"):
        open_pictures([str(tmp_path / "folder")], "all", reading)
    (tmp_path / "folder" / "metadata.csv").write_text("file_name,label,breed\nant/0.png,x,y\n")
    assert open_pictures([str(tmp_path / "folder")], "all", reading).classes == ("y",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("l.txt", "x.png 1\n", r"line 1: there is no file x.png \(paths are relative to"),
        ("l.csv", "id,label\n7,cat\n", "name the columns path,label in a first line"),
        ("l.csv", "id,label,file\n1,a,b,c\n", "row 2 has 4 cells for 3 columns"),
        ("l.jsonl", '{"path": "x.png"\n', "line 1 is no JSON"),
        ("l.jsonl", "[1]\n", "line 1 is no object"),
        ("l.jsonl", '{"a": 1}\n', "has the columns a; paths must be in a column 'path'"),
        ("l.csv", "path,label\n", "names no picture below its first line"),
        ("l.tsv", "\n\n", "is empty"),
    ],
)
def test_lists_that_cannot_be_read_say_why(name, content, says, tmp_path):
    (tmp_path / "7").write_bytes(png())
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        open_pictures([str(tmp_path / name)], "all")
    assert "\n" not in str(caught.value)


def test_parquet_that_cannot_be_read_says_why(tmp_path):
    tables(a__train__0=[0], b__train__0=[0])(tmp_path / "two")
    with pytest.raises(UserError, match="holds a, b: name one"):
        open_pictures([str(tmp_path / "two")])
    both = parquet(tmp_path / "x.parquet", [0], image="left", columns={"right": [png()]})
    with pytest.raises(UserError, match="has pictures in left, right: call the column"):
        open_pictures([str(both)])
