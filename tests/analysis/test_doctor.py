"""The doctor: what it says of depth, mix, stacks, holes, classes, copies and plans, as JSON, in rows and on a page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders import structured
from commandline import mimkit, refused
from mimkit.analysis import doctor
from mimkit.analysis.doctor import class_table, examine
from mimkit.analysis.survey import duplicates, survey
from mimkit.data.sources import open_pictures
from mimkit.report.examination import examination_page

tifffile = pytest.importorskip("tifffile")


@pytest.fixture(autouse=True)
def free(monkeypatch):
    """Costs are tested by the command line; here they would only take time."""
    cost = dict(steps=7, epochs=2, batch_size=4, micro_batch=4, parameters=10**6, memory_bytes=10**9, free_bytes=10**9)
    monkeypatch.setattr(doctor, "_cost", lambda prepared, device: cost | {"seconds": 3.0, "engine": {}})


def said(examination) -> str:
    return "\n".join(f"{name}: {text}" for name, text in doctor.rows(examination.result))


def examined(folder, recipe="mae_mini_28", **settings):
    return examine([str(folder)], recipe, **settings)


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Three classes under train and val; owl is not in val, rare but once in train; copies within and across."""
    place = tmp_path_factory.mktemp("classes")
    for number in range(20):
        name = "rare" if number == 19 else ("cat", "dog", "owl")[number % 3]
        for split in ("train", "val"):
            if split == "val" and (name == "owl" or number > 11):
                continue
            (place / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(structured(number + 50 * (split == "val"))).save(place / split / name / f"{number}.png")
    (place / "val" / "new").mkdir()
    Image.fromarray(structured(200)).save(place / "val" / "new" / "0.png")
    Image.open(place / "train" / "cat" / "0.png").save(place / "val" / "cat" / "same.bmp")
    shutil.copy(place / "train" / "cat" / "3.png", place / "train" / "dog" / "other.png")
    return place


def test_the_class_table_counts_what_lies_in_the_folders(classes):
    table = examined(classes).result["labels"]
    folders = {
        split: {folder.name: len(list(folder.iterdir())) for folder in (classes / split).iterdir()}
        for split in ("train", "val")
    }
    names = sorted({*folders["train"], *folders["val"]})
    assert table["classes"] == [
        {"name": name, "train": folders["train"].get(name, 0), "test": folders["val"].get(name, 0)} for name in names
    ]
    assert table["split"] == "own" and table["unlabeled"] == {"train": 0, "test": 0}
    text = said(examined(classes))
    assert "no picture in train of new: it is measured and never learned" in text
    assert "no picture in test of owl, rare: it is never measured" in text


def test_copies_are_those_of_a_comparison_of_all_pairs(classes):
    train, test = (survey(open_pictures([str(classes)], split), 100) for split in ("train", "test"))
    pixels = [[np.array(split.pictures.read(i)) for i in range(len(split.pictures))] for split in (train, test)]
    across = sum(any(np.array_equal(one, other) for other in pixels[0]) for one in pixels[1])
    within = sum(any(np.array_equal(one, other) for other in pixels[0][:i]) for i, one in enumerate(pixels[0]))
    equal = duplicates(train, test)
    assert (equal["across"], equal["in_train"], equal["in_test"]) == (across, within, 0) == (1, 1, 0)
    assert equal["conflicts"] == 1 and [name for name, _ in equal["groups"][0]] == ["train", "test"]
    text = said(examined(classes))
    assert "1 picture is of the test split in train too" in text and "same.bmp" in text and "other.png" in text
    assert "1 times equal pictures have different classes" in text


def test_unlabeled_pictures_and_sets_without_a_test_split(tmp_path):
    lines = ["path,label"]
    for number in range(30):
        Image.fromarray(structured(number)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'' if number % 5 == 0 else 'ab'[number % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    examination = examined(tmp_path / "list.csv")
    table = examination.result["labels"]
    assert table["split"] == "address" and sum(table["unlabeled"].values()) == 6
    assert sum(row["train"] + row["test"] for row in table["classes"]) == 24
    assert "have no label" in said(examination) and "20 % of each by address" in said(examination)


def write(folder: Path, values: np.ndarray, **settings) -> Path:
    folder.mkdir()
    for number, picture in enumerate(values):
        tifffile.imwrite(folder / f"{number:02d}.tif", picture, photometric="minisblack", **settings)
    return folder


DEPTHS = {
    "12 bits": (np.uint16, 80, 4095, "16-bit"),
    "CT": (np.int16, -1000, 2000, "signed 16-bit"),
    "float": (np.float32, -0.5, 3.0, "float"),
}


@pytest.mark.parametrize("kind", DEPTHS)
def test_depth_and_range(kind, tmp_path):
    dtype, low, high, words = DEPTHS[kind]
    values = np.random.default_rng(0).uniform(low, high, (12, 24, 24)).astype(dtype)
    result = (examination := examined(write(tmp_path / "set", values))).result["values"]
    assert (result["least"], result["most"]) == ([values.min()], [values.max()]) and not result["plain"]
    assert result["depth"] == words and f"values: {words}" in said(examination)
    assert result["low"][0] == pytest.approx(np.percentile(values, 0.1), abs=0.01 * (high - low))


def test_usual_pictures_have_no_row_of_values_and_dark_ones_do(forty, tmp_path):
    assert "values:" not in said(examined(forty)) and "mixed:" not in said(examined(forty))
    for number in range(6):
        Image.fromarray((structured(number) // 16).astype(np.uint8)).save(tmp_path / f"{number}.png")
    assert "values: 8-bit, of which only" in said(examined(tmp_path))


def test_pixels_without_data(tmp_path):
    values = np.random.default_rng(0).uniform(0, 1000, (12, 20, 20)).astype(np.float32)
    holes = np.zeros(values.shape, bool)
    holes[3, :10], holes[5] = True, True
    folder = write(tmp_path / "set", np.where(holes, np.nan, values))
    examination = examined(folder)
    result = examination.result
    assert result["nodata"] == {"share": pytest.approx(holes.mean()), "pictures": 2} and result["blank"] == 1
    assert result["values"]["most"] == [values[~holes].max()] and "no data: 12 %" in said(examination)
    assert result["odd"]["most without data"].endswith("05.tif")
    json.dumps(result, allow_nan=False)
    assert "data:image" in examination_page(examination)


def test_mixed_depths_and_channels(tmp_path, forty):
    for path in sorted(forty.iterdir())[:8]:
        shutil.copy(path, tmp_path)
    Image.fromarray(structured(1)[..., 0]).save(tmp_path / "gray.png")
    deep = np.random.default_rng(0).integers(0, 900, (12, 12), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    examination = examined(tmp_path)
    assert examination.result["mix"] == {"color, 8-bit": 8, "gray, 8-bit": 1, "gray, 16-bit": 1}
    assert "mixed: 8 color, 8-bit; 1 gray" in said(examination) and "deep.png" in said(examination)


def test_bad_pictures_are_grouped_by_reason(tmp_path, forty):
    for path in sorted(forty.iterdir())[:5]:
        shutil.copy(path, tmp_path)
    whole = (tmp_path / "00.png").read_bytes()
    for number in range(9):
        (tmp_path / f"half{number}.png").write_bytes(whole[: len(whole) // 2])
    for side in (2, 3, 5):
        Image.new("RGB", (side, 30)).save(tmp_path / f"small{side}.png")
    examination = examined(tmp_path)
    assert sorted(examination.result["bad_reasons"].values()) == [3, 9] and len(examination.result["bad"]) == 12
    assert "12 cannot be read" in said(examination) and "9: truncated, as " in said(examination)


def test_stacks_are_told_and_their_plane_is_taken(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (6, 5, 24, 24), dtype=np.uint8)
    folder = write(tmp_path / "set", values, metadata={"axes": "ZYX"})
    result = (examination := examined(folder)).result
    assert (
        not result["readable"]
        and "5 planes" in next(iter(result["bad_reasons"]))
        and "--images.plane" in said(examination)
    )
    command = f"doctor {folder} mae_mini_28 --images.plane 2"
    answer = mimkit(command)
    assert answer.status == 0, answer.err
    assert "6 of 5 planes, axes ZYX; plane 2" in answer.out


@pytest.mark.parametrize("count", [2, 7, 20])
def test_a_handful_of_pictures_gets_no_long_plan(count, tmp_path):
    for number in range(count):
        Image.fromarray(structured(number)).save(tmp_path / f"{number}.png")
    result = examined(tmp_path, None).result
    assert f"{count} pictures are too few to learn from, {50 * count} epochs" in result["why"]
    assert "--epochs" not in result["note"] and "7 steps: enough to see" in result["note"]


def test_the_limit_holds_for_each_split(classes):
    result = examined(classes, limit=5).result
    assert result["read"] == 5 and result["test"]["read"] == 5
    assert sum(row["train"] for row in result["labels"]["classes"]) == 21, "labels are known without reading"


def test_the_page_is_closed_and_shows_the_odd_ones(classes, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(classes, folder)
    (folder / "train" / "owl").rename(folder / "train" / "<b onclick=x>owl")
    page = examination_page(examined(folder))
    assert "<script" not in page and "<b onclick" not in page and "&lt;b onclick=x&gt;owl" in page
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', page)
    for words in ("Pictures that stand out", "Equal pictures", "Classes", "darkest", 'class="none">0'):
        assert words in page, words
    assert page.count("<img") >= 2 + 4 + 4  # dark and bright, two pairs, classes


def test_the_page_of_nothing_readable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    page = examination_page(examined(tmp_path))
    assert "zero bytes" in page and "<img" not in page


def test_the_command_writes_the_page(forty, tmp_path):
    answer = mimkit(f"doctor {forty} mae_mini_28 --html {tmp_path / 'd.html'} --json {tmp_path / 'd.json'}")
    assert answer.status == 0, answer.err
    assert (tmp_path / "d.html").stat().st_size > 5000
    assert json.loads((tmp_path / "d.json").read_text())["mix"] == {"color, 8-bit": 40}
    assert "there is no folder" in refused(f"doctor {forty} --html {tmp_path / 'none' / 'd.html'}")


def test_a_plan_for_gpus(tmp_path):
    for number in range(12):
        Image.fromarray(structured(number, 300)).save(tmp_path / f"{number}.png")
    command = f"doctor {tmp_path} mae_mini_28 --gpus 16 --gpu a100 --batch-size 64 --network 10 --utilization 0.2"
    answer = mimkit(f"{command} --pictures 5000 --epochs 3 --dollars-per-gpu-hour 1.5 --json {tmp_path / 'plan.json'}")
    assert answer.status == 0, answer.err
    plan = json.loads((tmp_path / "plan.json").read_text())["plan"]
    assert (plan["gpus"], plan["hosts"], plan["batch_per_gpu"], plan["pictures"]) == (16, 2, 4, 5000)
    assert plan["steps"] == 235 and plan["network_bytes_per_second"] == 10e9 and plan["dollars"] > 0
    sizes = [path.stat().st_size for path in tmp_path.glob("*.png")]
    assert plan["files"]["size"] == pytest.approx(sum(sizes) / 12) and plan["files"]["small_size"] < 40_000
    for words in (
        "16 a100 on 2 hosts",
        "20 % of 312 TFLOP/s",
        "re-encoded (shards pack --shorter-side 256",
        "--machine.sharding none",
    ):
        assert words in answer.out, answer.out
    assert "seconds" not in json.loads((tmp_path / "plan.json").read_text()), "nothing is timed here"
    settings = re.search(r"settings +(--.*)", answer.out)[1].split()
    manual = mimkit("pretrain mae_mini_28 --help").out
    assert settings[::2] == ["--machine.sharding", "--machine.recompute", "--machine.micro-batch"]
    assert all(flag in manual for flag in settings[::2])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--gpu h200", "--gpu is for a plan: give --gpus too"),
        ("--utilization 0.3", "--utilization is for a plan"),
        ("--gpus 8 --utilization 35", "--utilization is a share between 0 and 1, got 35"),
        ("--gpus 8 --dollars-per-gpu-hour -1", "dollars-per-gpu-hour must be at least 0"),
        ("--gpus 8 --gpu v100", "there is no GPU 'v100'"),
        ("--gpus 7 --batch-size 64", "does not divide over 7 GPUs: use --batch-size 63"),
        ("--gpus 8 --batch-size 64 --pictures 0", "pictures must be at least 1"),
    ],
)
def test_plans_that_cannot_be_meant(forty, flags, line):
    assert line in refused(f"doctor {forty} mae_mini_28 {flags}")


def test_class_table_without_labels(forty):
    table = class_table([str(forty)], open_pictures([str(forty)], "all"))
    assert table["classes"] == [] and table["reason"]
