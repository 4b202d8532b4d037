"""The mask sampler: what a masker sees, what it leaves alone, and what it remembers over a resume."""

import copy
import math
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.core.symmetry import turned
from mimkit.guidance.exploitation import Exploitation
from mimkit.guidance.sampler import MaskSampler
from mimkit.guidance.signals import compute_signal, warp_to_view
from mimkit.masks import AMTMasker, AttMaskMasker, Mask, MixtureMasker, RandomMasker, SalienceMasker, SelfGuidedMasker
from mimkit.masks.informed import ModelMasker
from mimkit.masks.masker import Masker, Signal
from mimkit.masks.random import hidden_count
from mimkit.masks.trigger import Trigger
from mimkit.methods.mae import MAE, MAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import patchify
from mimkit.model.teacher import Teacher
from mimkit.model.vit import Encoder
from mimkit.weights.timm import export_timm

TINY = {"depth": 2, "width": 32, "heads": 2, "patch": 4}
PLAIN, NO_CLASS = "vit_tiny_patch16_224", "vit_base_patch16_siglip_224"
LOOKING = [Signal.PATCHES, Signal.FEATURES, Signal.ATTENTION]


@dataclass(frozen=True, kw_only=True)
class Peek(ModelMasker):
    """Hides by the first channel of the last block's output, and keeps the whole output."""

    signal = Signal.FEATURES

    def hide(self, score_maps, rng_keys, progress, grid) -> Mask:
        return Mask.from_scores(score_maps[..., 0], hidden_count(score_maps.shape[1], 0.75))


def tiny_encoder(size=(16, 16), seed: int = 0, name: str = PLAIN, **changes) -> Encoder:
    """An encoder in which no tensor is zero or one."""
    encoder = EncoderConfig(name=name, **(TINY | changes)).build(size, 3)
    generator = torch.Generator().manual_seed(seed)
    for value in encoder.state_dict().values():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    encoder.mean, encoder.std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    return encoder


def tiny_mae(masker: Masker, encoder: Encoder | None = None) -> MAE:
    return MAEConfig(masker=masker, decoder=DecoderConfig(width=16, depth=1, heads=2)).build(encoder or tiny_encoder())


def pictures(rows: int = 4, size=(16, 16), seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(100 + seed))


def batch_of(images: Tensor, **more) -> Batch:
    rows = torch.arange(len(images))
    return Batch(images, rng_keys("test", rows), rows, **more)


def whole(rows: int) -> dict[str, Tensor]:
    """Crop and flip of pictures that are seen whole."""
    return {"crop": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(rows, 1), "flip": torch.zeros(rows, dtype=torch.bool)}


def dataset_of(images: Tensor) -> DatasetView:
    order = torch.arange(len(images)).flip(0)  # in any order, in parts

    def every():
        for part in order.split(3):
            yield images[part], part

    return DatasetView(len(images), lambda: images[:3], every)


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


# What is seen ----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_signals_are_what_the_encoder_computes(size):
    encoder, images = tiny_encoder(size), pictures(3, size)
    patches, seen, weights = patchify(images, encoder.patch), {}, {}
    for number, block in enumerate(encoder.timm.blocks):
        block.register_forward_hook(lambda block, inputs, output, number=number: seen.setdefault(number, output))
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(
            lambda drop, inputs, output, number=number: weights.setdefault(number, output)
        )
    first = {}
    encoder.timm.blocks[0].register_forward_pre_hook(lambda block, inputs: first.setdefault("x", inputs[0]))
    encoder.eval()
    encoder.timm.forward_features(images)  # timm's own way
    torch.testing.assert_close(
        compute_signal(Signal.PATCHES, encoder, patches), first["x"][:, 1:], rtol=1e-5, atol=1e-5
    )
    for layer in (-1, -2):
        features = compute_signal(Signal.FEATURES, encoder, patches, layer)
        torch.testing.assert_close(features, seen[2 + layer][:, 1:], rtol=1e-4, atol=1e-5)
    found = compute_signal(Signal.ATTENTION, encoder, patches)
    torch.testing.assert_close(found, weights[1][:, :, 0, 1:].transpose(1, 2), rtol=1e-4, atol=1e-6)
    assert compute_signal(Signal.NONE, encoder, patches).shape == (3, len(patches[0]), 0)


@pytest.mark.parametrize("wanted", LOOKING)
@pytest.mark.parametrize("training", [True, False])
def test_looking_leaves_no_trace(wanted, training):
    encoder = tiny_encoder(model_args={"drop_path_rate": 0.5, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3})
    encoder.train(training)
    encoder.timm.blocks[0].mlp.eval()  # a part that somebody put into evaluation mode stays there
    before, modes = state_of(encoder), {name: part.training for name, part in encoder.named_modules()}
    assert sum(modes.values()) > 10 or not training
    noise = torch.random.get_rng_state()
    patches = patchify(pictures(), encoder.patch).requires_grad_()
    mask_sampler = MaskSampler(Peek(), encoder)
    found = [mask_sampler.signal(wanted, encoder, patches) for _ in range(3)]
    assert all(torch.equal(found[0], other) for other in found[1:]) and not found[0].requires_grad
    assert torch.equal(noise, torch.random.get_rng_state())
    assert modes == {name: part.training for name, part in encoder.named_modules()}
    torch.testing.assert_close(state_of(encoder), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in encoder.parameters())
    encoder.eval()
    assert torch.equal(found[0], compute_signal(wanted, encoder, patches.detach(), -1))


def test_an_error_while_looking_does_not_leave_the_encoder_asleep():
    encoder = tiny_encoder(model_args={"drop_path_rate": 0.5})
    with pytest.raises(RuntimeError):
        compute_signal(Signal.FEATURES, encoder, torch.zeros(1, 16, 7))
    assert all(part.training for part in encoder.modules())


@pytest.mark.parametrize(
    "masker", [SalienceMasker(), SelfGuidedMasker(start=0.0), AttMaskMasker(), AMTMasker(throw=0.2), MixtureMasker()]
)
def test_masks_are_made_from_these_signals(masker):
    method = tiny_mae(masker)
    batch = batch_of(pictures())
    patches = patchify(batch.images, (4, 4))
    mask, said = method.mask_sampler(method.encoder, patches, batch, 0.5)
    score_maps = masker.score_maps(compute_signal(masker.reads(0.5), method.encoder, patches, -2), (4, 4))
    assert torch.equal(mask.hidden, masker(score_maps, batch.rng_keys, 0.5, (4, 4)).hidden)
    step = method(batch, 0.5)
    assert set(said) < set(step.logs) and float(step.logs["hidden"]) == pytest.approx(float(mask.hidden.float().mean()))
    assert torch.equal(method.reconstruct(batch, 0.5)[1].hidden, mask.hidden)


# Cached maps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", ["online", "ema"])
@pytest.mark.parametrize("masker", [SelfGuidedMasker(start=0.0, refresh=2), AttMaskMasker(refresh=2), Peek(refresh=2)])
def test_cached_maps_of_whole_pictures_are_those_of_a_look(masker, scorer):
    images = pictures(8)
    method = tiny_mae(replace(masker, scorer=scorer))
    assert not method.before_epoch(0, 0.0, dataset_of(images))
    batch = Batch(images[[5, 2]], rng_keys("test", torch.arange(2)), torch.tensor([5, 2]), **whole(2))
    patches = patchify(batch.images, (4, 4))
    cached = method.mask_sampler.score_maps(method.encoder, patches, batch, 0.5)
    live = method.mask_sampler.score_maps(method.encoder, patches, replace(batch, crop=None, flip=None), 0.5)
    assert cached.shape == live.shape
    torch.testing.assert_close(cached, live, rtol=2e-3, atol=2e-3)  # half precision
    # what is cached is used: other images under the same numbers change nothing
    other = method.mask_sampler.score_maps(method.encoder, torch.randn_like(patches), batch, 0.5)
    assert torch.equal(other, cached)


@torch.no_grad()
def test_maps_are_renewed_every_few_epochs_and_not_before_the_start():
    images = pictures(7)
    method, dataset = tiny_mae(Peek(refresh=2, start=0.25)), dataset_of(images)
    cache = method.mask_sampler.cache
    assert cache is not None and len(cache) == 0
    batch = batch_of(images, **whole(7))
    patches = patchify(images, (4, 4))
    for epoch, renewed in enumerate([False, False, True, False, True, False]):
        before = method.mask_sampler.cache.clone()
        method.before_epoch(epoch, epoch / 6, dataset)  # starts at epoch 1.5
        assert (
            before.shape != method.mask_sampler.cache.shape or not torch.equal(before, method.mask_sampler.cache)
        ) == renewed
        for parameter in method.encoder.parameters():
            parameter.mul_(1.1)
    assert method.mask_sampler.cache.dtype == torch.float16 and method.mask_sampler.cache.shape[:2] == (7, 16)
    # begun between two epochs, before the first look at all pictures, it looks at its batch
    method = tiny_mae(Peek(refresh=2, start=0.25))
    method.before_epoch(1, 0.2, dataset)
    live = method.mask_sampler.score_maps(method.encoder, patches, batch, 0.3)
    torch.testing.assert_close(live, compute_signal(Signal.FEATURES, method.encoder, patches))
    # begun in an odd epoch, it need not wait for an even one
    method.before_epoch(3, 0.5, dataset)
    assert len(method.mask_sampler.cache) == 7


def reference(score_maps: Tensor, crop: Tensor, flip: Tensor, grid: tuple[int, int], across: int = 64) -> Tensor:
    """Maps as pictures, one at a time: sampled where the middle of each cell of the view lies, then mirrored."""
    out = []
    for row, box, mirrored in zip(score_maps, crop.tolist(), flip.tolist(), strict=True):
        square = row.T.unflatten(1, grid)
        top, left, height, width = box
        cells = torch.empty(len(square), *grid)
        for r in range(grid[0]):
            for c in range(grid[1]):
                y = (top + height * (r + 0.5) / grid[0]) * grid[0] - 0.5
                x = (left + width * (c + 0.5) / grid[1]) * grid[1] - 0.5
                y, x = min(max(y, 0), grid[0] - 1), min(max(x, 0), grid[1] - 1)
                y0, x0 = int(y), int(x)
                y1, x1 = min(y0 + 1, grid[0] - 1), min(x0 + 1, grid[1] - 1)
                fy, fx = y - y0, x - x0
                above = (1 - fx) * square[:, y0, x0] + fx * square[:, y0, x1]
                below = (1 - fx) * square[:, y1, x0] + fx * square[:, y1, x1]
                cells[:, r, c] = (1 - fy) * above + fy * below
        out.append((cells.flip(2) if mirrored else cells).flatten(1).T)
    return torch.stack(out)


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (6, 2)])
def test_maps_go_through_crop_and_mirror(grid):
    generator = torch.Generator().manual_seed(0)
    score_maps = torch.randn(40, grid[0] * grid[1], 2, generator=generator)
    side = 0.2 + 0.8 * torch.rand(40, 2, generator=generator)
    corner = (1 - side) * torch.rand(40, 2, generator=generator)
    crop, flip = torch.cat([corner, side], dim=1), torch.rand(40, generator=generator) < 0.5
    torch.testing.assert_close(
        warp_to_view(score_maps, crop, flip, grid), reference(score_maps, crop, flip, grid), rtol=1e-4, atol=1e-5
    )
    same = warp_to_view(score_maps, whole(40)["crop"], whole(40)["flip"], grid)
    torch.testing.assert_close(same, score_maps, rtol=1e-5, atol=1e-6)
    mirrored = warp_to_view(score_maps, crop, ~flip, grid).unflatten(1, grid).flip(2).flatten(1, 2)
    torch.testing.assert_close(mirrored, warp_to_view(score_maps, crop, flip, grid))


@pytest.mark.parametrize("flip", [False, True])
def test_maps_go_where_torchvision_takes_the_pixels(flip):
    """A picture with one number a patch, cropped and mirrored as a picture is: its patches' means are the maps."""
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    grid, cell = (8, 8), 12
    smooth = F.interpolate(torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(1)), grid, mode="bicubic")
    image = F.interpolate(smooth, scale_factor=cell, mode="bilinear")
    side = grid[0] * cell
    for top, left, height, width in ((0, 0, side, side), (12, 30, 60, 48), (40, 5, 40, 70)):
        view = functional.resized_crop(image, top, left, height, width, [side, side], antialias=True)
        view = functional.horizontal_flip(view) if flip else view
        expected = F.avg_pool2d(view, cell).flatten(2).mT
        crop = torch.tensor([[top, left, height, width]]).repeat(5, 1) / side
        found = warp_to_view(smooth.flatten(2).mT, crop, torch.full((5,), flip), grid)
        spread = smooth.std()
        assert (found - expected).abs().max() < 0.25 * spread
        assert (found - expected.unflatten(1, grid).flip(2).flatten(1, 2)).abs().max() > spread  # the measure can tell


@pytest.mark.parametrize("grid", [(6, 6), (4, 8)])
def test_maps_follow_a_symmetry(grid):
    """A map that rises evenly says at each patch of the view where it lies in the picture."""
    rows, columns = grid
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
    score_maps = torch.stack([y[:, None].expand(grid), x.expand(grid)], dim=2).flatten(0, 1).expand(16, -1, -1)
    crop = torch.tensor([0.3, 0.25, 0.4, 0.5]).expand(16, -1)  # away from the border, where maps end
    symmetry, flip = torch.arange(16) % 8, torch.arange(16) >= 8
    result = warp_to_view(score_maps, crop, flip, grid, symmetry).unflatten(1, grid)
    fine = torch.stack(torch.meshgrid(torch.linspace(0, 1, 49), torch.linspace(0, 1, 49), indexing="ij"))
    views = fine.expand(16, -1, -1, -1) * torch.tensor([0.4, 0.5]).view(2, 1, 1) + torch.tensor([0.3, 0.25]).view(
        2, 1, 1
    )
    views = turned(torch.where(flip.view(-1, 1, 1, 1), views.flip(3), views), symmetry)
    expected = F.grid_sample(
        views,
        2 * torch.stack([x.expand(grid), y[:, None].expand(grid)], dim=2).expand(16, -1, -1, -1) - 1,
        align_corners=True,
    )
    torch.testing.assert_close(result.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flips", ["left-right", "dihedral"])
def test_the_loader_s_crops_are_those_of_its_pictures(forty, flips):
    """Boxes in a batch say which part of the picture the batch shows."""
    from drills import tiny
    from mimkit.data.views import RandomResizedCrop
    from mimkit.train.prepare import Prepared

    run = tiny(forty)
    run.images.view, run.images.flips = RandomResizedCrop(scale=(0.3, 0.8)), flips
    ready = Prepared(run)
    pixels = torch.stack([ready.pictures.read(n) for n in range(40)]) / 255
    loader = ready.loader(torch.device("cpu"), rank=0, world=1, micro_batch=8, workers=0, log=lambda line: None)
    mean, std = (torch.tensor(values) for values in ready.statistics)
    batch = next(loader.micro_batches(0, 1))
    assert batch.crop is not None and batch.flip.any() and not batch.flip.all()
    chosen = pixels[batch.index].flatten(2).mT
    expected = warp_to_view(chosen, batch.crop, batch.flip, (12, 12), batch.symmetry).mT.unflatten(2, (12, 12))
    shown = batch.images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    assert (shown - expected).abs().mean() < 0.05 and (shown.flip(3) - expected).abs().mean() > 0.1


# Who looks -------------------------------------------------------------------------------------------------


def test_the_moving_average_begins_with_released_weights():
    method = tiny_mae(Peek(scorer="ema"))
    slow, weights = method.mask_sampler.slow, method.encoder.state_dict()
    for value in method.encoder.parameters():  # as weights that are loaded after the method was built
        torch.nn.init.normal_(value)
    method.setup(dataset_of(pictures()), resumed=False)
    torch.testing.assert_close(slow.state_dict(), weights, rtol=0, atol=0)
    torch.nn.init.normal_(method.encoder.timm.blocks[0].attn.qkv.weight)
    method.setup(dataset_of(pictures()), resumed=True)
    method.before_epoch(1, 0.5, dataset_of(pictures()))
    assert not torch.equal(slow.timm.blocks[0].attn.qkv.weight, weights["timm.blocks.0.attn.qkv.weight"])


def test_the_moving_average_follows_and_looks():
    method = tiny_mae(Peek(scorer="ema", momentum=0.75))
    mask_sampler, encoder = method.mask_sampler, method.encoder
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    names = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    assert not [name for name in names if "slow" in name]
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=3.0)
    expected = {name: value.double() for name, value in start.items()}
    batch = batch_of(pictures())
    for _ in range(3):
        optimizer.zero_grad()
        method(batch, 0.0).loss.backward()
        assert all(parameter.grad is None for parameter in mask_sampler.slow.parameters())
        optimizer.step()
        method.after_step(0.0)
        now = encoder.state_dict()
        expected = {name: 0.75 * value + 0.25 * now[name].double() for name, value in expected.items()}
    for name, value in mask_sampler.slow.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert any((value - start[name]).abs().max() > 1e-3 for name, value in mask_sampler.slow.state_dict().items())
    patches = patchify(batch.images, (4, 4))
    found = mask_sampler.score_maps(encoder, patches, batch, 0.0)
    torch.testing.assert_close(found, compute_signal(Signal.FEATURES, mask_sampler.slow, patches), rtol=0, atol=0)
    assert not torch.allclose(found, compute_signal(Signal.FEATURES, encoder, patches), atol=1e-3)


def test_the_method_s_own_average_looks_where_there_is_one():
    encoder, average = tiny_encoder(seed=1), tiny_encoder(seed=2)
    mask_sampler = MaskSampler(Peek(scorer="ema"), encoder, average=average)
    assert mask_sampler.slow is None and not list(mask_sampler.parameters()), "there are not two of it"
    batch = batch_of(pictures())
    patches = patchify(batch.images, (4, 4))
    expected = compute_signal(Signal.FEATURES, average, patches)
    torch.testing.assert_close(mask_sampler.score_maps(encoder, patches, batch, 0.0), expected, rtol=0, atol=0)
    assert MaskSampler(Peek(scorer="online"), encoder, average=average)._average == ()


def test_the_average_is_kept_over_a_resume_and_only_where_it_is_asked_for():
    one, other = (tiny_mae(Peek(scorer="ema"), tiny_encoder(seed=seed)) for seed in (1, 2))
    with torch.no_grad():
        for parameter in one.mask_sampler.slow.parameters():
            parameter.mul_(3)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(state_of(other.mask_sampler), state_of(one.mask_sampler), rtol=0, atol=0)
    assert not [name for name in tiny_mae(Peek()).state_dict() if name.startswith("mask_sampler.")]
    assert not [name for name in tiny_mae(RandomMasker()).state_dict() if name.startswith("mask_sampler.")]


def exported(folder, encoder: Encoder, config: EncoderConfig, mean, std):
    args = config.timm_args(encoder.size, 3)
    export_timm(encoder, folder, name=config.name, model_args=args, mean=mean, std=std, card="")
    return folder


@torch.no_grad()
@pytest.mark.parametrize("signal", [Signal.FEATURES, Signal.ATTENTION])
def test_a_teacher_sees_the_same_pictures_as_it_wants_them(signal, tmp_path):
    """Trained on larger pictures with larger patches, and normalized in another way."""
    size, mean, std = (24, 40), [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    config = EncoderConfig(name=PLAIN, **(TINY | {"patch": 8, "width": 48, "depth": 3, "heads": 3}))
    other = tiny_encoder(size, seed=7, patch=8, width=48, depth=3, heads=3)
    export = exported(tmp_path / "run" / "export", other, config, mean, std)
    student = tiny_encoder((12, 20))
    images = pictures(3, (12, 20))
    mask_sampler = MaskSampler(Peek(scorer=str(export)), student)
    found = mask_sampler.signal(signal, student, patchify(images, student.patch))
    pixels = images * torch.tensor(student.std).view(-1, 1, 1) + torch.tensor(student.mean).view(-1, 1, 1)
    theirs = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    theirs = F.interpolate(theirs, size, mode="bicubic", antialias=True)
    expected = compute_signal(signal, other.eval(), patchify(theirs, (8, 8)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape[1] == 15
    run = MaskSampler(Peek(scorer=str(tmp_path / "run")), student)  # a run's folder is as good
    torch.testing.assert_close(run.signal(signal, student, patchify(images, student.patch)), found)
    mask_sampler.train()
    assert not mask_sampler.state_dict() and not list(mask_sampler.parameters())  # it belongs into no checkpoint
    assert not mask_sampler.teacher.network.encoder.timm.training


@torch.no_grad()
def test_a_teacher_of_the_same_size_sees_the_same_grid_without_resizing(tmp_path):
    config = EncoderConfig(name=PLAIN, **TINY)
    other = tiny_encoder(seed=3)
    export = exported(tmp_path / "export", other, config, other.mean, other.std)
    teacher = Teacher(str(export), (4, 4), 3, other.mean, other.std)
    images = pictures()
    torch.testing.assert_close(teacher.images(images), images, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(teacher.encoder(images).patches, other.eval()(images).patches, rtol=1e-4, atol=1e-5)
    # on another grid timm resamples its positions
    larger = Teacher(str(export), (6, 5), 3, other.mean, other.std)
    assert larger.size == (24, 20) and larger.encoder.grid == (6, 5)


@pytest.mark.parametrize(
    ("masker", "build", "message"),
    [
        (AttMaskMasker(), {"name": NO_CLASS}, "reads the class token's attention and this encoder has none"),
        (AMTMasker(scorer="ema"), {"name": NO_CLASS}, "reads the class token's attention and this encoder has none"),
        (SelfGuidedMasker(layer=-3), {}, "masker.layer -3 lies before the first of 2 blocks"),
        (AttMaskMasker(scorer="vit_tinny"), {}, "there is no teacher 'vit_tinny'"),
        (AttMaskMasker(scorer="swin_tiny_patch4_window7_224"), {}, "cannot be this encoder"),
        (MixtureMasker(other=AttMaskMasker()), {"name": NO_CLASS}, "this encoder has none"),
    ],
)
def test_what_cannot_look_is_refused_when_it_is_built(masker, build, message):
    with pytest.raises(UserError, match=message):
        MaskSampler(masker, tiny_encoder(**build))


def test_teachers_are_refused_for_what_they_have_not(tmp_path):
    config = EncoderConfig(name=NO_CLASS, **(TINY | {"depth": 1}))
    export = exported(tmp_path / "export", tiny_encoder(name=NO_CLASS, depth=1), config, [0.5] * 3, [0.2] * 3)
    with pytest.raises(UserError, match=r"attention and '.*export' has none"):
        MaskSampler(AttMaskMasker(scorer=str(export)), tiny_encoder())
    with pytest.raises(UserError, match="layer -2 lies before the first of 1 blocks"):
        MaskSampler(SelfGuidedMasker(scorer=str(export)), tiny_encoder())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        MaskSampler(AttMaskMasker(scorer=str(tmp_path / "empty")), tiny_encoder())


def test_an_encoder_without_class_token_may_have_a_teacher_with_one(tmp_path):
    export = exported(
        tmp_path / "export", tiny_encoder(seed=4), EncoderConfig(name=PLAIN, **TINY), [0.5] * 3, [0.2] * 3
    )
    method = tiny_mae(AttMaskMasker(scorer=str(export)), tiny_encoder(name=NO_CLASS))
    assert method(batch_of(pictures()), 0.5).loss.isfinite()


# What starts it --------------------------------------------------------------------------------------------


def exploited(masked: float):
    return lambda images: Exploitation(torch.full((len(images),), 1 - masked), torch.full((len(images),), masked))


def test_exploitation_starts_it_and_the_start_survives():
    dataset, masker = dataset_of(pictures()), SelfGuidedMasker(trigger="exploitation", start=0.9)
    method = tiny_mae(masker)
    mask_sampler = method.mask_sampler
    rates = [0.75, 0.7, 0.4, 0.6, 0.4, 0.6, 0.6]
    fired = [False, False, False, False, False, False, True]
    for epoch, (rate, now) in enumerate(zip(rates, fired, strict=True)):
        logs = mask_sampler.before_epoch(method.encoder, epoch, epoch / 10, dataset, exploited(rate))
        assert logs["trigger_fired"] == now and logs["trigger_armed"] == (epoch >= 2)
        assert logs["exploited_masked"] == pytest.approx(rate)
        assert logs["exploited_visible"] == pytest.approx(1 - rate)
        assert mask_sampler.masker.reads(epoch / 10) is (Signal.FEATURES if now else Signal.NONE)
    assert mask_sampler.masker.start == pytest.approx(0.6, abs=1e-6) and mask_sampler.masker.start <= 0.6
    assert method.mask_sampler.guide is masker  # what is configured is not forgotten

    again = tiny_mae(masker)
    assert again.mask_sampler.masker.start == 0.9
    again.load_state_dict(method.state_dict())
    assert again.mask_sampler.masker == mask_sampler.masker  # to the last bit: hints fade from there
    assert Trigger.from_tensor(again.mask_sampler.memory).fired_at == mask_sampler.masker.start

    late = mask_sampler.before_epoch(method.encoder, 7, 0.7, dataset, exploited(0.3))
    assert late["trigger_fired"] and mask_sampler.masker == again.mask_sampler.masker  # once started it goes on

    half = tiny_mae(masker)  # armed and with one evaluation of two, when the run is interrupted
    for epoch, rate in enumerate([0.4, 0.6]):
        half.mask_sampler.before_epoch(half.encoder, epoch, epoch / 10, dataset, exploited(rate))
    resumed = tiny_mae(masker)
    resumed.load_state_dict(half.state_dict())
    for one in (half, resumed):
        one.mask_sampler.before_epoch(one.encoder, 2, 0.2, dataset, exploited(0.6))
        assert one.mask_sampler.masker.reads(0.2) is Signal.FEATURES


def test_a_method_without_a_decoder_cannot_measure_exploitation():
    encoder = tiny_encoder()
    mask_sampler = MaskSampler(SelfGuidedMasker(trigger="exploitation"), encoder)
    with pytest.raises(UserError, match="no decoder whose exploitation"):
        mask_sampler.before_epoch(encoder, 0, 0.0, dataset_of(pictures(4)))


def test_without_the_trigger_it_starts_at_the_latest():
    method = tiny_mae(SelfGuidedMasker(trigger="exploitation", start=0.5))
    logs = method.before_epoch(5, 0.5, dataset_of(pictures()))
    assert not logs["trigger_fired"] and method.mask_sampler.masker.reads(0.5) is Signal.FEATURES


@pytest.mark.parametrize("training", [True, False])
def test_measuring_exploitation_leaves_no_trace_and_drops_nothing(training):
    encoder = tiny_encoder(model_args={"drop_path_rate": 0.5})
    method = tiny_mae(SelfGuidedMasker(trigger="exploitation"), encoder).train(training)
    before, noise = state_of(method.encoder), torch.random.get_rng_state()
    one, two = (method.exploitation(pictures()) for _ in range(2))
    assert torch.equal(one.masked, two.masked)
    assert torch.equal(noise, torch.random.get_rng_state())
    assert all(part.training == training for part in method.modules())
    torch.testing.assert_close(state_of(method.encoder), before, rtol=0, atol=0)
    first = method.before_epoch(0, 0.0, dataset_of(pictures()))
    assert first["exploited_masked"] == pytest.approx(method.exploitation(pictures()[:3]).masked.mean().item())
    assert not first["trigger_armed"]  # before training it is above one half


def test_saturation_starts_salience_and_the_start_survives():
    masker = SalienceMasker(trigger="saturation", start=0.75)
    method, dataset = tiny_mae(masker), dataset_of(pictures(8))
    encoder = method.encoder

    with torch.no_grad():  # small embeddings do not saturate the softmax
        for parameter in (encoder.timm.patch_embed.proj.weight, encoder.timm.pos_embed):
            parameter.mul_(0.1)
    patches = patchify(dataset.sample(), (4, 4))
    wide = float((masker.score_maps(compute_signal(Signal.PATCHES, encoder, patches), (4, 4)) > 0.2).float().mean())
    assert wide > 0.05
    logs = method.before_epoch(0, 0.1, dataset)
    assert logs["sample_salient_fraction"] == pytest.approx(wide) and logs["trigger_fired"] == 1
    assert (
        method.mask_sampler.masker.reads(0.1) is Signal.PATCHES
        and method.mask_sampler.masker.reads(0.09) is Signal.NONE
    )
    late = method.before_epoch(1, 0.2, dataset)  # the first start counts
    assert late["trigger_fired"] == 1 and method.mask_sampler.masker.start == pytest.approx(0.1)
    again = tiny_mae(masker)
    again.load_state_dict(method.state_dict())
    assert again.mask_sampler.masker == method.mask_sampler.masker


def test_saturated_salience_does_not_start(monkeypatch):
    module = sys.modules["mimkit.masks.salience"]

    method = tiny_mae(SalienceMasker(trigger="saturation", start=0.75))
    monkeypatch.setattr(module, "salient_fraction", lambda score_maps: torch.tensor(0.049))
    logs = method.before_epoch(0, 0.1, dataset_of(pictures()))
    assert logs["trigger_fired"] == 0 and method.mask_sampler.masker.reads(0.74) is Signal.NONE
    assert math.isinf(Trigger.from_tensor(method.mask_sampler.memory).fired_at)
    assert method.mask_sampler.masker.reads(0.75) is Signal.PATCHES


def test_cache_and_trigger_survive_together():
    masker = SelfGuidedMasker(trigger="exploitation", start=0.5, refresh=3)
    images = pictures(5)
    method = tiny_mae(masker)
    method.before_epoch(3, 0.5, dataset_of(images))
    assert method.mask_sampler.cache.shape == (5, 16, 2)
    again = tiny_mae(masker, tiny_encoder(seed=9))
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    assert (
        torch.equal(again.mask_sampler.cache, method.mask_sampler.cache)
        and again.mask_sampler.cache.dtype == torch.float16
    )
    batch = batch_of(images, **whole(5))
    patches = patchify(images, (4, 4))
    masks = [one.mask_sampler(one.encoder, patches, batch, 0.6)[0].hidden for one in (method, again)]
    assert torch.equal(*masks)
