"""Online evaluation: what its curves are compared with is what `mimkit evaluate` says."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from builders import structured
from drills import tiny
from mimkit.evaluate.run import evaluate
from mimkit.train.monitor import PIXELS, shrunk
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder


@pytest.fixture(scope="module")
def waves(tmp_path_factory) -> Path:
    """60 and 30 pictures of three classes, the first of which has half of them; 64 px a side."""
    root = tmp_path_factory.mktemp("waves")
    for number in range(90):
        kind = ("ant", "bee", "ant", "cow")[number % 4]
        folder = root / ("test" if number % 3 == 0 else "train") / kind
        folder.mkdir(parents=True, exist_ok=True)
        pixels = structured(number, 64) // (1 + ("ant", "bee", "cow").index(kind))
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def run_on(data: Path, size: int):
    config = tiny(data)
    config.images.size, config.encoder.patch = size, size // 4
    return config


@pytest.mark.parametrize("size", [16, 64])
def test_levels_are_those_of_evaluate(size, waves, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pretrain(run_on(waves, size), tmp_path / "run", log=lambda line: None)
    start = RunFolder(tmp_path / "run").read_config()["resolved"]["start"]
    assert start.keys() == {"effective_rank", "feature_spread", "knn_start", "knn_pixels", "chance"}
    untrained = evaluate("knn", f"untrained:{tmp_path / 'run'}", [str(waves)], device="cpu")
    assert start["knn_start"] == pytest.approx(untrained["results"]["mean"]["accuracy"], abs=1e-6)
    assert start["chance"] == pytest.approx(untrained["largest_class"]["share"], abs=1e-6)
    if size == 64:  # the size of the pictures, which `pixels` shrinks to 48
        pixels = evaluate("knn", "pixels", [str(waves)], device="cpu")["results"]["pixels"]["accuracy"]
        assert start["knn_pixels"] == pytest.approx(pixels, abs=0.07)  # resized on bytes there, after the mean here
    last = RunFolder(tmp_path / "run").metrics()[-1]
    trained = evaluate("knn", str(tmp_path / "run"), [str(waves)], device="cpu")
    assert last["knn"] == pytest.approx(trained["results"]["mean"]["accuracy"], abs=1e-6)
    assert not {"knn_start", "knn_pixels", "chance"} & last.keys(), "levels are no curves"


def test_a_resumed_run_keeps_its_levels(waves, tmp_path):
    pretrain(run_on(waves, 16), tmp_path / "run", max_steps=3, log=lambda line: None)
    before = RunFolder(tmp_path / "run").read_config()["resolved"]["start"]
    pretrain(run_on(waves, 16), tmp_path / "run", log=lambda line: None)
    assert RunFolder(tmp_path / "run").read_config()["resolved"]["start"] == before


def test_pixels_are_rows_of_at_most_48_a_side():
    small = torch.randn(2, 3, 12, PIXELS)
    assert torch.equal(shrunk(small), small.flatten(1))
    assert shrunk(torch.randn(2, 1, 96, 192)).shape == (2, 24 * 48)
    torch.testing.assert_close(shrunk(torch.full((1, 2, 96, 96), 3.0)), torch.full((1, 2 * 48 * 48), 3.0))
