"""The Python interface: what it imports, runs that train, stop and go on, and results that show themselves."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import timm
import torch

import mimkit
from api_settings import tiny
from commandline import mimkit as command
from mimkit.api import run as run_module
from mimkit.train.recorder import Recorder
from mimkit.train.training import StepOutputs, Training
from places import ROOT


def python(code: str, **settings: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, **settings)


def test_the_import_is_light():
    code = (
        "import sys, time; start = time.process_time(); import mimkit; took = time.process_time() - start\n"
        "heavy = [name for name in ('torch', 'numpy', 'timm', 'rich', 'tyro', 'PIL') if name in sys.modules]\n"
        "print(took < 0.1, heavy, sorted(set(mimkit.__all__) - set(dir(mimkit))))"
    )
    assert python(code).stdout == "True [] []\n"


def test_every_public_name_is_there_and_another_is_not():
    assert all(callable(getattr(mimkit, name)) for name in mimkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        mimkit.pretrian  # noqa: B018


def test_two_functions_share_their_names_with_rooms():
    assert isinstance(mimkit.recipes, ModuleType) and isinstance(mimkit.compare, ModuleType)
    assert mimkit.recipes.find_recipe is mimkit.recipe
    with pytest.raises(mimkit.UserError, match="there is no folder or data set 'nowhere'"):
        mimkit.compare(["mae_mini_28"], "nowhere")


def test_recipes_and_maskers_are_listed(tmp_path):
    assert command(f"recipes --json {tmp_path / 'recipes.json'}").status == 0
    assert mimkit.recipes() == json.loads((tmp_path / "recipes.json").read_text())
    kinds = {row["name"].partition("_")[0] for row in mimkit.recipes(finetuning=True)}
    assert kinds == {"finetune", "segment", "detect", "depth", "keypoints"}
    assert mimkit.maskers()["block"](ratio=0.6).ratio == 0.6
    assert "mae_mini_48" in mimkit.recipes()._repr_html_() and "RandomMasker" in mimkit.maskers()._repr_html_()


def test_a_run_has_its_numbers_and_its_model(run, labeled):
    assert run.finished and run.steps == (5, 5) and run.recipe == "custom" and run.result["steps"] == 5
    records = run.metrics(frame=False)
    assert records[-1]["step"] == 5 and "loss" in records[-1]
    image = run.preprocess()(next(labeled.rglob("*.png"))).unsqueeze(0)
    model = timm.create_model(f"local-dir:{run.folder / 'export'}", pretrained=True).eval()
    with torch.inference_mode():
        expected = model.forward_features(image)
        assert torch.equal(run.model().forward_features(image), expected)
        tokens = run.encoder()(image)
    assert torch.equal(torch.cat(tokens, dim=1), expected) and tokens.prefix.shape[1] == 1
    assert all(parameter.requires_grad for parameter in run.model().parameters())
    shown = run._repr_html_()
    assert "custom" in shown and "data:image/png;base64" in shown and "vit_tiny" in shown


def test_metrics_are_a_frame_where_pandas_is(run, monkeypatch):
    frames = SimpleNamespace(DataFrame=SimpleNamespace(from_records=lambda records: ("frame", len(records))))
    monkeypatch.setitem(sys.modules, "pandas", frames)
    monkeypatch.setattr(run_module, "find_spec", lambda name: name)
    assert run.metrics() == ("frame", len(run.metrics(frame=False)))
    monkeypatch.setattr(run_module, "find_spec", lambda name: None)
    assert run.metrics() == run.metrics(frame=False)
    with pytest.raises(mimkit.UserError, match="pip install pandas"):
        run.metrics(frame=True)


def test_the_same_call_again_gives_the_same_run(run, labeled):
    lines: list[str] = []
    again = mimkit.pretrain(tiny(), labeled, run.folder, log=lines.append)
    assert again.folder == run.folder and lines == [f"{run.folder} is finished already"]
    assert mimkit.pretrain(run=run.folder, log=lines.append).steps == (5, 5)
    with pytest.raises(mimkit.UserError, match="holds a finished run with epochs = 1, not 2: name another"):
        mimkit.pretrain(tiny(2), labeled, run.folder)


def test_settings_that_are_handed_over_stay_as_they_are(labeled, tmp_path):
    config = tiny()
    mimkit.pretrain(config, labeled, tmp_path / "run", epochs=2, max_steps=1, log=lambda line: None)
    assert config == tiny()


def test_ctrl_c_leaves_a_run_that_goes_on(labeled, tmp_path, monkeypatch, run):
    after_step, steps = Recorder.after_step, []

    def interrupted(recorder: Recorder, training: Training, step: int, outputs: StepOutputs) -> None:
        steps.append(step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        after_step(recorder, training, step, outputs)

    monkeypatch.setattr(Recorder, "after_step", interrupted)
    lines: list[str] = []
    stopped = mimkit.pretrain(tiny(), labeled, tmp_path / "run", log=lines.append)
    assert lines[-1] == "stopped and saved at step 2 of 5: run.resume() goes on"
    assert not stopped.finished and repr(stopped).endswith("2 of 5 steps; run.resume() goes on)")
    whole = stopped.resume(log=lines.append)
    assert whole.finished and whole.resume(log=lines.append).steps == (5, 5)
    losses = [[record["loss"] for record in one.metrics(frame=False)][-1:] for one in (whole, run)]
    assert losses[0] == losses[1]  # as if nothing had happened


def test_a_signal_to_end_ends_the_process(labeled, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "train", lambda *args, **settings: {"signal": signal.SIGTERM})
    with pytest.raises(SystemExit) as stop:
        mimkit.pretrain(tiny(), labeled, tmp_path / "run")
    assert stop.value.code == 128 + signal.SIGTERM


def test_another_thread_is_refused(labeled, tmp_path):
    errors: list[Exception] = []

    def call() -> None:
        try:
            mimkit.pretrain(tiny(), labeled, tmp_path / "run")
        except mimkit.UserError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "in the main thread alone" in str(errors[0]) and not (tmp_path / "run").exists()


def test_evaluation_is_the_json_of_the_command_line(run, labeled, tmp_path):
    result = run.evaluate("knn", k=3)
    assert command(f"evaluate knn {run.folder} --data {labeled} --k 3 --json {tmp_path / 'knn.json'}").status == 0
    assert [result] == json.loads((tmp_path / "knn.json").read_text())["results"]
    assert "linear probe" not in result._repr_html_() and "kNN" in result._repr_html_()


def test_masks_show_themselves(run, tmp_path):
    masks = run.masks("block", show=2, seeds=2)
    assert masks.png.startswith(b"\x89PNG") and 0 < masks["ratio"] < 1 and "out" not in masks
    assert "data:image/png;base64" in masks._repr_html_() and json.dumps(masks)
    assert masks.save(tmp_path / "masks.png").read_bytes() == masks.png
    assert "Random" in run.masks(show=1, seeds=1)["masker"]  # the run's own
    with pytest.raises(mimkit.UserError, match="did you mean 'random'"):
        run.masks("randm")


def test_analysis_and_report_show_themselves(run, tmp_path):
    analysis = run.analyze(metrics=("rank",), pictures=8)
    assert analysis["rows"] and "layer" in analysis._repr_html_()
    page = run.report(metrics="none", pictures=2, log=lambda line: None)
    assert page.html.startswith("<!doctype html>") and page["runs"] == [str(run.folder)]
    assert page._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html')
    assert page.save(tmp_path / "report.html").read_text() == page.html


def test_fine_tuning_is_a_run_with_scores(run, labeled, tmp_path):
    config = mimkit.recipes.find_recipe("finetune_mini_32", finetuning=True)
    config.epochs, config.batch_size, config.machine = 1, 8, tiny().machine
    tuned = mimkit.finetune(run, labeled, config, tmp_path / "tuned", log=lambda line: None)
    assert tuned.finished and 0 <= tuned.result["accuracy"] <= 1 and "worst classes" in tuned._repr_html_()
    assert tuned.model()(torch.zeros(1, 3, 28, 28)).shape == (1, 2)
    assert tuned.resume(log=lambda line: None).finished


def test_load_tells_runs_from_models(run, labeled):
    assert isinstance(mimkit.load(run.folder), mimkit.Run)
    export = mimkit.load(run.folder / "export")
    assert isinstance(export, mimkit.Model) and not isinstance(export, mimkit.Run)
    assert "VisionTransformer" in export._repr_html_()
    np.testing.assert_array_equal(export.embed(labeled).vectors, run.embed().vectors)
    with pytest.raises(mimkit.UserError, match="say which pictures"):
        export.embed()
    for name in ("nonsense", "no/such/folder", "vit_tiny_patch16_225"):
        with pytest.raises(mimkit.UserError):
            mimkit.load(name)
    pixels = mimkit.load("pixels")
    assert pixels.embed(labeled, limit=3).vectors.shape == (3, 3 * 24 * 30)
    with pytest.raises(mimkit.UserError, match="has no model"):
        mimkit.load("pixels", labeled).model()


def test_a_timm_model_takes_the_size_of_the_data(labeled):
    model = mimkit.load("untrained:vit_tiny_patch16_224")
    assert model.preprocess().size == (224, 224) and isinstance(model.model(), torch.nn.Module)
    assert mimkit.load("untrained:vit_tiny_patch16_224", labeled).preprocess().size == (32, 32)
    assert model.embed(labeled, limit=2).vectors.shape == (2, 192)


def test_a_model_of_the_hub_is_timms(monkeypatch):
    real = timm.create_model

    def fetched(name: str, pretrained: bool = False, **args: object) -> torch.nn.Module:
        assert pretrained and name == "hf-hub:someone/vit.mae"
        return real("vit_tiny_patch16_224", **args)

    monkeypatch.setattr(timm, "create_model", fetched)
    model = mimkit.load("hf-hub:someone/vit.mae")
    assert model.preprocess().size == (224, 224) and model.preprocess().mean == (0.5, 0.5, 0.5)


def test_errors_are_one_line_in_notebooks():
    assert mimkit.UserError("give a folder")._render_traceback_() == ["mimkit: give a folder"]


def test_compare_hands_over_to_the_comparison(monkeypatch, tmp_path):
    from mimkit.api import library

    called = {}

    def fake(lines: object, data: object, out: Path, **settings: object) -> dict:
        called.update(settings, lines=lines, data=data, out=out)
        row = {"contender": "a", "epochs": 1, "work": 1.0, "measures": {}}
        return {"budget": "steps", "seeds": 1, "contenders": [row]}

    monkeypatch.setattr(library, "compare_all", fake)
    result = mimkit.compare(["a", "b"], "photos", tmp_path, seeds=2, finetune=["finetune_mini_32"])
    assert called["data"] == ("photos",) and called["seeds"] == 2
    assert called["measurement"].kinds == ("knn", "probe", "finetune finetune_mini_32")
    assert "<td>a</td>" in result._repr_html_()


WRONG = """
import mimkit, numpy as np
pictures = mimkit.Embeddings(np.eye(3, dtype=np.float32), ["a", "b", "c"])
def answer(call):
    try:
        return repr(call())
    except mimkit.UserError as error:
        return str(error)
print(answer(lambda: mimkit.pretrain("mae_mini_28", 5)))
print(answer(lambda: mimkit.pretrain("mae_mini_28", "photos", epochs="1")))
print(answer(lambda: pictures.neighbors("5")))
print(answer(lambda: pictures.neighbors(1.5)))
print(answer(lambda: pictures.duplicates("x")))
print(answer(lambda: mimkit.load("pixels", "photos").preprocess()([1, 2])))
"""
ANSWERS = (
    "data is a folder, a file, the name of a set, or a list of these; got 5",
    "epochs is a number, at least 1; got '1'",
    "k must be at least 1 and below the 3 pictures, got '5'",
    "k must be at least 1 and below the 3 pictures, got 1.5",
    "threshold is a number, at least -1; got 'x'",
    "a picture is a path, one of Pillow or an array, got list",
)


def test_values_of_a_wrong_type_are_answered_in_a_line(tmp_path):
    # In a process of its own, since types are checked in this one before anything could answer.
    said = subprocess.run([sys.executable, "-c", WRONG], cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.splitlines() == list(ANSWERS), said.stderr


def test_results_are_saved_under_the_ending_that_they_have(run, tmp_path):
    with pytest.raises(mimkit.UserError, match=r"must end in \.png"):
        run.masks("random", show=1, seeds=1).save(tmp_path / "masks.docx")


def test_one_step_that_changes_nothing_is_told(labeled, tmp_path):
    lines: list[str] = []
    settings = tiny()
    settings.batch_size, settings.images.bad_fraction = 64, 0.5
    assert mimkit.pretrain(settings, labeled, tmp_path / "run", log=lines.append).steps == (1, 1)
    assert any("changes nothing" in line for line in lines)
    lines.clear()
    settings.batch_size = 8
    mimkit.pretrain(settings, labeled, tmp_path / "more", max_steps=1, log=lines.append)
    assert not any("changes nothing" in line for line in lines)
