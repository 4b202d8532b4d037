"""Laws of normalized cuts: closed forms on blocks, bounds and symmetries, and both solvers against scipy in float64."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import scipy.linalg
import timm
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.data.photos import PHOTOGRAPHS, photograph
from mimkit.masks.ncut import Cut, _top_two_by_squaring, ncut, object_side

SOLVERS = ("lanczos", "eigh")
FAMILIES = ("clusters", "transformer", "pixels")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blocks(a: int, b: int, cosine: float) -> Tensor:
    """Two groups of equal unit vectors with this cosine between them, and who is in the first; shuffled."""
    first = torch.arange(a + b)[torch.randperm(a + b, generator=torch.Generator().manual_seed(a))] < a
    other = torch.tensor([cosine, (1 - cosine**2) ** 0.5, 0.0])
    return torch.where(first[:, None], torch.tensor([1.0, 0.0, 0.0]), other)[None], first


def weights(features: Tensor, affinity: str, threshold: float = 0.2) -> Tensor:
    """W in float64, written anew."""
    unit = features.double() / features.double().norm(dim=2, keepdim=True)
    cosine = unit @ unit.mT
    if affinity == "binary":
        return torch.where(cosine > threshold, 1.0, 1e-5).double()
    return (1 + cosine) / 2 if affinity == "shift" else cosine.clamp(min=1e-5)


def oracle(features: Tensor, affinity: str = "shift") -> tuple[Tensor, Tensor, Tensor]:
    """y, mu_2 and mu_3 of each graph from the generalized problem (D - W) y = lambda D y."""
    found = []
    for w in weights(features, affinity).numpy():
        d = w.sum(1)
        with threadpool_limits(1):  # small problems are many times slower on two busy cores
            value, vector = scipy.linalg.eigh(np.diag(d) - w, np.diag(d))
        found.append((torch.from_numpy(vector[:, 1]), 1 - value[1], 1 - value[2]))
    y, second, third = zip(*found, strict=True)
    return torch.stack(y), torch.tensor(second), torch.tensor(third)


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Share of equal labels of each graph, up to exchange of the sides."""
    same = (a == b).float().mean(dim=1)
    return torch.maximum(same, 1 - same)


def value_of(side: Tensor, w: Tensor) -> Tensor:
    """Ncut of a partition, by its definition."""
    a = side.double()
    cut = torch.einsum("bi,bij,bj->b", a, w, 1 - a)
    return cut / torch.einsum("bi,bij->b", a, w) + cut / torch.einsum("bi,bij->b", 1 - a, w)


@cache
def pictures(side: int) -> Tensor:
    """Every other bundled photograph, resized and normalized."""
    found = [photograph(i).float()[None] / 255 for i in range(0, len(PHOTOGRAPHS), 2)]
    return torch.cat([F.interpolate(p, (side, side), mode="bilinear", antialias=True) for p in found]) * 4 - 2


@cache
def family(name: str, grid: int) -> Tensor:
    """Features of grid * grid patches."""
    n = grid * grid
    if name == "clusters":
        which = torch.randint(0, 5, (16, n), generator=torch.Generator().manual_seed(n))
        centers = noise(16, 5, 96, seed=1)
        return centers.gather(1, which[..., None].expand(-1, -1, 96)) + 1.5 * noise(16, n, 96, seed=2)
    images = pictures(16 * grid)
    if name == "pixels":
        return F.unfold(images, 16, stride=16).mT.contiguous()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=16 * grid, depth=4, num_classes=0).eval()
        return model.forward_features(images)[:, 1:]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("affinity", ["shift", "clamp", "binary"])
@pytest.mark.parametrize("off", [0, 1e-5, 0.01, 0.3])
@pytest.mark.parametrize("sizes", [(60, 136), (98, 98), (5, 191), (2, 2)])
def test_blocks_are_found_with_the_closed_form(sizes, off, affinity, solver):
    features, first = blocks(*sizes, cosine=2 * off - 1 if affinity == "shift" else off)
    cut = ncut(features, affinity=affinity, threshold=0.5, solver=solver)
    assert agreement(cut.side, first[None]).item() == 1
    off = off if affinity == "shift" else 1e-5 if affinity == "binary" else max(off, 1e-5)
    a, b = sizes
    inside, outside = a * (a + b * off), b * (b + a * off)  # volumes
    y = cut.vector[0].double()
    torch.testing.assert_close(
        y[first].mean() / y[~first].mean(), -torch.tensor(outside / inside).double(), rtol=1e-3, atol=0
    )
    assert y[first].std() < 1e-4 * y.abs().max() and y[~first].std() < 1e-4 * y.abs().max()
    expected = a / (a + b * off) + b / (b + a * off) - 1  # the trace less the trivial 1
    assert cut.eigenvalue.item() == pytest.approx(expected, abs=5e-5)
    assert cut.gap.item() == pytest.approx(expected, abs=5e-5)  # everything else is 0
    assert cut.residual.item() < 1e-5
    if a < b:  # the smaller side has the larger entries
        assert torch.equal(object_side(cut, (1, a + b)), first[None])


@given(
    st.integers(4, 40), st.integers(2, 12), st.integers(0, 999), st.sampled_from(["shift", "clamp", "binary"]),
    st.sampled_from(SOLVERS), st.sampled_from([0.0, 0.5, 3.0]),
)  # fmt: skip
@example(15, 2, 0, "binary", "lanczos", 3.0)  # alike: rounding makes the only eigenvalue negative
@settings(deadline=None, max_examples=60)
def test_laws_of_every_cut(n, d, seed, affinity, solver, common):
    features = noise(2, n, d, seed=seed) + common
    cut = ncut(features, affinity=affinity, solver=solver)
    w = weights(features, affinity)
    degree = w.sum(dim=2)
    y = cut.vector.double()
    assert torch.isfinite(cut.vector).all() and torch.isfinite(cut.residual).all()
    assert ((degree * y * y).sum(dim=1) - 1).abs().max() < 1e-4
    assert ((degree * y).sum(dim=1) / degree.sum(dim=1).sqrt()).abs().max() < 1e-5
    assert torch.equal(cut.side, cut.vector > cut.vector.mean(dim=1, keepdim=True))
    assert (y.gather(1, y.abs().argmax(dim=1, keepdim=True)) > 0).all()
    assert (cut.eigenvalue > -1e-5).all() and (cut.eigenvalue < 1 + 1e-5).all() and (cut.gap > -1e-5).all()
    _, second, third = oracle(features, affinity)
    assert (cut.eigenvalue < second + 1e-5).all()  # Ritz values come from below
    assert (1 - second <= value_of(cut.side, w) + 1e-5).all()
    nearest = torch.linalg.eigvalsh(w / (degree[:, :, None] * degree[:, None]).sqrt()) - cut.eigenvalue[:, None]
    assert (nearest.abs().amin(dim=1) <= cut.residual + 1e-5).all()
    if solver == "eigh":
        assert (cut.residual < 1e-5).all() and (cut.eigenvalue - second).abs().max() < 1e-5
        assert (cut.gap - (second - third)).abs().max() < 1e-5


@pytest.mark.parametrize("grid", [7, 14])
@pytest.mark.parametrize("name", FAMILIES)
def test_solvers_agree_with_float64(name, grid):
    features = family(name, grid)
    y, second, third = oracle(features)
    exact = y > y.mean(dim=1, keepdim=True)
    for cut, least in (
        (ncut(features, solver="eigh"), 0.999),
        (ncut(features), 0.99),
        (ncut(features, iterations=12), 0.99),
        (ncut(features.bfloat16()), 0.99),
    ):
        assert agreement(cut.side, exact).mean() >= least
    cut = ncut(features)
    assert (cut.residual < 0.05 * cut.eigenvalue).all()
    assert (cut.eigenvalue - second).abs().max() < 0.002
    assert (cut.gap - (second - third)).abs().max() < 0.02
    few = ncut(features, iterations=4)
    assert few.residual.mean() > 2 * cut.residual.mean()  # iterations are read, and the residual tells


def test_squaring_for_gpus_agrees_with_eigh():
    diagonal, beside = noise(40, 16).double(), noise(40, 15, seed=1).double()
    beside[:10, 6] = 0  # in two pieces
    t = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    t[0], t[1] = 0, torch.eye(16)
    values, vectors = torch.linalg.eigh(t)
    v, first, second = _top_two_by_squaring(t)
    torch.testing.assert_close(torch.stack([first, second]), values[:, [-1, -2]].T, rtol=0, atol=1e-9)
    assert ((v * vectors[..., -1]).sum(dim=1).abs()[2:] > 1 - 1e-9).all()


def test_one_iteration_gives_no_gap():
    cut = ncut(family("clusters", 7), iterations=1)
    assert torch.isfinite(cut.vector).all() and (cut.gap == 0).all()


@pytest.mark.parametrize("n", [49, 196])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_picture_that_is_not_finite_raises_nothing_and_shows(bad, n):
    features = noise(3, n, 8)
    features[1, 5, 2] = bad
    cut = ncut(features)
    assert not torch.isfinite(cut.vector[1]).any() and not torch.isfinite(cut.residual[1])
    torch.testing.assert_close(cut.vector[[0, 2]], ncut(features[[0, 2]]).vector)


def test_order_of_the_patches_does_not_matter():
    features = family("pixels", 14)
    order = torch.randperm(196, generator=torch.Generator().manual_seed(5))
    for solver in SOLVERS:
        cut, moved = ncut(features, solver=solver), ncut(features[:, order], solver=solver)
        assert agreement(cut.side[:, order], moved.side).mean() > 0.995
        torch.testing.assert_close(cut.eigenvalue, moved.eigenvalue, rtol=1e-3, atol=1e-4)


def test_only_directions_count():
    features = family("transformer", 7)
    cut = ncut(features)
    other = ncut(features * (1 + torch.arange(49.0))[:, None])
    assert agreement(cut.side, other.side).mean() > 0.999


def test_threshold_is_the_cosine_that_connects():
    features, first = blocks(20, 30, 0.5)
    assert agreement(ncut(features, affinity="binary", threshold=0.6).side, first[None]).item() == 1
    assert ncut(features, affinity="binary", threshold=0.4).eigenvalue.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("affinity", ["shift", "clamp", "binary"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [2, 4, 17, 196])
def test_patches_all_alike_give_finite_numbers(n, solver, affinity):
    for features in (torch.ones(2, n, 8), torch.zeros(2, n, 8), noise(2, 1, 8).expand(-1, n, -1)):
        cut = ncut(features, affinity=affinity, solver=solver)
        for part in (cut.vector, cut.eigenvalue, cut.gap, cut.residual):
            assert torch.isfinite(part).all()
        assert cut.eigenvalue.abs().max() < 1e-5
        assert (cut.side.any(dim=1) & ~cut.side.all(dim=1)).all()
        assert object_side(cut, (1, n)).any(dim=1).all()


def test_autocast_and_gradients_stay_out():
    features = family("clusters", 14).clone().requires_grad_()
    cut = ncut(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ncut(features)
    assert not cut.vector.requires_grad and cut.vector.dtype == torch.float32
    assert torch.equal(cut.vector, inside.vector)


COMPILED = """
import sys, torch
from mimkit.masks.ncut import ncut, object_side

def both(x, affinity):
    cut = ncut(x, affinity=affinity, iterations=4)
    return cut.vector, cut.gap, object_side(cut, (7, x.shape[1] // 7), "border")

torch.set_num_threads(1)
for n, affinity in ((196, "shift"), (49, "binary")):
    x = torch.randn(3, n, 16, generator=torch.Generator().manual_seed(0))
    x[:, : n // 3] += 1
    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, dynamic=False, backend=sys.argv[1])(x, affinity)
    for got, expected in zip(compiled, both(x, affinity)):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
"""


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_compiled_equals_eager(backend):
    # In a process without the checks of shapes, which torch.compile cannot trace.
    done = subprocess.run([sys.executable, "-c", COMPILED, backend], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def by_hand(grid: list[str]) -> tuple[Cut, Tensor]:
    """A cut with side True at `#`, where `O` has the entry of largest size."""
    text = "".join(grid)
    side = torch.tensor([[c in "#O" for c in text]])
    return Cut(
        side, torch.where(side, 1.0, -1.0) * torch.tensor([[1 + (c in "Oo") for c in text]]), *[torch.zeros(1)] * 3
    ), side


def test_rules_for_the_object():
    # The rules differ: the entry of largest size is in the large side, that has less of the border.
    cut, side = by_hand(["###..", "#####", "#O#..", "#....", "....."])
    assert torch.equal(object_side(cut, (5, 5)), side)
    assert torch.equal(object_side(cut, (5, 5), "smaller"), side)  # 12 of 25
    assert torch.equal(object_side(cut, (5, 5), "border"), side)  # 7 of 16
    cut, side = by_hand(["....", ".##.", ".##.", "...o"])
    for rule, expected in (("argmax", ~side), ("smaller", side), ("border", side)):
        assert torch.equal(object_side(cut, (4, 4), rule), expected)
    cut, side = by_hand(["......", ".####.", ".####.", ".####.", ".####.", ".####o"])
    for rule, expected in (("argmax", ~side), ("smaller", ~side), ("border", side)):
        assert torch.equal(object_side(cut, (6, 6), rule), expected)
    cut, side = by_hand(["##", "o."])  # a tie goes to the entry of largest size
    for rule in ("argmax", "smaller", "border"):
        assert torch.equal(object_side(cut, (2, 2), rule), ~side)


@pytest.mark.parametrize("rule", ["argmax", "smaller", "border"])
def test_the_sign_of_the_vector_means_nothing(rule):
    cut = ncut(family("pixels", 7))
    turned = Cut(~cut.side, -cut.vector, cut.eigenvalue, cut.gap, cut.residual)
    assert torch.equal(object_side(cut, (7, 7), rule), object_side(turned, (7, 7), rule))


def test_unknown_names_are_refused():
    features = noise(1, 4, 3)
    with pytest.raises(UserError, match="did you mean 'shift'"):
        ncut(features, affinity="shifted")
    with pytest.raises(UserError, match="did you mean 'lanczos'"):
        ncut(features, solver="lanczoz")
    with pytest.raises(UserError, match="iterations must be at least 1"):
        ncut(features, iterations=0)
    with pytest.raises(UserError, match="did you mean 'border'"):
        object_side(ncut(features), (2, 2), "borders")
