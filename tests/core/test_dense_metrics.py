"""Measures of every pixel against torchmetrics, numpy in five lines and cases counted by hand."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from mimkit.core.annotation import VOID
from mimkit.core.dense_metrics import (
    DRAWS,
    class_pixels,
    depth_errors,
    depth_scores,
    pixel_confusion,
    pixel_scores,
    segmentation_scores,
)
from mimkit.core.errors import UserError

SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
KITCHEN = SHARED / "kitchen_depth" / "depth"


def maps(pictures: int, classes: int, absent: tuple[int, ...] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """True classes with a tenth of void, and predictions that are often right; `absent` ones are never true."""
    generator = torch.Generator().manual_seed(pictures)
    truth = torch.randint(classes, (pictures, 12, 17), generator=generator)
    truth[torch.isin(truth, torch.tensor(absent))] = 0
    guess = torch.randint(classes, truth.shape, generator=generator)
    predicted = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, guess)
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = VOID
    return truth.to(torch.int16), predicted


def confusions_of(truth: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    pairs = zip(truth, predicted, strict=True)
    return torch.stack([pixel_confusion(one_truth, guess, classes) for one_truth, guess in pairs])


@pytest.mark.parametrize("absent", [(), (2,), (2, 4)])
def test_miou_is_torchmetrics_jaccard_index_without_void(absent):
    truth, predicted = maps(9, 5, absent)
    predicted[predicted == 4] = 3 if 4 in absent else 4  # never true and never predicted: left out
    scores = segmentation_scores(confusions_of(truth, predicted, 5), "abcde")
    oracle = MulticlassJaccardIndex(5, average="macro", ignore_index=VOID)
    assert scores["miou"] == pytest.approx(oracle(predicted, truth.long()).item(), abs=1e-6)
    each = MulticlassJaccardIndex(5, average="none", ignore_index=VOID)(predicted, truth.long())
    present = [i for i in range(5) if not (i == 4 and 4 in absent)]
    assert list(scores["per_class"]) == ["abcde"[i] for i in present]
    assert [scores["per_class"]["abcde"[i]]["iou"] for i in present] == pytest.approx(each[present].tolist(), abs=1e-6)
    valid = truth != VOID
    assert scores["pixel_accuracy"] == pytest.approx((truth == predicted)[valid].float().mean().item())
    assert sum(row["pixels"] for row in scores["per_class"].values()) == int(valid.sum())
    assert sum(row["predicted"] for row in scores["per_class"].values()) == int(valid.sum())


def test_scores_of_a_case_counted_by_hand():
    # One picture right; one where two of four pixels of class 0 are taken for 2, which is never true; no 3.
    confusions = torch.zeros(2, 4, 4, dtype=torch.int64)
    confusions[0, 0, 0], confusions[0, 1, 1], confusions[1, 0, 0], confusions[1, 0, 2] = 4, 4, 2, 2
    scores = segmentation_scores(confusions, "abcd")
    assert scores["miou"] == pytest.approx((6 / 8 + 1 + 0) / 3)
    assert scores["pixel_accuracy"] == pytest.approx(10 / 12)
    assert scores["class_accuracy"] == pytest.approx((6 / 8 + 1) / 2)
    assert scores["per_class"]["c"] == {"iou": 0.0, "pixels": 0, "predicted": 2} and "d" not in scores["per_class"]
    assert scores["pictures"] == 2
    assert pixel_scores(class_pixels(confusions), "abcd") == scores
    with pytest.raises(UserError, match="void"):
        segmentation_scores(torch.zeros_like(confusions), "abcd")


def test_the_interval_is_that_of_pictures_drawn_anew():
    truth, predicted = maps(40, 3)
    predicted[:10] = 0  # pictures differ in how good they are
    pixels = class_pixels(confusions_of(truth, predicted, 3)).double().numpy()
    scores = pixel_scores(torch.from_numpy(pixels).long(), "abc")
    draws = []
    generator = np.random.default_rng(0)
    for _ in range(4000):
        right, true, guessed = pixels[generator.integers(40, size=40)].sum(0)
        draws.append((right / (true + guessed - right)).mean())
    assert [scores["low"], scores["high"]] == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.006)
    assert scores["low"] < scores["miou"] - 0.03 and scores["miou"] + 0.03 < scores["high"]
    assert scores == pixel_scores(torch.from_numpy(pixels).long(), "abc"), "the draws have an address"
    alike = pixel_scores(torch.from_numpy(pixels[:1].repeat(5, 0)).long(), "abc")
    assert alike["low"] == pytest.approx(alike["miou"]) == alike["high"], "equal pictures leave nothing open"


def test_draws_of_many_pictures_go_in_pieces(monkeypatch):
    truth, predicted = maps(20, 3)
    pixels = class_pixels(confusions_of(truth, predicted, 3))
    at_once = pixel_scores(pixels, "abc")
    monkeypatch.setattr("mimkit.core.dense_metrics._AT_ONCE", 20 * DRAWS // 7)
    assert pixel_scores(pixels, "abc") == at_once


def test_depth_errors_are_five_lines_of_numpy():
    generator = np.random.default_rng(1)
    truth = generator.uniform(0.5, 9, (20, 31)).astype(np.float32)
    truth[generator.random(truth.shape) < 0.2] = np.nan
    guess = (np.nan_to_num(truth, nan=99.0) * generator.uniform(0.8, 1.7, truth.shape)).astype(np.float32)
    guess[0, 0], truth[0, 0] = -1.0, 2.0  # cut to a millimeter
    p, d = (values[~np.isnan(truth)].astype(np.float64) for values in (np.maximum(guess, 1e-3), truth))
    log = np.log(p) - np.log(d)
    oracle = {"rmse": np.sqrt(((p - d) ** 2).mean()), "abs_rel": (abs(p - d) / d).mean()}
    oracle |= {"log10": abs(np.log10(p / d)).mean(), "silog": np.sqrt((log**2).mean() - 0.5 * log.mean() ** 2)}
    oracle |= {f"delta{i}": (np.maximum(p / d, d / p) < 1.25**i).mean() for i in (1, 2, 3)}
    errors = depth_errors(torch.from_numpy(guess), torch.from_numpy(truth))
    assert errors is not None and {name: pytest.approx(value, rel=1e-6) for name, value in errors.items()} == oracle


def test_depth_scores_are_means_over_pictures_that_know_something():
    truth = torch.full((3, 4, 4), 2.0)
    truth[1, 1:], truth[2] = torch.nan, torch.nan  # few pixels count as much as many; none is no picture
    errors = [depth_errors(torch.full((4, 4), depth), row) for depth, row in zip((3.0, 2.0, 1.0), truth, strict=True)]
    assert errors[2] is None
    scores = depth_scores(errors)
    assert scores["rmse"] == 0.5 and scores["abs_rel"] == 0.25 and scores["delta1"] == 0.5 and scores["pictures"] == 2
    assert [scores["low"], scores["high"]] == [0.0, 1.0] == scores["intervals"]["delta1"]
    with pytest.raises(UserError, match="depth"):
        depth_scores([None])
    with pytest.raises(UserError, match="not finite"):
        depth_errors(torch.full((4, 4), torch.inf), truth[0])


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="no kitchen_depth")
def test_the_mean_depth_of_the_kitchen_scores_what_its_readme_says():
    def depths(split: str) -> list[torch.Tensor]:
        files = sorted((KITCHEN / split).glob("*.png"))
        values = [torch.from_numpy(np.asarray(Image.open(file)).astype(np.float32) / 1000) for file in files]
        return [torch.where(depth > 0, depth, torch.nan) for depth in values]

    mean = torch.cat([depth[~depth.isnan()] for depth in depths("train")]).mean().item()
    scores = depth_scores([depth_errors(torch.full_like(depth, mean), depth) for depth in depths("val")])
    assert scores["rmse"] == pytest.approx(0.79, abs=0.006) and scores["delta1"] == pytest.approx(0.25, abs=0.006)
