"""CrossMAE: MAE and EMAE with a decoder of cross-attention that predicts any share of the hidden patches."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mimkit.analysis.decoder import refusal
from mimkit.core.batch import Batch
from mimkit.core.display import Display
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import Mask, Masker, PartitionMasker, RandomMasker, SelfGuidedMasker
from mimkit.methods.agreement import disagreement
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.mae import MAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.patches import patchify
from mimkit.model.reader import CrossDecoderConfig
from mimkit.train.drawing import prediction_grid
from mimkit.weights.huggingface import export_huggingface

SMALL = CrossDecoderConfig(width=16, depth=2, heads=2)
THIRD = RandomMasker(ratio=0.25, throw=0.5)


def build(kind=MAEConfig, decoder=SMALL, **settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=16, depth=2, heads=2).build((16, 16), 3)
    return kind(decoder=decoder, **settings).build(encoder)


def batch(count: int = 3) -> Batch:
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(images, rng_keys("crossmae", torch.arange(count)), torch.arange(count))


@dataclass(frozen=True, kw_only=True, eq=False)
class Given(Masker):
    """Always the same mask."""

    mask: Mask

    def __call__(self, score_maps, rng_keys, progress, grid) -> Mask:
        return self.mask


def loss(method, mask: Mask) -> Tensor:
    method.mask_sampler.masker = Given(mask=mask)
    return method(batch(), 0.5).loss


@torch.no_grad()
def test_the_loss_of_a_share_is_an_unbiased_estimate():
    """Three shares that make up all hidden patches: their mean loss is the loss of all."""
    method, scores = build(), torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    whole = Mask.from_scores(scores, 12)
    order = scores.argsort(dim=1)[:, 4:].unflatten(1, (4, 3))
    losses = []
    for share in range(3):
        predicted = order[:, :, share]
        hidden = torch.zeros_like(whole.hidden).scatter(1, predicted, True)
        decoded = torch.cat([whole.visible, predicted], dim=1)
        losses.append(loss(method, Mask(hidden, whole.visible, decoded=decoded)))
    torch.testing.assert_close(torch.stack(losses).mean(), loss(method, whole))
    assert torch.stack(losses).std() > 1e-4


def test_random_shares_are_uniform():
    masks = THIRD(torch.zeros(4000, 16, 0), rng_keys("u", torch.arange(4000)), 0.0, (4, 4))
    for where, share in ((masks.hidden, 0.25), (masks.thrown, 0.5)):
        assert torch.equal(where.sum(dim=1).unique(), torch.tensor([int(16 * share)]))
        assert ((where.float().mean(dim=0) - share).abs() < 0.04).all()
    with pytest.raises(UserError, match=r"masker.throw 0.3 and masker.ratio 0.75 must leave visible patches"):
        RandomMasker(throw=0.3)


def test_views_predict_the_same_patches_or_see_them():
    mask = PartitionMasker(throw=0.5)(torch.zeros(50, 64, 0), rng_keys("e", torch.arange(50)), 0.0, (8, 8))
    hidden, thrown = mask.hidden.unflatten(0, (50, 4)), mask.thrown.unflatten(0, (50, 4))
    assert (hidden.sum(dim=2) == 15).all() and (thrown.sum(dim=2) == 33).all()  # 5 of 16 patches of three parts
    times = hidden.sum(dim=1)
    assert ((times == 0) | (times == 3)).all() and (times.sum(dim=1) == 60).all()
    both = (hidden[:, :, None] & hidden[:, None]).sum(dim=3)
    assert (both[:, 0, 1] == 10).all()  # 2 of 3 predictions of a part have a twin
    assert (~mask.padding).all() and (
        mask.visible.unflatten(0, (50, 4)).flatten(1).sort().values == torch.arange(64)
    ).all()
    with pytest.raises(UserError, match=r"masker.throw 0.75 of 4 parts, which hide 0.75, must leave patches"):
        PartitionMasker(throw=0.75)
    with pytest.raises(UserError, match=r"masker.throw is of parallel parts"):
        PartitionMasker(throw=0.2, mode="independent")


@torch.no_grad()
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_emae_compares_what_two_views_predict(distance):
    method = build(EMAEConfig, masker=PartitionMasker(throw=0.4), distance=distance)
    step = method(batch(), 0.5)
    patches, mask, _ = method.sample(batch(), 0.5)
    prediction = method.predict(patches, mask).unflatten(0, (3, 4))
    slowly = disagreement(prediction, mask.hidden.unflatten(0, (3, 4)), distance)
    assert step.loss.isfinite() and slowly > 0
    torch.testing.assert_close(step.logs["disagreement"], slowly)


@torch.no_grad()
def test_nothing_but_visible_patches_counts():
    method = build(masker=THIRD)
    patches, mask, _ = method.sample(batch(), 0.0)
    other = torch.where((~mask.hidden & ~mask.thrown).unsqueeze(2), patches, 9.0)
    assert torch.equal(method.predict(patches, mask), method.predict(other, mask))
    assert not torch.equal(method.predict(patches, mask), method.predict(-patches, mask))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "masker"), [(MAEConfig, THIRD), (EMAEConfig, PartitionMasker(throw=0.5))])
def test_reconstructions_are_drawn(kind, masker):
    method = build(kind, masker=masker)
    predicted, mask = method.reconstruct(batch(), 0.0)
    display = Display(mean=(0.0,) * 3, std=(1.0,) * 3)
    assert predicted.shape == (3 * mask.views, 3, 16, 16)
    assert prediction_grid(method, method.encoder, batch(), display) is not None
    where = mask.hidden.unsqueeze(2)
    restored = method.target.restore(
        method.predict(patchify(batch().images, (4, 4)), mask), mask.repeat(patchify(batch().images, (4, 4)))
    )
    assert torch.equal(patchify(predicted, (4, 4)) * where, restored * where)


def test_what_has_no_meaning_is_refused(tmp_path: Path):
    method = build(masker=THIRD)
    reads = "CrossMAE's decoder reads visible tokens alone and never exploits mask tokens"
    with pytest.raises(UserError, match=f"no exploitation can be measured: {reads}"):
        method.exploitation(batch().images)
    assert refusal(method) == reads
    for kind, masker in ((MAEConfig, SelfGuidedMasker(trigger="exploitation")),):
        with pytest.raises(
            UserError, match=f"SelfGuidedMasker is to start by the exploitation of a decoder and {reads}"
        ):
            build(kind, masker=masker)
    with pytest.raises(UserError, match="cannot express this model: its decoder reads by cross-attention"):
        export_huggingface(method, tmp_path / "hf", mean=(0.5,) * 3, std=(0.5,) * 3, card="")
