"""CAPI: both losses against lightly's, clusters that are balanced place by place, and what each loss trains."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import Mask, RandomMasker, SelfGuidedMasker
from mimkit.masks.inverse import InverseBlockMasker
from mimkit.methods.assignment import cross_entropy, entropy, sinkhorn
from mimkit.methods.capi import CAPI, CAPIConfig
from mimkit.methods.momentum import Momentum
from mimkit.model.build import EncoderConfig
from mimkit.model.patches import patchify
from mimkit.model.projector import Clusters
from mimkit.recipes import find_recipe
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.schedule import WarmupCosine

torch.set_num_threads(1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=2, heads=2)
SMALL = CAPIConfig(masker=InverseBlockMasker(predict=0.3), clusters=24, depth=2, heads=2)


def built(**changes) -> CAPI:
    torch.manual_seed(0)
    encoder = VIT.build((16, 16), 3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return replace(SMALL, **changes).build(encoder)


def batch(rows: int = 6, seed: int = 0) -> Batch:
    images = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    order = torch.arange(rows)
    return Batch(images, rng_keys("test", seed, order), order)


# ---- masks


@pytest.mark.parametrize("grid", [(1, 2), (2, 2), (3, 3), (4, 4), (8, 8), (16, 16), (5, 9), (1, 12), (16, 2)])
def test_all_but_a_rectangle_that_wraps_is_hidden(grid):
    n, keys = grid[0] * grid[1], rng_keys("m", torch.arange(200))
    for ratio, roll in ((0.65, True), (0.3, True), (0.65, False)):
        mask = InverseBlockMasker(ratio=ratio, roll=roll)(torch.zeros(200, n, 0), keys, 0.0, grid)
        unseen = min(max(1, int(n * ratio)), n - 1)
        assert ((mask.hidden | mask.thrown).sum(dim=1) == unseen).all()
        assert (mask.hidden.sum(dim=1) == max(1, int(unseen * 0.05))).all()
        visible = ~(mask.hidden | mask.thrown).unflatten(1, grid)
        for shown in visible.numpy()[:50]:
            rows, columns = shown.any(axis=1), shown.any(axis=0)
            # Full rows but the last: in each row of the rectangle equally many patches, and once around the edge.
            counts = shown.sum(axis=1)[rows]
            assert sorted(counts)[1:] == [columns.sum()] * (len(counts) - 1) or columns.sum() == grid[1]
            for line, around in ((rows, roll), (columns, roll)):
                ends = (line & ~np.roll(line, -1)).sum() if around else (np.diff(line.astype(int)) == 1).sum()
                assert ends <= 1


def test_every_patch_is_hidden_alike_and_predicted_alike():
    mask = InverseBlockMasker(predict=0.25)(torch.zeros(8000, 64, 0), rng_keys("m", torch.arange(8000)), 0.0, (8, 8))
    for where, share in ((mask.hidden, 10 / 64), (mask.thrown, 31 / 64)):
        assert ((where.float().mean(dim=0) - share).abs() < 0.025).all()
    whole = InverseBlockMasker(roll=False)(torch.zeros(800, 64, 0), rng_keys("m", torch.arange(800)), 0.0, (8, 8))
    seen = (~(whole.hidden | whole.thrown)).float().mean(dim=0).unflatten(0, (8, 8))
    assert seen[3, 3] > 3 * seen[0, 0]  # in the grid the middle is seen most
    aspects = [s.any(1).sum() / s.any(0).sum() for s in (~(mask.hidden | mask.thrown)).unflatten(1, (8, 8)).numpy()]
    assert 0.4 <= min(aspects) < 0.7 and 1.4 < max(aspects) <= 2.5


@pytest.mark.parametrize("predict", [0.0, 1.5])
def test_shares_that_cannot_be_predicted(predict):
    with pytest.raises(UserError, match=r"masker.predict is a share above 0 and up to 1"):
        InverseBlockMasker(predict=predict)


# ---- losses


def test_both_losses_are_lightlys():
    loss = pytest.importorskip("lightly.loss")
    heads = pytest.importorskip("lightly.models.modules.heads")
    method, one = built(), batch()
    theirs = heads.CAPIProjectionHead(32, 24, bias=True)
    theirs.layer.load_state_dict(method.clustering.state_dict())
    latents = method.slow(one.images)
    scores = theirs(latents)
    torch.testing.assert_close(method.clustering(latents), scores)
    patches, mask, _ = method.sample(one, 0.5)
    prediction, places = method.predict(patches, mask)
    capi, step = loss.CAPILoss(), method(one, 0.5)
    expected, own = capi(scores, prediction, places), capi(scores, scores)
    torch.testing.assert_close(step.logs["prediction"], expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(step.logs["clustering"], own.detach(), rtol=1e-5, atol=1e-5)
    # The student's gradients are theirs, and so are the head's.
    trained = [p for name, p in method.named_parameters() if p.requires_grad and not name.startswith("clustering")]
    wanted = torch.autograd.grad(expected, trained, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(step.loss, trained, retain_graph=True), wanted, rtol=1e-4, atol=1e-6)
    wanted = torch.autograd.grad(own, theirs.layer.weight)
    found = torch.autograd.grad(step.loss, method.clustering.weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_two_losses_train_nothing_of_each_other():
    method, one = built(), batch()
    scores = method.clustering(method.slow(one.images))
    shares = sinkhorn(scores.detach())
    own = cross_entropy(shares, scores).mean()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    reached = torch.autograd.grad(own, [*trained.values()], allow_unused=True)
    names = {name for name, gradient in zip(trained, reached, strict=True) if gradient is not None}
    assert names == {"clustering.weight", "clustering.bias"}
    method(one, 0.5).loss.backward()
    assert not [name for name, p in method.named_parameters() if p.requires_grad and not p.grad.any()]
    assert all(p.grad is None for p in method.slow.parameters())


@torch.no_grad()
def test_alike_scores_cost_ln_k():
    method, one = built(), batch()
    method.head.lengths.zero_()
    method.clustering.weight.zero_()
    step = method(one, 0.5)
    for name in ("prediction", "clustering", "entropy", "patch_entropy"):
        assert step.logs[name].item() == pytest.approx(math.log(24), rel=1e-5)
    sure = torch.eye(5)
    assert entropy(sure).abs().max() == 0 and entropy(sure.mean(dim=0)).item() == pytest.approx(math.log(5))


@torch.no_grad()
def test_clusters_are_balanced_at_each_place_and_not_without_sinkhorn():
    """Latents of one direction: without Sinkhorn one cluster takes all, with it each takes its share."""
    clusters = Clusters(32, 8)
    latents = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)) + 0.05 * torch.randn(64, 4, 32)
    scores = clusters(latents) / 0.06
    balanced, plain = sinkhorn(scores), sinkhorn(scores, 0)
    assert entropy(plain.mean(dim=(0, 1))) < 0.3 < 1.6 < entropy(balanced.mean(dim=0)).min()
    together = sinkhorn(scores.flatten(0, 1)).unflatten(0, (64, 4))
    assert (together - balanced).abs().max() > 1e-3


# ---- who sees what


@torch.no_grad()
def test_hidden_pixels_reach_the_target_alone():
    method, one = built(), batch()
    patches, mask, _ = method.sample(one, 0.5)
    visible = ~(mask.hidden | mask.thrown)
    changed = torch.where(visible.unsqueeze(2), patches, 3.0)
    assert torch.equal(method.predict(patches, mask)[0], method.predict(changed, mask)[0])
    assert not torch.equal(method.predict(patches, mask)[0], method.predict(-patches, mask)[0])
    assert not torch.equal(method.slow(one.images), method.slow(-one.images))


@torch.no_grad()
def test_a_share_of_the_queries_is_predicted_as_all_are():
    method, one = built(), batch()
    patches, mask, _ = method.sample(one, 0.5)
    few, places = method.predict(patches, mask)
    unseen = mask.hidden | mask.thrown
    everything, where = method.predict(patches, Mask(unseen, mask.visible))
    rows = [everything[i, (where[i] == places[i, :, None]).nonzero()[:, 1]] for i in range(len(places))]
    torch.testing.assert_close(few, torch.stack(rows), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_agreement_is_of_predicted_patches():
    method = built()
    values, mask = method.agreement(batch(), 0.0)
    assert torch.equal(values.isnan(), ~mask.hidden)
    assert (values[mask.hidden] > 0).all() and (values[mask.hidden] <= 1).all()


def test_ragged_masks_weigh_pictures_alike():
    method, one = built(masker=RandomMasker(ratio=0.5)), batch(2)
    scores = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        patches = patchify(one.images, (4, 4))
        ragged = Mask.from_scores(scores, torch.tensor([6, 9]), least=6)
        prediction, _ = method.predict(patches, ragged)
        for row, hide in enumerate((6, 9)):
            alone, where = method.predict(patches[[row]], Mask.from_scores(scores[[row]], hide))
            torch.testing.assert_close(prediction[row][where[0]], alone[0], rtol=1e-4, atol=1e-5)


# ---- what follows


def parameters(module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_teacher_leaves_and_follows_after_the_warm_up():
    method = built()
    assert method.encoder is method.slow.module and method.student is not method.encoder
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    before = parameters(method.slow)
    method.after_step(0.0)
    assert torch.equal(before, parameters(method.slow))  # momentum 1: a random teacher that rests
    method.after_step(0.1)
    torch.testing.assert_close(parameters(method.slow), before + 0.001 * (parameters(method.student) - before))
    momentum = find_recipe("capi_vit_l14").method.momentum
    assert [momentum.at(x) for x in (0.0, 0.05, 0.1)] == pytest.approx([1.0, 0.9995, 0.999])
    assert momentum.at(1.0) == pytest.approx(0.9999, abs=1e-5)
    assert momentum == Momentum(first=0.999, stretch=1.25, warmup=0.1)


def test_heads_and_patches_have_rates_of_their_own():
    method = built()
    optimizer = AdamWConfig(base_lr=1e-3).build(method, 256)
    rates = {id(p): group["peak"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(method.clustering.weight)] == rates[id(method.clustering.bias)] == pytest.approx(5e-4)
    assert rates[id(method.student.timm.patch_embed.proj.weight)] == pytest.approx(2e-4)
    assert rates[id(method.head.weight)] == rates[id(method.head.lengths)] == pytest.approx(1e-3)
    schedule = WarmupCosine(warmup=0.1, span=0.8)
    assert schedule(1.0) == pytest.approx(0.0955, abs=1e-4) and schedule(0.1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": 3}, r"encoder.width 32 must be divisible by 4 and by method.heads 3"),
        ({"temperature": 0.0}, r"method.temperature must be above 0"),
        ({"clusters": 0}, r"method.clusters must be"),
        ({"masker": SelfGuidedMasker(trigger="exploitation")}, r"exploitation of a decoder and CAPI has no decoder"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        built(**changes)
