"""Segmentation: losses against torch's, pixels without a class, gradients, and what the settings refuse."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from encoders import KINDS, batch_of, missing_gradients, small
from mimkit.core.annotation import VOID
from mimkit.core.config import from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.methods.segment import SegmentConfig, class_loss

SMALL = dict(classes=3, channels=16, auxiliary_channels=16)
SIZE = (64, 64)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def example(config: SegmentConfig, void: float = 0.3):
    """A batch whose pixels have random classes, and some have none."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for target in config.example(2, SIZE, "cpu"):
        segments = torch.randint(config.classes, SIZE, generator=generator).to(torch.int16)
        segments[torch.rand(SIZE, generator=generator) < void] = VOID
        targets.append(replace(target, segments=segments))
    return batch_of(tuple(targets))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_every_weight_gets_a_gradient_also_of_nothing_but_void(kind, head):
    config = SegmentConfig(**SMALL, head=head)
    method = config.build(small(kind)).train()
    for void in (0.3, 1.1):
        method.zero_grad()
        loss = method(example(config, void), 0.0).loss
        loss.backward()
        assert not missing_gradients(method)
        norms = torch.stack([p.grad.norm() for p in method.parameters() if p.requires_grad])
        assert torch.isfinite(norms).all()
        first = next(p for name, p in method.named_parameters() if "patch_embed" in name or "conv1" in name)
        assert first.grad.norm() > 0 if void < 1 else (norms == 0).all() and loss == 0
    assert method.predict(torch.randn(2, 3, *SIZE)).shape == (2, 3, *SIZE)


def test_the_loss_is_cross_entropy_at_full_size_and_of_the_second_head():
    config = SegmentConfig(**SMALL, dropout=0.0, drop_path=0.0)
    method, batch = config.build(small()), example(config)
    classes = torch.stack([target.segments for target in batch.targets]).long()
    step = method.eval()(batch, 0.0)
    maps = method.maps(batch.images)
    logits = [
        F.interpolate(x, SIZE, mode="bilinear", align_corners=False)
        for x in (method.head(maps), method.second(maps[2]))
    ]
    first, second = (F.cross_entropy(x, classes, ignore_index=VOID) for x in logits)
    torch.testing.assert_close(step.loss, first + 0.4 * second)
    torch.testing.assert_close(method.predict(batch.images), logits[0])
    right = (logits[0].argmax(1) == classes)[classes != VOID].float().mean()
    torch.testing.assert_close(step.logs["pixel_accuracy"], right)
    assert class_loss(logits[0], torch.full_like(classes, VOID)) == 0
    alone = SegmentConfig(**SMALL, auxiliary=0.0).build(small())
    assert alone.second is None and alone(batch, 0.0).logs.keys() == {"pixel_accuracy"}


def test_windows_drop_the_class_token_and_bfloat16_works():
    config = SegmentConfig(**SMALL, window=4)
    method = config.build(small()).train()
    assert not method.encoder.timm.cls_token.requires_grad and not method.encoder.timm.norm.weight.requires_grad
    assert method.encoder.timm.pos_embed.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(example(config), 0.0).loss
    loss.backward()
    assert loss.dtype == torch.float32 and not missing_gradients(method)
    with torch.autocast("cpu", torch.bfloat16):
        assert method.eval().predict(torch.randn(1, 3, *SIZE)).dtype == torch.float32


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_frozen_encoder_stays_as_it_is(kind):
    config = SegmentConfig(classes=3, head="linear", freeze=True)
    encoder = small(kind)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    method = config.build(encoder).train()
    method(example(config), 0.0).loss.backward()
    assert all(p.grad is None for p in encoder.parameters()) and not missing_gradients(method)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_what_cannot_be_meant_is_refused():
    for changes, words in (
        (dict(classes=1), "method.classes must be at least 2"),
        (dict(drop_path=1.0), "drop_path"),
        (dict(dropout=1.0), "method.dropout"),
        (dict(channels=0), "method.channels"),
        (dict(head="linear", blocks=5), "--method.blocks 5"),
        (dict(window=3), "--method.window 2"),
    ):
        with pytest.raises(UserError, match=words):
            SegmentConfig(**{**SMALL, **changes}).build(small())


def test_settings_survive_and_say_when_a_step_must_be_whole():
    config = SegmentConfig(**SMALL, labels="masks", void=0)
    assert from_dict(to_dict(config)) == config and config.learns == "segment"
    assert not config.needs_whole_batch
    assert SegmentConfig(norm="batch").needs_whole_batch and SegmentConfig(head="linear").needs_whole_batch
    method = config.build(small())
    assert "encoder.timm.pos_embed" in method.no_weight_decay
