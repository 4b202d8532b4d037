"""I-JEPA: encoder and predictor against transformers and lightly, loss against NumPy, blocks that are blind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
from safetensors.torch import load_file
from torch import Tensor
from transformers import IJepaConfig as TheirConfig
from transformers import IJepaModel

from drills import tiny
from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import AttMaskMasker, MultiBlockMasker, RandomMasker
from mimkit.methods.ijepa import IJEPA, IJEPAConfig
from mimkit.methods.momentum import Momentum
from mimkit.model.build import EncoderConfig
from mimkit.model.patches import patchify
from mimkit.model.predictor import PredictorConfig
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.pretrain import pretrain

torch.set_num_threads(1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=3, heads=2, model_args={"class_token": False})
CONFIG = IJEPAConfig(masker=MultiBlockMasker(), predictor=PredictorConfig(width=16, depth=2))
SIZE = (32, 32)


def built(config: IJEPAConfig = CONFIG, vit: EncoderConfig = VIT, size: tuple[int, int] = SIZE, **changes) -> IJEPA:
    torch.manual_seed(0)
    method = replace(config, **changes).build(vit.build(size, 3))
    with torch.no_grad():
        for parameter in (*method.student.parameters(), *method.predictor.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    method.setup(DatasetView(0, lambda: torch.zeros(0, 3, 1, 1), lambda: iter(())), resumed=False)
    return method


def batch(rows: int = 4, size: tuple[int, int] = SIZE, seed: int = 0) -> Batch:
    images = torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed))
    return Batch(images, rng_keys("test", seed, torch.arange(rows)), torch.arange(rows))


# ---- oracles


def transformers_encoder(method: IJEPA) -> IJepaModel:
    """Theirs with our weights; the fused matrix is split."""
    settings = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128)
    config = TheirConfig(image_size=32, patch_size=4, layer_norm_eps=1e-6, **settings)
    theirs = IJepaModel(config, add_pooling_layer=False)
    ours, state = method.student.timm.state_dict(), {}
    state["embeddings.position_embeddings"] = ours["pos_embed"]
    for name in ("weight", "bias"):
        state[f"embeddings.patch_embeddings.projection.{name}"] = ours[f"patch_embed.proj.{name}"]
        state[f"layernorm.{name}"] = ours[f"norm.{name}"]
        for i in range(3):
            at, prefix = f"blocks.{i}", f"layers.{i}"
            for part, value in zip("qkv", ours[f"{at}.attn.qkv.{name}"].chunk(3), strict=True):
                state[f"{prefix}.attention.{part}_proj.{name}"] = value
            state[f"{prefix}.attention.o_proj.{name}"] = ours[f"{at}.attn.proj.{name}"]
            for part in ("fc1", "fc2"):
                state[f"{prefix}.mlp.{part}.{name}"] = ours[f"{at}.mlp.{part}.{name}"]
            state[f"{prefix}.layernorm_before.{name}"] = ours[f"{at}.norm1.{name}"]
            state[f"{prefix}.layernorm_after.{name}"] = ours[f"{at}.norm2.{name}"]
    theirs.load_state_dict(state)
    return theirs.eval()


@torch.no_grad()
def test_target_and_loss_are_those_of_transformers_and_numpy():
    method, one = built(), batch()
    tokens = transformers_encoder(method)(one.images).last_hidden_state.double().numpy()
    target = (tokens - tokens.mean(axis=2, keepdims=True)) / np.sqrt(tokens.var(axis=2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(method.slow(one.images).numpy(), target, atol=1e-5)
    patches, mask, _ = method.sample(one, 0.5)
    prediction, terms = method.predict(patches, mask).double().numpy(), []
    for row, blocks in enumerate(mask.asked.tolist()):
        for number, places in enumerate(blocks):
            for slot, place in enumerate(places):
                if mask.hidden[row, place]:
                    error = np.abs(prediction[row, number, slot] - target[row, place])
                    terms.append(np.where(error < 1, error**2 / 2, error - 0.5).mean())
    assert method(one, 0.5).loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


@torch.no_grad()
def test_the_predictor_is_lightly_s():
    method, one = built(), batch()
    patches, mask, _ = method.sample(one, 0.5)
    ours = method.predictor
    theirs = IJEPAPredictorTIMM(num_patches=64, depth=2, mlp_dim=32, predictor_embed_dim=16, num_heads=2)
    for mine, other in (("embed", "predictor_embed"), ("head", "predictor_proj"), ("norm", "decoder.norm")):
        theirs.get_submodule(other).load_state_dict(ours.get_submodule(mine).state_dict())
    theirs.decoder.blocks.load_state_dict(ours.blocks.state_dict())
    theirs.decoder.mask_token.copy_(ours.mask_token)
    torch.testing.assert_close(theirs.decoder.pos_embed, ours.positions)
    latents = method.student.encode(method.student.embed(patches, mask), mask)
    real = mask.at_blocks(mask.hidden)
    count = int(real[0, 0].sum())
    assert (real.sum(dim=2) == count).all(), "sizes are those of the batch"
    blocks = [mask.asked[:, number, :count] for number in range(4)]
    expected = theirs.eval()(latents.patches, mask.visible, blocks).unflatten(0, (4, 4)).transpose(0, 1)
    torch.testing.assert_close(ours(latents, mask)[:, :, :count], expected, atol=1e-5, rtol=1e-4)


def test_its_gradient_is_that_of_plain_torch():
    method, one = built(), batch()
    patches, mask, _ = method.sample(one, 0.5)
    real = mask.at_blocks(mask.hidden)
    loss = torch.nn.SmoothL1Loss()(method.predict(patches, mask)[real], mask.at_blocks(method.slow(one.images))[real])
    trained = [p for p in method.parameters() if p.requires_grad]
    found = torch.autograd.grad(method(one, 0.5).loss, trained)
    torch.testing.assert_close(found, torch.autograd.grad(loss, trained), rtol=1e-4, atol=1e-7)


# ---- who sees what


@torch.no_grad()
@pytest.mark.parametrize("vit", [VIT, replace(VIT, model_args={})], ids=["no class token", "class token"])
def test_blocks_do_not_see_each_other(vit):
    method, one = built(vit=vit), batch()
    patches, mask, _ = method.sample(one, 0.5)
    whole = method.predict(patches, mask)
    alone = method.predict(patches, replace(mask, asked=mask.asked[:, :1]))
    elsewhere = torch.cat([mask.asked[:, :1], mask.asked[:, 2:] * 0 + 5], dim=1)
    moved = method.predict(patches, replace(mask, asked=elsewhere))
    real = mask.at_blocks(mask.hidden)[:, 0]
    for other in (alone, moved):
        torch.testing.assert_close(whole[:, 0][real], other[:, 0][real], atol=1e-5, rtol=1e-4)
    shifted = replace(mask, asked=mask.asked.clone())
    shifted.asked[:, 0, 1] = shifted.asked[:, 0, 0]  # but places of a block do
    assert not torch.allclose(method.predict(patches, shifted)[:, 0, 0], whole[:, 0, 0], atol=1e-5)


@torch.no_grad()
def test_a_surplus_slot_changes_nothing():
    method, one = built(), batch()
    for moment in range(20):
        patches, mask, _ = method.sample(one, moment / 20)
        count = int(mask.at_blocks(mask.hidden)[0, 0].sum())
        if count < mask.asked.shape[2]:
            break
    assert count < mask.asked.shape[2], "smaller blocks than the largest"
    cut = replace(mask, asked=mask.asked[:, :, :count])
    torch.testing.assert_close(
        method.predict(patches, cut), method.predict(patches, mask)[:, :, :count], atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_nothing_hidden_reaches_the_student_and_all_of_it_the_teacher():
    method, one = built(), batch()
    patches, mask, _ = method.sample(one, 0.5)
    changed = torch.where(mask.hidden.unsqueeze(2), patches + 5, patches)
    assert torch.equal(method.predict(patches, mask), method.predict(changed, mask))
    other = one.images.clone()
    other[:, :, -4:, -4:] += 5
    assert not torch.isclose(method.slow(other), method.slow(one.images)).all(dim=2).any()


def test_every_trained_weight_gets_a_gradient_and_no_other():
    method = built(vit=replace(VIT, positions="learned"))
    step = method(batch(), 0.0)
    step.loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
        assert parameter.requires_grad != name.startswith("slow."), name
    assert all(value.ndim == 0 and not value.requires_grad for value in step.logs.values())


# ---- the teacher


def test_the_teacher_follows_in_a_straight_line_and_leaves():
    method = built(momentum=Momentum(first=0.6, last=1.0, shape="linear"))
    assert method.encoder is method.slow.module and method.student is not method.encoder
    start = [value.clone() for value in method.slow.parameters()]
    with torch.no_grad():
        for value in method.student.parameters():
            value.add_(1)
    method.after_step(0.5)
    for old, new in zip(start, method.slow.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.2), rtol=1e-4, atol=1e-5)
    names = {name.split(".")[0] for name in method.state_dict()}
    assert names == {"encoder", "slow", "predictor"}


def test_linear_layers_start_small():
    method = replace(CONFIG, predictor=PredictorConfig(width=96, depth=1, heads=2)).build(
        replace(VIT, width=192).build((16, 16), 3)
    )
    for weight in (
        method.student.timm.blocks[1].attn.qkv.weight,
        method.encoder.timm.patch_embed.proj.weight,
        method.predictor.blocks[0].mlp.fc1.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_masker_reads_the_method_s_own_average():
    method = built(vit=replace(VIT, model_args={}), masker=AttMaskMasker(scorer="ema", start=0.0))
    assert method.mask_sampler.slow is None and not [name for name in method.state_dict() if "mask_sampler" in name]


def trained(own_target: bool) -> tuple[list[float], list[float]]:
    """Losses and spreads of targets over a short training."""
    method, one = built(momentum=Momentum(first=0.99, shape="constant"), size=(16, 16)), batch(16, (16, 16))
    if own_target:  # the encoder in training is its own teacher, with gradient

        def target(images: Tensor) -> Tensor:
            latents = method.student.encode(method.student.embed(patchify(images, (4, 4)))).patches
            return torch.nn.functional.layer_norm(latents, (32,))

        method.slow.forward = target
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
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
        ({"momentum": Momentum(stretch=0.0)}, "momentum.stretch"),
        ({"predictor": PredictorConfig(width=18)}, "predictor.width 18 must be divisible by 4"),
        ({"predictor": PredictorConfig(width=16, heads=3)}, "by the 3 predictor.heads"),
        ({"predictor": PredictorConfig(depth=0)}, "predictor.depth"),
        ({"masker": MultiBlockMasker(ratio=0.05)}, "MultiBlockMasker: masker.ratio 0.05 shows 60 of 64"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        built(**changes)


@torch.no_grad()
def test_agreement_is_where_something_was_asked():
    method, one = built(size=(24, 32)), batch(size=(24, 32))
    values, mask = method.agreement(one, 0.5)
    asked = torch.zeros_like(mask.hidden).scatter(1, mask.asked.flatten(1), True) & mask.hidden
    assert torch.equal(values.isnan(), ~asked) and 0 <= values[asked].min() <= values[asked].max() <= 1
    values, mask = built(masker=RandomMasker(), size=(24, 32)).agreement(one, 0.5)
    assert torch.equal(values.isnan(), ~mask.hidden)


def test_a_run_draws_and_leaves_the_teacher(forty, tmp_path):
    run = tiny(forty, evals=1)
    run.encoder, run.images.size, run.epochs = replace(VIT, depth=2), 16, 1
    run.method = replace(CONFIG, momentum=Momentum(first=0.5))
    pretrain(run, tmp_path / "run", log=lambda line: None)
    assert list((tmp_path / "run" / "pictures").iterdir())
    state = load_checkpoint(checkpoints(tmp_path / "run")[-1])["model"]
    assert not torch.equal(state["encoder.timm.norm.weight"], state["slow.module.timm.norm.weight"])
    (file,) = (tmp_path / "run" / "export").glob("*.safetensors")
    torch.testing.assert_close(load_file(file)["norm.weight"], state["slow.module.timm.norm.weight"])
