"""Metrics of the analysis: closed forms, laws, and formulations of their own in NumPy loops, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mimkit.analysis.attention import (
    among_patches,
    attention_distance,
    attention_entropy,
    head_divergence,
    mutual_information,
    patch_distances,
)
from mimkit.analysis.collect import Averages
from mimkit.analysis.metrics import GROUPS, METRICS
from mimkit.analysis.reconstruction import disagreement, reconstruction_error
from mimkit.analysis.relations import (
    feature_variance,
    intra_inter,
    row_divergence,
    similarity_variance,
    token_similarity,
)
from mimkit.analysis.robustness import knn_accuracy, relative_change, swapped
from mimkit.analysis.run import appearance
from mimkit.analysis.similarity import gram, hsic, linear_cka
from mimkit.analysis.spectrum import frequencies, log_amplitude
from mimkit.core.errors import UserError
from mimkit.guidance.exploitation import exploitation_rate
from mimkit.masks import Mask
from mimkit.masks.ncut import ncut
from mimkit.masks.statistics import average_distance
from mimkit.masks.trigger import Trigger

N = 196
GRID, PATCH = (14, 14), (16, 16)
close = pytest.approx


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score_maps(*one: Tensor) -> Tensor:
    """One picture whose heads are these maps."""
    return torch.stack([x.double() for x in one]).unsqueeze(0)


UNIFORM, IDENTITY = torch.full((N, N), 1 / N), torch.eye(N)
BLOCKS = torch.block_diag(*[torch.full((49, 49), 1 / 49)] * 4)
ONE_KEY = torch.zeros(N, N).index_fill(1, torch.tensor([7]), 1.0)
SOFT = noise(2, 3, 20, 20, seed=1).softmax(dim=-1)  # (B, H, N, N) for comparisons


# Attention


def test_attention_among_patches_drops_prefix_tokens_and_sums_to_one():
    whole = noise(2, 3, 25, 25).softmax(dim=-1)
    kept = among_patches(whole, 5)
    assert kept.shape == (2, 3, 20, 20)
    assert (kept.sum(dim=-1) - 1).abs().max() < 1e-6
    for q, k in ((0, 0), (3, 19)):
        assert kept[1, 2, q, k].item() == close(whole[1, 2, q + 5, k + 5].item() / whole[1, 2, q + 5, 5:].sum().item())
    nothing = torch.zeros(1, 1, 5, 5, dtype=torch.float32)
    nothing[..., 0] = 1  # all goes to the class token
    assert torch.allclose(among_patches(nothing, 1), torch.tensor(0.25))


@pytest.mark.parametrize(
    ("grid", "patch", "uniform"),
    [((14, 14), 16, 116.49), ((7, 7), 32, 115.50), ((14, 14), 8, 58.25), ((12, 12), 16, 99.75)],
)
def test_distance_of_uniform_attention(grid, patch, uniform):
    n = grid[0] * grid[1]
    found = attention_distance(torch.full((1, 1, n, n), 1 / n, dtype=torch.float64), grid, (patch, patch))
    assert found.item() == close(uniform, abs=0.005)


def test_distance_of_known_heads():
    right = torch.zeros(N, N)
    for i in range(N):
        right[i, i + 1 if i % 14 < 13 else i - 1] = 1
    found = attention_distance(score_maps(IDENTITY, right, ONE_KEY), GRID, PATCH)[0]
    assert found[:2].tolist() == [0, 16]
    assert found[2].item() == close(np.mean([16 * math.hypot(i // 14, i % 14 - 7) for i in range(N)]))


def test_distance_against_loops_on_a_rectangular_grid():
    grid, patch = (4, 5), (6, 3)
    found = attention_distance(SOFT, grid, patch)
    for b in range(2):
        for h in range(3):
            total = 0.0
            for i in range(20):
                for j in range(20):
                    apart = math.hypot(6 * (i // 5 - j // 5), 3 * (i % 5 - j % 5))
                    total += SOFT[b, h, i, j].item() * apart / 20
            assert found[b, h].item() == close(total, rel=1e-12)
    assert patch_distances(grid, patch).diagonal().abs().max() == 0


def test_distance_ignores_flips():
    flipped = torch.arange(20).view(4, 5).flip(1).flatten()
    there = attention_distance(SOFT, (4, 5), (6, 3))
    assert torch.allclose(attention_distance(SOFT[:, :, flipped][..., flipped], (4, 5), (6, 3)), there)


@pytest.mark.parametrize(("n", "most"), [(196, 5.2781), (197, 5.2832), (49, 3.8918)])
def test_entropy_of_uniform_attention(n, most):
    assert attention_entropy(torch.full((1, 1, n, n), 1 / n)).item() == close(most, abs=5e-5)


def test_entropy_of_known_heads_and_against_loops():
    found = attention_entropy(score_maps(IDENTITY, ONE_KEY, BLOCKS))[0]
    assert found.tolist() == close([0, 0, math.log(49)], abs=1e-6)
    a = SOFT.numpy()
    loops = [[np.mean([-sum(p * math.log(p) for p in row) for row in a[b, h]]) for h in range(3)] for b in range(2)]
    assert np.allclose(attention_entropy(SOFT), loops, rtol=1e-12)


def test_divergence_of_equal_heads_is_zero_and_of_one_head_undefined():
    assert head_divergence(SOFT[:, :1].expand(-1, 4, -1, -1)).abs().max() < 1e-12
    assert head_divergence(SOFT[:, :1]).isnan().all()


def test_divergence_of_uniform_and_focused_heads():
    found = head_divergence(score_maps(UNIFORM, IDENTITY))[0]
    e = 1e-8 / (1 + N * 1e-8)
    one = (1 + 1e-8) / (1 + N * 1e-8)
    assert found[1].item() == close(one * math.log(one * N) + (N - 1) * e * math.log(e * N), rel=1e-6)  # ln N
    assert found[1].item() == close(math.log(N), abs=1e-4)
    assert found[0].item() == close(-(math.log(one * N) + (N - 1) * math.log(e * N)) / N, rel=1e-6)


def test_divergence_against_loops():
    found, a = head_divergence(SOFT), (SOFT.numpy() + 1e-8) / (1 + 20e-8)
    for b in range(2):
        for h in range(3):
            apart = [np.mean(np.sum(a[b, h] * np.log(a[b, h] / a[b, g]), axis=1)) for g in range(3) if g != h]
            assert found[b, h].item() == close(np.mean(apart), rel=1e-9)


def test_mutual_information_of_known_heads():
    found = mutual_information(score_maps(UNIFORM, IDENTITY, BLOCKS, ONE_KEY))[0]
    assert found.tolist() == close([0, 1, math.log(4) / math.log(196), 0], abs=2e-4)
    assert found[2].item() == close(0.2627, abs=2e-4)


@pytest.mark.parametrize(("sigma", "known"), [(1, 0.50), (3, 0.16)])
def test_mutual_information_of_local_attention(sigma, known):
    square = patch_distances(GRID, (1, 1)).square()
    assert mutual_information(score_maps((-square / (2 * sigma**2)).softmax(dim=1))).item() == close(known, abs=0.01)


@pytest.mark.parametrize(("scale", "known"), [(1, 0.093), (3, 0.53)])
def test_mutual_information_of_random_logits_is_not_zero(scale, known):
    assert mutual_information(score_maps((scale * noise(N, N)).softmax(dim=1))).item() == close(known, abs=0.012)


def test_mutual_information_against_loops():
    found = mutual_information(SOFT)
    for b in range(2):
        for h in range(3):
            a = (SOFT[b, h].numpy() + 1e-8) / (1 + 20e-8)
            pk = a.mean(axis=0)
            joint = sum(a[q, k] / 20 * math.log(a[q, k] / pk[k]) for q in range(20) for k in range(20))
            entropies = math.log(20) * -sum(p * math.log(p) for p in pk)
            assert found[b, h].item() == close(joint / math.sqrt(entropies), rel=1e-9)


@pytest.mark.parametrize("measure", [attention_entropy, head_divergence, mutual_information])
def test_permuted_patches_change_nothing(measure):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(measure(SOFT[:, :, order][..., order]), measure(SOFT))


@pytest.mark.parametrize("measure", [attention_entropy, head_divergence, mutual_information])
def test_float32_suffices(measure):
    a = (2 * noise(2, 4, N, N)).softmax(dim=-1)
    assert torch.allclose(measure(a.float()).double(), measure(a), rtol=1e-4, atol=1e-6)


# CKA


def cka(x: Tensor, y: Tensor, size: int | None = None) -> float:
    parts = [[gram(part).unsqueeze(0) for part in one.split(size or len(one))] for one in (x, y)]
    return linear_cka(*parts)[0].item()


def test_cka_of_itself_and_under_what_changes_nothing():
    x = noise(40, 12)
    turned = torch.linalg.qr(noise(12, 12, seed=3))[0]
    assert cka(x, x) == close(1, abs=1e-12)
    assert cka(x, 3.7 * x @ turned + noise(12, seed=4) * 100) == close(1, abs=1e-11)
    assert cka(x, x @ noise(12, 12, seed=5)) < 0.95  # a general linear map


def test_cka_of_independent_features_is_about_zero_without_bias():
    found = [cka(noise(64, 200, seed=s), noise(64, 300, seed=100 + s)) for s in range(8)]
    assert abs(np.mean(found)) < 0.05
    assert min(found) < 0  # not clipped


def test_hsic_against_loops():
    k, l = gram(noise(7, 3)), gram(noise(7, 4, seed=1))  # noqa: E741
    x, y, n = k.numpy(), l.numpy(), 7
    trace = sum(x[i, j] * y[j, i] for i in range(n) for j in range(n))
    sums = x.sum() * y.sum() / ((n - 1) * (n - 2))
    middle = sum(x[i, j] * y[j, m] for i in range(n) for j in range(n) for m in range(n))
    known = (trace + sums - 2 / (n - 2) * middle) / (n * (n - 3))
    assert hsic(k[None], l[None]).item() == close(known, rel=1e-12)


def test_hsic_does_not_see_centering():
    x, y = noise(20, 5) + 2, gram(noise(20, 4, seed=1))[None]
    raw = (x @ x.T).fill_diagonal_(0)[None]
    assert hsic(raw, y).item() == close(hsic(gram(x)[None], y).item(), rel=1e-10)


def test_hsic_of_batches_is_without_bias():
    x = noise(256, 6)
    y = x @ noise(6, 5, seed=1) + noise(256, 5, seed=2)
    whole = hsic(gram(x)[None], gram(y)[None]).item()
    parts = []
    for seed in range(60):
        some = torch.randperm(256, generator=torch.Generator().manual_seed(seed))[:32]
        parts.append(hsic(gram(x[some])[None], gram(y[some])[None]).item())
    assert abs(np.mean(parts) - whole) < 3 * np.std(parts) / math.sqrt(60)


def test_cka_in_batches_is_near_the_whole_and_sums_before_the_ratio():
    x = noise(512, 6)
    y = x @ noise(6, 5, seed=1) + 2 * noise(512, 5, seed=2)
    assert cka(x, y, 32) == close(cka(x, y), abs=0.02)
    a, b = (([gram(p)[None] for p in one.split(128)]) for one in (x, y))
    sums = [sum(hsic(p, q).item() for p, q in zip(c, d, strict=True)) for c, d in ((a, b), (a, a), (b, b))]
    assert linear_cka(a, b)[0].item() == close(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-12)


def test_cka_error_is_the_jackknife_over_batches():
    x, y = noise(40, 5), noise(40, 5, seed=1)
    a, b = ([gram(p)[None] for p in one.split(10)] for one in (x, y + x))
    left = [
        linear_cka([g for i, g in enumerate(a) if i != out], [g for i, g in enumerate(b) if i != out])[0].item()
        for out in range(4)
    ]
    assert linear_cka(a, b)[1].item() == close(math.sqrt(3 / 4 * sum((v - np.mean(left)) ** 2 for v in left)))
    assert linear_cka(a[:1], b[:1])[1].isnan().all()


def test_cka_needs_four_pictures():
    with pytest.raises(UserError, match="at least 4 pictures"):
        cka(noise(3, 5), noise(3, 5))


# Fourier


def test_frequencies_of_a_grid():
    assert frequencies((14, 14)).tolist() == close([2 * i / 14 for i in range(7)])
    assert frequencies((14, 14))[-1].item() == close(0.857, abs=5e-4)
    assert len(frequencies((7, 9))) == 4


@pytest.mark.parametrize("side", [14, 7])
def test_amplitude_against_the_whole_transform(side):
    x = noise(3, side * side, 5)
    found = log_amplitude(x, (side, side))
    score_maps = x.transpose(1, 2).unflatten(2, (side, side)).numpy()
    f = np.log(np.abs(np.fft.fftshift(np.fft.fft2(score_maps), axes=(2, 3))) + 1e-6).mean(axis=1)
    diagonal = np.diagonal(f, axis1=1, axis2=2)[:, side // 2 :]
    assert np.allclose(found, diagonal - diagonal[:, :1], atol=1e-10)


def test_amplitude_on_a_rectangular_grid():
    x = noise(1, 6 * 12, 2)
    found = log_amplitude(x, (6, 12))
    whole = np.log(np.abs(np.fft.fft2(x[0].T.unflatten(1, (6, 12)).numpy())) + 1e-6).mean(axis=0)
    assert np.allclose(found[0], [whole[i, 2 * i] - whole[0, 0] for i in range(3)], atol=1e-10)


def test_amplitude_of_known_fields():
    white = log_amplitude(noise(64, N, 64), GRID).mean(dim=0)
    assert white[0] == 0
    assert (white[1:] - math.log(2) / 2).abs().max() < 0.03  # 0 is a real number, the others are complex
    flat = log_amplitude(5 + 0.1 * noise(16, N, 64, seed=1), GRID).mean(dim=0)[1:]
    gamma = 0.5772156649
    assert flat.mean().item() == close(math.log(0.1 * 14) - gamma / 2 - math.log(5 * 196), abs=0.01)
    assert flat.mean().item() == close(-6.84, abs=0.01)


def test_amplitude_does_not_see_scale_and_sees_a_shared_constant():
    x = noise(2, N, 8)
    assert (log_amplitude(1000 * x, GRID) - log_amplitude(x, GRID)).abs().max() < 1e-5
    assert (log_amplitude(x + 3, GRID)[:, 1:] < log_amplitude(x, GRID)[:, 1:] - 1).all()


@pytest.mark.parametrize("bin", range(1, 7))
def test_a_cosine_along_the_diagonal_peaks_at_its_frequency(bin):
    i = torch.arange(N, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * bin * (i // 14 + i % 14) / 14).view(1, N, 1)
    assert log_amplitude(wave, GRID).argmax().item() == bin


# Relations of tokens


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 10**6))
def test_feature_variance_is_one_minus_the_mean_similarity(n, width, seed):
    x = noise(2, n, width, seed=seed)
    found = feature_variance(x)
    assert torch.allclose(found, 1 - token_similarity(x).mean(dim=(1, 2)), atol=1e-12)
    assert ((found > -1e-12) & (found <= 1)).all()


def test_feature_variance_against_loops_and_of_parallel_tokens():
    x = noise(1, 9, 4)
    u = x[0].numpy() / np.linalg.norm(x[0].numpy(), axis=1, keepdims=True)
    assert feature_variance(x).item() == close(np.mean([np.sum((one - u.mean(axis=0)) ** 2) for one in u]))
    assert feature_variance(x[:, :1] * torch.arange(1, 9).view(1, 8, 1)).item() == close(0, abs=1e-12)
    where = torch.tensor([[True, False, True] * 3])
    assert feature_variance(x, where).item() == close(feature_variance(x[:, where[0]]).item())
    assert feature_variance(x, ~where & where).isnan().all()


def test_similarity_variance_against_loops():
    x = noise(1, 9, 4)
    m = token_similarity(x)
    pairs = [m[0, i, j].item() for i in range(9) for j in range(9) if i != j]
    assert similarity_variance(m).item() == close(np.var(pairs))
    assert similarity_variance(torch.ones(1, 5, 5)).item() == 0


def test_gap_of_blocks_and_against_loops():
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(5, 5))[None]
    side = torch.tensor([[True] * 3 + [False] * 5])
    assert [value.item() for value in intra_inter(blocks, side)] == [1, 0]
    w = noise(1, 8, 8)  # asymmetric
    pairs = [(w[0, i, j].item(), side[0, i] == side[0, j]) for i in range(8) for j in range(8) if i != j]
    known = [np.mean([v for v, same in pairs if same]), np.mean([v for v, same in pairs if not same])]
    assert [value.item() for value in intra_inter(w, side)] == close(known)
    assert [v.item() for v in intra_inter(w, ~side)] == close(known)
    assert intra_inter(w, side | ~side)[1].isnan().all()


def test_gap_of_a_cut_through_two_textures():
    x = 0.1 * noise(1, 60, 16)
    x[:, :20, 0] += 1
    x[:, 20:, 1] += 1
    side = ncut(x.float()).side
    assert side[0, :20].unique().numel() == side[0, 20:].unique().numel() == 1
    intra, inter = intra_inter(token_similarity(x), side)
    assert intra.item() > 0.8 and abs(inter.item()) < 0.1


def test_divergence_of_rows_over_training():
    p, q = SOFT[:, 0], SOFT[:, 1]
    assert row_divergence(p, p).abs().max() < 1e-12
    assert (row_divergence(p, q) > 0).all()
    loops = [np.mean([sum(p[b, i] * (p[b, i] / q[b, i]).log()) for i in range(20)]) for b in range(2)]
    assert np.allclose(row_divergence(p, q), loops, atol=1e-6)
    assert not torch.allclose(row_divergence(p, q), row_divergence(q, p))


def test_clusters_appear_at_the_first_step_from_which_the_gap_stays():
    def rows(values, layer):
        return [
            {"metric": "similarity_gap", "layer": layer, "step": step, "value": value} for step, value in values.items()
        ]

    found = appearance(
        rows({0: 0.1, 10: 0.5, 20: 0.2, 30: 0.45, 40: 0.6}, 0)
        + rows({0: 0.5, 10: 0.4, 40: 0.2}, 1)
        + [{"metric": "attention_gap", "layer": 2, "step": 0, "value": 1.0}]
    )
    assert found == [
        {"layer": 0, "first": 0.1, "last": 0.6, "step": 30},
        {"layer": 1, "first": 0.5, "last": 0.2, "step": None},
    ]


# Reconstruction


def test_disagreement_against_pairs():
    prediction, target = noise(2, 4, 12, 5), noise(2, 12, 5, seed=1)
    hidden = torch.rand(2, 4, 12, generator=torch.Generator().manual_seed(0)) < 0.6
    found = disagreement(prediction, target, hidden)
    for b in range(2):
        means = []
        for i in range(12):
            who = [k for k in range(4) if hidden[b, k, i]]
            pairs = [
                (prediction[b, who[s], i] - prediction[b, who[t], i]).square().mean().item()
                for t in range(len(who))
                for s in range(t)
            ]
            if pairs:
                means.append(np.mean(pairs))
        assert found[b].item() == close(np.mean(means) / np.var(target[b].numpy()))


def test_disagreement_and_error_of_known_predictions():
    target = noise(1, 8, 6)
    hidden = torch.ones(1, 4, 8, dtype=torch.bool).scatter(2, torch.arange(4).view(1, 4, 1), False)
    constant = target.mean().expand(1, 4, 8, 6)
    assert disagreement(constant, target, hidden).item() == 0  # consistent, and wrong
    whole = torch.ones_like(hidden)
    assert reconstruction_error(constant, target, whole).item() == close(1)
    assert reconstruction_error(target[:, None].expand(1, 4, 8, 6), target, hidden).item() == 0
    only = target[:, None].expand(1, 4, 8, 6).clone()
    only[~hidden] += 100  # visible patches do not count
    assert reconstruction_error(only, target, hidden).item() == 0
    assert disagreement(only, target, hidden).item() == close(0, abs=1e-20)
    assert reconstruction_error(constant, torch.ones(1, 8, 6).double(), hidden).isnan().all()


def test_error_against_loops():
    prediction, target = noise(1, 3, 6, 4), noise(1, 6, 4, seed=1)
    hidden = torch.rand(1, 3, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    errors = [
        (prediction[0, k, i] - target[0, i]).square().mean().item()
        for k in range(3)
        for i in range(6)
        if hidden[0, k, i]
    ]
    assert reconstruction_error(prediction, target, hidden).item() == close(np.mean(errors) / np.var(target.numpy()))


def test_exploitation_closed_forms():
    hidden = torch.tensor([[True] * 12 + [False] * 4])
    uniform, identity = torch.full((1, 16, 16), 1 / 16), torch.eye(16)[None]
    to_visible = torch.zeros(1, 16, 16).index_fill(2, torch.tensor([15]), 1.0)
    to_masks = torch.zeros(1, 16, 16).index_fill(2, torch.tensor([0]), 1.0)
    for attention, fraction in ((uniform, 0.75), (identity, 0.75), (to_visible, 0.0), (to_masks, 1.0)):
        visible, masked = exploitation_rate([attention] * 3, hidden)
        assert masked.item() == close(fraction, abs=1e-6)
        assert visible.item() + masked.item() == close(1)
    assert not Trigger().update(0.75, 0.25, 0.0).update(0.75, 0.25, 0.1).fired


def test_exploitation_is_the_recursion_of_the_paper():
    hidden = torch.tensor([[True, False, True, True, False, True]])
    layers = [noise(1, 6, 6, seed=s).softmax(dim=-1).float() for s in range(3)]
    sets = {"V": [1, 4], "M": [0, 2, 3, 5]}
    rate = {(a, b): float(a == b) for a in "VM" for b in "VM"}
    for layer in layers:
        fraction = {
            (a, b): sum(layer[0, i, j].item() for i in sets[b] for j in sets[a]) / len(sets[b])
            for a in "VM"
            for b in "VM"
        }
        rate = {(a, b): fraction["V", b] * rate[a, "V"] + fraction["M", b] * rate[a, "M"] for a in "VM" for b in "VM"}
    known = 2 / 6 * rate["M", "V"] + 4 / 6 * rate["M", "M"]
    assert exploitation_rate(layers, hidden).masked.item() == close(known, rel=1e-5)


def test_average_distance_of_known_masks():
    one = torch.zeros(1, 16, dtype=torch.bool)
    one[0, 5] = True
    assert average_distance(from_hidden(one), (4, 4), (1, 1)).item() == 1
    half = torch.zeros(1, 4, 6, dtype=torch.bool)
    half[:, :, 3:] = True  # width 3
    assert average_distance(from_hidden(half.flatten(1)), (4, 6), (1, 1)).item() == 2


def from_hidden(hidden: Tensor) -> Mask:
    return Mask.from_scores(hidden.float(), int(hidden.sum()))


# Robustness, and what collects


def test_relative_change_of_known_features():
    x = noise(3, 5)
    assert relative_change(x, x).tolist() == [0, 0, 0]
    assert relative_change(3 * x, x).tolist() == close([2, 2, 2])


def test_swapped_blocks_come_back():
    blocks = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    before = list(blocks)
    with pytest.raises(RuntimeError), swapped(blocks, 1):
        assert list(blocks) == [before[0], before[2], before[1], before[3]]
        raise RuntimeError
    assert list(blocks) == before


def test_knn_of_separate_classes_is_right_and_its_error_binomial():
    labels = torch.randint(2, (80,), generator=torch.Generator().manual_seed(0))
    apart = torch.nn.functional.one_hot(labels, 2).float() + 0.01 * noise(80, 2).float()
    assert knn_accuracy(apart, labels) == (1.0, 0.0)
    accuracy, error = knn_accuracy(noise(80, 2).float(), labels)
    assert error == close(math.sqrt(accuracy * (1 - accuracy) / 40))


def test_averages_make_tidy_rows():
    collected = Averages()
    collected.add("attention_entropy", 0, torch.tensor([[1.0, 3.0], [3.0, 5.0]]))
    collected.add("attention_entropy", 0, torch.tensor([[5.0, 7.0]]))
    collected.add("similarity_gap", 1, torch.tensor([1.0, math.nan, 3.0]))
    collected.note("effective_rank", 1, math.nan, None, 3)
    rows = collected.rows("it", None)
    assert [(r["metric"], r["layer"], r["head"], r["value"], r["n"]) for r in rows] == [
        ("attention_entropy", 0, None, 4.0, 3),
        ("attention_entropy", 0, 0, 3.0, 3),
        ("attention_entropy", 0, 1, 5.0, 3),
        ("similarity_gap", 1, None, 2.0, 2),
        ("effective_rank", 1, None, None, 3),
    ]
    assert rows[0]["stderr"] == close(2 / math.sqrt(3))  # standard deviation of 2, 4, 6 by the root of 3
    assert rows[3]["stderr"] == close(1)
    assert rows[4]["stderr"] is None


def test_every_metric_belongs_to_a_group_and_says_something():
    assert {metric.group for metric in METRICS.values()} == GROUPS.keys() - {"cka"}
    assert all(metric.heading and metric.says for metric in METRICS.values())
