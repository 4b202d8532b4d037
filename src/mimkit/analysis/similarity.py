"""Similarity of representations: features of the same pictures in layers and models enter, linear CKA leaves."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mimkit.core.errors import UserError


def gram(features: Float[Tensor, "n *rest"]) -> Float64[Tensor, "n n"]:
    """Inner products of all pairs of examples, with a zero diagonal, in float64.

    Features are centered before: the unbiased HSIC does not change and digits are saved.
    """
    x = features.flatten(1).double()
    x = x - x.mean(dim=0)
    return (x @ x.T).fill_diagonal_(0)


def hsic(k: Float64[Tensor, "L n n"], l: Float64[Tensor, "M n n"]) -> Float64[Tensor, "L M"]:  # noqa: E741
    """The unbiased HSIC of every pair of `gram` matrices (Song et al. 2012, equation 5); it can fall below 0.

    Raises UserError for fewer than 4 examples, where it is not defined.
    """
    n = k.shape[-1]
    if n < 4:
        raise UserError(f"CKA compares at least 4 pictures at once, got {n}: raise --pictures")
    # Row sums: with them no product of two n x n matrices is needed, only traces.
    a, b = k.sum(dim=2), l.sum(dim=2)
    trace = k.flatten(1) @ l.flatten(1).T
    sums = a.sum(dim=1).outer(b.sum(dim=1)) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (a @ b.T)) / (n * (n - 3))


def linear_cka(
    grams: Sequence[Float64[Tensor, "L _ _"]], other_grams: Sequence[Float64[Tensor, "M _ _"]]
) -> tuple[Float64[Tensor, "L M"], Float64[Tensor, "L M"]]:
    """Linear CKA of every layer of one model with every layer of another, and its standard error.

    The three HSIC terms are unbiased and averaged over batches, weighted by their pictures, before the ratio is taken:
    batches have to be random samples, or what tells them apart, such as classes in order, is missed. 1 for features
    that are equal up to rotation, offset and one scale; about 0, and sometimes below, for independent ones; it is not
    invariant to general linear maps. The standard error is the jackknife over batches, NaN for a single one.

    Args:
        grams: `gram` of the layers, one entry a batch; n may differ.
        other_grams: of the other model for the same pictures in the same order; the same list for layers of one model.

    Expected: masked and contrastive models alike in all layers, supervised ones in blocks. Source: Kornblith et al.
    2019 (arXiv:1905.00414), Nguyen et al. 2021 (arXiv:2010.15327).
    """
    # Each batch's terms times its number of pictures: sums over batches are then weighted means, whose weights cancel
    # in the ratio.
    cross = torch.stack([len(k[0]) * hsic(k, m) for k, m in zip(grams, other_grams, strict=True)])
    first = torch.stack([len(k[0]) * hsic(k, k).diagonal() for k in grams])
    second = torch.stack([len(k[0]) * hsic(k, k).diagonal() for k in other_grams])

    def ratio(batches: Tensor) -> Tensor:
        a, b = first[batches].sum(dim=0), second[batches].sum(dim=0)
        return cross[batches].sum(dim=0) / a.outer(b).sqrt()

    count = len(cross)
    every = torch.arange(count)
    if count == 1:
        return ratio(every), torch.full_like(cross[0], torch.nan)
    # The jackknife: how much the ratio changes when each batch in turn is left out.
    without = torch.stack([ratio(every[every != number]) for number in every])
    return ratio(every), ((count - 1) * without.var(dim=0, correction=0)).sqrt()
