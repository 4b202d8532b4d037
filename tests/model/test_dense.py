"""Heads of maps against transformers' UperNet."""

import pytest
import torch
from transformers import SwinConfig, UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from mimkit.model.dense import FCNHead, LinearHead, UperNet

WIDTHS, SIDES = (8, 12, 16, 24), (32, 16, 8, 4)


def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, side, side + 1, generator=generator) for width, side in zip(WIDTHS, SIDES, strict=True)
    ]


def copied(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Their tensors in our module, in the order in which both use them."""
    values = list(theirs.state_dict().values())
    state = ours.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in values]
    ours.load_state_dict(dict(zip(state, values, strict=True)))


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) * 0.2 + ("running_var" in name))
    return module


@pytest.mark.parametrize("training", [False, True])
def test_upernet_and_its_second_head_are_transformers(training):
    torch.manual_seed(0)
    config = UperNetConfig(backbone_config=SwinConfig(), hidden_size=16, auxiliary_channels=20, num_labels=7)
    theirs, ours = UperNetHead(config, WIDTHS), UperNet(WIDTHS, 7, 16, "batch", dropout=0.0)
    named = disturbed(theirs).state_dict()
    order = ("psp_modules", "bottleneck", "lateral_convs", "fpn_convs", "fpn_bottleneck", "classifier")
    state = [value for part in order for name, value in named.items() if name.startswith(part + ".")]
    ours.load_state_dict(dict(zip(ours.state_dict(), state, strict=True)))
    second, our_second = disturbed(UperNetFCNHead(config, WIDTHS)), FCNHead(WIDTHS[2], 7, 20, "batch", dropout=0.0)
    copied(our_second, second)
    second.num_convs = 1
    for module in (theirs, ours, second, our_second):
        module.train(training)
    assert torch.equal(ours(maps()), theirs(maps()))
    assert torch.equal(our_second(maps()[2]), second(maps()))


def test_upernet_has_the_weights_of_the_formula():
    d, c, k = 768, 768, 150  # MAE-B on ADE20K
    with torch.device("meta"):
        head = UperNet((d,) * 4, k, c)
    convs = 4 * d * c + 9 * (d + 4 * c) * c + 3 * (d * c + 9 * c * c) + 9 * 4 * c * c
    assert sum(p.numel() for p in head.parameters()) == convs + (4 + 1 + 3 + 3 + 1) * 2 * c + c * k + k


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_one_picture_is_enough(norm):
    head = UperNet(WIDTHS, 7, 32, norm).train()
    both, (alone,) = [x.repeat(2, 1, 1, 1) for x in maps()], [head.eval()([x[:1] for x in maps()])]
    assert alone.shape == (1, 7, 32, 33)
    torch.testing.assert_close(head(both)[:1], alone, rtol=0, atol=1e-5)


def test_a_linear_head_sees_each_place_alone():
    head = LinearHead((8, 8), 5).eval()
    x = [torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6)]
    before = head(x)
    x[1][0, :, 2, 3] += 1
    changed = (head(x) != before).any(dim=1)
    assert changed[0, 2, 3] and changed.sum() == 1
