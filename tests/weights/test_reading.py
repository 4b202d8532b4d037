"""How files were read travels with exports: whoever opens them sees later pictures as the run saw its own."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mimkit
from mimkit.cli import export
from mimkit.data.loader import evaluation_batches
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.evaluate.target import open_target, reading_for

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def xrays(tmp_path_factory):
    """Forty pictures of 12 bits in 16, a tenth of them without data where they are 65535."""
    folder = tmp_path_factory.mktemp("xrays")
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 4096, (24, 24)).astype(np.uint16)
        values[: number // 4, :9] = 65535
        Image.fromarray(values).save(folder / f"{number:02d}.png")
    return folder


def tiny() -> mimkit.Pretrain:
    """A run of a second."""
    settings = mimkit.recipe("mae_mini_32")
    settings.encoder.width, settings.encoder.depth, settings.encoder.heads = 32, 1, 2
    settings.method.decoder.width, settings.method.decoder.heads = 32, 2
    settings.images.size, settings.machine.evals, settings.batch_size = 24, 0, 20
    return settings


@pytest.fixture(scope="module")
def run(xrays, tmp_path_factory):
    settings = tiny()
    settings.images.nodata, settings.images.value_transform = 65535.0, "sqrt"
    folder = tmp_path_factory.mktemp("run") / "run"
    return mimkit.pretrain(settings, data=str(xrays), run=folder, epochs=1)


def test_a_copied_export_reads_as_its_run(run, xrays, tmp_path):
    shutil.copytree(run.folder / "export", tmp_path / "elsewhere")
    saved = json.loads((tmp_path / "elsewhere" / "config.json").read_text())["reading"]
    assert saved["nodata"] == 65535 and saved["value_transform"] == "sqrt" and saved["value_range"][1] < 4100
    images = {}
    for target in (str(run.folder), str(tmp_path / "elsewhere")):
        extractor = open_target(target, size=None, channels=1)
        pictures = open_pictures([str(xrays)], "all", reading_for(target, Reading()))
        assert pictures.read_as(extractor.reading) and pictures.values.high == tuple(saved["value_range"][1:])
        settings = dict(size=extractor.size, mean=extractor.mean, std=extractor.std, view=extractor.view)
        ((images[target], _, _),) = evaluation_batches(pictures, **settings)
    first, second = images.values()
    assert torch.equal(first, second) and abs(float(first.mean())) < 0.1 and 0.7 < float(first.std()) < 1.1
    preprocess = mimkit.load(tmp_path / "elsewhere").preprocess()
    for number in (0, 39):
        assert torch.equal(preprocess(xrays / f"{number:02d}.png"), first[number])


def test_a_flag_wins_over_the_export(run, xrays):
    target = str(run.folder)
    changed = reading_for(target, Reading(value_range=(0.0, 100.0)))
    assert changed.value_range == (0.0, 100.0) and changed.nodata == 65535 and changed.channels == 1


def test_the_model_card_says_it_in_words(run):
    card = (run.folder / "export" / "README.md").read_text()
    assert "become 0 to 1; then sqrt; 65535 and NaN are no data" in card


def test_a_processor_of_hugging_face_takes_raw_values(run, xrays, tmp_path):
    """Linear ranges lie in its mean and std; nothing is clipped, so values inside the range are compared."""
    pytest.importorskip("transformers")
    settings = tiny()
    settings.images.value_range = (100.0, 4000.0)
    other = mimkit.pretrain(settings, data=str(xrays), run=tmp_path / "run", epochs=1)
    assert export.run([str(other.folder), "--to", "huggingface", "--out", str(tmp_path / "hf")]) == 0
    about = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    raw = np.linspace(100, 4000, 24 * 24).reshape(24, 24).astype(np.float32)
    theirs = (raw * about["rescale_factor"] - about["image_mean"][0]) / about["image_std"][0]
    assert np.abs(theirs - other.preprocess()(raw).numpy()[0]).max() < 1e-4


def test_unfinished_runs_go_on_with_the_range_that_they_began_with(xrays, tmp_path):
    begun = mimkit.pretrain(tiny(), data=str(xrays), run=tmp_path / "run", epochs=4, max_steps=2)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["resolved"]["reading"]["value_range"][1] == 65535
    finished = begun.resume()
    assert finished.finished
