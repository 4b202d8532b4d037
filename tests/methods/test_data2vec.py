"""data2vec: targets and loss against NumPy, one pass of the teacher for all views, what follows, and no collapse."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from drills import tiny
from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import AttMaskMasker, PartitionMasker, RandomMasker, SalienceMasker
from mimkit.methods.data2vec import Data2Vec, Data2VecConfig
from mimkit.methods.momentum import Momentum
from mimkit.model.build import EncoderConfig
from mimkit.model.grid_decoder import GridDecoderConfig
from mimkit.model.latents import LatentTargetConfig
from mimkit.model.patches import patchify
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.pretrain import pretrain

torch.set_num_threads(1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=3, heads=2)
TARGET = LatentTargetConfig(layers=2, standardize="both")
FIRST = Data2VecConfig(masker=RandomMasker(ratio=0.6), target=TARGET)
SECOND = replace(
    FIRST,
    masker=PartitionMasker(parts=4, mode="independent"),
    decoder=GridDecoderConfig(layers=2, groups=4),
    loss="l2",
)
BOTH = pytest.mark.parametrize("config", [FIRST, SECOND], ids=["1", "2"])


def built(config: Data2VecConfig = FIRST, size: tuple[int, int] = (16, 16), **changes) -> Data2Vec:
    torch.manual_seed(0)
    encoder = replace(VIT, positions="learned").build(size, 3)
    method = replace(config, **changes).build(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def batch(rows: int = 4, seed: int = 0, size: tuple[int, int] = (16, 16)) -> Batch:
    images = torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed))
    order = torch.arange(rows)
    return Batch(images, rng_keys("test", seed, order), order)


def standardized(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


def numpy_target(method: Data2Vec, images: Tensor) -> np.ndarray:
    """What timm's own blocks give of whole pictures, averaged."""
    vit, outputs = method.slow.module.timm, []
    x = vit._pos_embed(vit.patch_embed(images))
    for block in vit.blocks:
        x = block(x)
        outputs.append(standardized(x[:, 1:].double().numpy()))
    return standardized((outputs[-1] + outputs[-2]) / 2)


# ---- loss


@torch.no_grad()
@BOTH
def test_the_loss_is_the_formula(config):
    method, one = built(config), batch()
    patches, mask, _ = method.sample(one, 0.5)
    target = numpy_target(method, one.images).repeat(mask.views, axis=0)
    errors = method.predict(patches, mask).double().numpy() - target
    if config is FIRST:
        each = np.where(np.abs(errors) < 2, errors**2 / 4, np.abs(errors) - 1).mean(axis=2)
    else:
        each = (errors**2).sum(axis=2) / math.sqrt(32)
    expected = each[mask.hidden.numpy()].mean()
    assert method(one, 0.5).loss.item() == pytest.approx(expected, rel=1e-5)


@BOTH
def test_its_gradient_is_that_of_plain_torch(config):
    method, one = built(config), batch()
    patches, mask, _ = method.sample(one, 0.5)
    target = torch.from_numpy(numpy_target(method, one.images)).float().repeat_interleave(mask.views, dim=0)
    y, t = method.predict(patches, mask)[mask.hidden], target[mask.hidden]
    plain = torch.nn.SmoothL1Loss(beta=2.0)(y, t) if config is FIRST else torch.nn.MSELoss()(y, t) * math.sqrt(32)
    trained = [p for p in method.parameters() if p.requires_grad]
    expected = torch.autograd.grad(plain, trained)
    torch.testing.assert_close(torch.autograd.grad(method(one, 0.5).loss, trained), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("settings", "cost"), [({"beta": 2.0}, 0.247), ({"beta": 1.0}, 0.425), ({"loss": "l2"}, 8.0)])
def test_zeros_cost_what_they_must(settings, cost):
    """Of unit Gaussian targets, 64 wide."""
    target = torch.randn(1, 20_000, 64, generator=torch.Generator().manual_seed(0))
    errors = built(**settings).errors(torch.zeros_like(target), target)
    assert errors.mean().item() == pytest.approx(cost, rel=0.01)


@torch.no_grad()
def test_every_hidden_token_of_the_batch_weighs_alike():
    method, one = built(masker=SalienceMasker(spread=0.2, threshold=0.3, pooled=False, scale="cosine")), batch()
    patches, mask, _ = method.sample(one, 0.5)
    counts = mask.hidden.sum(dim=1).float()
    errors = method.errors(method.predict(patches, mask), method.slow(one.images))
    rows = (errors * mask.hidden).sum(dim=1) / counts
    loss = method(one, 0.5).loss
    assert len(counts.unique()) > 1
    torch.testing.assert_close(loss, (rows * counts).sum() / counts.sum())
    assert not torch.isclose(loss, rows.mean(), rtol=1e-5)


# ---- who sees what


@torch.no_grad()
@BOTH
def test_nothing_hidden_reaches_the_student_and_all_of_it_the_teacher(config):
    method, one = built(config), batch()
    patches, mask, _ = method.sample(one, 0.5)
    hidden = mask.hidden[:: mask.views]
    changed = torch.where(hidden.unsqueeze(2), patches + 5, patches)
    before, after = (method.predict(x, mask)[:: mask.views] for x in (patches, changed))
    assert torch.equal(before, after)
    other = one.images.clone()
    other[:, :, -4:, -4:] += 5
    assert not torch.isclose(method.slow(other), method.slow(one.images)).all(dim=2).any()


@BOTH
def test_every_trained_weight_gets_a_gradient_and_no_other(config):
    method = built(config)
    step = method(batch(), 0.0)
    step.loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
        assert parameter.requires_grad != name.startswith("slow."), name
    assert all(value.ndim == 0 and not value.requires_grad for value in step.logs.values())


@torch.no_grad()
def test_all_views_share_one_pass_of_the_teacher():
    method, one = built(SECOND), batch()
    passes = []
    method.slow.module.timm.blocks[0].register_forward_hook(lambda *call: passes.append(len(call[1][0])))
    loss = method(one, 0.5).loss
    assert passes == [4]
    patches, mask, _ = method.sample(one, 0.5)
    prediction, target = method.predict(patches, mask), method.slow(one.images)
    for view in range(4):
        rows = slice(view, None, 4)
        errors = method.errors(prediction[rows], target)
        loss = loss - errors[mask.hidden[rows]].mean() / 4
    assert abs(loss.item()) < 1e-5


@torch.no_grad()
def test_the_decoder_looks_as_far_as_its_convolutions_reach():
    decoder = GridDecoderConfig(layers=1, groups=2).build(8, (5, 7), 3)
    x = torch.randn(1, 35, 8)
    other = x.clone()
    other[0, 0] += 1
    moved = (decoder(x) != decoder(other)).any(dim=2).unflatten(1, (5, 7))[0]
    assert moved[:2, :2].all() and moved.sum() == 4
    assert decoder(x).shape == (1, 35, 3)


# ---- the teacher


@BOTH
def test_the_teacher_starts_as_the_encoder_and_follows(config):
    method = built(config, momentum=Momentum(first=0.8, last=1.0, shape="linear"))
    nobody = DatasetView(0, lambda: torch.zeros(0, 3, 1, 1), lambda: iter(()))
    before = [value.clone() for value in method.slow.parameters()]
    method.setup(nobody, resumed=True)
    assert all(torch.equal(a, b) for a, b in zip(before, method.slow.parameters(), strict=True))
    method.setup(nobody, resumed=False)
    start = [value.clone() for value in method.encoder.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, method.slow.parameters(), strict=True))
    with torch.no_grad():
        for value in method.encoder.parameters():
            value.add_(1)
    method.after_step(0.5)
    for old, new in zip(start, method.slow.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.1), rtol=1e-4, atol=1e-5)


def test_a_masker_reads_the_method_s_own_average():
    method = built(masker=AttMaskMasker(scorer="ema", start=0.0))
    assert method.mask_sampler.slow is None and not [name for name in method.state_dict() if "mask_sampler" in name]
    seen = []
    method.slow.module.timm.blocks[0].register_forward_hook(lambda *call: seen.append(1))
    method.sample(batch(), 0.5)
    assert seen


def trained(own_target: bool) -> tuple[list[float], list[float]]:
    """Losses and spreads of targets over a short training."""
    method, one = built(momentum=Momentum(first=0.9, shape="constant")), batch(16)
    if own_target:  # the encoder in training is its own teacher, with gradient
        embed = method.encoder.embed
        blocks = method.encoder.by_block

        def target(images: Tensor) -> Tensor:
            outputs = blocks(embed(patchify(images, (4, 4))))[-2:]
            mean = sum(torch.nn.functional.layer_norm(tokens.patches, (32,)) for tokens in outputs) / 2
            return torch.nn.functional.layer_norm(mean, (32,))

        method.slow.forward = target
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    losses, spreads = [], []
    for step in range(120):
        result = method(one, step / 120)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        method.after_step(step / 120)
        losses.append(result.loss.item())
        spreads.append(result.logs["target_spread"].item())
    return losses, spreads


def test_it_learns_and_collapses_only_with_a_gradient_in_the_target():
    losses, spreads = trained(own_target=False)
    broken, narrow = trained(own_target=True)
    assert losses[-1] < 0.9 * losses[0] and spreads[-1] > 0.5 * spreads[0]
    assert broken[-1] < 0.3 * losses[-1] and narrow[-1] < 0.5 * spreads[-1]


# ---- settings and pictures


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"beta": 0.0}, "method.beta must be above 0"),
        ({"momentum": Momentum(first=1.5)}, "momentum.first"),
        ({"target": LatentTargetConfig(layers=4)}, "target.layers 4 is more than the encoder's 3 blocks"),
        ({"decoder": GridDecoderConfig(groups=5)}, "decoder.groups must divide the encoder's width of 32"),
        ({"decoder": GridDecoderConfig(kernel=2)}, "decoder.kernel must be odd"),
        ({"decoder": GridDecoderConfig(layers=0)}, "decoder.layers"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        built(**changes)


@torch.no_grad()
@BOTH
def test_agreement_is_where_something_was_predicted(config):
    method, one = built(config, (16, 24)), batch(size=(16, 24))
    values, mask = method.agreement(one, 0.5)
    assert values.shape == mask.hidden.shape == (4 * mask.views, 24)
    assert torch.equal(values.isnan(), ~mask.hidden) and values.nanmean() < 0.9
    assert 0 <= values[mask.hidden].min() <= values[mask.hidden].max() <= 1


@BOTH
def test_a_run_draws_and_leaves_the_student(config, forty, tmp_path):
    run = tiny(forty, evals=1)
    run.encoder, run.images.size, run.epochs, run.method = replace(VIT, depth=2), 16, 1, config
    pretrain(run, tmp_path / "run", log=lambda line: None)
    assert (tmp_path / "run" / "pictures").is_dir() and list((tmp_path / "run" / "pictures").iterdir())
    state = load_checkpoint(checkpoints(tmp_path / "run")[-1])["model"]
    assert not torch.equal(state["encoder.timm.norm.weight"], state["slow.module.timm.norm.weight"])
    (file,) = (tmp_path / "run" / "export").glob("*.safetensors")
    torch.testing.assert_close(load_file(file)["norm.weight"], state["encoder.timm.norm.weight"])
