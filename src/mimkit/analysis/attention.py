"""Measures of attention: maps among patches enter, one number a picture and head leaves. Pure functions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-8  # added to every weight before a logarithm of two maps is compared, then rows sum to 1 again


def among_patches(attention: Float[Tensor, "B H T T"], prefix: int) -> Float[Tensor, "B H N N"]:
    """Attention of patches to patches: class and register tokens are dropped and every row sums to 1 again.

    A row that gives the patches nothing becomes uniform. Source: naver-ai/cl-vs-mim:self_attention_analysis.ipynb.
    """
    weights = attention[..., prefix:, prefix:] + 1e-32  # so little that it only counts in a row that has nothing else
    return weights / weights.sum(dim=-1, keepdim=True)


def patch_distances(grid: tuple[int, int], patch: tuple[int, int]) -> Float[Tensor, "N N"]:
    """Euclidean distances between the centers of patches in pixels, float64; patches are row-major."""
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64) * patch[0],
        torch.arange(grid[1], dtype=torch.float64) * patch[1],
        indexing="ij",
    )
    # Row-major, as patches are everywhere.
    y, x = rows.flatten(), columns.flatten()
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def attention_distance(
    attention: Float[Tensor, "B H N N"], grid: tuple[int, int], patch: tuple[int, int]
) -> Float[Tensor, "B H"]:
    """How far a head looks, in pixels: mean over queries i of sum_j A_ij |r_i - r_j|.

    From 0, each patch sees itself alone, to at most the diagonal; uniform attention gives 116.49 for 14 x 14 patches of
    16 px. Expected: contrastive models far, most of all in late layers; supervised ones from near to far; masked ones
    near and far in every layer. Source: naver-ai/cl-vs-mim; Raghu et al. 2021 (arXiv:2108.08810).
    """
    distances = patch_distances(grid, patch).to(attention)
    return attention.flatten(2) @ distances.flatten() / len(distances)  # both sums in one product, A_ij never copied


def attention_entropy(attention: Float[Tensor, "B H N N"]) -> Float[Tensor, "B H"]:
    """How broad a head looks, in nats: mean over queries of -sum_j A_ij ln A_ij.

    From 0, each query sees one patch, to ln N, it sees all alike (5.2781 for 196). Broad is not far: a head can be
    focused on what is far away. Expected: supervised and contrastive models broad in late layers; masked ones mixed
    in all. Source: Xie et al. 2023, Dark Secrets of Masked Image Modeling (arXiv:2205.13543).
    """
    return torch.special.entr(attention).sum(dim=-1).mean(dim=-1)


def head_divergence(attention: Float[Tensor, "B H N N"]) -> Float[Tensor, "B H"]:
    """How far heads differ, in nats: KL(h || g) of the queries' rows, mean over queries and over the other heads g.

    0 where all heads look alike, no upper bound; 1e-8 is added to each weight before. NaN for one head. All ordered
    pairs count, so the mean over heads has no direction. Expected: supervised and contrastive models fall to 0 in
    their last layers, masked ones stay high. Source: Xie et al. 2023 (arXiv:2205.13543).
    """
    # KL(h || g) is sum p_h ln p_h - sum p_h ln p_g: one product of all heads with all logarithms has every pair of
    # heads, with the first term on its diagonal.
    p = _positive(attention).flatten(2)
    cross = p @ p.log().mT / attention.shape[-1]  # mean over queries of sum_j A^h_ij ln A^g_ij
    divergence = (cross.diagonal(dim1=1, dim2=2).unsqueeze(2) - cross).clamp_min(0)
    heads = attention.shape[1]
    return divergence.sum(dim=2) / (heads - 1) if heads > 1 else torch.full_like(divergence[..., 0], math.nan)


def mutual_information(attention: Float[Tensor, "B H N N"]) -> Float[Tensor, "B H"]:
    """How much of what a head looks at depends on who looks: the normalized mutual information of queries and keys.

    With p(q) = 1/N and p(k|q) = A_qk: I(q; k) / sqrt(H(q) H(k)). From 0, all queries look at the same (attention
    collapse), to 1, each at its own. Random logits already give more than 0, so it tells no meaning. Expected: near 0
    in late layers of contrastive models, clearly above in masked ones. Source: Park et al. 2023 (arXiv:2305.00729),
    naver-ai/cl-vs-mim.
    """
    p = _positive(attention)
    key_entropy = torch.special.entr(p.mean(dim=-2)).sum(dim=-1)
    information = (key_entropy - torch.special.entr(p).sum(dim=-1).mean(dim=-1)).clamp_min(0)
    return information / (math.log(attention.shape[-1]) * key_entropy).sqrt()


def _positive(attention: Tensor) -> Tensor:
    return (attention + _EPSILON) / (1 + attention.shape[-1] * _EPSILON)
