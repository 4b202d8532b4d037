"""Masks that follow attention, and masks with thrown patches: laws, odds, and what a thrown patch can touch."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import Mask
from mimkit.masks.attentive import AMTMasker, AttMaskMasker, MultinomialMasker, race
from mimkit.masks.masker import Masker, Signal
from mimkit.masks.random import hidden_count
from mimkit.methods.losses import squared_error
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig

seeds = st.integers(0, 2**31 - 1)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def attention(seed: int, b: int, n: int, heads: int = 3) -> Tensor:
    return torch.softmax(3 * noise(seed, b, n, heads), dim=1)


def masked(masker: Masker, signal: Tensor, seed: int = 0) -> Mask:
    """The mask of a signal, as a method asks for it."""
    b, n, _ = signal.shape
    return masker(masker.score_maps(signal, (1, n)), rng_keys("mask", seed, torch.arange(b)), 0.5, (1, n))


# Thrown patches ---------------------------------------------------------------------------------------------


@st.composite
def throwing(draw) -> tuple[Tensor, int, int]:
    n, b = draw(st.integers(2, 30)), draw(st.integers(1, 4))
    hide = draw(st.integers(0, n - 1))
    values = noise(draw(seeds), b, n)
    return (values * 3).floor() if draw(st.booleans()) else values, hide, draw(st.integers(0, n - 1 - hide))


@given(throwing())
@settings(deadline=None)
def test_hidden_thrown_and_visible_partition_the_patches(case):
    scores, hide, throw = case
    mask, n = Mask.from_scores(scores, hide, throw=throw), scores.shape[1]
    seen = torch.zeros_like(mask.hidden).scatter(1, mask.visible, True)
    assert (seen.int() + mask.hidden.int() + mask.thrown.int() == 1).all()
    assert mask.hidden.sum(dim=1).tolist() == [hide] * len(scores)
    assert mask.thrown.sum(dim=1).tolist() == [throw] * len(scores)
    assert mask.visible.shape[1] == n - hide - throw and not mask.padding.any()
    for row, hidden, thrown, visible in zip(scores, mask.hidden, mask.thrown, seen, strict=True):
        above, below = (hidden, thrown | visible), (hidden | thrown, visible)
        for high, low in (above, below):
            assert not high.any() or row[high].min() >= row[low].max()


@given(throwing())
@settings(deadline=None)
def test_values_find_their_places_with_thrown_patches(case):
    scores, hide, throw = case
    mask = Mask.from_scores(scores, hide, throw=throw)
    x = noise(1, *scores.shape, 2) + 1
    full = mask.put(mask.take(x), torch.full((1, 1, 2), -7.0))
    elsewhere = mask.hidden | mask.thrown
    assert torch.equal(full[~elsewhere], x[~elsewhere]) and (full[elsewhere] == -7).all()
    again = mask.put_decoded(mask.take_decoded(x))
    assert torch.equal(again[~mask.thrown], x[~mask.thrown]) and (again[mask.thrown] == 0).all()
    assert mask.take_decoded(mask.hidden).sum() == hide * len(scores)
    if not throw:
        assert mask.decoded is None and torch.equal(again, x)
        assert torch.equal(mask.hidden, Mask.from_scores(scores, hide).hidden)


def test_throwing_leaves_one_visible_and_does_not_mix_with_ragged_masks():
    with pytest.raises(ValueError, match="throw away 3 of 6"):
        Mask.from_scores(noise(0, 1, 6), 3, throw=3)
    with pytest.raises(AssertionError):
        Mask.from_scores(noise(0, 1, 6), torch.tensor([2]), least=2, throw=1)
    ragged = Mask.from_scores(noise(0, 2, 6), torch.tensor([2, 3]), least=2)
    assert not ragged.thrown.any()
    with pytest.raises(AssertionError):
        Mask(ragged.hidden, ragged.visible, ragged=True, decoded=ragged.visible)


def autoencoder():
    """A small encoder and decoder with weights large enough that every token reaches every other."""
    torch.manual_seed(0)
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=8, width=32, depth=2, heads=2).build((32, 32), 3)
    decoder = DecoderConfig(width=32, depth=2, heads=2).build(encoder, 192)
    for value in (*encoder.parameters(), *decoder.parameters()):
        value.data.add_(torch.randn_like(value), alpha=0.1)
    return encoder, decoder


def predict(encoder, decoder, patches: Tensor, mask: Mask) -> Tensor:
    return decoder(encoder.encode(encoder.embed(patches, mask), mask), mask)


def test_thrown_patches_change_nothing_and_get_no_gradient():
    encoder, decoder = autoencoder()
    patches = noise(2, 3, 16, 192).requires_grad_()
    mask = masked(AMTMasker(), attention(3, 3, 16))
    assert mask.thrown.sum(dim=1).tolist() == [6, 6, 6] and mask.hidden.sum(dim=1).tolist() == [7, 7, 7]
    tokens = decoder.tokens(encoder.encode(encoder.embed(patches, mask), mask), mask)
    assert tokens.patches.shape[1] == 10  # what the blocks cost
    prediction = predict(encoder, decoder, patches, mask)
    assert (prediction[mask.thrown] == 0).all() and (prediction[~mask.thrown] != 0).all()
    prediction.retain_grad()
    loss = squared_error(prediction, patches, mask.hidden)
    loss.backward()
    assert torch.equal(patches.grad.abs().sum(dim=2) > 0, ~mask.thrown)  # visible: seen, hidden: the target
    assert torch.equal(prediction.grad.abs().sum(dim=2) > 0, mask.hidden)
    with torch.no_grad():
        other = torch.where(mask.thrown.unsqueeze(-1), 100.0, patches)
        again = predict(encoder, decoder, other, mask)
        assert torch.equal(again, prediction) and squared_error(again, other, mask.hidden) == loss


@torch.no_grad()
def test_the_decoder_runs_as_if_thrown_places_did_not_exist():
    """Oracle: all places decoded, with thrown ones taken out of attention."""
    encoder, decoder = autoencoder()
    patches, mask = noise(2, 3, 16, 192), masked(AMTMasker(), attention(3, 3, 16))
    latents = encoder.encode(encoder.embed(patches, mask), mask)
    everywhere = Mask(mask.hidden | mask.thrown, mask.visible)
    x = torch.cat(decoder.tokens(latents, everywhere), dim=1)
    assert x.shape[1] == 17
    gone = torch.cat([torch.zeros(3, 1, dtype=torch.bool), mask.thrown], dim=1)
    for block in decoder.blocks:
        x = block(x, attn_mask=torch.zeros(3, 1, 1, 17).masked_fill(gone[:, None, None, :], -math.inf))
    expected = decoder.head(decoder.norm(x[:, 1:]))
    ours = decoder(latents, mask)
    torch.testing.assert_close(ours[~mask.thrown], expected[~mask.thrown], atol=1e-5, rtol=1e-4)
    assert (ours - decoder(latents, everywhere))[~mask.thrown].abs().max() > 1e-3  # they would have been looked at


# Drawing in proportion to attention -------------------------------------------------------------------------


def test_the_race_draws_without_replacement_in_proportion_to_the_weights():
    b, weights = 40000, torch.tensor([1.0, 2.0, 5.0, 0.5])
    order = race(weights.expand(b, 4), rng_keys("race", torch.arange(b))).argsort(dim=1, descending=True)
    for first in range(4):
        for second in set(range(4)) - {first}:
            for third in set(range(4)) - {first, second}:
                left, odds = weights.sum(), 1.0
                for place in (first, second, third):
                    odds *= float(weights[place] / left)
                    left = left - weights[place]
                count = (order[:, :3] == torch.tensor([first, second, third])).all(dim=1).float().mean().item()
                assert abs(count - odds) < 4.5 * math.sqrt(odds * (1 - odds) / b), (first, second, third)


def test_weights_of_nothing_come_last_in_uniform_order():
    b = 9000
    weights = torch.tensor([0.0, 1e-6, 0.0, 1.0, 0.0]).expand(b, 5)
    order = race(weights, rng_keys("race", torch.arange(b))).argsort(dim=1, descending=True)
    assert set(order[:, :2].flatten().tolist()) == {1, 3}
    counts = order[:, 2].bincount(minlength=5)[[0, 2, 4]] / b
    assert (counts - 1 / 3).abs().max() < 4.5 * math.sqrt(2 / 9 / b)


def hiding_rates(masker: Masker, weights: Tensor, b: int = 4000) -> Tensor:
    """How often each patch is hidden, over many masks of one map of attention."""
    return masked(masker, weights.reshape(1, -1, 1).expand(b, -1, 2)).hidden.float().mean(dim=0)


def test_maskalign_keeps_and_amt_hides_what_is_attended():
    weights = torch.linspace(1, 8, 8) / 36
    keeps = 1 - hiding_rates(MultinomialMasker(), weights)
    hides = hiding_rates(AMTMasker(), weights)
    assert (keeps.diff() > 0.02).all() and (hides.diff() > 0.02).all()
    assert keeps.sum().item() == pytest.approx(8 - hidden_count(8, 0.7)) and hides.sum().item() == pytest.approx(3)


@pytest.mark.parametrize("masker", [MultinomialMasker(), AMTMasker()])
def test_attention_without_differences_is_uniform(masker):
    rates = hiding_rates(masker, torch.full((16,), 1 / 16))
    expected = rates.mean().item()
    assert (rates - expected).abs().max() < 4.5 * math.sqrt(expected * (1 - expected) / 4000)


@given(seeds, st.integers(0, 11), st.floats(1, 50))
@settings(deadline=None, max_examples=40)
def test_more_attention_moves_a_patch_one_way_alone(seed, place, factor):
    weights = noise(seed, 1, 12, 1) + 0.01
    more = weights.clone()
    more[:, place] *= factor
    for masker, to_hidden in (
        (AMTMasker(), True),
        (AttMaskMasker(), True),
        (AttMaskMasker(hides="low"), False),
        (MultinomialMasker(), False),
    ):
        drawn = [
            masker.hide(score_maps, rng_keys("mask", seed, torch.arange(1)), 0.5, (3, 4)).hidden[0, place].item()
            for score_maps in (weights, more)
        ]
        assert drawn[1] >= drawn[0] if to_hidden else drawn[1] <= drawn[0], masker


# AMT --------------------------------------------------------------------------------------------------------


def test_amt_counts_are_those_of_the_paper():
    mask = masked(AMTMasker(), attention(0, 4, 196))
    counts = mask.hidden.sum(dim=1), mask.thrown.sum(dim=1), mask.visible.shape[1]
    assert counts[0].tolist() == [88] * 4 and counts[1].tolist() == [78] * 4 and counts[2] == 30
    plain = masked(AMTMasker(ratio=0.75, throw=0), attention(0, 4, 196))
    assert plain.decoded is None and plain.hidden.sum(dim=1).tolist() == [147] * 4


@given(st.integers(2, 40), st.floats(0.01, 0.98), st.floats(0, 1))
@settings(deadline=None)
def test_amt_always_hides_something_and_leaves_something(n, ratio, fraction):
    mask = masked(AMTMasker(ratio=ratio, throw=0.999 * fraction * (1 - ratio)), attention(1, 2, n))
    assert mask.hidden.any(dim=1).all() and mask.visible.shape[1] >= 1


def test_amt_stretches_each_head_before_it_averages():
    heads = torch.tensor([[0.1, 0.0, 5.0], [0.3, 0.5, 5.0], [0.2, 0.25, 5.0]]).unsqueeze(0)  # one without differences
    score_maps = AMTMasker().score_maps(heads, (1, 3))
    torch.testing.assert_close(score_maps, torch.tensor([[[0.0], [2 / 3], [1 / 3]]]))
    assert AMTMasker().score_maps(attention(0, 2, 9), (3, 3)).shape == (2, 9, 1)
    torch.testing.assert_close(MultinomialMasker().score_maps(heads, (1, 3)), heads.mean(dim=2, keepdim=True))
    torch.testing.assert_close(AttMaskMasker().score_maps(heads, (1, 3)), heads.mean(dim=2, keepdim=True))


def test_amt_begins_with_plain_random_masks():
    masker = AMTMasker(start=0.1)
    assert masker.reads(0.05) is Signal.NONE and masker.reads(0.1) is Signal.ATTENTION
    mask = masker(torch.zeros(2, 196, 0), rng_keys("mask", torch.arange(2)), 0.05, (14, 14))
    assert mask.hidden.sum(dim=1).tolist() == [147, 147] and mask.decoded is None
    fewer = AMTMasker(start=0.1, before=0.5)(torch.zeros(1, 196, 0), rng_keys("mask", torch.arange(1)), 0.0, (14, 14))
    assert fewer.hidden.sum() == 98


# AttMask ----------------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 200), st.floats(0.1, 0.9), st.booleans())
@settings(deadline=None, max_examples=60)
def test_attmask_hides_exactly_the_highest_or_the_lowest(seed, n, ratio, tied):
    signal = attention(seed, 3, n)
    signal = (signal * n).round() if tied else signal
    score, hide = signal.mean(dim=2), min(max(1, int(n * ratio)), n - 1)
    high = masked(AttMaskMasker(ratio=ratio), signal)
    low = masked(AttMaskMasker(ratio=ratio, hides="low"), signal)
    assert high.hidden.sum(dim=1).tolist() == low.hidden.sum(dim=1).tolist() == [hide] * 3
    for row in range(3):
        if hide:
            assert score[row][high.hidden[row]].min() >= score[row][~high.hidden[row]].max()
            assert score[row][low.hidden[row]].max() <= score[row][~low.hidden[row]].min()


@given(seeds, st.integers(2, 200), st.floats(0.1, 0.9), st.floats(0, 1), st.floats(0, 1), st.booleans())
@settings(deadline=None, max_examples=60)
def test_hints_are_a_few_of_the_highest(seed, n, ratio, shown, top, tied):
    shown, top = sorted((shown, top))
    signal = attention(seed, 3, n)
    signal = (signal * n).round() if tied else signal
    high = masked(AttMaskMasker(ratio=ratio), signal).hidden
    hint = masked(AttMaskMasker(ratio=ratio, hides="hint", shown=shown, top=top), signal)
    hide = min(max(1, int(n * ratio)), n - 1)
    expected = min(int(shown * n), max(hide - 1, 0), int(top * n))
    assert hint.hidden.sum(dim=1).tolist() == [hide - expected] * 3
    assert hint.visible.shape[1] == n - hide + expected and not (hint.hidden & ~high).any()
    hints = high & ~hint.hidden
    highest = signal.mean(dim=2).sort(dim=1, descending=True).values[:, min(int(top * n), hide) - 1]
    if expected:
        assert all((signal.mean(dim=2)[row][hints[row]] >= highest[row]).all() for row in range(3))


def test_hints_are_drawn_uniformly_from_the_highest():
    b, n = 4000, 196
    signal = attention(0, 1, n).expand(b, -1, -1)
    hint = masked(AttMaskMasker(hides="hint", ratio=0.3), signal)
    assert hint.hidden.sum(dim=1).unique().tolist() == [58 - 5]  # int(196 * 0.3) = 58, less int(5.88)
    rounded_up = masked(AttMaskMasker(ratio=0.3, rounded="up"), signal[:1])
    assert rounded_up.hidden.sum().item() == hidden_count(196, 0.3) == 59
    top = signal[0].mean(dim=1).topk(19).indices
    rates = (~hint.hidden[:, top]).float().mean(dim=0)
    assert rates.sum().item() == pytest.approx(5, abs=1e-3)
    assert (rates - 5 / 19).abs().max() < 4.5 * math.sqrt(5 / 19 * 14 / 19 / b)


# All --------------------------------------------------------------------------------------------------------

MASKERS = [AttMaskMasker(), AttMaskMasker(hides="hint"), AMTMasker(), MultinomialMasker()]


@pytest.mark.parametrize("masker", MASKERS)
def test_masks_depend_on_attention_and_address_alone(masker):
    signal = attention(0, 6, 49)
    whole = masked(masker, signal)
    rows = torch.tensor([4, 1])
    part = masker(masker.score_maps(signal[rows], (7, 7)), rng_keys("mask", 0, rows), 0.9, (7, 7))
    assert torch.equal(part.hidden, whole.hidden[rows]) and torch.equal(part.thrown, whole.thrown[rows])
    assert torch.equal(masked(masker, signal, seed=1).hidden, whole.hidden) == (masker == AttMaskMasker())


COMPILE = """
import sys
import torch
from mimkit.masks.attentive import AMTMasker, AttMaskMasker, MultinomialMasker
from mimkit.core.randomness import rng_keys

torch.set_num_threads(1)
for masker in eval(sys.argv[2]):
    def step(signal, key):
        mask = masker(masker.score_maps(signal, (7, 7)), key, 0.5, (7, 7))
        return mask.hidden, mask.thrown, mask.visible, mask.put_decoded(mask.take_decoded(signal))

    torch._dynamo.reset()
    # Whole numbers, powers of two: sums and logarithms in another order or instruction decide no tie.
    signal = 2.0 ** torch.stack([torch.arange(49).roll(i) for i in range(3)]).unsqueeze(2).expand(-1, -1, 2)
    given = signal, rng_keys("mask", torch.arange(3))
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(step, fullgraph=True, backend=sys.argv[1])(*given)
    assert all(torch.equal(a, b) for a, b in zip(compiled, step(*given), strict=True)), masker
"""


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_masks_compile_without_a_break_and_are_the_same(backend):
    # in a process of its own: the compiler cannot trace the shape checks that these tests switch on
    subprocess.run([sys.executable, "-c", COMPILE, backend, repr(MASKERS)], check=True)


@pytest.mark.parametrize("masker", MASKERS)
def test_half_precision_is_only_a_coarser_signal(masker):
    signal = attention(0, 3, 49).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = masked(masker, signal)
    assert torch.equal(half.hidden, masked(masker, signal.float()).hidden)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AttMaskMasker(hides="hints"), "did you mean 'hint'"),
        (lambda: AttMaskMasker(shown=0.2), r"shown.*0\.2.*top"),
        (lambda: AttMaskMasker(top=1.5), r"masker\.top"),
        (lambda: AMTMasker(throw=0.6), "sum below 1"),
        (lambda: AMTMasker(ratio=(0.3, 0.7)), "sum below 1"),
        (lambda: AMTMasker(throw=-0.1), r"masker\.throw"),
        (lambda: AMTMasker(before=1.0), "between 0 and 1"),
        (lambda: MultinomialMasker(ratio=1.0), r"masker\.ratio"),
    ],
)
def test_settings_without_sense_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
