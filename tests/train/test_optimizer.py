"""Optimizers against timm's groups, the published numbers, and NumPy's arithmetic."""

from copy import deepcopy
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from mimkit.core.config import from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.methods.base import Task
from mimkit.methods.depth import DepthConfig
from mimkit.methods.detect import DetectConfig
from mimkit.methods.keypoints import KeypointsConfig
from mimkit.methods.segment import SegmentConfig
from mimkit.model.build import EncoderConfig
from mimkit.train.optimizer import AdamWConfig, LarsConfig, OptimizerConfig, SGDConfig, set_decay, set_lr


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


class Holder(Task):
    """A task as the optimizer sees it: a timm model inside an encoder, and weights of its own."""

    no_weight_decay = ("encoder.timm.pos_embed", "encoder.timm.cls_token")

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.timm = vit
        self.head = nn.Linear(8, 4)


def vit(name: str = "vit_base_patch16_224", **changes) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=10, **changes)


def as_names(groups, model: nn.Module, prefix: str = "") -> dict[str, tuple[float, float]]:
    """{parameter: (scale of its rate, weight decay)}."""
    names = {id(p): prefix + name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in groups
        for p in group["params"]
        if id(p) in names
    }


def test_layers_learn_at_timm_s_rates_and_at_the_published_ones():
    model = vit(fc_norm=True, global_pool="avg")
    task = Holder(model)
    groups = AdamWConfig(layer_decay=0.75, weight_decay=0.05).build(task, 1024).param_groups
    expected = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.75)
    ours = as_names(groups, model)
    assert ours == as_names(expected, model) and len(ours) == len(list(model.parameters()))
    assert ours["pos_embed"] == ours["cls_token"] == (pytest.approx(0.0238, abs=5e-5), 0.0)  # 0.75 ** 13
    assert ours["patch_embed.proj.weight"] == (0.75**13, 0.05)
    assert [ours[f"blocks.{i}.mlp.fc1.weight"][0] for i in range(12)] == [0.75 ** (12 - i) for i in range(12)]
    assert ours["fc_norm.weight"] == (1.0, 0.0) and ours["head.weight"] == (1.0, 0.05)
    assert as_names(groups, task.head, "head.") == {"head.weight": (1.0, 0.05), "head.bias": (1.0, 0.0)}
    for group in groups:
        assert group["peak"] == group["lr"] == pytest.approx(1.5e-4 * 1024 / 256 * group["lr_scale"])
    optimizer = AdamWConfig(layer_decay=0.75).build(task, 256)
    set_lr(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.5 * 1.5e-4 * 0.75**i for i in range(14)}


def test_layers_of_a_swin_learn_at_timm_s_rates():
    model = vit("swin_tiny_patch4_window7_224")
    groups = AdamWConfig(layer_decay=0.9, weight_decay=0.05).build(Holder(model), 256).param_groups
    ours, expected = as_names(groups, model), as_names(param_groups_layer_decay(model, 0.05, layer_decay=0.9), model)
    assert ours == expected and len({scale for scale, _ in ours.values()}) > 10


def vitdet_rate(name: str, rate: float, blocks: int) -> float:
    """What ViTDet's table says of a parameter, written anew: 0 for the embedding, i + 1 for block i, else one above."""
    layer = blocks + 1
    if name.startswith("encoder.") and (".pos_embed" in name or ".patch_embed" in name):
        layer = 0
    elif name.startswith("encoder.") and ".blocks." in name:
        layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
    return rate ** (blocks + 1 - layer)


@pytest.mark.parametrize(
    "config", [DetectConfig(classes=80, window=16), SegmentConfig(classes=150, window=16, channels=64)]
)
def test_pyramids_and_heads_learn_above_the_encoder_as_in_vitdet(config):
    with torch.device("meta"):
        encoder = EncoderConfig(positions="learned").build((256, 256), 3)
    task = config.build(encoder)
    groups = AdamWConfig(layer_decay=0.7, weight_decay=0.1).build(task, 64).param_groups
    ours = as_names(groups, task)
    trained = [name for name, p in task.named_parameters() if p.requires_grad]
    assert sorted(ours) == sorted(trained)
    assert {name: scale for name, (scale, _) in ours.items()} == pytest.approx(
        {name: vitdet_rate(name, 0.7, 12) for name in trained}
    )
    assert ours["encoder.timm.pos_embed"] == (pytest.approx(0.7**13), 0.0)
    assert ours["encoder.timm.blocks.11.mlp.fc2.weight"] == (pytest.approx(0.7), 0.1)
    above = {scale for name, (scale, _) in ours.items() if not name.startswith("encoder.")}
    assert above == {1.0} and not any(name.startswith("encoder.timm.norm") for name in ours)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18"])
def test_the_heads_of_other_encoders_learn_fastest_too(name):
    for config in (
        DetectConfig(classes=3),
        SegmentConfig(classes=3, channels=64),
        DepthConfig(),
        KeypointsConfig(joints=3),
    ):
        with torch.device("meta"):
            encoder = EncoderConfig(name=name).build((224, 224), 3)
        task = config.build(encoder)
        ours = as_names(AdamWConfig(layer_decay=0.5).build(task, 64).param_groups, task)
        assert {scale for name, (scale, _) in ours.items() if not name.startswith("encoder.")} == {1.0}
        # The final norm, of which timm makes no layer, goes with the last block.
        inside = [scale for name, (scale, _) in ours.items() if name.startswith("encoder.")]
        assert max(inside) == 0.5 and min(inside) < 0.1


def test_everything_or_what_timm_says_is_decayed():
    task = Holder(vit("vit_tiny_patch16_224"))
    task.encoder.timm.pos_embed.requires_grad = False
    names = {name for name, p in task.named_parameters() if p.requires_grad}
    everything = as_names(AdamWConfig(decay_all=True, weight_decay=0.1).build(task, 256).param_groups, task)
    assert everything == dict.fromkeys(names, (1.0, 0.1))
    layered = as_names(
        AdamWConfig(decay_all=True, weight_decay=0.1, layer_decay=0.5).build(task, 256).param_groups, task
    )
    assert layered.keys() == names and {decay for _, decay in layered.values()} == {0.1}
    usual = as_names(AdamWConfig().build(task, 256).param_groups, task)
    assert usual == as_names(param_groups_weight_decay(task, 0.05, no_weight_decay_list=task.no_weight_decay), task)
    assert usual["encoder.timm.cls_token"] == (1.0, 0.0) and usual["head.weight"] == (1.0, 0.05)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()
    model[3].register_parameter("still", nn.Parameter(torch.ones(2).double(), requires_grad=False))
    nn.init.zeros_(model[0].bias)
    return model


def gradients(model: nn.Module, step: int) -> dict[str, np.ndarray]:
    """Set a gradient for every trained parameter; returns them."""
    generator = torch.Generator().manual_seed(step)
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.double)
            found[name] = p.grad.numpy().copy()
    return found


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_is_the_published_formula(decay):
    model = small()
    nn.init.zeros_(model[3].weight)  # a tensor without a norm is not adapted
    config = LarsConfig(base_lr=0.4, weight_decay=decay)
    optimizer = config.build(model, 128)
    values = {name: p.detach().numpy().copy() for name, p in model.named_parameters() if p.requires_grad}
    moments = dict.fromkeys(values, 0.0)
    for step in range(4):
        for name, g in gradients(model, step).items():
            w = values[name]
            if w.ndim > 1:
                g = g + decay * w
                norms = np.linalg.norm(w), np.linalg.norm(g)
                g = g * (0.001 * norms[0] / norms[1] if min(norms) > 0 else 1.0)
            moments[name] = 0.9 * moments[name] + g
            values[name] = w - 0.2 * moments[name]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for name, value in values.items():
        np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), value, rtol=1e-10, atol=1e-13)
    assert torch.equal(model[3].still, torch.ones(2).double())


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_decays_everything(nesterov):
    model = small(1)
    optimizer = SGDConfig(base_lr=0.06, momentum=0.8, weight_decay=0.3, nesterov=nesterov).build(model, 128)
    values = {name: p.detach().numpy().copy() for name, p in model.named_parameters() if p.requires_grad}
    moments = dict.fromkeys(values, 0.0)
    for step in range(3):
        for name, g in gradients(model, step).items():
            g = g + 0.3 * values[name]
            moments[name] = 0.8 * moments[name] + g
            values[name] = values[name] - 0.03 * (g + 0.8 * moments[name] if nesterov else moments[name])
        optimizer.step()
    for name, value in values.items():
        np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), value, rtol=1e-10)


@pytest.mark.parametrize(
    "config", [AdamWConfig(layer_decay=0.7, decay_all=True), SGDConfig(nesterov=True), LarsConfig()]
)
def test_optimizers_survive_json_and_checkpoints(config):
    assert from_dict(to_dict(config)) == config
    first, second = small(), small()
    for model in (first, second):
        model.encoder = SimpleNamespace(timm=SimpleNamespace(group_matcher=lambda coarse: {"stem": r"^0"}))
    one, other = config.build(first, 512), config.build(second, 512)
    gradients(first, 0), one.step()
    second.load_state_dict(first.state_dict())
    other.load_state_dict(deepcopy(one.state_dict()))
    for model, optimizer in ((first, one), (second, other)):
        set_lr(optimizer, 0.5)
        gradients(model, 1), optimizer.step()
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_each_gradient_is_clipped_by_itself():
    model = small()
    model[3].bias.requires_grad_(False)
    grads = gradients(model, 0)
    model[0].bias.grad.mul_(1e-3)
    grads["0.bias"] *= 1e-3  # below the limit
    norm = SGDConfig(clip_each=0.5).clip_gradients([*model.parameters()])
    norms = {name: np.linalg.norm(g) for name, g in grads.items()}
    assert norm.item() == pytest.approx(np.linalg.norm([*norms.values()]))
    assert norms["0.bias"] < 0.5 < min(size for name, size in norms.items() if name != "0.bias")
    for name, g in grads.items():
        factor = min(1.0, 0.5 / (norms[name] + 1e-6))
        np.testing.assert_allclose(model.get_parameter(name).grad.numpy(), g * factor, rtol=1e-12)


def test_clipping_all_together_is_torch_s_and_none_touches_nothing():
    one, other = small(), small()
    for model in (one, other):
        gradients(model, 0)
    assert SGDConfig().clip_gradients([*one.parameters()]) is None
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(one[:3].parameters(), other[:3].parameters(), strict=True))
    norm = SGDConfig(clip=0.5).clip_gradients([*one.parameters()])
    assert torch.equal(norm, nn.utils.clip_grad_norm_([*other.parameters()], 0.5))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(one[:3].parameters(), other[:3].parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (AdamWConfig(weight_decay=0.04, weight_decay_end=0.4), "weight_decay"),
        (SGDConfig(weight_decay=0.04, weight_decay_end=0.4), "weight_decay"),
        (LarsConfig(weight_decay=0.04, weight_decay_end=0.4), "decay"),
    ],
)
def test_the_decay_of_what_decays_moves_by_half_a_cosine(config, name):
    """facebookresearch/dino:utils.py, cosine_scheduler without warm-up."""
    optimizer = config.build(small(), 256)
    still = [group for group in optimizer.param_groups if group[name] == 0]
    for step in range(0, 100, 7):
        set_decay(optimizer, step / 100)
        wanted = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * step / 100))
        assert all(group[name] == pytest.approx(0 if group in still else wanted) for group in optimizer.param_groups)
    assert len(still) == (not isinstance(config, SGDConfig))
    plain = AdamWConfig().build(small(), 256)
    before = [dict(group) for group in plain.param_groups]
    set_decay(plain, 0.5)
    assert all(
        a.keys() == b.keys() and a["weight_decay"] == b["weight_decay"]
        for a, b in zip(before, plain.param_groups, strict=True)
    )


WRONG = {
    "optimizer.base_lr": SGDConfig(base_lr=0.0),
    "optimizer.weight_decay": LarsConfig(weight_decay=-1.0),
    "optimizer.per": LarsConfig(per=0),
    "optimizer.clip": SGDConfig(clip=0.0),
    "optimizer.clip_each": SGDConfig(clip_each=-1.0),
    "optimizer.clip_each each: give one": AdamWConfig(clip=1.0, clip_each=1.0),
    "optimizer.weight_decay_end": AdamWConfig(weight_decay_end=-0.1),
    "optimizer.weight_decay_end ": SGDConfig(weight_decay=0.0, weight_decay_end=0.1),
    "optimizer.betas": AdamWConfig(betas=(0.9, 1.0)),
    "optimizer.layer_decay": AdamWConfig(layer_decay=0.0),
    "optimizer.layer_decay ": AdamWConfig(layer_decay=1.5),
    "optimizer.momentum": SGDConfig(momentum=1.0),
    "optimizer.momentum ": LarsConfig(momentum=-0.1),
    "optimizer.nesterov": SGDConfig(momentum=0.0, nesterov=True),
    "optimizer.trust": LarsConfig(trust=0.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_refused(name):
    with pytest.raises(UserError, match=name.strip()):
        WRONG[name].check()


def test_the_base_is_no_optimizer():
    with pytest.raises(NotImplementedError, match="OptimizerConfig"):
        OptimizerConfig().build(nn.Linear(2, 2), 256)


@pytest.mark.parametrize("config", [AdamWConfig(), SGDConfig(), LarsConfig()])
def test_parts_of_a_task_have_their_share_of_the_rate(config):
    class Shared(Task):
        rates = MappingProxyType({"head.": 0.5, "embed": 0.2})

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = (nn.Linear(3, 3) for _ in range(3))

    task = Shared()
    optimizer = config.build(task, 256)
    peaks = {p: group["peak"] for group in optimizer.param_groups for p in group["params"]}
    rate = config.peak_lr(256)
    assert {peaks[p] for p in task.head.parameters()} == {0.5 * rate}
    assert {peaks[p] for p in task.embed.parameters()} == {0.2 * rate}
    assert {peaks[p] for p in task.body.parameters()} == {rate}
    assert len(peaks) == len(list(task.parameters()))
    set_lr(optimizer, 0.1)
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    sum(p.sum() for p in task.parameters()).backward()
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in task.named_parameters())
