"""Tokenizers: what they give, how they are trained and opened, and SimMIM that predicts their ids."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from commandline import FAST, mimkit, refused
from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.names import trust
from mimkit.core.randomness import rng_keys, uniform
from mimkit.data.photos import photos
from mimkit.masks import RandomMasker, SimMIMMasker
from mimkit.methods.simmim import SimMIM, SimMIMConfig
from mimkit.methods.targets.tokens import LoadedTokenIds, TokenIds
from mimkit.methods.tokenizer import DEAD, VQVAE, VQVAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.patches import patchify
from mimkit.model.tokenizer import Tokenizer, TokenizerConfig, open_tokenizer
from mimkit.recipes import find_recipe
from mimkit.train.machine import untouched
from mimkit.train.optimizer import set_lr
from shares import write_shares

SWIN, VIT = "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SMALL = "--encoder.width 16 --encoder.depth 1 --encoder.heads 2"


def encoder(patch: int = 8, size: tuple[int, int] = (32, 32), swin: bool = False) -> Any:
    config = EncoderConfig(name=VIT, patch=patch, width=16, depth=1, heads=2)
    if swin:
        shape = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
        config = EncoderConfig(name=SWIN, model_args=shape)
    built: Any = config.build(size, 3)
    built.mean, built.std = MEAN, STD
    return built


def batch(rows: int = 6, first: int = 0) -> Batch:
    number = torch.arange(first, first + rows)
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(images[first : first + rows], rng_keys("test", number), number)


def vqvae(**chosen: Any) -> VQVAE:
    torch.manual_seed(0)
    return VQVAEConfig(tokenizer=TokenizerConfig(classes=24, code=6, width=8), **chosen).build(encoder())


@pytest.mark.parametrize("swin", [False, True])
@torch.no_grad()
def test_ids_are_nearest_vectors_and_pictures_theirs(swin):
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(classes=24, code=6, width=8).build(encoder(4, swin=swin)).eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    vectors = tokenizer.encode((images - mean) / std)
    side = 4 if swin else 8
    assert vectors.shape == (3, side, side, 6)
    torch.testing.assert_close(vectors.norm(dim=3), torch.ones(3, side, side))
    apart = ((vectors.double().numpy()[..., None, :] - tokenizer.codes.double().numpy()) ** 2).sum(-1)
    ids = tokenizer.ids(images)
    assert np.array_equal(ids.numpy(), apart.argmin(-1)) and len(ids.unique()) > 2
    drawn = tokenizer.pictures(ids)
    assert drawn.shape == images.shape and drawn.min() >= 0 and drawn.max() <= 1
    torch.testing.assert_close(drawn, (tokenizer.decode(tokenizer.codes[ids]) * std + mean).clamp(0, 1))
    assert tokenizer.ids(torch.rand(2, 3, 50, 40)).shape == (2, side, side)  # other sizes are resampled
    with torch.autocast("cpu", torch.bfloat16):
        assert tokenizer.encode((images - mean) / std).dtype == torch.float32


def test_loss_and_logs_against_numpy_and_the_gradient_passes_the_choice():
    ours, given = vqvae(commitment=0.5), batch()
    tokenizer = ours.tokenizer
    vectors = tokenizer.encode(given.images)
    codes, z = tokenizer.codes.double().numpy(), vectors.detach().double().numpy()
    ids = (z @ codes.T).argmax(-1)
    drawn = tokenizer.decode(torch.from_numpy(codes[ids]).float()).detach().double().numpy()
    error, distance = ((drawn - given.images.numpy()) ** 2).mean(), ((z - codes[ids]) ** 2).sum(-1).mean()
    fraction = np.bincount(ids.ravel(), minlength=24) / ids.size
    step = ours(given, 0.0)
    assert step.loss.item() == pytest.approx(error + 0.5 * distance, rel=1e-4)
    found = {name: value.item() for name, value in step.logs.items()}
    used = fraction[fraction > 0]
    expected = {"reconstruction": error, "distance": distance, "perplexity": np.exp(-(used * np.log(used)).sum())}
    assert found == pytest.approx(expected, rel=1e-4)
    step.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in ours.parameters() if p.requires_grad)
    through = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()
    chosen = torch.from_numpy(codes[ids]).float().requires_grad_()  # the gradient at the vectors goes on to the tokens
    torch.nn.functional.mse_loss(tokenizer.decode(chosen), given.images).backward()
    torch.autograd.backward(
        [
            tokenizer.encode(given.images),
            0.5 * (tokenizer.encode(given.images) - chosen.detach()).square().sum(3).mean(),
        ],
        [chosen.grad, torch.ones(())],
    )
    for name, p in ours.named_parameters():
        if name in through:
            torch.testing.assert_close(p.grad, through[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_codebook_follows_as_a_formula_says():
    ours = vqvae(decay=0.9)
    average = np.zeros((24, 7))
    for number in range(4):
        given = batch(6, 6 * number)
        with torch.no_grad():
            z = ours.tokenizer.encode(given.images)
        ids = ours.tokenizer.nearest(z).numpy()
        ours(given, 0.0)
        before = ours.tokenizer.codes.clone().numpy()
        ours.after_step(0.0)
        new, tokens = np.zeros((24, 7)), np.concatenate([z.numpy(), np.ones((6, 4, 4, 1))], -1)
        np.add.at(new, ids.ravel(), tokens.reshape(-1, 7))
        average = 0.9 * average + 0.1 * new * 24 / ids.size
        offers = np.zeros((24, 7))
        draws = (uniform(given.rng_keys, 1, stream)[:, 0].tolist() for stream in range(2))
        for row, (place, slot) in enumerate(zip(*draws, strict=True)):
            offers[int(slot * 24)] += tokens[row].reshape(16, 7)[int(place * 16)]
        restarted = 0
        for k in range(24):
            if average[k, 6] < DEAD and offers[k, 6]:
                average[k] = 2 * DEAD * np.append(offers[k, :6] / np.linalg.norm(offers[k, :6]), 1)
                restarted += 1
        assert number or restarted
        np.testing.assert_allclose(ours.average.numpy(), average, rtol=1e-4, atol=1e-6)
        lengths = np.linalg.norm(average[:, :6], axis=1, keepdims=True)
        expected = np.where(average[:, 6:] > 0, average[:, :6] / np.maximum(lengths, 1e-12), before)
        np.testing.assert_allclose(ours.tokenizer.codes.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_micro_batches_change_nothing_and_timing_leaves_no_trace():
    whole, parts = vqvae(), vqvae()
    whole(batch(6), 0.0)
    with untouched(parts):
        parts(batch(6), 0.0)
    parts(batch(2), 0.0)
    parts(batch(4, 2), 0.0)
    for ours in (whole, parts):
        ours.after_step(0.0)
        assert not ours.seen.any()
    torch.testing.assert_close(parts.average, whole.average)
    torch.testing.assert_close(parts.tokenizer.codes, whole.tokenizer.codes)


def test_settings_are_checked():
    for wrong, message in (
        (VQVAEConfig(tokenizer=TokenizerConfig(classes=0)), r"tokenizer\.classes must be at least 1"),
        (VQVAEConfig(decay=1.0), r"method\.decay lies between 0 and 1"),
        (VQVAEConfig(commitment=-1.0), r"method\.commitment must be at least 0"),
    ):
        with pytest.raises(UserError, match=message):
            wrong.build(encoder())
    uneven = EncoderConfig(name="resnet18", model_args={"output_stride": 8}).build((36, 32), 3)
    with pytest.raises(UserError, match="5x4 tokens do not divide images of 36x32"):
        VQVAEConfig().build(uneven)


def test_a_resnet_will_do():
    torch.manual_seed(0)
    small = {"output_stride": 8, "channels": [4, 4, 8, 8]}
    part = EncoderConfig(name="resnet18", model_args=small).build((32, 32), 3)
    ours = VQVAEConfig().build(part)
    ours(batch(), 0.0).loss.backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert ours.tokenizer.eval().pictures(ours.tokenizer.ids(torch.rand(2, 3, 32, 32))).shape == (2, 3, 32, 32)


# Runs


@pytest.fixture(scope="module")
def run(forty, tmp_path_factory) -> Path:
    """A run that trained a small tokenizer for two steps of 20 pictures."""
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    said = mimkit(
        f"pretrain tokenizer_mini_32 --data {forty} --run {folder} --batch-size 20 --epochs 1 --schedule.warmup 0.1 "
        f"--method.tokenizer.classes 24 --method.tokenizer.width 8 {SMALL} {FAST} --machine.evals 1 "
        "--machine.log-every 1"
    )
    assert said.status == 0, said.err
    return folder


def test_a_run_leaves_numbers_pictures_an_export_and_the_tokenizer(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["perplexity"] >= 1 and math.isfinite(records[-1]["loss"])
    assert (run / "pictures" / "reconstruction.png").is_file()
    torch.manual_seed(5)
    found = open_tokenizer(str(run))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # opening draws no numbers
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    state = torch.load(sorted((run / "checkpoints").glob("*.pt"))[-1], weights_only=True)["model"]
    assert torch.equal(found.codes, state["tokenizer.codes"]) and found.classes == 24
    model: Any = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    normal = (images - found.mean) / found.std
    torch.testing.assert_close(model.forward_features(normal), torch.cat(found.encoder(normal), dim=1))
    given = replace(batch(2), images=normal)
    ours = VQVAEConfig().build(encoder())
    ours.tokenizer = found
    drawn, mask = ours.reconstruct(given, 0.0)
    assert mask.hidden.all() and mask.visible.shape == (2, 0)
    torch.testing.assert_close((drawn * found.std + found.mean).clamp(0, 1), found.pictures(found.ids(images)))


def test_a_tokenizer_is_opened_from_shares_too(run, tmp_path):
    whole, folder = open_tokenizer(str(run)), tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text((run / "config.json").read_text())
    state = torch.load(sorted((run / "checkpoints").glob("*.pt"))[-1], weights_only=True)
    write_shares(folder / "checkpoints" / "step-000000004", state, 3)
    shared = open_tokenizer(str(folder))
    torch.testing.assert_close(shared.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_resumed_run_is_the_same_run(forty, tmp_path):
    common = (
        f"pretrain tokenizer_mini_32 --data {forty} --batch-size 10 --epochs 1 --schedule.warmup 0.1 "
        f"--method.tokenizer.classes 24 {SMALL} {FAST}"
    )
    for command in (f"{common} --run {tmp_path / 'a'}", f"{common} --run {tmp_path / 'b'} --max-steps 2"):
        assert mimkit(command).status == 0
    assert mimkit(f"{common} --run {tmp_path / 'b'}").status == 0
    a, b = (torch.load(tmp_path / n / "checkpoints" / "step-000000004.pt", weights_only=True)["model"] for n in "ab")
    assert a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def test_simmim_on_a_runs_tokens_from_the_command_line(run, forty, tmp_path):
    common = (
        f"pretrain simmim_mini_32_tokens --data {forty} --batch-size 10 --epochs 1 --schedule.warmup 0.1 {SMALL} {FAST}"
    )
    assert "tokens need a tokenizer: give --method.target.tokenizer" in refused(f"{common} --run {tmp_path / 'none'}")
    common += f" --method.target.tokenizer {run} --machine.evals 1"
    for command in (f"{common} --run {tmp_path / 'a'}", f"{common} --run {tmp_path / 'b'} --max-steps 2"):
        said = mimkit(command)
        assert said.status == 0, said.err
    assert (tmp_path / "a" / "pictures" / "reconstruction.png").is_file()
    assert mimkit(f"pretrain --run {tmp_path / 'b'}").status == 0
    a, b = (torch.load(tmp_path / n / "checkpoints" / "step-000000004.pt", weights_only=True)["model"] for n in "ab")
    assert not any("tokenizer" in key or "network" in key for key in a)
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_what_is_no_tokenizer_is_refused_in_one_line(run, forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken_tokens.py").write_text("def number(): return 3\ndef fails(): raise RuntimeError('a\\nb')\n")
    mae = tmp_path / "mae"
    assert mimkit(f"pretrain mae_mini_28 --data {forty} --run {mae} $TINY").status == 0
    early, damaged = tmp_path / "early", tmp_path / "damaged"
    for folder in (early, damaged):
        folder.mkdir()
        (folder / "config.json").write_text((run / "config.json").read_text())
    (damaged / "checkpoints").mkdir()
    (damaged / "checkpoints" / "step-000000001.pt").write_bytes(b"nothing")
    for name in ("nowhere.at_all:x", "broken_tokens:fails"):  # a run folder may name anything
        with pytest.raises(UserError, match="--trust"):
            open_tokenizer(name)
        trust(name)
    for name, message in {
        "": "tokens need a tokenizer: give --method.target.tokenizer",
        "runs/none": "there is no tokenizer 'runs/none': give",
        str(tmp_path): "holds no run that trained a tokenizer",
        str(mae): "holds no run that trained a tokenizer",
        str(early): "has no checkpoint yet: let it go on with",
        str(damaged): "cannot be loaded",
        "nowhere.at_all:x": "cannot be imported",
        "broken_tokens:nothing": "cannot be imported",
        "broken_tokens:fails": "cannot be made (RuntimeError: a)",
        "broken_tokens:number": "is a int: it needs to be a Module with ids and classes",
    }.items():
        with pytest.raises(UserError) as caught:
            open_tokenizer(name)
        assert message in str(caught.value) and "\n" not in str(caught.value)


# SimMIM on ids


class Brightness(nn.Module):
    """An outside tokenizer: eight levels of the mean brightness of squares."""

    classes = 8

    def __init__(self, cell: int = 4, wide: int = 0) -> None:
        super().__init__()
        self.cell, self.wide = cell, wide
        self.weight = nn.Parameter(torch.ones(()))

    def ids(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        assert images.min() >= 0 and images.max() <= 1
        means = nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), (self.cell, self.cell + self.wide))[:, 0]
        return (self.weight * 7.99 * means).long()


class Drawable(Brightness):
    def pictures(self, ids: Tensor) -> Tensor:
        return (ids.float().unsqueeze(1) / 7).expand(-1, 3, -1, -1).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture
def outside(monkeypatch, tmp_path) -> str:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outside_tokens.py").write_text("made = []\ndef make():\n    return made[-1]\n")
    import sys

    sys.modules.pop("outside_tokens", None)
    trust("outside_tokens")
    import outside_tokens

    outside_tokens.made.append(Brightness())
    return "outside_tokens:make"


def offer(network: nn.Module) -> None:
    import outside_tokens

    outside_tokens.made.append(network)


def simmim(name: str, **chosen: Any) -> SimMIM:
    torch.manual_seed(0)
    part = encoder(**{key: chosen.pop(key) for key in ("patch", "swin") if key in chosen})
    ours = SimMIMConfig(target=TokenIds(tokenizer=name), **chosen).build(part)
    with torch.no_grad():
        for value in ours.head.parameters():
            value.normal_(std=0.3, generator=torch.Generator().manual_seed(3))
    return ours


@pytest.mark.parametrize(
    ("patch", "swin", "cell"), [(8, False, 4), (4, False, 4), (4, True, 4), (4, True, 8), (16, False, 2)]
)
def test_cross_entropy_of_tokens_against_numpy(outside, patch, swin, cell):
    """Ids finer than, equal to and coarser than the patches that are hidden, and than the tokens that leave."""
    offer(Brightness(cell))
    ours = simmim(outside, patch=patch, swin=swin, masker=SimMIMMasker(unit=1, ratio=0.7))
    given = batch(4)
    patches = patchify(given.images, (patch, patch))
    mask, _ = ours.mask_sampler(ours.encoder, patches, given, 0.0)
    side, grid = 32 // cell, 32 // patch
    pixels = np.clip(given.images.numpy() * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1)), 0, 1)
    labels = (7.99 * pixels.mean(axis=1).reshape(4, side, cell, side, cell).mean(axis=(2, 4))).astype(int)
    scores = ours.predict(patches, mask).detach().double().numpy()
    assert scores.shape == (4, 8, side, side)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    errors = -np.take_along_axis(logs, labels[:, None], axis=1)[:, 0]
    hidden = np.kron(mask.hidden.view(4, grid, grid).numpy(), np.ones((1, patch, patch), dtype=bool))
    counts = hidden.reshape(4, side, cell, side, cell).all(axis=(2, 4))
    assert 0 < counts.sum() < counts.size
    step = ours(given, 0.0)
    assert step.loss.item() == pytest.approx((errors * counts).sum() / (counts.sum() + 1e-5), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(given, 0.0).loss.item() == pytest.approx(step.loss.item(), rel=0.05)


def test_the_tokenizer_is_frozen_and_in_no_checkpoint(outside):
    network = Brightness().train()
    offer(network)
    ours = simmim(outside)
    ours.train()(batch(), 0.0).loss.backward()
    assert network.weight.grad is None and not network.weight.requires_grad and not network.training
    assert all(p.grad is not None and p.grad.any() for p in ours.parameters() if p.requires_grad)
    assert not any("weight" in key and "network" in key for key in ours.state_dict())
    assert network.weight not in set(ours.parameters())
    ours.to(torch.float64)
    assert network.weight.dtype == torch.float64  # it goes along


def test_likeliest_ids_are_drawn_where_the_tokenizer_draws(outside):
    assert simmim(outside).reconstruct(batch(), 0.0) is None
    offer(Drawable())
    ours, given = simmim(outside, masker=RandomMasker()), batch()
    drawn, mask = ours.reconstruct(given, 0.0) or pytest.fail("nothing drawn")
    likeliest = ours.predict(patchify(given.images, (8, 8)), mask).argmax(dim=1)
    expected = (Drawable().pictures(likeliest) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(drawn, expected)


def test_ids_that_do_not_fit_are_refused(outside):
    for network, message in (
        (Brightness(4, wide=4), "which are no squares on images of 32x32"),
        (Brightness(40), "fails on images of 3 x 32 x 32"),
    ):
        offer(network)
        with pytest.raises(UserError, match=message):
            simmim(outside)
    offer(Brightness(16))
    with pytest.raises(UserError, match=r"16 does not divide the 8x8 pixels.*for tokens another tokenizer"):
        simmim(outside)

    class Numbers(Brightness):
        def ids(self, images: Tensor) -> Tensor:
            return super().ids(images).float()

    offer(Numbers())
    with pytest.raises(UserError, match=r"gives \(1, 8, 8\) torch.float32: int64"):
        simmim(outside)


# A real one


@pytest.mark.slow
def test_a_tokenizer_learns_photographs_and_simmim_its_ids(outside):
    run = find_recipe("tokenizer_mini_32")
    pixels = nn.functional.interpolate(photos("train").tensor().float() / 255, (32, 32), mode="area")
    held = nn.functional.interpolate(photos("test").tensor()[::7].float() / 255, (32, 32), mode="area")
    part: Any = run.encoder.build((32, 32), 3)
    part.mean, part.std = (tuple(values.tolist()) for values in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))))
    torch.manual_seed(0)
    task: Any = run.method.build(part)
    optimizer = run.optimizer.build(task, 128)
    normal, began, steps = (pixels - task.tokenizer.mean) / task.tokenizer.std, time.perf_counter(), 180
    for step in range(steps):
        number = rng_keys("order", torch.arange(128 * step, 128 * step + 128)) % len(normal)
        set_lr(optimizer, run.schedule(step / steps))
        given = Batch(normal[number], rng_keys("test", step, torch.arange(128)), number)
        task(given, step / steps).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(step / steps)
    tokenizer: Tokenizer = task.tokenizer.eval().requires_grad_(False)
    ids = tokenizer.ids(held)
    error = (tokenizer.pictures(ids) - held).square().mean()
    plain = (held.mean((2, 3), keepdim=True) - held).square().mean()  # each picture's own mean color
    fraction = ids.flatten().bincount(minlength=tokenizer.classes) / ids.numel()
    perplexity = torch.special.entr(fraction).sum().exp()
    print(
        f"{time.perf_counter() - began:.0f} s, error {error:.4f}, mean color {plain:.4f}, perplexity {perplexity:.0f}"
    )
    assert error < 0.5 * plain and perplexity > 20

    offer(tokenizer)
    torch.manual_seed(0)
    config = find_recipe("simmim_mini_32_tokens")
    other: Any = replace(config.encoder, width=64, depth=2, heads=2).build((32, 32), 3)
    other.mean, other.std = part.mean, part.std
    ours = replace(config.method, target=TokenIds(tokenizer=outside)).build(other)
    given = Batch((held[:8] - tokenizer.mean) / tokenizer.std, rng_keys("test", torch.arange(8)), torch.arange(8))
    optimizer = torch.optim.AdamW(ours.parameters(), lr=2e-3)
    first = ours(given, 0.0).loss.item()
    for _ in range(80):
        optimizer.zero_grad()
        ours(given, 0.0).loss.backward()
        optimizer.step()
    assert isinstance(ours.target.target, LoadedTokenIds) and first > 0.8 * math.log(512)
    assert ours(given, 0.0).loss.item() < 0.3 * math.log(512)


def test_a_tokenizer_is_found_from_any_working_folder(tmp_path, monkeypatch):
    (tmp_path / "ids").mkdir()
    monkeypatch.chdir(tmp_path)
    assert TokenIds(tokenizer="ids").tokenizer == str(tmp_path / "ids")
    assert TokenIds(tokenizer="my_lab:ids").tokenizer == "my_lab:ids" and TokenIds().tokenizer == ""
