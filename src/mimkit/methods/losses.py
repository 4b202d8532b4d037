"""Objectives: predictions, targets and where they count enter, one number leaves. Always in float32."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mimkit.core.distributed import gather, gather_with_gradient, rank

DISTANCES = {
    "l1": torch.abs,
    "l2": torch.square,
    "smooth_l1": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none"),
}


def mean_where(
    values: Float[Tensor, "B N"],
    where: Bool[Tensor, "B N"] | Float[Tensor, "B N"],
    per_picture: bool = False,
    epsilon: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of `values` over the places where `where` holds, or with these weights, over the whole batch at once.

    With `per_picture` the mean of the pictures' means: where they count unequally many places, each weighs alike.
    `epsilon` is added to the number of places, as SimMIM does: where there are none the mean is 0.
    """
    weighed, total = values * where, where.sum(dim=1)
    if per_picture:
        # Less than one place counts where holes leave but a part of a patch.
        return (weighed.sum(dim=1) / total.clamp(min=1e-6 if where.is_floating_point() else 1)).mean()
    if where.is_floating_point():
        epsilon = max(epsilon, 1e-6)  # a batch without any data
    return weighed.sum() / (where.sum() + epsilon)


def squared_error(
    prediction: Float[Tensor, "B N P"],
    target: Float[Tensor, "B N P"],
    where: Bool[Tensor, "B N"] | Float[Tensor, "B N"],
    per_picture: bool = False,
    valid: Bool[Tensor, "B N P"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of each patch, averaged over the chosen patches (He et al. 2022: the hidden ones).

    With `valid`, over the numbers that have data alone; `where` is then the share of a chosen patch that has some.
    """
    errors = (prediction.float() - target.float()).square()
    if valid is None:
        return mean_where(errors.mean(dim=-1), where, per_picture)
    return mean_where((errors * valid).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1), where, per_picture)


def pixel_errors(
    prediction: Float[Tensor, "B O h w"],
    target: Float[Tensor, "B L h w"] | Int64[Tensor, "B L h w"],
    distance: str,
) -> Float[Tensor, "B h*w"]:
    """How wrong each pixel is, the mean over its channels.

    Args:
        prediction: as many channels as the target has, or for `cross_entropy` as many a label as there are classes.
        target: numbers, or labels.
        distance: `l1`, `l2`, `smooth_l1` (with a bend at 1) or `cross_entropy`.
    """
    if distance == "cross_entropy":
        scores = prediction.float().unflatten(1, (target.shape[1], -1)).transpose(1, 2)
        return F.cross_entropy(scores, target, reduction="none").mean(dim=1).flatten(1)
    return DISTANCES[distance](prediction.float() - target).mean(dim=1).flatten(1)


class Contrast(NamedTuple):
    """A contrastive loss, and what it compared: mean cosines of the pairs that belong together and of all others."""

    loss: Float[Tensor, ""]
    positive: Float[Tensor, ""]
    negative: Float[Tensor, ""]


def nt_xent(
    a: Float[Tensor, "B D"],
    b: Float[Tensor, "B D"],
    temperature: float,
    scale: float = 1.0,
    index: Int64[Tensor, " B"] | None = None,
) -> Contrast:
    """NT-Xent (Chen et al. 2020): each point shall find its twin among all other points of both views.

    The points of all processes are candidates, and the gradient flows back to every process. With `scale` 1 the
    paper's mean over all 2B points; google-research/simclr:objective.py adds the means of the two views, which is 2.

    Args:
        a, b: points of two views of the same pictures, of any length.
        index: which pictures; where one occurs several times in the batch, its other copies are no candidates.
    """
    with torch.autocast(a.device.type, enabled=False):
        points = F.normalize(torch.cat([a, b]).float(), dim=1)
        own = torch.arange(len(points), device=a.device)
        first, twin = rank() * len(points), own.roll(len(a))
        candidates = gather_with_gradient(points).flatten(0, 1)
        same = None if index is None else same_picture(torch.cat([index, index]))
        return _contrast(points @ candidates.T, first + twin, temperature, scale, first + own, same)


def info_nce(
    queries: Float[Tensor, "B D"],
    momentum_keys: Float[Tensor, "B D"],
    queue: Float[Tensor, "K D"],
    temperature: float,
    same: Bool[Tensor, "B K"] | None = None,
) -> Contrast:
    """InfoNCE (He et al. 2020): each query shall find its own key among those of a queue, which are unit vectors.

    `same`: which keys of the queue are of the query's own picture; they are no candidates.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, momentum_keys = F.normalize(queries.float(), dim=1), F.normalize(momentum_keys.float(), dim=1)
        cosines = torch.cat([(queries * momentum_keys).sum(dim=1, keepdim=True), queries @ queue.T], dim=1)
        twin = torch.zeros_like(cosines[:, 0], dtype=torch.int64)
        # The own key stands before those of the queue.
        same = None if same is None else F.pad(same, (1, 0), value=True)
        return _contrast(cosines, twin, temperature, same=same)


def in_batch(
    queries: Float[Tensor, "B D"],
    momentum_keys: Float[Tensor, "B D"],
    temperature: float,
    index: Int64[Tensor, " B"] | None = None,
) -> Contrast:
    """MoCo v3's loss: each query shall find its own key among those of the other view, of all processes.

    Keys get no gradient. The cross-entropy is multiplied by twice the temperature
    (facebookresearch/moco-v3:moco/builder.py). `index`: as for `nt_xent`.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, momentum_keys = F.normalize(queries.float(), dim=1), F.normalize(momentum_keys.float(), dim=1)
        own = torch.arange(len(momentum_keys), device=momentum_keys.device) + rank() * len(momentum_keys)
        cosines = queries @ gather(momentum_keys).flatten(0, 1).T
        same = None if index is None else same_picture(index)
        return _contrast(cosines, own, temperature, 2 * temperature, same=same)


def same_picture(index: Int64[Tensor, " B"]) -> Bool[Tensor, "B M"]:
    """Which of the candidates of all processes show the picture of each row."""
    return index.unsqueeze(1) == gather(index).flatten()


class Distillation(NamedTuple):
    """A loss of imitation, and the mean entropy of what is imitated: ln K where it says nothing, 0 where it is one."""

    loss: Float[Tensor, ""]
    entropy: Float[Tensor, ""]


def distil(
    student: Float[Tensor, "V B K"],
    teacher: Float[Tensor, "T B K"],
    center: Float[Tensor, " K"],
    temperature: float,
    teacher_temperature: float | Float[Tensor, ""],
) -> Distillation:
    """DINO's loss (Caron et al. 2021): each view's distribution shall be the teacher's of every other view.

    Cross-entropy of softmax((teacher - center) / its temperature) and softmax(student / temperature), the mean over
    pictures and pairs of two views. The teacher's views are the first of the student's; it gets no gradient.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_targets = ((teacher.detach().float() - center) / teacher_temperature).log_softmax(dim=2)
        targets = log_targets.exp()
        terms = -torch.einsum("tbk,vbk->tv", targets, (student.float() / temperature).log_softmax(dim=2))
        pairs = 1 - torch.eye(*terms.shape, device=terms.device)
        loss = (terms * pairs).sum() / (pairs.sum() * student.shape[1])
        return Distillation(loss, -(targets * log_targets).sum(dim=2).mean())


def distil_patches(
    student: Float[Tensor, "B N K"],
    teacher: Float[Tensor, "B N K"],
    hidden: Bool[Tensor, "B N"],
    center: Float[Tensor, " K"],
    temperature: float,
    teacher_temperature: float | Float[Tensor, ""],
) -> Distillation:
    """iBOT's loss (Zhou et al. 2022): the student's distribution of a hidden patch shall be the teacher's of it.

    The mean over the hidden patches of a picture, then over pictures; one that hides nothing counts as 0.
    """
    with torch.autocast(student.device.type, enabled=False):
        sharp, soft = (teacher.detach().float() - center) / teacher_temperature, student.float() / temperature
        targets = sharp.softmax(dim=2)
        # Not by the logarithms of all numbers: of a batch with thousands of prototypes they would take gigabytes.
        cross = soft.logsumexp(dim=2) - torch.einsum("bnk,bnk->bn", targets, soft)
        entropy = sharp.logsumexp(dim=2) - torch.einsum("bnk,bnk->bn", targets, sharp)
        return Distillation(mean_where(cross, hidden, per_picture=True), entropy.mean())


def hidden_around(hidden: Float[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B N"]:
    """Share of hidden patches among each patch and its eight neighbors; beyond the edge all is visible (BootMAE)."""
    return F.avg_pool2d(hidden.unflatten(1, grid).unsqueeze(1), 3, stride=1, padding=1).flatten(1)


def _contrast(
    cosines: Float[Tensor, "B M"],
    twin: Int64[Tensor, " B"],
    temperature: float,
    scale: float = 1.0,
    own: Int64[Tensor, " B"] | None = None,
    same: Bool[Tensor, "B M"] | None = None,
) -> Contrast:
    """Cross-entropy of finding column `twin` in each row.

    Column `own` is no candidate, and of the columns where `same` holds `twin` alone: no picture is its own negative.
    """
    negatives = torch.ones_like(cosines, dtype=torch.bool) if same is None else ~same
    negatives = negatives.scatter(1, twin.unsqueeze(1), False)
    if own is not None:
        negatives = negatives.scatter(1, own.unsqueeze(1), False)
    candidates = negatives.scatter(1, twin.unsqueeze(1), True)
    loss = F.cross_entropy(cosines.masked_fill(~candidates, float("-inf")) / temperature, twin) * scale
    detached = cosines.detach()
    # Row by row: so the mean over processes is the mean of all, also where the rows have other numbers of negatives.
    row_means = detached.masked_fill(~negatives, 0.0).sum(dim=1) / negatives.sum(dim=1).clamp(min=1)
    return Contrast(loss, detached.gather(1, twin.unsqueeze(1)).mean(), row_means.mean())


def feature_spread(points: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """How far the directions of points fill their sphere: near 1 if evenly, 0 where all are one (collapse).

    The mean over axes of the standard deviation of unit vectors, times the root of D.
    """
    unit = F.normalize(points.detach().float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5
