"""Laws of informed maskers: salience, adaptive ratios, self-guided masks and mixtures, on signals made by hand."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys, uniform
from mimkit.masks import AMTMasker, AttMaskMasker, GridMasker, Mask, MixtureMasker, RandomMasker
from mimkit.masks import SalienceMasker as Salience
from mimkit.masks import SelfGuidedMasker as SelfGuided
from mimkit.masks.masker import Signal
from mimkit.masks.random import hidden_count
from mimkit.masks.salience import column_sums, salience, salient_fraction
from mimkit.masks.self_guided import relevance

seeds = st.integers(0, 10**6)
grids = st.sampled_from([(4, 4), (3, 5), (2, 8), (6, 6)])


def address(rows: int, seed: int = 0) -> Tensor:
    return rng_keys("test", seed, torch.arange(rows))


def signal(rows: int, grid: tuple[int, int], seed: int = 0, width: int = 8) -> Tensor:
    return torch.randn(rows, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(seed))


def masks_of(masker, looked_at: Tensor, grid, seed: int = 0, progress: float = 0.5) -> Mask:
    return masker(masker.score_maps(looked_at, grid), address(len(looked_at), seed), progress, grid)


def two_textures(grid: tuple[int, int], inside: Tensor, seed: int = 0) -> Tensor:
    """Patches of pictures: one texture inside, another outside, both with noise."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 24, generator=generator)
    noise = 0.3 * torch.randn(*inside.shape, 24, generator=generator)
    return torch.where(inside.unsqueeze(2), one, other) + noise


def box(rows: int, grid: tuple[int, int], height: int, width: int, seed: int = 0) -> Tensor:
    """A rectangle at another place in each picture, never in the first row or column."""
    inside = torch.zeros(rows, *grid, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for row in inside:
        top = int(torch.randint(1, grid[0] - height + 1, (), generator=generator))
        left = int(torch.randint(1, grid[1] - width + 1, (), generator=generator))
        row[top : top + height, left : left + width] = True
    return inside.flatten(1)


# What all of them keep to ----------------------------------------------------------------------------------

INFORMED = {
    "salience": Salience(),
    "salience, cosine": Salience(scale="cosine", noise=0.1),
    "adaptive": Salience(spread=0.1, threshold=0.3),
    "self-guided": SelfGuided(start=0.0),
    "self-guided, by score": SelfGuided(start=0.0, hint_by="score", hints=0.3),
    "mixture": MixtureMasker(),
    "mixture, self-guided": MixtureMasker(other=SelfGuided(start=0.0), fraction=0.7),
}


@pytest.mark.parametrize("name", INFORMED)
@given(seeds, grids, st.integers(1, 4))
@settings(deadline=None, max_examples=8)
def test_masks_are_exact_and_a_function_of_picture_and_address(name, seed, grid, rows):
    masker, looked_at = INFORMED[name], signal(rows, grid, seed)
    n = grid[0] * grid[1]
    mask = masks_of(masker, looked_at, grid, seed)
    again = masks_of(masker, looked_at, grid, seed)
    assert torch.equal(mask.hidden, again.hidden) and torch.equal(mask.visible, again.visible)
    for row in range(rows):
        real = mask.visible[row][~mask.padding[row]]
        assert sorted([*real.tolist(), *mask.hidden[row].nonzero()[:, 0].tolist()]) == list(range(n))
        score_maps = masker.score_maps(looked_at[row : row + 1], grid)
        alone = masker(score_maps, address(rows, seed)[row : row + 1], 0.5, grid)
        assert torch.equal(alone.hidden[0], mask.hidden[row])
    if not mask.ragged:
        assert mask.hidden.sum(dim=1).tolist() == [hidden_count(n, 0.75)] * rows


@pytest.mark.parametrize("name", INFORMED)
def test_other_addresses_give_other_masks_and_no_other_noise_is_drawn(name):
    looked_at = signal(4, (6, 6))
    before = torch.random.get_rng_state()
    masks = [masks_of(INFORMED[name], looked_at, (6, 6), seed) for seed in (0, 1)]
    assert not torch.equal(masks[0].hidden, masks[1].hidden)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", INFORMED)
def test_masks_are_random_until_the_start(name):
    masker = INFORMED[name].start_at(0.0)
    if name.startswith("mix"):
        late = replace(masker, other=replace(masker.other, start=0.5))
    else:
        late = replace(masker, start=0.5)
    assert late.reads(0.49) is Signal.NONE and late.reads(0.5) is late.guide.signal is not Signal.NONE
    assert late.start_at(0.25).reads(0.25) is late.guide.signal and late.start_at(0.25).reads(0.2) is Signal.NONE
    assert late.start_at(0.9).reads(0.5) is late.guide.signal  # a trigger brings the start forward, never back
    nothing = signal(5, (4, 4), width=0)
    mask = masks_of(late, nothing, (4, 4), progress=0.2)
    assert torch.equal(mask.hidden, RandomMasker()(nothing, address(5), 0.2, (4, 4)).hidden)
    assert late.describe(late.score_maps(nothing, (4, 4)), mask) == {}


@pytest.mark.parametrize("masker", [Salience(), SelfGuided(hints=0, start=0.0), Salience(spread=0.1, threshold=2.0)])
@given(seeds, st.integers(0, 15), st.floats(0, 1))
@settings(deadline=None, max_examples=15)
def test_a_higher_score_can_only_hide_a_patch(masker, seed, patch, more):
    score_maps = masker.score_maps(signal(1, (4, 4), seed), (4, 4))
    raised = score_maps.clone()
    raised[0, patch, 0] += more
    before, after = (masker(m, address(1, seed), 0.5, (4, 4)).hidden[0] for m in (score_maps, raised))
    assert after[patch] >= before[patch]
    other_views = torch.arange(16) != patch
    assert not (after & ~before)[other_views].any()  # and can only show another


@pytest.mark.parametrize("name", ["salience", "salience, cosine", "self-guided", "self-guided, by score"])
def test_bfloat16_around_it_changes_no_map(name):
    looked_at = signal(3, (4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        inside = INFORMED[name].score_maps(looked_at, (4, 4))
    assert inside.dtype == torch.float32 and torch.equal(inside, INFORMED[name].score_maps(looked_at, (4, 4)))


@pytest.mark.parametrize("name", ["salience", "self-guided"])
def test_no_gradient_is_kept(name):
    looked_at = signal(2, (4, 4)).requires_grad_()
    assert not INFORMED[name].score_maps(looked_at, (4, 4)).requires_grad


@pytest.mark.parametrize(
    ("masker", "names"),
    [
        (Salience(), ["salience", "salient_fraction"]),
        (Salience(spread=0.1), ["salience", "salient_fraction", "hidden_least", "hidden_most"]),
        (SelfGuided(), ["object", "object_hidden"]),
        (MixtureMasker(), ["salience", "salient_fraction"]),
    ],
)
def test_what_is_said_for_the_log(masker, names):
    masker = masker.start_at(0.0)
    score_maps = masker.score_maps(signal(3, (4, 4)), (4, 4))
    said = masker.describe(score_maps, masker(score_maps, address(3), 0.5, (4, 4)))
    assert sorted(said) == sorted(names) and all(value.shape == () and 0 <= value <= 1 for value in said.values())


# Salience --------------------------------------------------------------------------------------------------


def written_out(x: Tensor, divide: float = 1.0) -> Tensor:
    """What each patch gets of all patches' softmax, one picture, by loops."""
    n = len(x)
    sums = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        products = torch.stack([x[i].double() @ x[j].double() / divide for j in range(n)])
        sums += (products - products.max()).exp() / (products - products.max()).exp().sum()
    return sums


@given(seeds, grids)
@settings(deadline=None, max_examples=10)
def test_salience_is_the_column_sum(seed, grid):
    x = signal(2, grid, seed)
    unit = torch.nn.functional.normalize(x, dim=2)
    for scale, expected in (
        ("none", [written_out(row) for row in x]),
        ("width", [written_out(row, 8**0.5) for row in x]),
        ("cosine", [written_out(row, 0.2) for row in unit]),
    ):
        sums = column_sums(x, scale=scale, temperature=0.2)
        torch.testing.assert_close(sums.double(), torch.stack(expected), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums.sum(dim=1), torch.full((2,), float(x.shape[1])))
    s = salience(x)
    assert (s.amin(dim=1) == 0).all() and (s.amax(dim=1) > 0.999).all() and (s <= 1).all()


def test_equal_patches_are_equally_salient():
    x = signal(2, (4, 4))
    x[:, 5] = x[:, 11]
    s = salience(x)
    torch.testing.assert_close(s[:, 5], s[:, 11])
    masker = Salience()
    score_maps = masker.score_maps(torch.ones(2, 16, 8), (4, 4))
    assert (score_maps == 0).all()
    assert masker(score_maps, address(2), 0.0, (4, 4)).hidden.sum(dim=1).tolist() == [12, 12]


@given(seeds, st.sampled_from([0.0, 0.2, 0.5]))
@settings(deadline=None, max_examples=10)
def test_the_most_salient_are_hidden_up_to_noise(seed, noise):
    x = signal(3, (4, 4), seed)
    mask = masks_of(Salience(noise=noise), x, (4, 4), seed)
    scores = salience(x) + noise * uniform(address(3, seed), 16)
    for row, hidden in zip(scores, mask.hidden, strict=True):
        assert row[hidden].min() >= row[~hidden].max()


def test_noise_that_fades():
    x, fading = signal(3, (6, 6)), Salience(noise=(1.0, 0.0))
    for progress, constant in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        expected = masks_of(Salience(noise=constant), x, (6, 6)).hidden
        assert torch.equal(masks_of(fading, x, (6, 6), progress=progress).hidden, expected)


def test_the_share_of_salient_patches():
    assert float(salient_fraction(torch.tensor([[0.0, 0.19, 0.21, 1.0]]))) == 0.5


@given(seeds, st.integers(0, 36), st.sampled_from([(0.75, 0.1), (0.7, 0.2), (0.5, 0.25)]))
@settings(deadline=None, max_examples=20)
def test_the_ratio_follows_the_share_of_salient_patches(seed, above, ratios):
    ratio, spread = ratios
    n, generator = 36, torch.Generator().manual_seed(seed)
    high = torch.arange(n) < above
    s = torch.where(high, 0.6 + 0.4 * torch.rand(n, generator=generator), 0.5 * torch.rand(n, generator=generator))
    score_maps = torch.stack([s, torch.zeros(n)]).unsqueeze(2)
    mask = Salience(ratio=ratio, spread=spread, threshold=0.5)(score_maps, address(2, seed), 0.5, (6, 6))
    r, d = (Fraction(str(value)) for value in ratios)
    counts = [n - int(n * (1 - (r - d + 2 * d * Fraction(fraction, n)))) for fraction in (above, 0)]
    assert mask.ragged and mask.hidden.sum(dim=1).tolist() == counts  # the second has none: the lowest ratio
    assert mask.visible.shape[1] == n - hidden_count(n, ratio - spread)
    pooled = Salience(ratio=ratio, spread=spread, threshold=0.5, pooled=True)(score_maps, address(2, seed), 0.5, (6, 6))
    mean = n - int(n * (1 - (r - d + 2 * d * Fraction(above, 2 * n))))
    assert pooled.hidden.sum(dim=1).tolist() == [mean, mean]


def test_ratios_spread_by_default():
    x = signal(64, (6, 6))
    x = x * torch.linspace(0.2, 3, 64)[:, None, None]  # from near uniform to saturated
    ratios = masks_of(Salience(spread=0.1), x, (6, 6)).hidden.float().mean(dim=1)
    assert ratios.max() - ratios.min() > 0.1 and abs(float(ratios.mean()) - 0.75) < 0.03
    assert ratios.min() >= 0.65 - 1 / 36 and ratios.max() <= 0.85 + 1 / 36


# Self-guided -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affinity", ["shift", "clamp"])
@pytest.mark.parametrize("solver", ["lanczos", "eigh"])
@pytest.mark.parametrize("rule", ["argmax", "smaller", "border"])
def test_the_object_is_found_and_hidden(affinity, solver, rule):
    grid, inside = (8, 8), box(6, (8, 8), 4, 3)
    masker = SelfGuided(start=0.0, hints=0, affinity=affinity, solver=solver, object=rule)
    looked_at = two_textures(grid, inside)
    score_maps = masker.score_maps(looked_at, grid)
    assert torch.equal(score_maps[..., 1] > 0.5, inside)
    mask = masker(score_maps, address(6), 0.5, grid)
    assert mask.hidden[inside].all() and mask.hidden.sum(dim=1).tolist() == [48] * 6
    for row in range(6):  # without hints: the 48 most relevant
        assert set(mask.hidden[row].nonzero()[:, 0].tolist()) == set(score_maps[row, :, 0].topk(48).indices.tolist())
    core = replace(masker, ratio=0.1)(score_maps, address(6), 0.5, grid)  # 7 of 12: only the core of the object
    assert not (core.hidden & ~inside).any() and core.hidden.sum(dim=1).tolist() == [7] * 6
    assert float(masker.describe(score_maps, mask)["object_hidden"]) == 1
    assert float(masker.describe(score_maps, mask)["object"]) == pytest.approx(12 / 64)


def test_relevance_is_the_mean_cosine_with_the_object():
    x, inside = signal(2, (4, 4)), box(2, (4, 4), 2, 2)
    unit = torch.nn.functional.normalize(x.double(), dim=2)
    for row in range(2):
        expected = torch.stack([(unit[row][inside[row]] @ patch).mean() for patch in unit[row]])
        torch.testing.assert_close(relevance(x, inside)[row].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["argmax", "smaller", "border"])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_mirrored_picture_gets_the_mirrored_mask(rule, axis):
    grid = (6, 8)
    looked_at = two_textures(grid, box(4, grid, 3, 3))
    mirrored = looked_at.unflatten(1, grid).flip(axis).flatten(1, 2)
    for masker in (SelfGuided(start=0.0, hints=0, object=rule), Salience(noise=0.0)):
        score_maps = masker.score_maps(looked_at, grid)
        expected = score_maps.unflatten(1, grid).flip(axis).flatten(1, 2)
        torch.testing.assert_close(masker.score_maps(mirrored, grid), expected, rtol=1e-3, atol=1e-4)
        hidden = masks_of(masker, looked_at, grid).hidden.unflatten(1, grid).flip(axis).flatten(1)
        assert torch.equal(masks_of(masker, mirrored, grid).hidden, hidden)


@pytest.mark.parametrize("hint_by", ["random", "score"])
@given(seeds, st.floats(0, 1))
@settings(deadline=None, max_examples=15)
def test_hints_show_some_of_the_object_and_nothing_else(hint_by, seed, fraction):
    grid, inside = (8, 8), box(4, (8, 8), 4, 5, seed)
    plain = SelfGuided(start=0.0, hints=0)
    score_maps = torch.stack(
        [torch.rand(4, 64, generator=torch.Generator().manual_seed(seed)) + inside, inside.float()], 2
    )
    without = plain(score_maps, address(4, seed), 0.5, grid).hidden
    hinted = replace(plain, hints=fraction, hint_by=hint_by)(score_maps, address(4, seed), 0.5, grid).hidden
    hints, substitutes = without & ~hinted, hinted & ~without
    assert not (hints & ~inside).any()
    expected = min(round(48 * fraction), 20, 16)  # the object has 20, the visible patches are 16
    assert hints.sum(dim=1).tolist() == substitutes.sum(dim=1).tolist() == [expected] * 4
    for row in range(4):  # the next highest of those that were visible take the hints' places
        if expected:
            visible = score_maps[row, :, 0].masked_fill(without[row], -torch.inf)
            assert set(substitutes[row].nonzero()[:, 0].tolist()) == set(visible.topk(expected).indices.tolist())


def test_hints_fade_from_the_start_of_the_informed_masks():
    grid, inside = (8, 8), box(2, (8, 8), 5, 5)
    score_maps = torch.stack([inside.float() + torch.arange(64) / 1000, inside.float()], dim=2)
    fading = SelfGuided(start=0.5, hints=(0.25, 0.0))
    for progress, hints in ((0.5, 12), (0.75, 6), (1.0, 0)):
        for moment in (progress, torch.tensor(progress)):  # as compiled steps have it
            mask = fading(score_maps, address(2), moment, grid)
            assert (inside & ~mask.hidden).sum(dim=1).tolist() == [hints] * 2
    early = fading.start_at(0.25)(score_maps, address(2), 0.25, grid)  # brought forward by a trigger, they start there
    assert (inside & ~early.hidden).sum(dim=1).tolist() == [12] * 2


def test_hints_by_score_are_the_less_typical_patches():
    grid, rows = (8, 8), 400
    inside = torch.ones(rows, 64, dtype=torch.bool)
    score_maps = torch.stack([torch.arange(64).float().expand(rows, -1), inside.float()], dim=2)
    shown = {}
    for how in ("random", "score"):
        masker = SelfGuided(start=0.0, hints=0.1, hint_by=how)
        hidden = masker(score_maps, address(rows), 0.5, grid).hidden
        shown[how] = (~hidden).float().mean(dim=0)[16:]  # patches that would be hidden
    half = 24
    assert abs(float(shown["random"][:half].sum() / shown["random"].sum()) - 0.5) < 0.05
    assert float(shown["score"][:half].sum() / shown["score"].sum()) > 0.65


def test_a_picture_of_one_color_is_no_trouble():
    for looked_at in (torch.ones(2, 16, 8), torch.zeros(2, 16, 8)):
        score_maps = SelfGuided().score_maps(looked_at, (4, 4))
        assert score_maps.isfinite().all()
        assert SelfGuided()(score_maps, address(2), 0.5, (4, 4)).hidden.sum(dim=1).tolist() == [12, 12]


# Mixtures --------------------------------------------------------------------------------------------------


@given(seeds, st.floats(0, 1))
@settings(deadline=None, max_examples=10)
def test_each_picture_takes_the_mask_of_one_of_both(seed, fraction):
    x = signal(40, (4, 4), seed)
    mixture = MixtureMasker(other=Salience(noise=0.0), fraction=fraction)
    mask = masks_of(mixture, x, (4, 4), seed)
    score_maps = mixture.score_maps(x, (4, 4))
    one, other = (
        mixture.one(score_maps[..., :0], address(40, seed), 0.5, (4, 4)),
        masks_of(mixture.other, x, (4, 4), seed),
    )
    chosen = uniform(address(40, seed), 1, stream=7)[:, 0] < fraction
    for row in range(40):
        expected = other if chosen[row] else one
        assert torch.equal(mask.hidden[row], expected.hidden[row])
        assert torch.equal(mask.visible[row], expected.visible[row])
    assert abs(float(chosen.float().mean()) - fraction) < 4.5 * 0.5 / 40**0.5


def test_one_masker_turns_gradually_into_the_other():
    x, mixture = signal(2000, (2, 4)), MixtureMasker(other=Salience(noise=0.0), fraction=(0.2, 1.0))
    other = masks_of(mixture.other, x, (2, 4)).hidden
    one = RandomMasker()(x, address(2000), 0.0, (2, 4)).hidden
    for progress, fraction in ((0.0, 0.2), (0.5, 0.6), (1.0, 1.0)):
        mask = masks_of(mixture, x, (2, 4), progress=progress).hidden
        differ = (one != other).any(dim=1)
        assert abs(float((mask == other).all(dim=1)[differ].float().mean()) - fraction) < 0.06
        assert torch.equal(mask, masks_of(mixture, x, (2, 4), progress=torch.tensor(progress)).hidden)


def test_mixtures_of_mixtures_ask_the_masker_that_looks():
    inner = MixtureMasker(other=SelfGuided(start=0.5))
    outer = MixtureMasker(one=GridMasker(), other=inner)
    assert outer.guide is inner.other
    assert outer.reads(0.4) is Signal.NONE and outer.start_at(0.3).reads(0.4) is Signal.FEATURES
    assert masks_of(outer.start_at(0.0), signal(4, (4, 4)), (4, 4)).hidden.sum(dim=1).tolist() == [12] * 4


@pytest.mark.parametrize(
    "other",
    [Salience(ratio=0.5), Salience(spread=0.1), AMTMasker(), AttMaskMasker(hides="hint", ratio=0.8, rounded="up")],
)
def test_mixtures_of_unequal_masks_are_refused(other):
    with pytest.raises(UserError, match="do not hide equally many patches"):
        masks_of(MixtureMasker(other=other), signal(4, (6, 6)), (6, 6))


def test_only_one_masker_of_a_mixture_may_look():
    with pytest.raises(UserError, match=r"masker\.one of a mixture must look at nothing, SalienceMasker does"):
        MixtureMasker(one=Salience()).reads(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Salience(ratio=0.95, spread=0.1), r"0.95 \+- masker.spread 0.1 must stay between"),
        (lambda: Salience(ratio=(0.75, 0.95), spread=0.1), r"0.95 \+- masker.spread"),
        (lambda: Salience(noise=-0.1), "masker.noise must be at least 0"),
        (lambda: Salience(scale="root"), "masker.scale"),
        (lambda: Salience(temperature=0.0), "masker.temperature must be above 0"),
        (lambda: Salience(trigger="exploitation"), "masker.trigger"),
        (lambda: Salience(start=2.0), "masker.start is a share of training"),
        (lambda: SelfGuided(trigger="saturation"), "masker.trigger"),
        (lambda: SelfGuided(layer=11), "masker.layer counts from the end"),
        (lambda: SelfGuided(hints=(0.1, -0.1)), "masker.hints are shares"),
        (lambda: SelfGuided(affinity="cosine"), "masker.affinity"),
        (lambda: SelfGuided(momentum=1.5), "masker.momentum lies between"),
        (lambda: SelfGuided(refresh=-1), "masker.refresh counts epochs"),
        (lambda: MixtureMasker(fraction=(0.0, 1.5)), "masker.fraction is a share of pictures"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
