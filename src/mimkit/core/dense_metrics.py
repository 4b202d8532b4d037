"""Measures of every pixel: predicted and true classes or depths enter; mIoU and depth errors with intervals leave.

Intervals are over pictures, since pixels of one picture are not independent: a test of the same size is drawn from the
tested pictures a thousand times, by address, and 95 % of what these draws score lies between `low` and `high`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from mimkit.core.annotation import VOID
from mimkit.core.errors import UserError
from mimkit.core.metrics import confusion_counts
from mimkit.core.randomness import rng_keys, uniform

DRAWS = 1000
SHALLOWEST = 1e-3  # meters; what is predicted nearer counts as that near, since errors take logarithms
DEPTH_MEASURES = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3", "silog")
_AT_ONCE = 1 << 22  # numbers drawn together


def pixel_confusion(
    truth: Shaped[Tensor, "H W"], predicted: Shaped[Tensor, "H W"], classes: int
) -> Int64[Tensor, "K K"]:
    """How many pixels of each class (rows) were taken for each (columns); those that are VOID count nowhere."""
    valid = truth != VOID
    return confusion_counts(truth[valid].long(), predicted[valid].long(), classes)


def class_pixels(confusions: Int64[Tensor, "*n K K"]) -> Int64[Tensor, "*n 3 K"]:
    """Of each class the pixels that are right, true and predicted: all that scores need, and far less to keep."""
    right = confusions.diagonal(dim1=-2, dim2=-1)
    return torch.stack([right, confusions.sum(-1), confusions.sum(-2)], dim=-2)


def segmentation_scores(confusions: Int64[Tensor, "n K K"], names: Sequence[str]) -> dict[str, Any]:
    """`pixel_scores` of the confusions of n pictures."""
    return pixel_scores(class_pixels(confusions), names)


def pixel_scores(pixels: Int64[Tensor, "n 3 K"], names: Sequence[str]) -> dict[str, Any]:
    """What predicted classes of pixels are worth, as JSON.

    Args:
        pixels: `class_pixels` of each picture.
        names: of the classes.

    Returns:
        miou with its 95 % interval over pictures (low, high): the mean of the classes' IoU over the whole set, not over
        pictures. A class that is predicted and never true counts as 0, one that is neither is left out.
        pixel_accuracy; class_accuracy, the mean over the classes that are true somewhere; per_class {name: {iou,
        pixels, predicted}} of classes that are true or predicted; pictures.

    Raises:
        UserError: no pixel of any picture has a class.
    """
    if not pixels[:, 1].any():
        raise UserError("no pixel of the tested pictures has a class: give pictures whose maps are not all void")
    right, true, predicted = total = pixels.sum(0).double()
    iou = _iou(total)
    draws = _iou(_resampled(pixels.flatten(1).double()).unflatten(1, (3, -1))).nanmean(1)
    per_class = {
        name: {"iou": float(iou[i]), "pixels": int(true[i]), "predicted": int(predicted[i])}
        for i, name in enumerate(names)
        if not iou[i].isnan()
    }
    return {
        "miou": float(iou.nanmean()),
        **_interval(draws),
        "pixel_accuracy": float(right.sum() / true.sum()),
        "class_accuracy": float((right / true).nanmean()),
        "per_class": per_class,
        "pictures": len(pixels),
    }


def depth_errors(prediction: Float[Tensor, "H W"], truth: Float[Tensor, "H W"]) -> dict[str, float] | None:
    """Errors of the depths of one picture, over the pixels where `truth` is known; None where none is.

    Both in meters; `truth` is above 0, and NaN where it is not known.

    Returns:
        rmse (meters); abs_rel, the mean of |p - d| / d; log10, the mean of |log10 p - log10 d|; delta1 to delta3, the
        shares of pixels with max(p / d, d / p) below 1.25, its square and its cube; silog, the root of
        mean(g^2) - mean(g)^2 / 2 with g = ln p - ln d.

    Raises:
        UserError: the prediction is not finite.
    """
    valid = ~truth.isnan()
    if not valid.any():
        return None
    p, d = prediction[valid].double(), truth[valid].double()
    if not p.isfinite().all():
        raise UserError("predicted depths are not finite: the weights are damaged or overflow, so nothing is measured")
    p = p.clamp(min=SHALLOWEST)
    ratio, g = torch.maximum(p / d, d / p), p.log() - d.log()
    errors = {"rmse": (p - d).square().mean().sqrt(), "abs_rel": ((p - d).abs() / d).mean()}
    errors |= {"log10": (p.log10() - d.log10()).abs().mean()}
    errors |= {f"delta{i}": (ratio < 1.25**i).double().mean() for i in (1, 2, 3)}
    errors |= {"silog": (g.square().mean() - g.mean().square() / 2).sqrt()}
    return {name: float(value) for name, value in errors.items()}


def depth_scores(errors: Sequence[dict[str, float] | None]) -> dict[str, Any]:
    """Means over pictures of `depth_errors`, as JSON; pictures without a known depth are left out.

    Returns:
        each measure; low and high, the 95 % interval of rmse over pictures, and intervals {measure: [low, high]} of
        all; pictures (that were measured).

    Raises:
        UserError: no picture has a known depth.
    """
    measured = [picture for picture in errors if picture is not None]
    if not measured:
        raise UserError(
            "no pixel of the tested pictures has a depth: is --depth-scale right, and 0 all that they hold?"
        )
    values = torch.tensor([[picture[name] for name in DEPTH_MEASURES] for picture in measured], dtype=torch.float64)
    means, draws = values.mean(0).tolist(), _resampled(values) / len(values)
    intervals = {name: list(_interval(draws[:, i]).values()) for i, name in enumerate(DEPTH_MEASURES)}
    low, high = intervals["rmse"]
    scores = dict(zip(DEPTH_MEASURES, means, strict=True))
    return {**scores, "low": low, "high": high, "intervals": intervals, "pictures": len(values)}


def _iou(pixels: Float64[Tensor, "*R 3 K"]) -> Float64[Tensor, "*R K"]:
    """Of each class; NaN where it is neither true nor predicted."""
    right, true, predicted = pixels.unbind(-2)
    return right / (true + predicted - right)


def _resampled(values: Float64[Tensor, "n C"]) -> Float64[Tensor, "R C"]:
    """Sums over n pictures that are drawn from these with replacement, a row for each draw."""
    n, sums = len(values), []
    for draws in torch.arange(DRAWS).split(max(1, _AT_ONCE // n)):
        picture = (uniform(rng_keys("bootstrap", draws), n).double() * n).long()
        times = torch.zeros(len(draws), n, dtype=torch.float64).scatter_add_(
            1, picture, torch.ones_like(picture).double()
        )
        sums.append(times @ values)
    return torch.cat(sums)


def _interval(draws: Float64[Tensor, " R"]) -> dict[str, float]:
    low, high = draws.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"low": low, "high": high}
