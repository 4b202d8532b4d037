"""Dense measures: patches with what each shows enter; what answers for the patches of other pictures leaves.

Answers of patches, A numbers each (shares or logits of classes, or a depth), are resized to a picture's own size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.pictures import sample
from mimkit.evaluate.dense_maps import Bank
from mimkit.evaluate.probe import HELD_OUT

NEIGHBORS, TEMPERATURE = 30, 0.02  # Hummingbird's (Balazevic et al. 2023, arXiv:2306.01667)
MEMORY = 100_000  # patches
STEPS, PATCHES, RATE, DECAY = 1000, 4096, 1e-2, 1e-4  # of the linear classifier: where it is done learning
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of ridge, times the variance of a standardized feature
_AT_ONCE = 1 << 25  # similarities, or numbers of enlarged answers, held at once


@dataclass(frozen=True)
class Neighbors:
    """Dense kNN: each patch takes the answers of its nearest ones in a memory."""

    memory: Float[Tensor, "M D"]
    """Of length 1."""
    answers: Float[Tensor, "M A"]

    @property
    def settings(self) -> dict[str, Any]:
        """As JSON."""
        size = len(self.memory)
        return {"memory": size, "k": min(NEIGHBORS, size), "temperature": TEMPERATURE}

    def __call__(self, maps: Float[Tensor, "b D h w"]) -> Float[Tensor, "b A h w"]:
        queries = F.normalize(maps.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
        answers = []
        for piece in queries.split(max(1, _AT_ONCE // len(self.memory))):
            similarity, near = (piece @ self.memory.T).topk(min(NEIGHBORS, len(self.memory)), dim=1)
            weight = (similarity / TEMPERATURE).softmax(dim=1)
            answers.append(torch.einsum("qk,qka->qa", weight, self.answers[near]))
        return _as_maps(torch.cat(answers), maps)


def neighbors(bank: Bank, memory: int, device: torch.device) -> Neighbors:
    """kNN with a memory of at most so many patches, of each picture the same number, drawn by address."""
    pictures, patches = bank.answers.shape[:2]
    # Of fewer patches than pictures one each, of pictures spread over the set.
    rows = torch.tensor(sample(pictures, memory))
    each = slice(0, min(patches, max(1, memory // pictures)))
    valid = bank.valid[rows, each]
    features = F.normalize(bank.features[rows, each][valid].to(device), dim=1)
    return Neighbors(features, bank.answers[rows, each][valid].to(device))


@dataclass(frozen=True)
class Linear:
    """A linear map of standardized features."""

    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    weight: Float[Tensor, "A D"]
    bias: Float[Tensor, " A"]
    bounds: tuple[float, float] | None = None
    """Least and largest answer; of logits none."""
    penalty: float | None = None
    """Of ridge, as it was chosen."""

    @property
    def settings(self) -> dict[str, Any]:
        """As JSON."""
        if self.penalty is not None:
            return {"penalty": self.penalty}
        return {"steps": STEPS, "patches": PATCHES, "rate": RATE, "weight_decay": DECAY}

    def __call__(self, maps: Float[Tensor, "b D h w"]) -> Float[Tensor, "b A h w"]:
        features = (maps.flatten(2).transpose(1, 2) - self.mean) / self.std
        answers = F.linear(features, self.weight, self.bias).flatten(0, 1)
        return _as_maps(answers if self.bounds is None else answers.clamp(*self.bounds), maps)


Answer = Neighbors | Linear


def fit_classes(bank: Bank, device: torch.device, seed: int = 0) -> Linear:
    """A linear classifier of patches: standardized features and one linear layer, as DINOv2 segments.

    It learns the shares of the classes in each patch by cross-entropy, not the class of each pixel of enlarged maps:
    that takes a hundredth of the time. AdamW, the rate falls as half a cosine; batches are drawn by address.
    """
    index = bank.valid.flatten().nonzero()[:, 0]
    features, answers = bank.features.flatten(0, 1), bank.answers.flatten(0, 1)
    mean, std = (values.to(device) for values in _statistics(bank))
    weight = torch.zeros(answers.shape[1], features.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(answers.shape[1], device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        drawn = rng_keys("dense linear", seed, step, torch.arange(min(PATCHES, len(index)))) % len(index)
        batch = index[drawn]
        logits = F.linear((features[batch].to(device) - mean) / std, weight, bias)
        loss = F.cross_entropy(logits, answers[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Linear(mean, std, weight.detach(), bias.detach())


def fit_depth(bank: Bank, device: torch.device, seed: int = 0) -> Linear:
    """Ridge regression of the mean depth of a patch, in closed form.

    The penalty is chosen on the patches of a tenth of the pictures, by address; answers stay between the least and the
    largest depth of a patch. Raises UserError for fewer than two pictures.
    """
    usable, width = bank.valid.any(1).nonzero()[:, 0], bank.features.shape[2]
    if len(usable) < 2:
        raise UserError("depth is known in one picture alone: give two or more, or measure with '--measure knn'")
    mean, std = _statistics(bank)
    order = usable[rng_keys("held-out", seed, usable).argsort()]
    held = max(1, round(HELD_OUT * len(usable)))
    fitted, tested = (_products(bank, rows, mean, std) for rows in (order[held:], order[:held]))
    # Errors follow from the products alone: w' X'X w - 2 w' X'y + y'y.
    errors = []
    for penalty in PENALTIES:
        w = _ridge(fitted, penalty)
        errors.append(float(w @ tested[:-1, :-1] @ w - 2 * w @ tested[:-1, -1] + tested[-1, -1]))
    penalty = PENALTIES[int(torch.tensor(errors).argmin())]
    w = _ridge(fitted + tested, penalty).float().to(device)
    depths = bank.answers[bank.valid]
    bounds = float(depths.min()), float(depths.max())
    return Linear(mean.to(device), std.to(device), w[None, :width], w[width:], bounds, penalty)


def _statistics(bank: Bank) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and standard deviation of each feature over all patches; 1 where it is always the same."""
    rows = bank.features.flatten(0, 1)
    total, squares = torch.zeros(rows.shape[1], dtype=torch.float64), torch.zeros(rows.shape[1], dtype=torch.float64)
    for piece in rows.split(_pieces(rows)):
        total += piece.double().sum(0)
        squares += piece.double().square().sum(0)
    mean = total / len(rows)
    variance = squares / len(rows) - mean.square()
    std = torch.where(variance > 1e-12 * squares / len(rows), variance.clamp(min=0).sqrt(), 1.0)
    return mean.float(), std.float()


def _products(
    bank: Bank, pictures: Int64[Tensor, " m"], mean: Float[Tensor, " D"], std: Float[Tensor, " D"]
) -> Float64[Tensor, "E E"]:
    """Of the known patches of some pictures: Z'Z, where a row of Z is the standardized feature, 1, and the depth."""
    size = len(mean) + 2
    products = torch.zeros(size, size, dtype=torch.float64)
    here = torch.zeros(len(bank.features), 1, dtype=torch.bool).index_fill(0, pictures, True)
    index = (bank.valid & here).flatten().nonzero()[:, 0]
    features, answers = bank.features.flatten(0, 1), bank.answers.flatten(0, 1)
    for piece in index.split(_pieces(features)):
        depth = answers[piece].double()
        rows = torch.cat([((features[piece] - mean) / std).double(), torch.ones_like(depth), depth], dim=1)
        products += rows.T @ rows
    return products


def _pieces(rows: Float[Tensor, "N D"]) -> int:
    """Rows in a piece that is copied in float64."""
    return max(1, _AT_ONCE // rows.shape[1])


def _ridge(products: Float64[Tensor, "E E"], penalty: float) -> Float64[Tensor, " D1"]:
    """Weights of the features and, last, the intercept, on which there is no penalty."""
    matrix, rows = products[:-1, :-1].clone(), products[-2, -2]
    matrix.diagonal()[:-1] += penalty * rows
    return torch.linalg.solve(matrix, products[:-1, -1])


def _as_maps(answers: Float[Tensor, "N A"], maps: Float[Tensor, "b D h w"]) -> Float[Tensor, "b A h w"]:
    pictures, _, height, width = maps.shape
    return answers.view(pictures, height, width, -1).permute(0, 3, 1, 2)


def class_map(answers: Float[Tensor, "K h w"], size: tuple[int, int]) -> Int64[Tensor, "H W"]:
    """The class with the largest answer at each pixel of a picture of this size, answers enlarged bilinearly."""
    down, across = (_enlarging(*sides, answers.device) for sides in zip(answers.shape[1:], size, strict=True))
    wide = answers @ across.T
    rows = max(1, _AT_ONCE // (len(answers) * size[1]))  # all classes of a large picture may be more than the memory
    return torch.cat([torch.einsum("Hh,khW->kHW", piece, wide).argmax(0) for piece in down.split(rows)])


def depth_map(depths: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """Depths enlarged bilinearly to a picture of this size."""
    down, across = (_enlarging(*sides, depths.device) for sides in zip(depths.shape, size, strict=True))
    return down @ depths @ across.T


def _enlarging(length: int, size: int, device: torch.device) -> Float[Tensor, "S s"]:
    """The weights of torch's bilinear resizing along one axis."""
    corners = torch.eye(length, device=device)[None]
    return F.interpolate(corners, size=size, mode="linear", align_corners=False)[0].T
