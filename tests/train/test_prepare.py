"""Preparing a run: whose mean and standard deviation normalize its images, and who says so."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.model.build import EncoderConfig
from mimkit.recipes import find_recipe, recipes
from mimkit.report.record import read_run
from mimkit.train.images import Images
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.pretrain import pretrain
from mimkit.weights.statistics import IMAGENET, weights_statistics

PAPERS = [name for name in recipes() if "_mini_" not in name and not name.startswith("simclr")]
MINE = (0.2, 0.3, 0.4), (0.1, 0.2, 0.3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 100, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def gray(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gray")
    for number in range(8):
        Image.fromarray(np.full((16, 16), 30 * number, dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def config(data: Path, weights: str | None = None, **images) -> Pretrain:
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=8, width=32, depth=1, heads=2, weights=weights)
    return Pretrain(data=(str(data),), encoder=encoder, images=Images(size=16, **images), epochs=1, batch_size=4)


@pytest.mark.parametrize("name", PAPERS)
def test_papers_take_the_constants(name):
    assert find_recipe(name).images.statistics == "imagenet"


@pytest.mark.parametrize("name", [name for name in recipes() if "_mini_" in name])
def test_small_recipes_take_the_data_s(name):
    assert find_recipe(name).images.statistics == "data"


def test_fine_tuning_takes_the_constants_where_the_target_says_nothing():
    names = recipes(finetuning=True)
    assert {name: find_recipe(name, True).images.statistics for name in names} == {
        name: "data" if "mini" in name else "imagenet" for name in names
    }


def test_the_constants_are_for_color_pictures(photos, gray):
    prepared = Prepared(config(photos, statistics="imagenet"))
    assert (prepared.statistics, prepared.statistics_of) == (IMAGENET, "of ImageNet")
    assert IMAGENET == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    of_data = Prepared(config(photos))
    assert of_data.statistics != IMAGENET and of_data.statistics_of == "of the data"
    prepared = Prepared(config(gray, statistics="imagenet"))
    assert prepared.statistics == Prepared(config(gray)).statistics and prepared.statistics_of == "of the data"
    deep = Prepared(config(photos, statistics="imagenet", value_range=(0.0, 100.0)))
    assert deep.statistics_of == "of the data"


def test_weights_that_carry_statistics_win_over_constants_and_data(photos, gray, tmp_path):
    folder = tmp_path / "run"
    pretrain(config(photos, mean=MINE[0], std=MINE[1]), folder, recipe="tiny", log=lambda line: None)
    for weights in (folder, folder / "export", folder / "export" / "model.safetensors"):
        prepared = Prepared(config(photos, str(weights), statistics="imagenet"))
        assert (prepared.statistics, prepared.statistics_of) == (MINE, f"of the weights ({weights})")
    half = (0.5, 0.5, 0.5)
    given = Prepared(config(photos, str(folder), mean=half, std=half))
    assert (given.statistics, given.statistics_of) == ((half, half), "as set")
    assert Prepared(config(gray, str(folder))).statistics_of == "of the data"  # of one channel, not three


def test_whose_they_are_is_said_and_stays(photos, tmp_path):
    begun, folder, words = tmp_path / "begun", tmp_path / "run", []
    pretrain(config(photos, mean=MINE[0], std=MINE[1]), begun, recipe="tiny", log=lambda line: None)
    run = config(photos, str(begun))
    pretrain(run, folder, recipe="tiny", max_steps=1, log=words.append)
    (line,) = [line for line in words if line.startswith("  images")]
    assert f"std 0.100 0.200 0.300, of the weights ({begun})" in line
    begun.rename(tmp_path / "away")
    words.clear()
    pretrain(run, folder, recipe="tiny", log=words.append)  # a resumed run asks the weights no more
    assert any(f"of the weights ({begun})" in line for line in words)
    assert ["normalized by", f"mean and std of the weights ({begun})"] in read_run(folder)["facts"]


def test_what_weights_say_by_kind(tmp_path):
    assert weights_statistics("timm", "vit_base_patch16_224") == ((0.5,) * 3, (0.5,) * 3)
    assert weights_statistics("timm", "vit_base_patch16_224.mae") == IMAGENET
    torch.save({}, tmp_path / "mae_pretrain_vit_base.pth")
    assert weights_statistics(str(tmp_path / "mae_pretrain_vit_base.pth"), "") == IMAGENET
    assert weights_statistics(str(tmp_path), "") is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": MINE[0], "image_std": MINE[1]}))
    assert weights_statistics(str(tmp_path), "") == MINE
    assert timm.get_pretrained_cfg("no_such_model") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"mean": "x", "std": [1, 1, 1]}', "mean: expected a list, each of it a number"),
        ('{"mean": [0, 0, 0], "std": [1, 0, 1]}', "which cannot be"),
    ],
)
def test_damaged_statistics_of_weights_are_no_constants(text, message, tmp_path):
    """They were passed over, or met a traceback, and ImageNet's constants were taken instead."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        weights_statistics(str(tmp_path), "")
