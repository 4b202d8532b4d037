"""Counts: taken without memory they are those of real steps, and of the published sizes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mimkit.analysis.counts import count_step
from mimkit.core.errors import UserError
from mimkit.data.pictures import Decoded
from mimkit.model.build import EncoderConfig
from mimkit.recipes import find_recipe
from mimkit.train.cost import count_flops
from mimkit.train.prepare import Prepared
from mimkit.train.sharding import blocks
from mimkit.weights.timm import export_timm

torch.set_num_threads(1)


def prepared(recipe: str) -> Prepared:
    config = find_recipe(recipe)
    config.data = ("noise",)
    pixels = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Prepared(config, pictures=Decoded("noise", pixels))


@pytest.mark.parametrize(
    ("recipe", "gigaflops", "millions"),
    [
        ("mae_vit_b16", 58.0, 112),
        pytest.param("mae_vit_h14", 290, 657, marks=pytest.mark.slow),
        pytest.param("emae_vit_b16", 232, 112, marks=pytest.mark.slow),
        ("simmim_vit_b16", 104.8, 86),
    ],
)
def test_published_sizes(recipe, gigaflops, millions):
    taken = count_step(prepared(recipe))
    assert taken.flops / 1e9 == pytest.approx(gigaflops, rel=0.015)
    assert taken.trained / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    "recipe",
    [
        "mae_mini_32",
        "mae_mini_32_attmask",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mae_mini_32_self_guided", "dino_mini_32", "moco_v3_mini_32")
        ),
    ],
)
def test_flops_are_those_of_a_real_step(recipe, monkeypatch):
    case = prepared(recipe)
    monkeypatch.setattr("mimkit.train.cost.Prepared", lambda config: prepared(recipe))
    assert count_step(case).flops == pytest.approx(count_flops([case.config])[0], rel=1e-9)


def test_kept_bytes_are_those_of_a_real_step():
    case = prepared("mae_mini_32")
    kept = {}

    def note(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for module in case.task.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = case.task(case.sample(8), 0.9).loss
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    taken = count_step(prepared("mae_mini_32"))
    assert 8 * taken.kept + taken.copies == pytest.approx(total, rel=0.02)
    weights = sum(w.numel() for w in case.task.parameters() if w.requires_grad and w.ndim > 1)
    assert taken.copies == pytest.approx(2 * weights, rel=0.05), "weights in bfloat16"


def test_recomputing_keeps_what_enters_blocks():
    case = prepared("mae_mini_32")
    taken = count_step(case)
    encoder, decoder = case.task.encoder.timm.blocks, case.task.decoder.blocks
    visible, tokens = 16 + 1, 64 + 1
    entering = 4 * (
        len(encoder) * visible * case.encoder.width + len(decoder) * tokens * decoder[0].norm1.weight.numel()
    )
    assert entering < taken.recomputed < taken.kept and len([*blocks(case.task)]) == len(encoder) + len(decoder)
    assert taken.largest_block == max(sum(w.numel() for w in block.parameters()) for block in blocks(case.task))


def test_slow_copies_are_not_trained_and_batch_norm_is_not_recomputed():
    taken = count_step(prepared("moco_v2_mini_32"))
    assert taken.frozen > taken.trained
    assert count_step(prepared("simclr_resnet18_32")).recomputed is None


def test_teachers_are_asked_and_held(tmp_path):
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=48, depth=4, heads=2)
    teacher = encoder.build((32, 32), 3)
    arguments = encoder.timm_args((32, 32), 3)
    look = dict(mean=(0.5,) * 3, std=(0.2,) * 3, card="", name=encoder.name)
    export_timm(teacher, tmp_path / "teacher", model_args=arguments, **look)
    case = prepared("maskalign_mini_32")
    case.config.method.teacher = str(tmp_path / "teacher")
    taken = count_step(case)
    assert taken.teachers == sum(weight.numel() for weight in teacher.timm.parameters()) > 0
    assert taken.flops > 3 * 2 * taken.trained and count_step(prepared("mae_mini_32")).teachers == 0


def test_what_is_missing_is_said():
    with pytest.raises(UserError, match="tokens need a tokenizer"):
        count_step(prepared("simmim_mini_32_tokens"))


def test_a_step_that_depends_on_pictures_is_refused(monkeypatch):
    case = prepared("mae_mini_32")
    method = type(case.task)
    forward = method.forward

    def peeking(self, batch, progress):
        step = forward(self, batch, progress)
        return replace(step, loss=step.loss * step.loss.item())

    monkeypatch.setattr(method, "forward", peeking)
    with pytest.raises(UserError, match="cannot be counted without its pictures"):
        count_step(case)
