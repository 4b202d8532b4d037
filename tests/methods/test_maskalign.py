"""MaskAlign: the loss by its formula, a teacher that is only looked at, a student that sees visible patches alone."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from commandline import FAST, mimkit, refused
from drills import ranks, tiny
from mimkit.analysis.mask_drawing import MaskDrawing, draw_masks, look, open_scene
from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.guidance.signals import compute_signal
from mimkit.masks import AttMaskMasker, Mask, Masker, MultinomialMasker, PartitionMasker, RandomMasker, SelfGuidedMasker
from mimkit.masks.masker import Signal
from mimkit.methods.maskalign import MaskAlign, MaskAlignConfig
from mimkit.model.alignment import ADAPTERS, MIXTURES, ORDERS, Alignment
from mimkit.model.build import EncoderConfig
from mimkit.model.patches import patchify, unpatchify
from mimkit.model.teacher import Teacher
from mimkit.model.vit import Encoder
from mimkit.recipes import find_recipe
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder
from mimkit.weights.timm import export_timm

TINY = {"name": "vit_tiny_patch16_224", "depth": 3, "width": 16, "heads": 2, "patch": 4}
NO_CLASS = "vit_base_patch16_siglip_224"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@dataclass(frozen=True, kw_only=True)
class Given(Masker):
    """Always the same mask."""

    mask: Mask

    def __call__(self, score_maps, rng_keys, progress, grid) -> Mask:
        return self.mask


def encoder_of(size=(16, 16), seed: int = 0, **changes) -> Encoder:
    """An encoder in which no tensor is zero or one."""
    torch.manual_seed(seed)
    encoder = EncoderConfig(**(TINY | changes)).build(size, 3)
    stir(encoder, seed)
    encoder.mean, encoder.std = MEAN, STD
    return encoder


def stir(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.2)


def export_of(folder: Path, size=(16, 16), seed: int = 1, mean=MEAN, std=STD, **changes) -> str:
    """An export folder to be a teacher."""
    encoder, config = encoder_of(size, seed, **changes), EncoderConfig(**(TINY | changes))
    args = config.timm_args(size, 3)
    export_timm(encoder, folder, model_args=args, mean=mean, std=std, card="", name=config.name)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A teacher as the student: 3 blocks of width 16."""
    return export_of(tmp_path_factory.mktemp("teacher") / "export")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A teacher of other depth, width, patch and statistics, with dropped paths in its settings."""
    changes = dict(depth=4, width=24, heads=3, patch=8, model_args={"drop_path_rate": 0.5})
    return export_of(tmp_path_factory.mktemp("other") / "export", (32, 32), mean=(0.4,) * 3, std=(0.3,) * 3, **changes)


def method_of(teacher: str, encoder: Encoder | None = None, **settings) -> MaskAlign:
    settings = {"layers": 2, "mixture": "linear"} | settings
    encoder = encoder or encoder_of()
    torch.manual_seed(0)
    task = MaskAlignConfig(teacher=teacher, **settings).build(encoder)
    stir(task.alignment, 2)
    return task


def batch_of(rows: int = 3, size=(16, 16), seed: int = 0) -> Batch:
    images = torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed))
    return Batch(images, rng_keys("test", seed, torch.arange(rows)), torch.arange(rows))


def ragged_mask(rows: int, n: int = 16) -> Mask:
    hide = torch.arange(rows) + n - 6
    return Mask.from_scores(torch.rand(rows, n, generator=torch.Generator().manual_seed(3)), hide, least=n - 6)


# The formula ------------------------------------------------------------------------------------------------


def by_formula(task: MaskAlign, batch: Batch, mask: Mask) -> float:
    """The loss of linear adapters in NumPy, from the block outputs of student and teacher, a picture at a time."""
    student, teacher, mixing = task.encoder, task.teacher.network.encoder, task.alignment
    ids = [(student.timm.num_prefix_tokens, student), (teacher.timm.num_prefix_tokens, teacher)]
    first = int(task.with_class)
    weights = [(a.weight.double().numpy(), a.bias.double().numpy()) for a in mixing.adapters]
    tokens = student.embed(patchify(batch.images, student.patch), mask)
    own = [torch.cat(part, dim=1).double().numpy() for part in student.by_block(tokens, mask)]
    seen = teacher.embed(patchify(task.teacher.network.images(batch.images), teacher.patch))
    depth = len(teacher.timm.blocks)
    losses = []
    for picture in range(len(batch.images)):
        real = np.flatnonzero(~mask.padding[picture].numpy())
        at_student = [*range(first), *(ids[0][0] + real)]
        at_teacher = [*range(first), *(ids[1][0] + mask.visible[picture].numpy()[real])]
        h = [part[picture][at_student] for part in own]
        total = 0.0
        for i, block in enumerate(range(depth - mixing.layers, depth)):
            y = torch.cat(teacher.through(seen, block + 1), dim=1)[picture].double().numpy()[at_teacher]
            y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
            if mixing.mixture is None:
                p = h[len(h) - mixing.layers + i] @ weights[i][0].T + weights[i][1]
            elif mixing.mix_first:
                w = mixing.mixture[i].double().numpy()
                p = sum(w[b] * h[b] for b in range(len(h))) @ weights[i][0].T + weights[i][1]
            else:
                w = mixing.mixture[i].double().numpy()
                p = sum(w[b] * (h[b] @ weights[b][0].T + weights[b][1]) for b in range(len(h)))
            d = np.abs(p - y)
            total += np.where(d < 1, d**2, 2 * d - 1).mean() / mixing.layers
        losses.append(total)
    return float(np.mean(losses))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
@torch.no_grad()
def test_the_loss_is_that_of_the_formula(teacher, order, mixture, ragged):
    batch = batch_of()
    mask = (
        ragged_mask(3)
        if ragged
        else RandomMasker(ratio=0.7)(batch.images.new_zeros(3, 16, 0), batch.rng_keys, 0, (4, 4))
    )
    task = method_of(teacher, order=order, mixture=mixture, masker=Given(mask=mask))
    step = task(batch, 0.0)
    assert step.loss.item() == pytest.approx(by_formula(task, batch, mask), rel=1e-5)
    assert step.logs["hidden"] == mask.hidden.float().mean()


@pytest.mark.parametrize(
    "change",
    [
        {"name": NO_CLASS},
        {"name": "vit_base_patch16_224", "model_args": {"reg_tokens": 2}},
        {"name": "vit_base_patch14_dinov2"},
    ],
    ids=["no class token", "registers", "LayerScale"],
)
@torch.no_grad()
def test_students_of_other_kinds_and_teachers_of_other_sizes(other, change):
    task = method_of(other, encoder_of(**change), mixture="sum")
    assert task.with_class == (change["name"] != NO_CLASS)
    batch = batch_of()
    mask, _ = task.mask_sampler(task.encoder, patchify(batch.images, (4, 4)), batch, 0.0)
    assert task(batch, 0.0).loss.item() == pytest.approx(by_formula(task, batch, mask), rel=1e-5)


@torch.no_grad()
def test_a_teacher_without_class_token_aligns_patches_alone(tmp_path):
    plain = export_of(tmp_path / "export", name=NO_CLASS)
    with pytest.raises(UserError, match=r"MultinomialMasker reads the class token's attention and '.*export' has none"):
        method_of(plain)
    task, batch = method_of(plain, masker=RandomMasker(ratio=0.5)), batch_of()
    mask = RandomMasker(ratio=0.5)(batch.images.new_zeros(3, 16, 0), batch.rng_keys, 0.0, (4, 4))
    assert not task.with_class
    assert task(batch, 0.0).loss.item() == pytest.approx(by_formula(task, batch, mask), rel=1e-5)


def blocks_of(count: int = 3, width: int = 16) -> list[Tensor]:
    return [torch.randn(2, 5, width, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def test_the_mixture_begins_as_it_says():
    linear = Alignment((16, 4), (8, 4), layers=2)
    assert torch.equal(linear.mixture, torch.tensor([[0.01, 0.01, 1.01, 0.01], [0.01, 0.01, 0.01, 1.01]]))
    assert torch.equal(Alignment((16, 4), (8, 6), layers=5, mixture="sum").mixture, torch.full((5, 4), 0.25))
    assert Alignment((16, 4), (8, 4), layers=2, mixture="simple").mixture is None
    assert len(linear.adapters) == 2
    assert len(Alignment((16, 4), (8, 4), layers=2, order="adapt-mix").adapters) == 4
    bound = (6 / (16 + 8)) ** 0.5  # Xavier-uniform
    weight, bias = linear.adapters[0].weight, linear.adapters[0].bias
    assert 0.8 * bound < weight.abs().max() <= bound and not bias.any()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_identity_mixture_is_layer_wise(adapter):
    mixed, plain = (
        Alignment((16, 3), (8, 3), layers=2, mixture=kind, adapter=adapter) for kind in ("linear", "simple")
    )
    stir(mixed)
    plain.adapters.load_state_dict(mixed.adapters.state_dict())
    mixed.mixture.data = torch.eye(3)[-2:]
    for one, two in zip(mixed(blocks_of()), plain(blocks_of()), strict=True):
        torch.testing.assert_close(one, two)


@torch.no_grad()
def test_the_orders_agree_where_one_linear_adapter_serves_all_and_differ_elsewhere():
    first, second = (Alignment((16, 3), (8, 3), layers=3, order=order) for order in ORDERS)
    stir(first), stir(second)
    second.mixture.copy_(first.mixture)
    second.adapters.load_state_dict(first.adapters.state_dict())
    assert not torch.allclose(first(blocks_of())[0], second(blocks_of())[0], atol=0.1)
    for value in (first.mixture, second.mixture):
        value.div_(value.sum(dim=1, keepdim=True))  # then biases pass through the mixture
    for part in (*first.adapters, *second.adapters):
        part.load_state_dict(first.adapters[0].state_dict())
    for one, two in zip(first(blocks_of()), second(blocks_of()), strict=True):
        torch.testing.assert_close(one, two)


def test_mixing_stays_in_float32_under_autocast():
    mixing = Alignment((16, 3), (8, 3), layers=1)
    mixing.adapters[0] = torch.nn.Identity()
    exact = mixing(blocks_of())[0]
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixing(blocks_of())[0], exact)


# The teacher ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_clip_teacher_gives_what_transformers_calls_hidden_states(tmp_path):
    transformers = pytest.importorskip("transformers")
    name = "vit_base_patch16_clip_quickgelu_224"
    folder = export_of(tmp_path / "export", (16, 16), name=name)
    vit = timm.create_model(f"local-dir:{folder}", pretrained=True)
    sizes = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    config = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=4, hidden_act="quick_gelu")
    config._attn_implementation = "eager"
    theirs = transformers.CLIPVisionModel(config).eval()
    state = {}
    for key, value in vit.state_dict().items():
        if ".attn.qkv." in key:
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                state[key.replace(".attn.qkv.", f".self_attn.{letter}_proj.")] = third
        else:
            state[key] = value
    for ours, name_there in (
        (".attn.proj.", ".self_attn.out_proj."),
        (".norm1.", ".layer_norm1."),
        (".norm2.", ".layer_norm2."),
        ("blocks.", "encoder.layers."),
        ("norm_pre.", "pre_layrnorm."),
        ("patch_embed.proj.", "embeddings.patch_embedding."),
    ):
        state = {key.replace(ours, name_there): value for key, value in state.items()}
    for key, value in (
        ("post_layernorm.weight", state.pop("norm.weight")),
        ("post_layernorm.bias", state.pop("norm.bias")),
    ):
        state[key] = value
    state["embeddings.class_embedding"] = state.pop("cls_token")[0, 0]
    state["embeddings.position_embedding.weight"] = state.pop("pos_embed")[0]
    own = theirs.state_dict()
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in own) else ""
    theirs.load_state_dict({prefix + key: value for key, value in state.items()}, strict=True)

    images = batch_of().images
    found = theirs(pixel_values=images, output_hidden_states=True, output_attentions=True)
    seen = Teacher(folder, (4, 4), 3, MEAN, STD).features(images, 3, attention=True)
    for ours, expected in zip(seen.blocks, found.hidden_states[1:], strict=True):
        torch.testing.assert_close(torch.cat(ours, dim=1), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.attention, found.attentions[-1][:, :, 0, 1:].mT, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_teacher_of_another_size_resamples_as_the_code_does(other):
    """OpenDriveLab/maskalign:models_pretrain.py: images and positions bicubic, without antialiasing."""
    images = batch_of().images
    whole, seer = Teacher(other, (4, 4), 3, MEAN, STD), Teacher(other, (3, 3), 3, MEAN, STD, antialias=False)
    assert seer.encoder.grid == (3, 3) and seer.size == (24, 24)
    plain = images * seer.scale + seer.shift
    torch.testing.assert_close(seer.images(images), F.interpolate(plain, (24, 24), mode="bicubic"))
    table = whole.encoder.timm.pos_embed
    rows = table.shape[1] - 16
    grid = table[:, rows:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (3, 3), mode="bicubic").flatten(2).mT
    torch.testing.assert_close(seer.encoder.timm.pos_embed, torch.cat([table[:, :rows], expected], dim=1))
    smooth = Teacher(other, (3, 3), 3, MEAN, STD)
    assert not torch.allclose(smooth.encoder.timm.pos_embed, seer.encoder.timm.pos_embed, atol=1e-4)
    assert not torch.allclose(smooth.images(images), seer.images(images), atol=1e-4)
    same = Teacher(other, (4, 4), 3, MEAN, STD, antialias=False)
    assert torch.equal(same.encoder.timm.pos_embed, table)


@torch.no_grad()
def test_one_look_gives_the_last_blocks_and_the_attention(other):
    seer = Teacher(other, (4, 4), 3, MEAN, STD)
    images = batch_of().images
    seen = seer.features(images, 2, attention=True)
    tokens = seer.encoder.embed(patchify(seer.images(images), (8, 8)))
    for found, depth in zip(seen.blocks, (3, 4), strict=True):
        for part, expected in zip(found, seer.encoder.through(tokens, depth), strict=True):
            assert torch.equal(part, expected)
    expected = compute_signal(Signal.ATTENTION, seer.encoder, patchify(seer.images(images), (8, 8)))
    assert torch.equal(seen.attention, expected)
    assert seer.features(images, 4).attention is None and len(seer.features(images, 4).blocks) == 4


def test_the_teacher_runs_once_a_batch_and_feeds_mask_and_target(teacher):
    task, batch = method_of(teacher), batch_of()
    seer = task.teacher.network
    runs = []
    seer.encoder.timm.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    *_, mask, _ = task.aligned(batch, 0.0)
    assert len(runs) == 1
    masker = MultinomialMasker()
    signal = seer.features(batch.images, 1, attention=True).attention
    assert torch.equal(mask.hidden, masker(masker.score_maps(signal, (4, 4)), batch.rng_keys, 0.0, (4, 4)).hidden)
    assert mask.visible.shape[1] == int(16 * 0.3)


def test_the_masker_may_look_elsewhere_or_nowhere(teacher, other):
    batch = batch_of()
    for masker, shared in (
        (AttMaskMasker(), True),
        (AttMaskMasker(scorer="ema"), False),
        (AttMaskMasker(scorer=other), False),
        (SelfGuidedMasker(start=0.0), False),
        (RandomMasker(), False),
        (MultinomialMasker(start=0.5), False),
        (PartitionMasker(), False),
    ):
        task = method_of(teacher, masker=masker)
        assert task.mask_sampler.uses_method_teacher(0.1) is shared
        step = task(batch, 0.1)
        step.loss.backward()
        assert step.loss.isfinite()
        task.after_step(0.1)
    assert method_of(teacher, masker=MultinomialMasker(start=0.5)).mask_sampler.uses_method_teacher(0.5)


@torch.no_grad()
def test_a_masker_that_looks_every_few_epochs_asks_the_same_teacher(teacher):
    task, batch = method_of(teacher, masker=MultinomialMasker(refresh=2)), batch_of()
    dataset = DatasetView(3, lambda: batch.images, lambda: iter([(batch.images, batch.index)]))
    task.before_epoch(0, 0.0, dataset)
    expected = task.teacher.network.features(batch.images, 1, attention=True).attention.mean(dim=2, keepdim=True)
    torch.testing.assert_close(task.mask_sampler.cache.float(), expected, atol=1e-3, rtol=1e-2)


def test_the_teacher_stays_as_it_is(other):
    task, batch = method_of(other, mixture="sum"), batch_of()
    seer = task.teacher.network
    before = [value.clone() for value in seer.state_dict().values()]
    task.train()
    assert not any(part.training for part in seer.modules())
    first, second = (seer.features(batch.images, 2).blocks[-1].patches for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad  # nothing is dropped
    optimizer = AdamWConfig().build(task, 256)
    task(batch, 0.0).loss.backward()
    optimizer.step()
    assert all(p.grad is None for p in seer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, seer.state_dict().values(), strict=True))
    mine = {id(p) for p in task.parameters()}
    assert not any(id(p) in mine for p in seer.parameters())
    assert {key.split(".")[0] for key in task.state_dict()} == {"encoder", "alignment"}
    task.to(torch.float64)
    assert seer.encoder.timm.cls_token.dtype == torch.float64  # it goes where the task goes


# The student ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_student_sees_visible_patches_alone(teacher):
    batch = batch_of()
    mask = ragged_mask(3)
    task = method_of(teacher, masker=Given(mask=mask))
    patches = patchify(batch.images, (4, 4))
    changed = torch.where(mask.hidden.unsqueeze(2), torch.randn_like(patches), patches)
    moved = replace(batch, images=unpatchify(changed, (4, 4), (4, 4)))
    real = torch.nn.functional.pad(~mask.padding, (1, 0), value=True)
    before, after = task.aligned(batch, 0.0), task.aligned(moved, 0.0)
    for one, two in zip(before[0], after[0], strict=True):
        assert torch.equal(one[real], two[real])
    assert not torch.allclose(before[1][0][real], after[1][0][real])  # the teacher sees them
    seen = replace(batch, images=batch.images.flip(0))
    assert not torch.allclose(task.aligned(seen, 0.0)[0][0][real], before[0][0][real])


@torch.no_grad()
def test_the_order_of_visible_patches_does_not_matter(teacher):
    batch = batch_of()
    mask = RandomMasker(ratio=0.5)(batch.images.new_zeros(3, 16, 0), batch.rng_keys, 0.0, (4, 4))
    turned = replace(mask, visible=mask.visible.flip(1))
    one, two = (method_of(teacher, masker=Given(mask=m))(batch, 0.0).loss for m in (mask, turned))
    torch.testing.assert_close(one, two)


@torch.no_grad()
def test_attention_decides_how_often_a_patch_is_kept(teacher):
    """Constant importance is a random mask; otherwise what is attended to is kept more often."""
    task = method_of(teacher)
    number = torch.arange(3000)
    batch = Batch(batch_of(1).images.expand(3000, -1, -1, -1), rng_keys("many", number), number)
    vit = task.teacher.network.encoder.timm

    def kept() -> tuple[Tensor, Tensor]:
        attention = task.teacher.network.features(batch.images[:1], 1, attention=True).attention
        mask, _ = task.mask_sampler(
            task.encoder, patchify(batch.images, (4, 4)), batch, 0.0, attention.expand(3000, -1, -1)
        )
        return attention[0].mean(dim=1), 1 - mask.hidden.float().mean(dim=0)

    vit.blocks[-1].attn.qkv.weight[:16].mul_(3)
    importance, rate = kept()
    assert torch.corrcoef(torch.stack([importance, rate]))[0, 1] > 0.8 and rate.max() > 2 * rate.min()
    vit.blocks[-1].attn.qkv.weight[:16].zero_()  # no query: every patch weighs alike
    vit.blocks[-1].attn.qkv.bias[:16].zero_()
    importance, rate = kept()
    assert importance.max() - importance.min() < 1e-6
    expected = rate.mean()
    assert (rate - expected).abs().max() < 4.5 * (expected * (1 - expected) / 3000).sqrt()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_gradient_reaches_all_that_is_trained(teacher, order, mixture, adapter):
    task = method_of(teacher, order=order, mixture=mixture, adapter=adapter)
    task(batch_of(), 0.0).loss.backward()
    missing = [name for name, p in task.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing  # so DistributedDataParallel waits for none in vain
    frozen = {name for name, p in task.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.timm.pos_embed", "encoder.timm.norm.weight", "encoder.timm.norm.bias"}


def test_the_mixture_is_not_decayed(teacher):
    task = method_of(teacher)
    groups = {g["weight_decay"]: {id(p) for p in g["params"]} for g in AdamWConfig().build(task, 256).param_groups}
    assert id(task.alignment.mixture) in groups[0.0] and id(task.encoder.timm.norm.weight) not in groups[0.0]
    assert id(task.alignment.adapters[0].weight) in groups[0.05] and id(task.encoder.timm.cls_token) in groups[0.05]


@torch.no_grad()
def test_agreement_is_the_cosine_where_visible(teacher):
    task, batch = method_of(teacher), batch_of()
    values, mask = task.agreement(batch, 0.0)
    assert values.shape == (3, 16) and torch.equal(values.isnan(), mask.hidden) and task.reconstruct(batch, 0.0) is None
    predictions, targets, mask, _ = task.aligned(batch, 0.0)
    cosine = sum(F.cosine_similarity(p[:, 1:], t[:, 1:], dim=2) for p, t in zip(predictions, targets, strict=True)) / 2
    torch.testing.assert_close(mask.take(values), cosine.clamp(min=0))


def test_it_learns(other):
    task, batch = method_of(other, mixture="sum", masker=RandomMasker(ratio=0.5)), batch_of(8)
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = task(batch, 0.0).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and losses[-1] < 0.5  # zero predictions have about 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": ""}, "needs a teacher: give --method.teacher"),
        ({"teacher": "vit_tinny"}, "there is no teacher 'vit_tinny'"),
        ({"layers": 4}, "the teacher has 3 blocks, method.layers 4 wants more"),
        ({"layers": 0}, "method.layers must be at least 1"),
        ({"mixture": "lineal"}, "no value of method.mixture 'lineal'; did you mean 'linear'"),
        ({"adapter": "mlp3"}, "no value of method.adapter 'mlp3'"),
        ({"order": "mix"}, "no value of method.order 'mix'"),
        (
            {"masker": SelfGuidedMasker(trigger="exploitation")},
            "SelfGuidedMasker is to start .* MaskAlign has no decoder",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(teacher, settings, message):
    with pytest.raises(UserError, match=message):
        method_of(**({"teacher": teacher} | settings))


def test_unequal_depths_need_a_sum(other):
    for mixture in ("linear", "simple"):
        with pytest.raises(UserError, match=r"the student has 3 and the teacher 4: use --method.mixture sum"):
            method_of(other, mixture=mixture)


# Recipes and the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "patches"), [("maskalign_vit_b16", 16), ("maskalign_vit_l16", 14)])
def test_a_recipe_and_its_teacher_fit(name, patches):
    """Depths agree, timm has the weights, and CLIP-L/14 sees 196 pixels for the student's 14 x 14 patches."""
    run = find_recipe(name)
    with torch.device("meta"):
        student = timm.create_model(run.encoder.name)
        seer = timm.create_model(run.method.teacher)
    assert run.method.teacher in timm.list_models(pretrained=True)
    assert len(student.blocks) == len(seer.blocks) and seer.patch_embed.patch_size == (patches, patches)
    assert run.optimizer.peak_lr(1024) * run.schedule.final == pytest.approx(1e-5)
    assert type(seer.blocks[0].mlp.act).__name__ == "QuickGELU"


def test_a_run_from_the_command_line(forty, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = (
        f"pretrain maskalign_mini_32 --data {forty} --method.teacher {teacher} --batch-size 8 --epochs 1 "
        f"--encoder.width 16 --encoder.depth 3 --encoder.heads 2 {FAST} --machine.log-every 1"
    )
    missing = refused(f"pretrain maskalign_mini_32 --data {forty} {FAST}")
    assert "MaskAlign needs a teacher: give --method.teacher" in missing
    assert mimkit(f"{command} --run one --max-steps 2").status == 0
    said = mimkit(f"{command} --run one --machine.evals 1")
    assert said.status == 0, said
    assert Path("one/pictures/reconstruction.png").stat().st_size > 1000
    assert mimkit(f"{command} --run two").status == 0
    one, two = (timm.create_model(f"local-dir:{run}/export", pretrained=True) for run in ("one", "two"))
    assert len(one.blocks) == 3
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    saved = torch.load(max(Path("one/checkpoints").iterdir()), weights_only=True)["model"]
    assert not any("teacher" in key for key in saved) and "alignment.mixture" in saved
    # a run is a teacher in its turn
    assert mimkit(f"{command.replace(teacher, 'one')} --run three --max-steps 1").status == 0


def test_a_run_goes_on_from_another_folder(forty, teacher, tmp_path, monkeypatch):
    """Teachers are named by a folder below the one where the run began: by the method and by the masker."""
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir(), elsewhere.mkdir()
    (work / "seer").symlink_to(teacher)
    monkeypatch.chdir(work)
    command = (
        f"pretrain maskalign_mini_32 --data {forty} --method.teacher seer --method.masker.scorer ./seer --batch-size 8 "
        f"--epochs 1 --encoder.width 16 --encoder.depth 3 --encoder.heads 2 {FAST} --run {tmp_path / 'run'}"
    )
    for steps in (1, 2):  # the same command goes on
        said = mimkit(f"{command} --max-steps {steps}")
        assert said.status == 0, said
    config = RunFolder(tmp_path / "run").read_config()["config"]
    assert config.method.teacher == config.method.masker.scorer == str(Path(teacher).resolve())
    monkeypatch.chdir(elsewhere)
    assert mimkit(f"pretrain --run {tmp_path / 'run'}").status == 0
    assert MaskAlignConfig(teacher="seer").teacher == "seer"  # no folder here


def test_masks_are_drawn_by_the_recipe_s_teacher(forty, teacher, tmp_path, monkeypatch):
    run = tiny(forty)
    run.method, run.encoder.depth = MaskAlignConfig(teacher=teacher, layers=2), 3
    words = dict(data=(str(forty),), out=tmp_path / "m.png", show=2, seeds=1)
    arguments = MaskDrawing(masker=run.method.masker, **words)
    found, _ = draw_masks(arguments, run)
    assert found["model"] == teacher and found["trained"]
    scene = open_scene(arguments, run.method.masker, Signal.ATTENTION, run)
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    seer = Teacher(teacher, (3, 3), 3, scene.mean, scene.std)
    expected = run.method.masker.score_maps(seer.features(images, 1, attention=True).attention, (3, 3))
    torch.testing.assert_close(look(scene, run.method.masker, images, 0.0), expected)
    for masker, who in ((MultinomialMasker(scorer="ema"), run.encoder.name), (AttMaskMasker(scorer=teacher), teacher)):
        assert draw_masks(MaskDrawing(masker=masker, **words), run)[0]["model"] == who
    named = draw_masks(replace(arguments, model=teacher), run)[0]
    assert named["model"] == teacher
    run.encoder.name = NO_CLASS  # the student's class token is not asked for
    assert draw_masks(arguments, run)[0]["model"] == teacher
    answer = refused(f"masks maskalign_mini_32 --data {forty} --out {tmp_path / 'm.png'}")
    assert "this recipe names none: give one with --from" in answer


def test_two_processes_equal_one(forty, teacher, tmp_path):
    run = tiny(forty, log_every=1, evals=0)
    run.method, run.encoder.depth, run.epochs = MaskAlignConfig(teacher=teacher, layers=2), 3, 1
    pretrain(run, tmp_path / "one", log=lambda line: None)
    for status, said in ranks(tmp_path / "log", run, tmp_path / "two"):
        assert status == 0, said
    one, two = ([record["loss"] for record in RunFolder(tmp_path / name).metrics()] for name in ("one", "two"))
    assert len(one) == 5 and one == pytest.approx(two, rel=1e-5)
