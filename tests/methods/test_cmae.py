"""CMAE: its loss by the formula, what is seen of what is hidden, slow copies, runs and processes."""

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from contrastive_ranks import CONFIGS, VIT, batch, in_ranks, two_steps
from drills import tiny
from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.data.published import cmae
from mimkit.masks import AMTMasker, AttMaskMasker, PartitionMasker, RandomMasker, SalienceMasker, SimMIMMasker
from mimkit.methods.cmae import CMAE, CMAEConfig
from mimkit.methods.mae import MAEConfig
from mimkit.methods.targets.pixels import Pixels
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import patchify
from mimkit.recipes import find_recipe
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder

torch.set_num_threads(1)
CONFIG = CONFIGS["cmae"]


def built(encoder=VIT, **changes) -> CMAE:
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build(encoder.build((16, 16), 3))


def pair(step: int = 0) -> Batch:
    one = batch(step)
    return replace(one, other_views=one.other_views[:1])


def test_the_loss_is_mae_s_and_moco_v3_s_of_the_means_over_patches():
    method, one = built().train(), pair()
    with torch.no_grad():
        for parameter in method.slow_encoder.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    patches, mask, _ = method.sample(one, 0.0)
    target = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    squares = (method.predict(patches, mask) - target).square().mean(dim=2)
    mae = (squares * mask.hidden).sum() / mask.hidden.sum()
    latents = method.encoder.encode(method.encoder.embed(patches, mask), mask)
    q = method.predictor(method.projector(method.feature_decoder(latents, mask).mean(dim=1)))
    timm = method.slow_encoder.module.timm
    x = timm._pos_embed(timm.patch_embed(one.other_views[0]))
    for block in timm.blocks:
        x = block(x)
    k = method.slow_projector(x[:, 1:].mean(dim=1))  # class token inside, not in the mean; no final norm
    q, k = F.normalize(q, dim=1), F.normalize(k.detach(), dim=1)
    contrast = 2 * 0.07 * F.cross_entropy(q @ k.T / 0.07, torch.arange(8))
    found = method(one, 0.0)
    torch.testing.assert_close(found.loss, mae + contrast, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logs["reconstruction"], mae, rtol=1e-5, atol=1e-6)
    assert replace(CONFIG, weight=0.0).build(VIT.build((16, 16), 3)).config.weight == 0


def test_nothing_of_hidden_pixels_gets_into_the_query_and_everything_into_the_key():
    method, one = built().eval(), pair()
    patches, mask, _ = method.sample(one, 0.0)
    changed = torch.where(mask.hidden.unsqueeze(2), torch.full_like(patches, 9.0), patches)

    def features(x):
        return method.feature_decoder(method.encoder.encode(method.encoder.embed(x, mask), mask), mask)

    assert torch.equal(features(patches), features(changed))
    view = one.other_views[0]
    for place in range(16):
        other = patchify(view, (4, 4)).clone()
        other[:, place] += 1
        images = other.unflatten(1, (4, 4)).unflatten(3, (4, 4, 3)).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        assert not torch.equal(method.slow_encoder(view), method.slow_encoder(images))


def test_gradients_reach_all_that_is_trained_and_no_key():
    for encoder in (VIT, replace(VIT, model_args={"class_token": False, "global_pool": "avg"})):
        method = built(encoder)
        step = method(pair(), 0.0)
        step.loss.backward()
        for name, parameter in method.named_parameters():
            assert parameter.requires_grad != (name.startswith("slow_") or "pos_embed" in name), name
            assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
        assert all(value.ndim == 0 and not value.requires_grad for value in step.logs.values())


def test_what_decays():
    method = built()
    optimizer = AdamWConfig().build(method, 256)
    names = {id(p): name for name, p in method.named_parameters()}
    still = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {"encoder.timm.cls_token", "decoder.mask_token", "feature_decoder.mask_token"} <= still
    assert "projector.0.weight" not in still and "encoder.timm.patch_embed.proj.weight" not in still


def test_slow_copies_follow_after_the_step_and_begin_with_loaded_weights():
    method = built(momentum=0.75)
    before = [value.clone() for part in (method.slow_encoder, method.slow_projector) for value in part.parameters()]
    with torch.no_grad():
        for value in (*method.encoder.parameters(), *method.projector.parameters()):
            value.add_(1)
    method(pair(), 0.5)
    after = [*method.slow_encoder.parameters(), *method.slow_projector.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    method.after_step(0.5)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.25), rtol=1e-5, atol=1e-6)
    nobody = DatasetView(0, lambda: torch.zeros(0, 3, 1, 1), lambda: iter(()))
    method.setup(nobody, resumed=False)
    assert torch.equal(method.slow_encoder.module.timm.norm.weight, method.encoder.timm.norm.weight)
    assert not method.train().slow_encoder.module.training and method.slow_projector.module.training


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    alone, found = two_steps("cmae-vit"), in_ranks(["cmae-vit"], 2, tmp_path)["cmae-vit"]
    assert alone.keys() == found.keys()
    for name, value in alone.items():
        if name.startswith(("numbers 0", "gradient 0")):
            apart, size = (found[name] - value).abs().max(), value.abs().max()
            assert apart <= 1e-3 * size + 1e-5, name


def test_a_resumed_run_is_the_same_bit_for_bit_and_draws_its_reconstruction(forty, tmp_path):
    def run_of(**machine):
        run = tiny(forty, **({"log_every": 1, "evals": 1, "save_every": 2} | machine))
        run.encoder, run.method, run.epochs = VIT, CONFIG, 1  # five steps
        first, second = cmae()
        run.images = replace(run.images, size=16, view=first, other_views=(second,))
        return run

    pretrain(run_of(), tmp_path / "whole", log=lambda line: None)
    pretrain(run_of(), tmp_path / "parts", max_steps=2, log=lambda line: None)
    pretrain(run_of(keep=9), tmp_path / "parts", log=lambda line: None)
    one, other = (load_checkpoint(checkpoints(tmp_path / name)[-1])["model"] for name in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    losses = [[record["loss"] for record in RunFolder(tmp_path / name).metrics()] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert (tmp_path / "whole/pictures/reconstruction.png").exists()
    with pytest.raises(UserError, match=r"images\.flips dihedral turns each view by itself"):
        run = run_of()
        run.images.flips = "dihedral"
        pretrain(run, tmp_path / "turned", log=lambda line: None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"masker": PartitionMasker()}, "CMAE hides patches of a view once and PartitionMasker does so 4 times"),
        ({"masker": AMTMasker()}, "CMAE knows seen and hidden patches alone and AMTMasker throws some away"),
        ({"temperature": 0.0}, "temperature"),
        ({"momentum": 1.5}, "method.momentum"),
        ({"weight": -1.0}, "method.weight"),
        ({"hidden": 0}, "method.hidden"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        built(**changes)


def test_views_that_cannot_be_meant_are_refused():
    with pytest.raises(UserError, match=r"images\.other_views"):
        built()(replace(pair(), other_views=()), 0.0)
    with pytest.raises(UserError, match=r"CMAE's slow copy sees images\.size"):
        built()(replace(batch(), other_views=batch().other_views[::-1]), 0.0)


def test_attmask_reads_the_slow_copy():
    method = built(masker=AttMaskMasker(scorer="ema", ratio=0.5))
    assert method.mask_sampler.slow is None and not [n for n in method.state_dict() if n.startswith("mask_sampler")]
    before = method.sample(pair(), 0.5)[1].hidden
    with torch.no_grad():
        for parameter in method.slow_encoder.module.timm.blocks.parameters():
            parameter.normal_()
    assert not torch.equal(method.sample(pair(), 0.5)[1].hidden, before)


CHANGES = {
    "masker": RandomMasker(ratio=0.5),
    "target": Pixels(norm=False),
    "decoder": DecoderConfig(width=24, depth=1, heads=2),
    "feature_decoder": DecoderConfig(width=24, depth=1, heads=2),
    "weight": 0.5,
    "temperature": 0.2,
    "momentum": 0.9,
    "hidden": 8,
    "outputs": 4,
}


def three_losses(**changes):
    method = built(**changes)
    optimizer, losses = AdamWConfig(base_lr=1.0).build(method, 256), []
    for step in range(3):
        found = method(pair(step), step / 3)
        losses.append(found.loss.item())
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / 3)
    return losses


@pytest.mark.parametrize("name", CHANGES)
def test_no_dead_option(name):
    assert set(CHANGES) == {setting.name for setting in fields(CMAEConfig)}
    assert three_losses() == three_losses() != three_losses(**{name: CHANGES[name]})


def test_the_recipe_is_the_released_one():
    run = find_recipe("cmae_vit_b16")
    assert run.method == CMAEConfig() and run.method.masker == SimMIMMasker(unit=2, ratio=0.65)
    mask = run.method.masker(torch.zeros(2, 196, 0), torch.arange(2), 0.0, (14, 14))
    assert mask.visible.shape[1] == 68
    first, second = run.images.view, run.images.other_views[0]
    assert (first, second) == cmae() and first.color is None and second.color.jitter == 0.8 and second.places == 32
    assert replace(second, places=0, color=None) == first and first.scale == (0.2, 1.0)
    assert isinstance(find_recipe("cmae_vit_b16_sbam").method.masker, SalienceMasker)
    assert isinstance(find_recipe("mae_vit_b16").method, MAEConfig)
