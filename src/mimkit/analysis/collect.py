"""Collect: values of single pictures enter, tidy rows with means and standard errors leave."""

import math
from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class Averages:
    """Values by metric, layer and head, one a picture; maps are reduced before they come here."""

    def __init__(self) -> None:
        # Python numbers: small tensors that stay would keep glibc from reusing the memory of large ones around them.
        self._found: dict[tuple[str, int | None], list[Any]] = defaultdict(list)
        self._known: list[tuple[str, int | None, float, float | None, int]] = []

    def add(self, metric: str, layer: int | None, values: Float[Tensor, "B *H"]) -> None:
        """One value a picture, or one a picture and head."""
        self._found[metric, layer] += values.double().tolist()

    def note(self, metric: str, layer: int | None, value: float, stderr: float | None, n: int) -> None:
        """A number of all pictures together, such as a rank."""
        self._known.append((metric, layer, value, stderr, n))

    def rows(self, target: str, step: int | None) -> list[dict[str, Any]]:
        """Long rows: target, step, metric, layer, head, value, stderr, n.

        `head` None: the mean over heads of each picture, averaged over pictures. `stderr` is over pictures: their
        standard deviation by the root of their number. Undefined numbers are None and pictures without one left out.
        """
        rows = []
        for (metric, layer), per_picture in self._found.items():
            values = torch.tensor(per_picture, dtype=torch.float64)
            # The mean over heads is taken within each picture: heads of one picture are not independent samples.
            columns: list[tuple[int | None, Tensor]] = [(None, values.reshape(len(values), -1).mean(dim=1))]
            columns += list(enumerate(values.T)) if values.ndim > 1 else []
            for head, column in columns:
                value, stderr, n = mean_and_error(column)
                rows.append(row(target, step, metric, layer, head, value, stderr, n))
        for metric, layer, value, stderr, n in self._known:
            rows.append(row(target, step, metric, layer, None, value, stderr, n))
        return rows


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float, int]:
    """Mean, standard error of the mean, and how many numbers there were beside NaN."""
    # Some numbers are undefined for some pictures (nothing hidden, one color): they count in neither mean nor error.
    values = values[~values.isnan()]
    n = len(values)
    error = (values.var() / n).sqrt().item() if n > 1 else math.nan
    return values.mean().item() if n else math.nan, error, n


def row(
    target: str,
    step: int | None,
    metric: str,
    layer: int | None,
    head: int | None,
    value: float,
    stderr: float | None,
    n: int,
) -> dict[str, Any]:
    """One row of the long table."""
    return {
        "target": target,
        "step": step,
        "metric": metric,
        "layer": layer,
        "head": head,
        "value": known(value),
        "stderr": known(stderr),
        "n": n,
    }


def known(value: float | None) -> float | None:
    """The number, or None where it is undefined: JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else value
