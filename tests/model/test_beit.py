"""BEiT encoder: timm's and transformers' outputs, SimMIM and data2vec on it, and what it is refused for."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import BeitConfig, BeitForMaskedImageModeling, Data2VecVisionConfig, Data2VecVisionModel

from drills import tiny
from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys, uniform
from mimkit.masks import AttMaskMasker, BlockMasker, Mask, Masker, RandomMasker, SalienceMasker
from mimkit.methods.base import MethodConfig
from mimkit.methods.data2vec import Data2VecConfig
from mimkit.methods.dino import DINOConfig
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.finetune import FineTuneConfig
from mimkit.methods.ijepa import IJEPAConfig
from mimkit.methods.mae import MAEConfig
from mimkit.methods.simclr import SimCLRConfig
from mimkit.methods.simmim import SimMIMConfig
from mimkit.methods.targets.tokens import LoadedTokenIds
from mimkit.model.beit import BeitEncoder
from mimkit.model.build import EncoderConfig
from mimkit.model.frozen import Frozen
from mimkit.model.grid_decoder import GridDecoderConfig
from mimkit.model.latents import LatentTargetConfig
from mimkit.model.patches import patchify
from mimkit.train.prepare import Prepared
from mimkit.train.pretrain import pretrain
from mimkit.weights.load import load_weights

torch.set_num_threads(1)
SHARED = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
BEIT = EncoderConfig(
    name="beit_base_patch16_224", patch=4, width=32, depth=3, heads=2, initialization="simmim", model_args=SHARED
)
OWN = replace(BEIT, model_args={})
BOTH = pytest.mark.parametrize("config", [BEIT, OWN], ids=["shared", "of each block"])


def built(config: EncoderConfig = BEIT, size: tuple[int, int] = (16, 16), seed: int = 0) -> BeitEncoder:
    torch.manual_seed(seed)
    encoder = config.build(size, 3)
    assert isinstance(encoder, BeitEncoder)
    encoder.mean, encoder.std = (0.5,) * 3, (0.25,) * 3
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


def images(rows: int = 4, size: tuple[int, int] = (16, 16)) -> Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(1))


def batch(rows: int = 4, size: tuple[int, int] = (16, 16)) -> Batch:
    return Batch(images(rows, size), rng_keys("test", torch.arange(rows)), torch.arange(rows))


def theirs(encoder: BeitEncoder, names: dict[str, str], layer: str, shared: str) -> dict[str, Tensor]:
    """Our weights by transformers' names; `names` are of the parts of a block."""
    ours, state = encoder.timm.state_dict(), {}
    state["embeddings.cls_token"] = ours["cls_token"]
    for name in ("weight", "bias"):
        state[f"embeddings.patch_embeddings.projection.{name}"] = ours[f"patch_embed.proj.{name}"]
    state[f"{shared}.relative_position_bias_table"] = ours["rel_pos_bias.relative_position_bias_table"]
    for i in range(len(encoder.timm.blocks)):
        at, prefix = f"blocks.{i}", f"{layer}.{i}"
        for part, value in zip("qkv", ours[f"{at}.attn.qkv.weight"].chunk(3), strict=True):
            state[f"{prefix}.{names[part]}.weight"] = value
        for part in "qv":
            state[f"{prefix}.{names[part]}.bias"] = ours[f"{at}.attn.{part}_bias"]
        for part in ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2"):
            for name in ("weight", "bias"):
                state[f"{prefix}.{names[part]}.{name}"] = ours[f"{at}.{part}.{name}"]
        for number in (1, 2):
            state[f"{prefix}.lambda_{number}"] = ours[f"{at}.gamma_{number}"]
    return state


SIZES = dict(
    image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128
)
NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
OF_BEIT = {part: f"attention.{part}_proj" for part in "qkv"} | NORMS
OF_BEIT |= {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
OF_DATA2VEC = {part: f"attention.attention.{name}" for part, name in zip("qkv", ("query", "key", "value"), strict=True)}
OF_DATA2VEC |= NORMS | {"attn.proj": "attention.output.dense"}
OF_DATA2VEC |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


# ---- outputs


@torch.no_grad()
@BOTH
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_it_is_timm_s_bit_for_bit(config, size):
    encoder, x = built(config, size), images(size=size)
    expected = encoder.timm.forward_features(x)
    for tokens in (encoder(x), encoder.encode(encoder.embed(patchify(x, (4, 4))))):
        assert torch.equal(torch.cat(tokens, dim=1), expected)
    block = encoder.by_block(encoder.embed(patchify(x, (4, 4))))
    assert len(block) == 3 and torch.equal(encoder.timm.norm(torch.cat(block[-1], dim=1)), expected)


@torch.no_grad()
@BOTH
def test_nothing_of_hidden_patches_gets_in(config):
    encoder, patches = built(config), patchify(images(), (4, 4))
    hidden = RandomMasker(ratio=0.5)(patches[..., :0], batch().rng_keys, 0.0, (4, 4)).hidden
    outputs = []
    where = hidden.unsqueeze(2)
    for x in (patches, torch.where(where, 50.0, patches), torch.where(where, patches, 50.0)):
        outputs.append(torch.cat(encoder.encode(encoder.fill(x, hidden, torch.zeros(32))), dim=1))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_it_starts_as_beit_does():
    encoder = replace(BEIT, width=192, depth=2).build((16, 16), 3)
    cut = 0.02 * 0.54  # a normal cut at one deviation
    assert encoder.timm.blocks[1].attn.qkv.weight.std().item() == pytest.approx(cut, rel=0.02)
    assert encoder.timm.blocks[1].mlp.fc2.weight.std().item() == pytest.approx(cut / 2, rel=0.02)
    assert not encoder.timm.rel_pos_bias.relative_position_bias_table.any()
    assert (encoder.timm.blocks[0].gamma_1 == 0.1).all()


# ---- methods


@dataclass(frozen=True, kw_only=True)
class Uneven(Masker):
    """Other numbers of hidden patches in each of four pictures."""

    def __call__(self, score_maps, rng_keys, progress, grid) -> Mask:
        return Mask.from_scores(uniform(rng_keys, 16), torch.tensor([3, 9, 5, 12])[: len(rng_keys)], least=1)


class Labels(nn.Module):
    """A tokenizer: the bin of each patch's mean."""

    classes = 11

    def ids(self, pictures: Tensor) -> Tensor:
        return (nn.functional.avg_pool2d(pictures.mean(dim=1), 4) * 11).long().clamp(0, 10)


def beit_method(encoder: BeitEncoder, **changes):
    target = LoadedTokenIds(tokenizer="labels", network=Frozen(Labels()), cell=4)
    settings = dict(masker=BlockMasker(ratio=0.4, exact=False), target=target, weigh="token") | changes
    torch.manual_seed(3)
    return SimMIMConfig(**settings).build(encoder)


def test_beit_s_loss_and_gradients_are_those_of_transformers():
    encoder = built()
    masker = Uneven()
    method, one = beit_method(encoder, masker=masker), batch()
    config = BeitConfig(
        vocab_size=11, use_mask_token=True, use_shared_relative_position_bias=True, layer_norm_eps=1e-6, **SIZES
    )
    oracle = BeitForMaskedImageModeling(config).eval()
    state = {f"beit.{k}": v for k, v in theirs(encoder, OF_BEIT, "layers", "shared_position_bias").items()}
    state["beit.embeddings.mask_token"] = method.mask_token.detach()[None, None]
    for name in ("weight", "bias"):
        state[f"layernorm.{name}"] = encoder.timm.norm.state_dict()[name]
        state[f"lm_head.{name}"] = method.head.state_dict()[f"linear.{name}"]
    oracle.load_state_dict(state)
    _, mask, _ = method.sample(one, 0.5)
    labels = Labels().ids((one.images * 0.25 + 0.5).clamp(0, 1)).flatten(1)[mask.hidden]
    expected = oracle(one.images, bool_masked_pos=mask.hidden, labels=labels)
    loss = method(one, 0.5).loss
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.loss.backward()
    pairs = (
        (method.mask_token.grad, oracle.beit.embeddings.mask_token.grad[0, 0]),
        (encoder.timm.blocks[0].gamma_1.grad, oracle.beit.layers[0].lambda_1.grad),
        (
            encoder.timm.rel_pos_bias.relative_position_bias_table.grad,
            oracle.beit.shared_position_bias.relative_position_bias_table.grad,
        ),
    )
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    by_picture = beit_method(encoder, masker=masker, weigh="picture")(one, 0.5).loss
    assert not torch.isclose(by_picture, expected.loss, rtol=1e-5)


@torch.no_grad()
def test_data2vec_s_target_is_that_of_transformers():
    encoder = built()
    method = Data2VecConfig(
        masker=RandomMasker(ratio=0.5), target=LatentTargetConfig(layers=2, standardize="both")
    ).build(encoder)
    config = Data2VecVisionConfig(use_shared_relative_position_bias=True, layer_norm_eps=1e-6, **SIZES)
    oracle = Data2VecVisionModel(config, add_pooling_layer=False).eval()
    state = theirs(encoder, OF_DATA2VEC, "encoder.layer", "encoder.relative_position_bias")
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("layernorm.") for name in missing)
    states = oracle(images(), output_hidden_states=True).hidden_states
    layers = [nn.functional.layer_norm(state[:, 1:], (32,)) for state in states[-2:]]
    expected = nn.functional.layer_norm((layers[0] + layers[1]) / 2, (32,))
    torch.testing.assert_close(method.slow(images()), expected, atol=1e-5, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("method", [SimMIMConfig(), Data2VecConfig(target=LatentTargetConfig())])
def test_every_weight_of_it_learns(config, method):
    encoder = built(config)
    task = replace(method, masker=RandomMasker(ratio=0.5)).build(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        task(batch(), 0.5).loss.backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    "method", [MAEConfig(), EMAEConfig(), IJEPAConfig(), DINOConfig(), SimCLRConfig(), Data2VecConfig]
)
def test_where_patches_are_left_out_it_is_refused_by_name(method, forty):
    run = tiny(forty)
    run.encoder, run.images.size, reason = BEIT, 16, "its relative positions belong to the full grid"
    if method is Data2VecConfig:
        target = LatentTargetConfig()
        method, reason = Data2VecConfig(decoder=GridDecoderConfig(groups=4), target=target), "a Beit .* leaves no patch"
    run.method = method
    assert isinstance(method, MethodConfig)
    with pytest.raises(UserError, match=reason):
        _ = Prepared(run).task


@pytest.mark.parametrize("masker", [SalienceMasker(), AttMaskMasker(scorer="ema")])
@pytest.mark.parametrize("method", [SimMIMConfig(), Data2VecConfig(target=LatentTargetConfig())])
def test_a_masker_that_looks_is_refused_by_name(method, masker):
    with pytest.raises(UserError, match=rf"{type(masker).__name__} reads a value .* a Beit's attention has biases"):
        replace(method, masker=masker).build(built())


@BOTH
@pytest.mark.parametrize("pool", ["mean", "class"])
def test_it_is_fine_tuned_as_a_plain_vit_is(config, pool):
    encoder = built(config)
    with torch.no_grad():
        tokens = encoder(images())
        pooled = tokens.patches.mean(dim=1) if pool == "mean" else tokens.prefix[:, 0]
    task = FineTuneConfig(classes=3, pool=pool, drop_path=0.0).build(encoder).eval()
    vit = task.encoder.timm
    assert isinstance(vit.fc_norm, nn.Identity) == (pool == "class")
    if pool == "class":
        torch.testing.assert_close(vit(images()), vit.head(pooled))
    else:  # the norm is behind the pooling
        before = torch.cat(encoder.by_block(encoder.embed(patchify(images(), (4, 4))))[-1], dim=1)[:, 1:]
        torch.testing.assert_close(vit(images()), vit.head(vit.fc_norm(before.mean(dim=1))))
    assert "encoder.timm.cls_token" in task.no_weight_decay


# ---- weights


@BOTH
def test_released_weights_load_and_the_export_is_timm_s(config, forty, tmp_path):
    released = timm.create_model(config.name, **config.timm_args((16, 16), 3))
    with torch.no_grad():
        for parameter in released.parameters():
            parameter.normal_(std=0.1)
    state = released.state_dict() | {"mask_token": torch.zeros(1, 1, 32), "lm_head.weight": torch.zeros(8192, 32)}
    file: Path = tmp_path / "beit.pth"
    torch.save({"model": state}, file)
    encoder = built(config)
    report = load_weights(str(file), encoder)
    assert not report.missing and report.unexpected == ["decoder.mask_token", "vit.lm_head.weight"]
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(encoder.timm(x), released.eval()(x))
    run = tiny(forty)
    run.encoder, run.images.size, run.epochs = replace(config, weights=str(file)), 16, 1
    run.method = SimMIMConfig(masker=RandomMasker(ratio=0.5))
    pretrain(run, tmp_path / "run", log=lambda line: None)
    again = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export'}", pretrained=True).eval()
    assert type(again) is type(released) and type(again.norm) is type(released.norm)
    differ = [name for name, value in again.state_dict().items() if not torch.equal(value, state[name])]
    assert "blocks.0.attn.q_bias" in differ and np.isfinite(again(x).detach().numpy()).all()
