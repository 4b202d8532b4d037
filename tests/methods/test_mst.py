"""MST: its loss by lightly and NumPy, which patches are hidden, what moves, runs and processes."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from lightly.loss import DINOLoss

from contrastive_ranks import CONFIGS, VIT, batch, in_ranks, two_steps
from drills import tiny
from mimkit.core.errors import UserError
from mimkit.masks import AMTMasker, AttMaskMasker, PartitionMasker, RandomMasker
from mimkit.methods.dino import DINOConfig
from mimkit.methods.mst import MST, MSTConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.recipes import find_recipe
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder

torch.set_num_threads(1)
CONFIG = CONFIGS["mst"]


def built(encoder=VIT, **changes) -> MST:
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build(encoder.build((16, 16), 3))


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_loss_is_dino_s_of_masked_views_and_the_distance_to_their_pixels(everywhere, distance):
    method, one = built(everywhere=everywhere, distance=distance, restore_weight=0.5).train(), batch()
    whole, head = [one.images, one.other_views[0]], method.embedder.projector
    patches, mask, _ = method.sample(whole, one, 0.0)
    tokens = method.student(patches, mask.hidden)
    views = [*head(tokens.prefix[:, 0]).split(8), method.embedder(one.other_views[1])]
    expected = DINOLoss(output_dim=24, student_temp=0.1)([method.slow(x) for x in whole], views, teacher_temp=0.04)
    restored = method.decoder.embed(torch.cat(tokens, dim=1))
    restored = restored + torch.cat([torch.zeros(1, 1, 16), method.decoder.positions], dim=1)
    restored = method.decoder.head(method.decoder.norm(method.decoder.blocks(restored)))[:, 1:]
    apart = (restored - patches).detach().double().numpy()
    apart = np.abs(apart) if distance == "l1" else apart**2
    where = np.ones(mask.hidden.shape, dtype=bool) if everywhere else mask.hidden.numpy()
    found = method(one, 0.0)
    assert found.logs["restoration"].item() == pytest.approx(apart[where].mean(), rel=1e-5)
    assert found.loss.item() == pytest.approx(expected.item() + 0.5 * apart[where].mean(), rel=1e-5)


def test_a_quarter_of_the_less_attended_half_is_hidden_by_chance():
    masker, generator = MSTConfig().masker, torch.Generator().manual_seed(0)
    attention = torch.rand(400, 64, 1, generator=generator)
    mask = masker(attention, torch.arange(400), 0.0, (8, 8))
    rank = attention[..., 0].argsort(dim=1).argsort(dim=1)
    assert (mask.hidden.sum(dim=1) == 8).all() and rank[mask.hidden].max() == 31
    count = rank[mask.hidden].bincount(minlength=32)
    assert count.min() > 60 and count.max() < 140  # 100 each
    lowest = replace(masker, among=0.0)(attention, torch.arange(400), 0.0, (8, 8))
    assert rank[lowest.hidden].max() == 7
    for wrong in ({"hides": "high"}, {"among": 0.1}, {"among": 1.1}):
        with pytest.raises(UserError, match=r"masker\.among"):
            replace(masker, **wrong)


def test_nothing_of_hidden_pixels_gets_in_and_the_teacher_says_where_it_is_hidden():
    method, one = built(), batch()
    whole = [one.images, one.other_views[0]]
    patches, mask, _ = method.sample(whole, one, 0.0)
    changed = torch.where(mask.hidden.unsqueeze(2), torch.full_like(patches, 9.0), patches)
    results = [method.student(x, mask.hidden) for x in (patches, changed)]
    assert torch.equal(results[0].prefix, results[1].prefix)
    assert torch.equal(*(method.restore(tokens) for tokens in results))
    with torch.no_grad():
        for parameter in method.encoder.timm.blocks.parameters():
            parameter.normal_()
    assert method.mask_sampler.slow is None and not torch.equal(method.sample(whole, one, 0.0)[1].hidden, mask.hidden)


def test_gradients_reach_all_that_is_trained():
    for encoder, changes in (
        (VIT, {}),
        (replace(VIT, model_args={"class_token": False, "global_pool": "avg"}), {"masker": RandomMasker(ratio=0.3)}),
    ):
        method = built(encoder, norm_last=False, **changes)
        step = method(batch(), 0.0)
        step.loss.backward()
        for name, parameter in method.named_parameters():
            fixed = name.startswith("slow.") or "pos_embed" in name or name == "decoder.mask_token"
            assert parameter.requires_grad != fixed, name
            assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
        assert all(value.ndim == 0 and not value.requires_grad for value in step.logs.values())
    assert method.encoder is method.slow.module.encoder


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    alone, found = two_steps("mst-vit"), in_ranks(["mst-vit"], 2, tmp_path)["mst-vit"]
    assert alone.keys() == found.keys() and alone["state center"].any()
    for name, value in alone.items():
        if not name.startswith("gradient 1"):  # in which rounding has grown
            apart, size = (found[name] - value).abs().max(), value.abs().max()
            assert apart <= 3e-4 * size + 1e-5, name


def test_a_resumed_run_is_the_same_bit_for_bit_and_draws_what_it_restores(forty, tmp_path):
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
    assert losses[0] == losses[1] and (tmp_path / "whole/pictures/reconstruction.png").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"masker": PartitionMasker()}, "MST hides patches of a view once and PartitionMasker does so 4 times"),
        ({"masker": AMTMasker()}, "AMTMasker throws some away"),
        ({"masker": AttMaskMasker(refresh=2)}, "MST masks two views and cached maps follow the first alone"),
        ({"distance": "l3"}, "method.distance"),
        ({"restore_weight": -1.0}, "method.restore_weight"),
        ({"temperature": 0.0}, "method.temperature"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        built(**changes)


CHANGES = {
    "masker": RandomMasker(ratio=0.5),
    "decoder": DecoderConfig(width=24, depth=1, heads=2),
    "distance": "l2",
    "everywhere": False,
    "restore_weight": 0.5,
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
    assert set(CHANGES) == {setting.name for setting in fields(MSTConfig)}
    assert three_losses() == three_losses() != three_losses(**{name: CHANGES[name]})


def test_the_recipe_is_dino_s():
    run, dino = find_recipe("mst_vit_s16"), find_recipe("dino_vit_s16")
    assert (run.images, run.optimizer, run.schedule) == (dino.images, dino.optimizer, dino.schedule)
    shared = [setting.name for setting in fields(DINOConfig) if setting.name != "freeze_last"]
    assert all(getattr(run.method, name) == getattr(dino.method, name) for name in shared)
    assert run.method.masker.ratio / run.method.masker.among == 0.25
