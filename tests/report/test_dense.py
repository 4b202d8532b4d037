"""Dense tasks on a page: scores and pictures of runs side by side."""

import json

import pytest
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.report.dense import dense_task
from mimkit.report.page import report
from mimkit.report.record import results
from mimkit.train.pretrain import pretrain
from transfers import settings, write

SCORES = {
    "miou": 0.5,
    "low": 0.4,
    "high": 0.6,
    "pixel_accuracy": 0.7,
    "class_accuracy": 0.65,
    "per_class": {
        "sky": {"iou": 0.4, "pixels": 10, "predicted": 9},
        "floor": {"iou": 0.6, "pixels": 5, "predicted": 5},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = write("segment", tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    pretrain(settings("segment", place), folder, log=lambda line: None)
    return folder


def measured(run, **more) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"kind": "segment", "scores": SCORES} | more))
    Image.new("RGB", (1500, 300), "red").save(run / "pictures.png")
    (run / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (1500, 300), "red").save(run / "pictures" / "predictions.png")


def test_a_run_that_is_not_measured_has_none(run):
    assert dense_task(run) is None


def test_scores_and_pictures_are_on_the_page(run):
    measured(run, train=6, test=3)
    found = dense_task(run)
    assert found["title"] == "Segmentation" and found["facts"][0] == ["mIoU", "0.500 (0.400 to 0.600)"]
    assert found["classes"][0] == ["sky", "0.400, 10 pixels"] and found["pictures"]["predictions"].startswith("data:")
    text, _ = report([run], pictures=2, metrics="none", log=lambda line: None)
    assert "Dense tasks" in text and "Segmentation: tuned" in text and "Not evaluated yet" not in text


def test_damaged_scores_are_refused_by_name(run):
    measured(run)
    result = json.loads((run / "result.json").read_text())
    del result["scores"]["low"]
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"result.json does not say 'low'"):
        dense_task(run)


def test_frozen_measures_in_the_folder_are_rows(run):
    classes = {"sky": {"iou": 0.4, "pixels": 10, "predicted": 9}}
    segment = {"kind": "segment", "data": "pets", "results": {"knn": {"miou": 0.5, "per_class": classes}}}
    depth = {"kind": "depth", "data": "streets", "results": {"linear": {"rmse": 4.5, "low": 4.0, "high": 5.0}}}
    (run / "frozen.json").write_text(json.dumps({"results": [segment, depth]}))
    rows = {row["what"]: row["value"] for row in results(run, []) if row["file"] == "frozen.json"}
    assert rows == {"mIoU": "0.500", "RMSE of depth": "4.500 m"}
    (run / "frozen.json").write_text(json.dumps({"results": [segment | {"results": {"knn": {"miou": 1.5}}}]}))
    with pytest.raises(UserError, match=r"results\.0\.results\.knn\.miou"):
        results(run, [])
    (run / "frozen.json").unlink()
