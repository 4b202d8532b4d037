"""iBOT: losses and centers against lightly and NumPy, what is seen of what is hidden, and what moves."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss

from contrastive_ranks import CONFIGS, VIT, batch, in_ranks, two_steps
from drills import tiny
from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.randomness import following, integer, rng_keys
from mimkit.data.published import dino
from mimkit.masks import AMTMasker, AttMaskMasker, BlockMasker, PartitionMasker, RandomMasker, SalienceMasker
from mimkit.methods.ibot import IBOT, IBOTConfig
from mimkit.methods.losses import distil_patches
from mimkit.recipes import find_recipe
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.machine import untouched
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder

torch.set_num_threads(1)
CONFIG = CONFIGS["ibot"]


def built(encoder=VIT, **changes) -> IBOT:
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build(encoder.build((16, 16), 3))


def numbers(seed, pictures=6, patches=16, width=7):
    return 0.3 * torch.randn(pictures, patches, width, generator=torch.Generator().manual_seed(seed))


# ---- loss


def test_the_patch_loss_and_its_gradient_are_lightly_s_under_ragged_and_empty_masks():
    hidden = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.4
    hidden[2] = False
    results = []
    for ours in (True, False):
        student, teacher = numbers(0).requires_grad_(), numbers(1).requires_grad_()
        if ours:
            loss = distil_patches(student, teacher, hidden.flatten(1), torch.zeros(7), 0.1, 0.05).loss
        else:
            where = hidden.flatten(1)
            loss = IBOTPatchLoss(output_dim=7, student_temp=0.1)(
                teacher.detach()[where], student[where], hidden, teacher_temp=0.05
            )
        loss.backward()
        assert teacher.grad is None
        results += [loss.detach(), student.grad]
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[1], results[3], rtol=1e-4, atol=1e-6)
    assert not results[1][2].any() and not results[1][~hidden.flatten(1)].any()


def test_both_losses_and_both_centers_are_the_formulas_over_several_steps():
    method = built(teacher_temperature=0.07, patch_temperature=0.06, first_temperature=0.05, warmup=0.5).train()
    oracle, center = DINOLoss(output_dim=24, student_temp=0.1), np.zeros(24)
    optimizer = torch.optim.SGD(method.embedder.parameters(), lr=0.1)
    for step, (sharp, patch_sharp) in enumerate(((0.05, 0.05), (0.058, 0.054), (0.066, 0.058), (0.07, 0.06))):
        one = batch(step)
        whole, head = [one.images, one.other_views[0]], method.embedder.projector
        patches, mask, _ = method.sample(whole, one, step / 5)
        student, teacher = method.student(patches, mask.hidden), [method.slow.module.encoder(x) for x in whole]
        views = [*head(student.prefix[:, 0]).split(8), method.embedder(one.other_views[1])]
        taught = [method.slow.module.projector(tokens.prefix[:, 0]) for tokens in teacher]
        class_loss = oracle(taught, views, teacher_temp=sharp)
        g = torch.cat([method.slow.module.projector(tokens.patches) for tokens in teacher]).double().numpy()
        z = (head(student.patches) / 0.1).log_softmax(dim=2).detach().double().numpy()
        q = np.exp((g - center) / patch_sharp)
        q /= q.sum(axis=2, keepdims=True)
        m = mask.hidden.numpy()
        patch_loss = (-(q * z).sum(axis=2) * m).sum(axis=1) / np.maximum(m.sum(axis=1), 1)
        assert (m.sum(axis=1) == 0).any() and m.any()
        found = method(one, step / 5)
        assert found.loss.item() == pytest.approx(class_loss.item() + patch_loss.mean(), rel=1e-5, abs=1e-6)
        assert found.logs["patch_loss"].item() == pytest.approx(patch_loss.mean(), rel=1e-5, abs=1e-6)
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / 5)
        center = 0.9 * center + 0.1 * g.mean(axis=(0, 1))  # of all patches, not of hidden ones as lightly's
        torch.testing.assert_close(method.center, oracle.center.flatten())
        torch.testing.assert_close(method.patch_center.double().numpy(), center, rtol=1e-4, atol=1e-6)
    assert np.abs(center).sum() > 0.01


def test_uniform_numbers_cost_ln_k_and_float32_is_kept():
    hidden = torch.ones(6, 16, dtype=torch.bool)
    same = torch.full((6, 16, 7), 0.4)
    found = distil_patches(same, same, hidden, torch.zeros(7), 0.1, 0.04)
    assert found.loss.item() == pytest.approx(math.log(7)) and found.entropy.item() == pytest.approx(math.log(7))
    plain = distil_patches(numbers(0), numbers(1), hidden, torch.zeros(7), 0.1, 0.04).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain, distil_patches(numbers(0), numbers(1), hidden, torch.zeros(7), 0.1, 0.04).loss)


# ---- masks


def test_each_view_has_a_mask_of_its_own_by_its_address():
    method, one = built(masker=RandomMasker(ratio=0.5)), batch()
    _, mask, logs = method.sample([one.images, one.other_views[0]], one, 0.0)
    masker = RandomMasker(ratio=0.5)
    for view in range(2):
        drawn = masker(torch.zeros(8, 16, 0), following(one.rng_keys, integer("view", view)), 0.0, (4, 4))
        assert torch.equal(mask.hidden[8 * view : 8 * view + 8], drawn.hidden)
    assert (mask.hidden[:8] != mask.hidden[8:]).any() and logs["hidden"] == 0.5


def test_masked_class_tokens_enter_the_loss_and_hidden_pixels_nothing():
    method, one = built(masker=RandomMasker(ratio=0.5)), batch()
    whole = [one.images, one.other_views[0]]
    patches, mask, _ = method.sample(whole, one, 0.0)
    changed = torch.where(mask.hidden.unsqueeze(2), torch.full_like(patches, 9.0), patches)
    for before, after in zip(method.student(patches, mask.hidden), method.student(changed, mask.hidden), strict=True):
        assert torch.equal(before, after)
    images = torch.cat(whole)
    assert not torch.equal(*(method.teach(x)[1] for x in (images, images.flip(3))))
    with torch.no_grad():
        method.mask_token.normal_()
    assert method(one, 0.0).logs["class_loss"] != built(masker=RandomMasker(ratio=0.5))(one, 0.0).logs["class_loss"]


def test_attmask_reads_the_teacher_that_is_there_already():
    method = built(masker=AttMaskMasker(scorer="ema", ratio=0.5))
    assert method.mask_sampler.slow is None
    names = set(method.state_dict())
    assert not [name for name in names if name.startswith("mask_sampler")]
    one = batch()
    whole = [one.images, one.other_views[0]]
    before = method.sample(whole, one, 0.5)[1].hidden
    with torch.no_grad():
        for parameter in method.embedder.encoder.timm.blocks.parameters():
            parameter.normal_()
    assert torch.equal(method.sample(whole, one, 0.5)[1].hidden, before)  # of the student nothing
    with torch.no_grad():
        for parameter in method.encoder.timm.blocks.parameters():
            parameter.normal_()
    assert not torch.equal(method.sample(whole, one, 0.5)[1].hidden, before)


def test_salience_reads_the_student():
    method, one = built(masker=SalienceMasker(ratio=0.5, noise=0.0, scale="cosine")), batch()
    whole = [one.images, one.other_views[0]]
    before = method.sample(whole, one, 0.5)[1].hidden
    with torch.no_grad():
        method.embedder.encoder.timm.patch_embed.proj.weight.normal_()
    assert not torch.equal(method.sample(whole, one, 0.5)[1].hidden, before)


@pytest.mark.parametrize(
    ("masker", "reason"),
    [
        (PartitionMasker(), "IBOT hides patches of a view once and PartitionMasker does so 4 times"),
        (AMTMasker(), "AMTMasker throws some away: use --method.masker.throw 0"),
        (AttMaskMasker(refresh=2), "IBOT masks two views and cached maps follow the first alone: use masker.refresh 0"),
    ],
)
def test_maskers_that_cannot_be_meant_are_refused_by_name(masker, reason):
    with pytest.raises(UserError, match=reason):
        built(masker=masker)


# ---- what moves


def test_every_trained_weight_gets_a_gradient_and_no_other():
    for encoder in (
        VIT,
        replace(VIT, model_args={"class_token": False, "global_pool": "avg"}),
    ):
        method = built(encoder)
        step = method(batch(), 0.0)
        step.loss.backward()
        for name, parameter in method.named_parameters():
            assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
            assert parameter.requires_grad != (name.startswith("slow.") or "pos_embed" in name), name
        assert all(value.ndim == 0 and not value.requires_grad for value in step.logs.values())
    assert not built().mask_token.any() and built().mask_token.shape == (1, 16)  # decayed, as the code's
    assert method.encoder is method.slow.module.encoder


def test_prototypes_stay_while_they_are_frozen():
    method = built()
    for progress, moves in ((0.29, False), (0.3, True)):
        method(batch(), progress).loss.backward()
        method.before_step(progress)
        grads = [p.grad for p in method.embedder.projector.prototypes.parameters()]
        assert [grad is not None for grad in grads] == [moves] * 2


def test_micro_batches_give_the_same_centers_and_trials_leave_no_trace():
    whole, parts = built(), built()
    loss = whole(batch(), 0.0).loss
    halves = [parts(batch(0, part), 0.0).loss for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(loss, sum(halves) / 2)
    with untouched(parts):
        parts(batch(3), 0.0)
    for method in (whole, parts):
        method.after_step(0.0)
    torch.testing.assert_close(whole.patch_center, parts.patch_center)
    assert not parts.patch_seen.any() and whole.patch_center.any()


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    alone, found = two_steps("ibot-vit"), in_ranks(["ibot-vit"], 2, tmp_path)["ibot-vit"]
    assert alone.keys() == found.keys() and alone["state center"].any() and alone["state patch_center"].any()
    for name, value in alone.items():
        if not name.startswith("gradient 1"):  # in which rounding has grown
            apart, size = (found[name] - value).abs().max(), value.abs().max()
            assert apart <= 3e-4 * size + 1e-5, name


def test_a_resumed_run_is_the_same_bit_for_bit(forty, tmp_path):
    def run_of(**machine):
        run = tiny(forty, **({"log_every": 1, "evals": 1, "save_every": 2} | machine))
        run.encoder, run.method, run.epochs = VIT, CONFIG, 1  # five steps
        view = run.images.view
        run.images = replace(run.images, size=16, other_views=(view, replace(view, size=8)))
        run.optimizer = AdamWConfig(base_lr=0.05, weight_decay=0.04, weight_decay_end=0.4, clip_each=3.0)
        return run

    pretrain(run_of(), tmp_path / "whole", log=lambda line: None)
    pretrain(run_of(), tmp_path / "parts", max_steps=2, log=lambda line: None)
    pretrain(run_of(keep=9), tmp_path / "parts", log=lambda line: None)
    one, other = (load_checkpoint(checkpoints(tmp_path / name)[-1])["model"] for name in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert "patch_seen" not in one and one["patch_center"].any()
    losses = [[record["loss"] for record in RunFolder(tmp_path / name).metrics()] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert (tmp_path / "whole/pictures/reconstruction.png").exists()  # of agreement


@torch.no_grad()
def test_agreement_is_one_where_student_and_teacher_say_the_same():
    method = built(temperature=0.05, teacher_temperature=0.05, patch_temperature=0.05, first_temperature=0.05)
    one = batch()
    agreement, mask = method.agreement(Batch(one.images, one.rng_keys, one.index), 0.0)
    assert agreement.shape == mask.hidden.shape and (agreement >= 0).all() and (agreement <= 1 + 1e-5).all()
    empty = ~mask.hidden.any(dim=1)
    torch.testing.assert_close(agreement[empty], torch.ones_like(agreement[empty]))
    assert empty.any() and agreement[~empty].min() < 1 - 1e-6


def test_it_learns_without_collapse():
    """Sixteen noises, each view with some of its own: both losses fall below ln K and features spread."""
    torch.manual_seed(0)
    encoder = replace(VIT, width=32).build((16, 16), 3)
    sharp = {"teacher_temperature": 0.02, "patch_temperature": 0.02, "first_temperature": 0.02, "momentum": 0.97}
    settings = {"prototypes": 64, "hidden": 64, "bottleneck": 16, "center_momentum": 0.5, "freeze_last": 0.0}
    settings |= {"norm_last": True, "pool": "mean"}
    method = replace(CONFIG, masker=RandomMasker(ratio=0.3), **sharp, **settings).build(encoder).train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    kinds, records = torch.randn(16, 3, 16, 16, generator=generator), []
    for step in range(80):
        one, two = kinds + 0.3 * torch.randn(2, *kinds.shape, generator=generator)
        keys = rng_keys("learn", step, torch.arange(16))
        found = method(Batch(one, keys, torch.arange(16), other_views=(two,)), step / 80)
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / 80)
        records.append([found.logs[name].item() for name in ("class_loss", "patch_loss", "patch_entropy", "spread")])
    class_loss, patch_loss, patch_entropy, spread = np.mean(records[-10:], axis=0)
    print(np.mean(records[-10:], axis=0), np.mean(records[20:40], axis=0), math.log(64))
    assert class_loss < math.log(64) - 0.1 and patch_loss < math.log(64) - 0.1 and spread > 0.3
    assert patch_entropy < math.log(64) - 0.1


# ---- settings

CHANGES = {
    "masker": RandomMasker(ratio=0.5),
    "temperature": 0.2,
    "teacher_temperature": 0.04,
    "patch_temperature": 0.04,
    "first_temperature": 0.02,
    "warmup": 0.9,
    "momentum": 0.9,
    "center_momentum": 0.5,
    "prototypes": 12,
    "hidden": 8,
    "bottleneck": 4,
    "norm_last": True,
    "freeze_last": 0.0,
    "pool": "mean",
    "patch_weight": 0.5,
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
    assert set(CHANGES) == {setting.name for setting in fields(IBOTConfig)}
    assert three_losses() == three_losses() != three_losses(**{name: CHANGES[name]})


@pytest.mark.parametrize(("name", "value"), [("patch_temperature", 0.0), ("patch_weight", -1.0), ("warmup", 2.0)])
def test_what_cannot_be_meant_is_refused(name, value):
    with pytest.raises(UserError, match=f"method.{name} "):
        built(**{name: value})
    with pytest.raises(UserError, match="IBOT's teacher sees two views"):
        built()(replace(batch(), other_views=batch().other_views[::-1]), 0.0)


def test_recipes_are_the_published_ones():
    for name, border, still, epochs, peak in (("s", 0.25, 1, 800, 2e-3), ("b", 0.32, 3, 400, 3e-3)):
        run = find_recipe(f"ibot_vit_{name}16")
        first, *others = dino(10, border=border)
        assert (run.images.view, run.images.other_views) == (first, tuple(others)) and len(others) == 11
        assert (first.scale, others[-1].scale) == ((border, 1.0), (0.05, border))
        assert run.method.freeze_last * run.epochs == pytest.approx(still) and run.epochs == epochs
        assert run.method.warmup * run.epochs == pytest.approx(30)
        assert run.optimizer.peak_lr(run.batch_size) == pytest.approx(peak) and run.optimizer.clip_each == 3.0
        assert replace(run.method, warmup=0.0, freeze_last=0.01) == IBOTConfig()
        assert run.method.masker == BlockMasker(ratio=0.3, spread=0.2, none=0.5, exact=False)
