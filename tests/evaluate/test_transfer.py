"""Dense tasks from training to files: bit for bit however they were interrupted, and what they leave can be used."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import mimkit
from commandline import mimkit as command
from commandline import refused
from mimkit.core.annotation import Annotation, Prediction
from mimkit.core.errors import UserError
from mimkit.evaluate.measured import DetectMeasure
from mimkit.evaluate.predict import predict, starts
from mimkit.evaluate.trained import open_trained
from mimkit.evaluate.transfer import measure
from mimkit.train.pretrain import pretrain
from mimkit.weights.head import head_tensors
from transfers import METHODS, settings, write

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return {task: write(task, tmp_path_factory.mktemp(task)) for task in METHODS}


@pytest.fixture(scope="module")
def runs(places, tmp_path_factory):
    folders = {}
    for task, place in places.items():
        folders[task] = tmp_path_factory.mktemp("runs") / task
        pretrain(settings(task, place), folders[task], log=lambda line: None)
    return folders


def weights(folder) -> dict[str, torch.Tensor]:
    trained = open_trained(str(folder), CPU)
    return trained.task.state_dict()


@pytest.mark.parametrize("task", METHODS)
def test_interrupted_and_with_workers_it_is_the_same_run(task, places, runs, tmp_path):
    config = settings(task, places[task], workers=2)
    first = pretrain(config, tmp_path / "run", max_steps=1, log=lambda line: None)
    assert not first["finished"]
    pretrain(settings(task, places[task]), tmp_path / "run", log=lambda line: None)
    whole, resumed = weights(runs[task]), weights(tmp_path / "run")
    assert whole.keys() == resumed.keys() and len(whole) > 60
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (runs[task], tmp_path / "run")
    ]
    assert losses[0] == losses[1] and len(set(losses[0])) > 1


@pytest.mark.parametrize("task", METHODS)
def test_it_is_measured_on_whole_pictures_and_drawn(task, runs):
    pytest.importorskip("pycocotools")
    result = measure(runs[task], device=CPU)
    assert result["kind"] == task and result["test"] >= 2 and result["skipped_test"] == 0
    assert 0 <= result["scores"][result["metric"]] < 20
    again = measure(runs[task], device=CPU, workers=2)
    assert again["scores"] == result["scores"]
    assert json.loads((runs[task] / "result.json").read_text())["scores"] == json.loads(json.dumps(result["scores"]))
    sheet = Image.open(runs[task] / "pictures" / "predictions.png")
    assert sheet.width > 600 and sheet.height > 400
    run = mimkit.load(runs[task])
    assert run.finished and "predictions.png" in run._repr_html_()
    card = (runs[task] / "export" / "README.md").read_text()
    assert "| measured on | 3 pictures |" in card and "Nothing yet" not in card
    assert {"segment": "mIoU", "depth": "RMSE", "detect": "box AP"}[task] in card


@pytest.mark.parametrize("task", METHODS)
def test_the_backbone_leaves_as_a_plain_timm_model(task, runs):
    model = timm.create_model(f"local-dir:{runs[task] / 'export'}", pretrained=True).eval()
    trained = open_trained(str(runs[task]), CPU)
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.forward_features(image), trained.task.encoder.timm.forward_features(image))
    assert not any(name.startswith("encoder.timm") for name in head_tensors(trained.task))
    evaluated = mimkit.load(runs[task]).evaluate
    with pytest.raises(UserError):  # the scenes have no labels; the backbone itself opens
        evaluated("knn")


@pytest.mark.parametrize("task", METHODS)
def test_predictions_become_files(task, places, runs, tmp_path):
    pytest.importorskip("pycocotools")
    pictures = places[task] / ("val2017" if task == "detect" else "images/val")
    said = command(f"predict {runs[task]} --data {pictures} --out {tmp_path / 'out'} --workers 0")
    assert "3 pictures" in said.out
    files = sorted(file.name for file in (tmp_path / "out").rglob("*") if file.is_file())
    source = sorted(pictures.glob("*.png"))[0]
    predicted = mimkit.load(runs[task]).predict(source)
    if task == "detect":
        table = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert table["images"][0]["file_name"] == source.name
        first = [entry for entry in table["annotations"] if entry["image_id"] == table["images"][0]["id"]]
        assert len(first) == len(predicted.prediction.boxes) > 0
        assert min(entry["id"] for entry in table["annotations"]) == 1
        height, width = predicted.prediction.size
        assert (predicted.prediction.boxes <= torch.tensor([width, height, width, height]) + 0.01).all()
        assert predicted.prediction.masks.shape[1:] == (height, width)
    else:
        assert source.name in files and "predictions.png" in files
        stored = np.array(Image.open(tmp_path / "out" / source.name))
        assert stored.shape == predicted.prediction.size == Image.open(source).size[::-1]
        if task == "segment":
            assert np.array_equal(stored, predicted.prediction.segments.numpy()) and stored.max() < 4
        else:
            assert np.allclose(stored / 1000, predicted.prediction.depth.numpy(), atol=6e-4)
    assert predicted._repr_html_().startswith("<img")
    assert "there already" in refused(f"predict {runs[task]} --data {pictures} --out {tmp_path / 'out'}")


def test_windows_end_with_the_picture_and_average(runs):
    assert starts(10, 10, 0.5) == [0] and starts(11, 10, 0.5) == [0, 1]
    assert starts(30, 10, 0.5) == [0, 5, 10, 15, 20] and starts(31, 10, 2 / 3) == [0, 7, 14, 21]
    trained = open_trained(str(runs["segment"]), CPU)
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (trained.mean, trained.std))
    with torch.inference_mode():
        plain = trained.task.predict(((picture / 255 - mean) / std).unsqueeze(0))[0].argmax(0)
    assert torch.equal(predict(trained, picture).segments.long(), plain)
    trained.task.predict = lambda images: (
        torch.ones(len(images), 4, 32, 32) * torch.tensor([0.0, 3, 1, 2]).view(4, 1, 1)
    )
    assert (predict(trained, torch.zeros(3, 33, 90, dtype=torch.uint8)).segments == 1).all()


def test_what_a_person_may_get_wrong(places, runs, tmp_path):
    assert "--train RECIPE" in refused(f"evaluate detect {runs['detect']} --data {places['detect']}")
    line = refused(f"evaluate segment {runs['segment']} --train depth_mini --data {places['segment']}")
    assert "learns depth, not segment" in line
    line = refused(f"evaluate segment {runs['segment']} --train finetune_mini_32 --data {places['segment']}")
    assert "learns classes, not segment" in line
    assert "for mimkit evaluate segment" in refused(f"pretrain segment_mini --data {places['segment']}")
    head = runs["depth"] / "export" / "head.safetensors"
    before = head.read_bytes()
    head.write_bytes(before[:200] + bytes([before[200] ^ 1]) + before[201:])
    try:
        line = refused(f"predict {runs['depth']} --data {places['depth']} --out {tmp_path / 'out'}")
        assert "head.safetensors" in line
    finally:
        head.write_bytes(before)


def test_a_folder_is_named_from_where_one_stands(places, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(places["segment"])
    said = command(f"predict {runs['segment']} --data images/val --out {tmp_path / 'out'} --workers 0")
    assert said.status == 0, said.err
    names = sorted(file.name for file in (places["segment"] / "images" / "val").glob("*.png"))
    assert all((tmp_path / "out" / name).is_file() for name in names)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong():
    pytest.importorskip("pycocotools")
    measured = DetectMeasure(("cup",), masks=False)
    crowd = torch.tensor([[0.0, 0.0, 50.0, 50.0]])
    labels = torch.zeros(1, dtype=torch.int64)
    truth = Annotation(size=(64, 64), boxes=crowd, labels=labels, crowd=torch.tensor([True]))
    inside = Prediction(size=(64, 64), boxes=crowd / 2, labels=labels, scores=torch.tensor([0.9]))
    assert measured.add(truth, inside) is None and not any(measured.errors.values())
    outside = Prediction(size=(64, 64), boxes=crowd + 40, labels=labels, scores=torch.tensor([0.9]))
    assert measured.add(truth, outside) == 0.0 and measured.errors["background"] == 1
