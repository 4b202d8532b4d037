"""DINO: loss and center against lightly and NumPy, teacher and center through a run, and processes that equal one."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from torch import nn
from torch.nn.utils import parametrizations

from contrastive_ranks import CONFIGS, VIT, batch, in_ranks, two_steps
from drills import tiny
from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.data.published import dino
from mimkit.methods.dino import DINO, DINOConfig
from mimkit.methods.losses import distil
from mimkit.model.projector import Prototypes, prototype_head
from mimkit.recipes import find_recipe
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.machine import untouched
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Prepared
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder

torch.set_num_threads(1)
CONFIG = CONFIGS["dino"]


def numbers(seed, views, pictures=3, width=7):
    return 0.3 * torch.randn(views, pictures, width, generator=torch.Generator().manual_seed(seed))


def built(**changes) -> DINO:
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build(VIT.build((16, 16), 3))


# ---- loss


@given(st.integers(0, 99), st.integers(2, 6), st.floats(0.03, 0.2))
@settings(deadline=None, max_examples=20)
def test_the_loss_is_the_formula(seed, views, sharp):
    student, teacher, center = numbers(seed, views), numbers(seed + 1, 2), numbers(seed + 2, 1)[0, 0]

    def softmax(x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    s, t, c = (x.double().numpy() for x in (student, teacher, center))
    p, q = softmax((t - c) / sharp), softmax(s / 0.1)
    terms = [-(p[i] * np.log(q[v])).sum(axis=-1).mean() for i in range(2) for v in range(views) if v != i]
    assert len(terms) == 2 * views - 2
    found = distil(student, teacher, center, 0.1, sharp)
    assert found.loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert found.entropy.item() == pytest.approx(-(p * np.log(p)).sum(axis=-1).mean(), rel=1e-4)


def test_loss_and_center_are_lightly_s_over_several_steps():
    method = built(teacher_temperature=0.07, first_temperature=0.05, warmup=0.5).train()
    oracle = DINOLoss(output_dim=24, student_temp=0.1)
    optimizer = torch.optim.SGD(method.embedder.parameters(), lr=0.1)
    for step, sharp in enumerate((0.05, 0.058, 0.066, 0.07, 0.07)):
        one = batch(step)
        views = (one.images, *one.other_views)
        student, teacher = [method.embedder(view) for view in views], [method.slow(view) for view in views[:2]]
        found = method(one, step / 5)
        torch.testing.assert_close(found.loss, oracle(teacher, student, teacher_temp=sharp))
        assert not torch.equal(method.center, oracle.center.flatten())  # it moves after the step
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / 5)
        torch.testing.assert_close(method.center, oracle.center.flatten())
    assert method.center.abs().sum() > 0.01


def test_its_gradient_is_lightly_s_and_the_teacher_gets_none():
    grads = []
    for loss in (
        lambda s, t: distil(s, t, torch.zeros(7), 0.1, 0.04).loss,
        lambda s, t: DINOLoss(output_dim=7)([*t.detach()], [*s]),
    ):
        student, teacher = numbers(0, 4).requires_grad_(), numbers(1, 2).requires_grad_()
        loss(student, teacher).backward()
        assert teacher.grad is None
        grads.append(student.grad)
    torch.testing.assert_close(*grads)


def test_uniform_outputs_cost_ln_k_and_float32_is_kept():
    same = torch.full((5, 4, 30), 0.7)
    found = distil(same, same[:2], torch.zeros(30), 0.1, 0.04)
    assert found.loss.item() == pytest.approx(math.log(30)) and found.entropy.item() == pytest.approx(math.log(30))
    plain = distil(numbers(0, 4), numbers(1, 2), numbers(2, 1)[0, 0], 0.1, 0.04)
    with torch.autocast("cpu", torch.bfloat16):
        under = distil(numbers(0, 4), numbers(1, 2), numbers(2, 1)[0, 0], 0.1, 0.04)
    assert torch.equal(plain.loss, under.loss) and plain.loss.dtype == torch.float32


def test_a_constant_in_the_teacher_s_numbers_cancels_once_the_center_has_settled():
    method, student, teacher = built(), numbers(0, 4, width=24), numbers(1, 2, width=24)
    losses = []
    for shift in (torch.zeros(24), torch.linspace(-3, 5, 24)):
        method.center.zero_()
        for _ in range(200):
            method.seen.copy_((teacher + shift).mean(dim=(0, 1)))
            method.passes.fill_(1)
            method.after_step(0.0)
        losses.append(distil(student, teacher + shift, method.center, 0.1, 0.04).loss)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert (distil(student, teacher + shift, torch.zeros(24), 0.1, 0.04).loss - losses[0]).abs() > 0.1


# ---- head and encoder


def test_the_head_is_lightly_s():
    ours, theirs = prototype_head([6, 10, 10, 5], 9, unit=True), DINOProjectionHead(6, 10, 5, 9)
    for mine, other in zip(ours.layers.parameters(), theirs.layers.parameters(), strict=True):
        other.data.copy_(mine)
    theirs.last_layer.weight_v.data.copy_(ours.prototypes.weight)
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x).abs().max() <= 1 and [*ours.prototypes.parameters()] == [ours.prototypes.weight]
    assert 0.01 < ours.layers[0].weight.std() < 0.03 and not ours.layers[0].bias.any()


def test_prototypes_may_learn_their_lengths_and_stay_float32():
    free, points = Prototypes(5, 9, unit=False), torch.randn(4, 5)
    layer = parametrizations.weight_norm(nn.Linear(5, 9, bias=False))
    with torch.no_grad():
        free.lengths.uniform_(0.5, 2)
        layer.parametrizations.weight.original0.copy_(free.lengths)
        layer.parametrizations.weight.original1.copy_(free.weight)
    torch.testing.assert_close(free(points), layer(nn.functional.normalize(points, dim=1)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(free(points), free(points.clone())) and free(points).dtype == torch.float32
    assert built(norm_last=False).embedder.projector.prototypes.lengths.requires_grad


def test_every_trained_weight_gets_a_gradient_and_no_other():
    encoder = replace(VIT, positions="learned").build((16, 16), 3)
    method = replace(CONFIG, norm_last=False).build(encoder)
    step = method(batch(), 0.0)
    step.loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
        assert parameter.requires_grad != name.startswith("slow."), name
    assert all(value.ndim == 0 and not value.requires_grad for value in step.logs.values())
    assert set(step.logs) == {"entropy", "spread"}


def test_linear_layers_start_small_and_the_teacher_leaves():
    method = DINOConfig(prototypes=4, hidden=4).build(replace(VIT, width=192).build((16, 16), 3))
    for part in (method.embedder.encoder.timm, method.slow.module.encoder.timm):
        assert part.blocks[1].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert method.encoder is method.slow.module.encoder
    nobody = DatasetView(0, lambda: torch.zeros(0, 3, 1, 1), lambda: iter(()))
    with torch.no_grad():
        method.embedder.encoder.timm.norm.weight.fill_(7)  # as released weights would be loaded
    method.setup(nobody, resumed=True)
    assert method.encoder.timm.norm.weight[0] == 1
    method.setup(nobody, resumed=False)
    assert method.encoder.timm.norm.weight[0] == 7


def test_the_student_alone_drops_paths():
    method = CONFIG.build(replace(VIT, model_args={"drop_path_rate": 0.9}).build((16, 16), 3))
    images = batch().images
    for mode in (True, False):
        method.train(mode)
        assert torch.equal(method.slow(images), method.slow(images))
        assert not any(part.training for part in method.slow.modules())
        assert torch.equal(method.embedder(images), method.embedder(images)) != mode


# ---- what moves


def test_the_teacher_follows_by_the_closed_form():
    for progress, fraction in ((0.0, 0.5), (0.5, 0.25), (0.75, 0.25 * (1 - math.sqrt(0.5))), (1.0, 0.0)):
        method = built()
        method(batch(), progress)
        before = [value.clone() for value in method.slow.parameters()]
        with torch.no_grad():
            for value in method.embedder.parameters():
                value.add_(1)
        method.after_step(progress)
        for old, new in zip(before, method.slow.parameters(), strict=True):
            torch.testing.assert_close(new - old, torch.full_like(old, fraction), rtol=1e-5, atol=1e-6)


def test_the_teacher_s_temperature_warms_up():
    method = built(first_temperature=0.02, teacher_temperature=0.06, warmup=0.4)
    for moment, wanted in ((0.0, 0.02), (0.1, 0.03), (0.4, 0.06), (0.9, 0.06)):
        assert float(method.teacher_temperature(moment)) == pytest.approx(wanted)
        assert float(method.teacher_temperature(torch.tensor(moment))) == pytest.approx(wanted)
    assert built(teacher_temperature=0.05).teacher_temperature(0.0) == 0.05
    one = batch()
    late, moved = method(one, 0.9).loss, method(replace(one, progress=torch.tensor(0.9)), 0.0).loss
    assert torch.equal(late, moved) and not torch.equal(late, method(one, 0.0).loss)


def test_micro_batches_give_the_same_center_and_trials_leave_no_trace():
    whole, parts = built(), built()
    loss = whole(batch(), 0.0).loss
    halves = [parts(batch(0, part), 0.0).loss for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(loss, sum(halves) / 2)
    with untouched(parts):
        parts(batch(3), 0.0)
    for method in (whole, parts):
        method.after_step(0.0)
    torch.testing.assert_close(whole.center, parts.center)
    assert not parts.seen.any() and parts.passes == 0 and whole.center.any()


@pytest.mark.parametrize("norm_last", [True, False])
def test_prototypes_stay_while_they_are_frozen(norm_last):
    method = built(norm_last=norm_last)
    optimizer = AdamWConfig(base_lr=1.0).build(method, 256)
    for progress, moves in ((0.0, False), (0.29, False), (0.3, True)):
        before = {name: value.clone() for name, value in method.embedder.named_parameters()}
        method(batch(), progress).loss.backward()
        method.before_step(progress)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in method.embedder.named_parameters():
            still = not value.requires_grad or ("prototypes" in name and not moves)
            assert torch.equal(value, before[name]) == still, name


# ---- processes


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    alone, found = two_steps("dino-vit"), in_ranks(["dino-vit"], 2, tmp_path)["dino-vit"]
    assert alone.keys() == found.keys() and alone["state center"].any()
    for name, value in alone.items():
        if not name.startswith("gradient 1"):  # in which rounding has grown
            apart, size = (found[name] - value).abs().max(), value.abs().max()
            assert apart <= 3e-4 * size + 1e-5, name


# ---- runs


def run_of(data, **machine):
    run = tiny(data, **({"log_every": 1, "evals": 0, "save_every": 2} | machine))
    run.encoder, run.method, run.epochs = VIT, CONFIG, 1  # five steps
    view = run.images.view
    run.images = replace(run.images, size=16, other_views=(view, replace(view, size=8), replace(view, size=8)))
    run.optimizer = AdamWConfig(base_lr=0.05, weight_decay=0.04, weight_decay_end=0.4, clip_each=3.0)
    return run


def states(folder):
    return [load_checkpoint(path)["model"] for path in checkpoints(folder)]


def test_a_resumed_run_is_the_same_bit_for_bit_and_frozen_at_first(forty, tmp_path):
    pretrain(run_of(forty), tmp_path / "whole", log=lambda line: None)
    pretrain(run_of(forty), tmp_path / "parts", max_steps=2, log=lambda line: None)
    (first,) = states(tmp_path / "parts")
    pretrain(run_of(forty, keep=9), tmp_path / "parts", log=lambda line: None)
    one, other = states(tmp_path / "whole")[-1], states(tmp_path / "parts")[-1]
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert "seen" not in one and not torch.equal(first["center"], one["center"]) and one["center"].any()
    losses = [[record["loss"] for record in RunFolder(tmp_path / name).metrics()] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    name, start = "embedder.projector.prototypes.weight", Prepared(run_of(forty)).task.state_dict()
    assert torch.equal(first[name], start[name]) and not torch.equal(one[name], start[name])
    assert not torch.equal(first["embedder.projector.layers.0.weight"], start["embedder.projector.layers.0.weight"])


def test_it_learns_without_collapse():
    """Sixteen noises, each view with some of its own: the teacher comes to tell them apart, the student to follow."""
    torch.manual_seed(0)
    encoder = replace(VIT, width=32).build((16, 16), 3)
    sharp = {"teacher_temperature": 0.02, "first_temperature": 0.02, "center_momentum": 0.5, "momentum": 0.97}
    method = replace(CONFIG, prototypes=64, hidden=64, bottleneck=16, pool="mean", **sharp).build(encoder).train()
    optimizer = torch.optim.AdamW(method.embedder.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    kinds, records = torch.randn(16, 3, 16, 16, generator=generator), []
    for step in range(80):
        one, two = kinds + 0.3 * torch.randn(2, *kinds.shape, generator=generator)
        views = (two, two[:, :, 4:12, 4:12])
        found = method(Batch(one, torch.arange(16), torch.arange(16), other_views=views), step / 80)
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / 80)
        records.append([found.loss.item(), found.logs["entropy"].item(), found.logs["spread"].item()])
    loss, entropy, spread = np.mean(records[-10:], axis=0)
    settled = np.mean(records[20:40], axis=0)
    assert loss < math.log(64) - 0.1 and entropy < math.log(64) - 0.1 and loss < settled[0]
    assert spread > settled[2] + 0.1 and spread > 0.3  # 0 at collapse


# ---- settings


CHANGES = {
    "temperature": 0.2,
    "teacher_temperature": 0.07,
    "first_temperature": 0.02,
    "warmup": 0.9,
    "momentum": 0.9,
    "center_momentum": 0.5,
    "prototypes": 12,
    "hidden": 8,
    "bottleneck": 4,
    "norm_last": False,
    "freeze_last": 0.0,
    "pool": "mean",
}


def three_losses(**changes):
    method = built(**({"first_temperature": 0.03, "warmup": 0.5} | changes))
    optimizer, losses = AdamWConfig(base_lr=1.0).build(method, 256), []
    for step in range(3):
        found = method(batch(step), step / 3)
        losses.append(found.loss.item())
        found.loss.backward()
        method.before_step(step / 3)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / 3)
    return losses


@pytest.mark.parametrize("name", CHANGES)
def test_no_dead_option(name):
    assert set(CHANGES) == {setting.name for setting in fields(DINOConfig)}
    assert three_losses() == three_losses() != three_losses(**{name: CHANGES[name]})


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("teacher_temperature", -1.0), ("first_temperature", math.nan)]
    + [(name, value) for name in ("warmup", "momentum", "center_momentum", "freeze_last") for value in (-0.1, 1.1)]
    + [("prototypes", 0), ("hidden", 0), ("bottleneck", 0)],
)
def test_what_cannot_be_meant_is_refused(name, value):
    with pytest.raises(UserError, match=f"method.{name} "):
        built(**{name: value})


def test_views_that_cannot_be_meant_are_refused_with_the_fix():
    method, one = built(), batch()
    with pytest.raises(UserError, match=r"images\.other_views"):
        method(replace(one, other_views=()), 0.0)
    with pytest.raises(UserError, match=r"give the first of images\.other_views no size"):
        method(replace(one, other_views=one.other_views[::-1]), 0.0)
    with pytest.raises(UserError, match=r"use view\.size 8 8"):
        method(replace(one, other_views=(one.other_views[0], one.images[:, :, :9, :9])), 0.0)
    with pytest.raises(UserError, match=r"use --method\.pool mean"):
        no_class = replace(VIT, model_args={"class_token": False, "global_pool": "avg"})
        replace(CONFIG, pool="class").build(no_class.build((16, 16), 3))


def test_views_of_one_size_pass_together(monkeypatch):
    method, one, seen = built(), batch(), []
    crop = one.other_views[1]
    many = replace(one, other_views=(*one.other_views, crop.flip(3), crop.flip(2)))
    real = method.embedder.encoder.forward
    monkeypatch.setattr(method.embedder.encoder, "forward", lambda x: seen.append(tuple(x.shape)) or real(x))
    loss = method(many, 0.0).loss
    assert seen == [(16, 3, 16, 16), (24, 3, 8, 8)]
    mixed = replace(one, other_views=(one.other_views[0], crop, one.images.flip(3), crop.flip(3)))  # not side by side
    assert method(mixed, 0.0).loss.isfinite() and loss.isfinite() and len(seen) == 2 + 4


def test_views_and_recipe_are_the_published_ones():
    first, second, *crops = dino()
    assert len(crops) == 8 and len(set(crops)) == 1
    for view, scale, size, blur, solarize in (
        (first, (0.4, 1.0), None, 1.0, 0.0),
        (second, (0.4, 1.0), None, 0.1, 0.2),
        (crops[0], (0.05, 0.4), 96, 0.5, 0.0),
    ):
        c = view.color
        assert (view.scale, view.size, c.blur, c.solarize) == (scale, size, blur, solarize)
        assert (c.jitter, c.brightness, c.contrast, c.saturation, c.hue) == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (c.gray, c.sigma, view.interpolation, view.flip) == (0.2, (0.1, 2.0), "bicubic", 0.5)
    assert all(view.color.blur == 0 for view in dino(2, 16, blur=False)) and dino(2, 16)[-1].size == 16
    run = find_recipe("dino_vit_s16")
    peak = run.optimizer.peak_lr(run.batch_size)
    assert peak == 2e-3 and peak * run.schedule.of(run.epochs)(1 - 1e-9) == pytest.approx(1e-6, rel=1e-3)
    assert run.schedule.warmup_epochs == 10 and run.method.freeze_last * run.epochs == 1
    assert len(run.images.other_views) == 9 and run.method == DINOConfig()


def test_a_batch_needs_no_crops():
    one = batch()
    assert built()(Batch(one.images, one.rng_keys, one.index, other_views=one.other_views[:1]), 0.0).loss.isfinite()
