"""EMAE: parallel parts equal separate autoencoders, and the agreement of parts is what the formula says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import Mask, PartitionMasker, RandomMasker
from mimkit.masks.partition import ComplementaryMasker
from mimkit.methods.agreement import disagreement, disagreement_by_variance
from mimkit.methods.emae import EMAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import patchify

SMALL = DecoderConfig(width=16, depth=1, heads=2)


def build(**settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=16, depth=2, heads=2).build((16, 16), 3)
    return EMAEConfig(decoder=SMALL, **settings).build(encoder)


def batch(count=3):
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(images, rng_keys("emae", torch.arange(count)), torch.arange(count))


def parts_of(views, n, count=2, seed=0):
    mask = PartitionMasker(parts=views)(torch.zeros(count, n, 0), rng_keys("p", torch.arange(count)), 0.0, (1, n))
    prediction = torch.randn(count, views, n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return prediction, mask.hidden.view(count, views, n)


def formula(prediction, hidden, power, pairs):
    """The mean over pairs (i, j) of the mean over commonly hidden patches of |y_i - y_j|^power, pixel by pixel."""
    y, hidden = prediction.double().numpy(), hidden.numpy()
    parts, values = y.shape[1], []
    for i in range(parts):
        for j in range(parts):
            if i == j or (pairs == "later" and j < i):
                continue
            apart = [
                np.mean(np.abs(y[b, i, q] - y[b, j, q]) ** power)
                for b in range(len(y))
                for q in range(y.shape[2])
                if hidden[b, i, q] and hidden[b, j, q]
            ]
            values.append(np.mean(apart))
    return float(np.mean(values))


@pytest.mark.parametrize("pairs", ["ordered", "later"])
@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("l2", 2)])
def test_disagreement_is_the_formula(distance, power, pairs):
    prediction, hidden = parts_of(4, 8)
    found = disagreement(prediction, hidden, distance, ordered=pairs == "ordered")
    assert found.item() == pytest.approx(formula(prediction, hidden, power, pairs), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(views=st.integers(3, 6), seed=st.integers(0, 1000))
def test_the_linear_form_equals_the_pairs_in_value_and_gradient(views, seed):
    prediction, hidden = parts_of(views, 2 * views, seed=seed)
    one, other = prediction.clone().requires_grad_(), prediction.clone().requires_grad_()
    slow = disagreement(one, hidden, "l2", stop_gradient=False)
    fast = disagreement_by_variance(other, hidden)
    slow.backward(), fast.backward()
    assert fast.item() == pytest.approx(slow.item(), rel=1e-4)
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)
    chosen = disagreement(prediction, hidden, "l2", partition=True)
    assert chosen.item() == pytest.approx(slow.item(), rel=1e-4)


@pytest.mark.parametrize("distance", ["l1", "l2", "smooth_l1"])
def test_a_stopped_gradient_halves_it_and_leaves_the_value(distance):
    prediction, hidden = parts_of(4, 8)
    found = []
    for stop in (True, False):
        y = prediction.clone().requires_grad_()
        loss = disagreement(y, hidden, distance, stop_gradient=stop)
        loss.backward()
        found.append((loss.item(), y.grad))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(2 * found[0][1], found[1][1])


def test_gradient_of_each_pair_with_the_other_side_held_fixed():
    prediction, hidden = parts_of(3, 6)
    y = prediction.clone().requires_grad_()
    disagreement(y, hidden, "l2").backward()
    z = prediction.clone().requires_grad_()
    total = 0
    for i in range(3):
        for j in range(3):
            if i != j:
                both = hidden[:, i] & hidden[:, j]
                total = total + ((z[:, i] - z[:, j].detach()).square().mean(2) * both).sum() / both.sum()
    (total / 6).backward()
    torch.testing.assert_close(y.grad, z.grad)


def test_later_pairs_move_the_earlier_part_alone():
    prediction, hidden = parts_of(3, 6)
    y = prediction.clone().requires_grad_()
    disagreement(y, hidden, "l1", ordered=False).backward()
    assert y.grad[:, 0].abs().sum() > 0 and y.grad[:, 2].abs().sum() == 0


def test_laws_of_agreement():
    prediction, hidden = parts_of(4, 8)
    same = prediction[:, :1].expand(-1, 4, -1, -1)
    assert disagreement(same, hidden) == 0
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(disagreement(prediction[:, order], hidden[:, order]), disagreement(prediction, hidden))
    y = prediction.clone().requires_grad_()
    disagreement(y, hidden).backward()
    assert (y.grad[~hidden] == 0).all() and (y.grad[hidden] != 0).any()


def test_parts_folded_into_the_batch_equal_separate_autoencoders():
    task, data = build(weight=0.0), batch()
    step = task(data, 0.0)
    patches = patchify(data.images, task.encoder.patch)
    mask = PartitionMasker(parts=4)(patches[..., :0], data.rng_keys, 0.0, task.encoder.grid)
    losses = []
    for part in range(4):
        alone = Mask(mask.hidden[part::4], mask.visible[part::4])
        prediction = task.predict(patches, alone)
        error = (prediction - task.target(patches)).square().mean(2)
        losses.append(error[alone.hidden].mean())
    torch.testing.assert_close(step.loss, torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("masker", "weight"), [(PartitionMasker(parts=4, mode="independent"), 1.0), (ComplementaryMasker(ratio=0.75), 0.0)]
)
def test_the_ablations_train(masker, weight):
    task = build(masker=masker, weight=weight)
    step = task(batch(), 0.0)
    step.loss.backward()
    assert step.loss.isfinite() and (not weight or step.logs["disagreement"] > 0)
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_the_weight_counts():
    losses = [build(weight=w)(batch(), 0.0) for w in (0.0, 1.0, 3.0)]
    assert losses[1].loss.item() == pytest.approx((losses[0].loss + losses[1].logs["disagreement"]).item(), rel=1e-6)
    assert losses[2].loss.item() == pytest.approx(
        (losses[0].loss + 3 * losses[1].logs["disagreement"]).item(), rel=1e-6
    )


def test_what_cannot_agree_is_refused():
    with pytest.raises(UserError, match="3 or more"):
        build(masker=PartitionMasker(parts=2))
    with pytest.raises(UserError, match="ComplementaryMasker hide no patch in common"):
        build(masker=ComplementaryMasker())
    with pytest.raises(UserError, match="RandomMasker makes one: use PartitionMasker"):
        build(masker=RandomMasker())
    with pytest.raises(UserError, match=r"method\.distance"):
        build(distance="l3")
    with pytest.raises(UserError, match=r"method\.pairs"):
        build(pairs="all")


def test_reconstructions_of_all_parts():
    task, data = build(), batch()
    with torch.no_grad():
        pictures, mask = task.reconstruct(data, 0.0)
    assert pictures.shape == (12, 3, 16, 16) and mask.views == 4
