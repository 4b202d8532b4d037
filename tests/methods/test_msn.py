"""MSN: its loss and gradients by lightly, what keeps it from collapse, what moves, runs and processes."""

import math
from dataclasses import fields, replace

import pytest
import torch
from lightly.loss import MSNLoss

from contrastive_ranks import CONFIGS, VIT, batch, in_ranks, two_steps
from drills import tiny
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.published import msn
from mimkit.masks import AMTMasker, BlockMasker, PartitionMasker, RandomMasker
from mimkit.methods.msn import MSN, MSNConfig
from mimkit.model.patches import patchify
from mimkit.recipes import find_recipe
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder

torch.set_num_threads(1)
CONFIG = CONFIGS["msn"]


def built(encoder=VIT, **changes) -> MSN:
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build(encoder.build((16, 16), 3))


def points(views=3, pictures=8, width=8):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(views * pictures, width, generator=generator), torch.randn(pictures, width, generator=generator)


def loss_of(method, anchors, targets):
    cross_entropy, mean = method.assign(
        method.prototypes(anchors), method.balanced(method.prototypes(targets.detach()))
    )
    return cross_entropy + method.config.weight * (math.log(12) + (mean * mean.log()).sum())


@pytest.mark.parametrize(("iterations", "weight", "sharpening"), [(3, 1.0, 0.25), (0, 1.0, 0.25), (3, 0.5, 0.5)])
def test_loss_and_gradients_are_lightly_s(iterations, weight, sharpening):
    method = built(iterations=iterations, weight=weight, sharpening=sharpening)
    oracle = MSNLoss(temperature=0.1, sinkhorn_iterations=iterations, regularization_weight=weight)
    grads = []
    for ours in (True, False):
        anchors, targets = (x.requires_grad_() for x in points())
        prototypes = method.prototypes.weight
        prototypes.grad = None
        if ours:
            loss = loss_of(method, anchors, targets)
        else:
            loss = oracle(anchors, targets, prototypes, target_sharpen_temperature=sharpening)
        loss.backward()
        assert targets.grad is None or not targets.grad.any()
        grads.append([loss.detach(), anchors.grad, prototypes.grad.clone()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_whole_step_is_lightly_s_of_one_mask_and_groups_of_crops():
    method, one = built().train(), batch()
    other = built().train()
    encoder = other.embedder.encoder
    patches = patchify(one.images, (4, 4))
    mask, _ = other.mask_sampler(encoder, patches, one, 0.0)
    visible = encoder.encode(encoder.embed(patches, mask), mask).prefix[:, 0]
    anchors = [other.embedder.projector(visible), other.embedder(one.other_views[1])]  # BatchNorm by size
    targets = other.slow(one.other_views[0])
    found = method(one, 0.0)
    wanted = MSNLoss()(torch.cat(anchors), targets, other.prototypes.weight)
    torch.testing.assert_close(found.loss, wanted, rtol=1e-5, atol=1e-6)
    assert mask.hidden.float().mean() == found.logs["hidden"] == 5 / 16


def test_entropy_of_the_mean_is_ln_k_if_even_and_0_if_all_take_one():
    method = built()
    even, one = torch.zeros(24, 12), 50 * torch.eye(12)[torch.zeros(24, dtype=torch.int64)]
    targets = torch.full((8, 12), 1 / 12)
    for cosines, expected in ((even, math.log(12)), (one, 0.0), (50 * torch.eye(12).repeat(2, 1), math.log(12))):
        _, mean = method.assign(cosines, targets)
        assert -(mean * mean.clamp_min(1e-30).log()).sum().item() == pytest.approx(expected, abs=1e-5)


def test_the_same_patches_are_hidden_in_all_pictures_of_a_batch_and_others_in_the_next():
    masker, blank = RandomMasker(ratio=0.15, same=True), torch.zeros(8, 196, 0)
    first, second = (masker(blank, rng_keys("mask", step, torch.arange(8)), 0.0, (14, 14)) for step in range(2))
    assert first.visible.shape == (8, 166) and (first.hidden == first.hidden[0]).all()
    assert not torch.equal(first.hidden, second.hidden)
    alone = RandomMasker(ratio=0.15)(blank, rng_keys("mask", 0, torch.arange(8)), 0.0, (14, 14))
    assert torch.equal(alone.hidden[0], first.hidden[0]) and not torch.equal(alone.hidden[1], first.hidden[1])


def test_gradients_reach_all_that_is_trained():
    for encoder in (VIT, replace(VIT, model_args={"class_token": False, "global_pool": "avg"})):
        method = built(encoder)
        step = method(batch(), 0.0)
        step.loss.backward()
        for name, parameter in method.named_parameters():
            assert parameter.requires_grad != (name.startswith("slow.") or "pos_embed" in name), name
            assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
        assert all(value.ndim == 0 and not value.requires_grad for value in step.logs.values())
    assert method.encoder is method.slow.module.encoder and method.train().slow.module.training  # BatchNorm of its own
    optimizer = AdamWConfig().build(method, 256)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(method.prototypes.weight)] == 0 and method.prototypes.weight.abs().max() <= 8**-0.5


def test_the_slow_copy_s_momentum_rises_linearly_and_not_to_its_end():
    for progress, fraction in ((0.0, 0.5), (0.5, 0.3), (1.0, 0.1)):
        method = built()
        method(batch(), progress)
        before = [value.clone() for value in method.slow.parameters()]
        with torch.no_grad():
            for value in method.embedder.parameters():
                value.add_(1)
        method.after_step(progress)
        for old, new in zip(before, method.slow.parameters(), strict=True):
            torch.testing.assert_close(new - old, torch.full_like(old, fraction), rtol=1e-5, atol=1e-6)


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    alone, found = two_steps("msn-vit"), in_ranks(["msn-vit"], 2, tmp_path)["msn-vit"]
    assert alone.keys() == found.keys()
    for name, value in alone.items():
        if name.startswith(("numbers 0", "gradient 0")):
            apart, size = (found[name] - value).abs().max(), value.abs().max()
            # The entropy of the mean is that of all processes in each: their mean is itself.
            assert apart <= 1e-3 * size + 1e-5, name


def test_a_resumed_run_is_the_same_bit_for_bit(forty, tmp_path):
    def run_of(**machine):
        run = tiny(forty, **({"log_every": 1, "evals": 1, "save_every": 2} | machine))
        run.encoder, run.method, run.epochs = VIT, CONFIG, 1  # five steps
        view = run.images.view
        run.images = replace(run.images, size=16, other_views=(view, replace(view, size=8)))
        return run

    pretrain(run_of(), tmp_path / "whole", log=lambda line: None)
    pretrain(run_of(), tmp_path / "parts", max_steps=2, log=lambda line: None)
    pretrain(run_of(keep=9), tmp_path / "parts", log=lambda line: None)
    one, other = (load_checkpoint(checkpoints(tmp_path / name)[-1])["model"] for name in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    losses = [[record["loss"] for record in RunFolder(tmp_path / name).metrics()] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"masker": PartitionMasker()}, "MSN hides patches of a view once and PartitionMasker does so 4 times"),
        ({"masker": AMTMasker()}, "AMTMasker throws some away"),
        ({"masker": BlockMasker(exact=False)}, "MSN hides as many patches in each picture and BlockMasker does not"),
        ({"sharpening": 0.0}, "method.sharpening"),
        ({"temperature": -1.0}, "method.temperature"),
        ({"momentum": 1.5}, "momentum.first"),
        ({"iterations": -1}, "method.iterations"),
        ({"prototypes": 0}, "method.prototypes"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        built(**changes)


CHANGES = {
    "masker": RandomMasker(ratio=0.5),
    "temperature": 0.2,
    "sharpening": 0.5,
    "iterations": 0,
    "weight": 0.5,
    "momentum": 0.9,
    "prototypes": 6,
    "hidden": 8,
    "outputs": 4,
    "pool": "mean",
}


def three_losses(**changes):
    method = built(**changes)
    optimizer, losses = AdamWConfig(base_lr=0.1).build(method, 256), []
    for step in range(3):
        found = method(batch(step), step / 3)
        losses.append(found.loss.item())
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / 3)
    return losses


@pytest.mark.parametrize("name", CHANGES)
def test_no_dead_option(name):
    assert set(CHANGES) == {setting.name for setting in fields(MSNConfig)}
    assert three_losses() == three_losses() != three_losses(**{name: CHANGES[name]})


def test_views_that_cannot_be_meant_are_refused_and_the_recipe_is_the_released_one():
    with pytest.raises(UserError, match="MSN's slow copy sees images"):
        built()(replace(batch(), other_views=batch().other_views[::-1]), 0.0)
    run = find_recipe("msn_vit_s16")
    assert run.method == MSNConfig() and (run.images.view, *run.images.other_views) == msn()
    first, second, *crops = msn()
    assert first == second and len(crops) == 10 and (first.scale, crops[0].scale) == ((0.3, 1.0), (0.05, 0.3))
    assert crops[0].size == 96 and first.color.solarize == 0 and first.color.blur == 0.5
    rate = run.schedule.of(run.epochs)
    assert run.optimizer.peak_lr(1024) == 1e-3 and rate(0.0) == pytest.approx(0.2) and rate(1 - 1e-9) > 0.098
