"""MAE against outside truths: transformers' ViTMAE, timm, NumPy, direct loops, and the laws it must obey."""

import copy
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.masks import Mask, Masker
from mimkit.masks.random import hidden_count
from mimkit.methods.losses import squared_error
from mimkit.methods.mae import MAE, MAEConfig
from mimkit.methods.targets.pixels import Pixels
from mimkit.model.backbone import Tokens
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import patchify
from mimkit.weights.huggingface import export_huggingface, huggingface_config, huggingface_state
from mimkit.weights.load import _our_names
from places import SUPPORT


@dataclass(frozen=True, kw_only=True, eq=False)
class Given(Masker):
    """Masks from given noise, so that two implementations hide the same patches."""

    scores: Tensor
    ratio: float = 0.75

    def __call__(self, signal, rng_keys, progress, grid) -> Mask:
        return Mask.from_scores(self.scores, hidden_count(signal.shape[1], self.ratio))


def noise(rows: int, patches: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, patches, generator=torch.Generator().manual_seed(seed))


def pictures(rows: int, size: tuple[int, int], channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, channels, *size, generator=torch.Generator().manual_seed(100 + seed))


def small_mae(
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    patch: int = 8,
    *,
    norm: bool = True,
    ratio: float = 0.75,
) -> MAE:
    """A small MAE in which no tensor is zero or one, position tables included; 3 rows of given noise."""
    encoder = EncoderConfig(name="vit_small_patch16_224", patch=patch, width=48, depth=2, heads=3)
    encoder = encoder.build(size, channels)
    scores = noise(3, encoder.grid[0] * encoder.grid[1])
    config = MAEConfig(
        masker=Given(scores=scores, ratio=ratio),
        target=Pixels(norm=norm),
        decoder=DecoderConfig(width=32, depth=2, heads=4),
    )
    method = config.build(encoder)
    generator = torch.Generator().manual_seed(1)
    for value in method.state_dict().values():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.05)
    for table in (encoder.timm.pos_embed.data, method.decoder.positions):
        table.normal_(generator=generator)
    return method


def predict(method: MAE, patches: Tensor) -> tuple[Tensor, Mask]:
    """Predictions for every patch, under the mask that the method's masker makes."""
    address = rng_keys("test", torch.arange(len(patches)))
    mask = method.mask_sampler.masker(patches[..., :0], address, 0.0, method.encoder.grid)
    return method.predict(patches, mask), mask


def batch_of(images: Tensor) -> Batch:
    rows = torch.arange(images.shape[0])
    return Batch(images, rng_keys("test", rows), rows)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


# Parity with transformers --------------------------------------------------------------------------

PARITY = {
    "square": ((32, 32), 3, 8, 0.75),
    "gray": ((24, 24), 1, 4, 0.9),
    # transformers' pre-training model refuses rectangles in its `patchify` alone; that one step is replaced.
    "rectangle": ((16, 64), 3, 8, 0.5),
}


def huggingface(method: MAE, folder) -> torch.nn.Module:
    """The same model in transformers, through our exporter (without a folder where it would refuse)."""
    transformers = pytest.importorskip("transformers")
    if method.encoder.size[0] == method.encoder.size[1]:
        mean = [0.5] * method.encoder.channels
        export_huggingface(method, folder / "hf", mean=mean, std=mean, card="")
        return transformers.ViTMAEForPreTraining.from_pretrained(folder / "hf")
    config = transformers.ViTMAEConfig(**huggingface_config(method))
    model = transformers.ViTMAEForPreTraining.from_pretrained(None, config=config, state_dict=huggingface_state(method))
    p = method.encoder.patch[0]
    model.patchify = lambda x, **_: rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
    return model


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("shape", PARITY)
def test_parity_with_transformers(shape, norm, tmp_path):
    size, channels, patch, ratio = PARITY[shape]
    method = small_mae(size, channels, patch, norm=norm, ratio=ratio)
    model = huggingface(method, tmp_path).train().requires_grad_()
    method.encoder.timm.pos_embed.requires_grad_()  # the tables too, fixed as they are in training
    method.decoder.positions.requires_grad_()
    images = pictures(3, size, channels)

    theirs = model(images, noise=method.mask_sampler.masker.scores)
    theirs.loss.backward()
    step = method(batch_of(images), 0.0)
    step.loss.backward()
    prediction, mask = predict(method, patchify(images, method.encoder.patch))

    assert torch.equal(mask.hidden, theirs.mask.bool())
    assert relative(step.loss, theirs.loss) < 1e-5
    assert relative(prediction, theirs.logits) < 1e-5
    expected = _our_names({name: value.grad for name, value in model.named_parameters()})
    expected["decoder.positions"] = expected["decoder.positions"][:, 1:]  # theirs has a (zero) class row
    found = {re.sub(r"^encoder\.timm\.", "vit.", name): value.grad for name, value in method.named_parameters()}
    found["decoder.positions"] = method.decoder.positions.grad
    assert found.keys() == expected.keys() and len(found) > 50
    errors = {name: relative(found[name], gradient) for name, gradient in expected.items()}
    assert max(errors.values()) < 1e-5, max(errors.items(), key=lambda item: item[1])

    method, model = method.double(), model.double()
    with torch.no_grad():
        theirs = model(images.double(), noise=method.mask_sampler.masker.scores).logits
        prediction, _ = predict(method, patchify(images.double(), method.encoder.patch))
    assert relative(prediction, theirs) < 1e-10


# The same step in other ways ----------------------------------------------------------------------


@torch.no_grad()
def test_ragged_rows_equal_unpadded_ones():
    method = small_mae()
    images = pictures(3, (32, 32))
    patches = patchify(images, (8, 8))
    hide = torch.tensor([13, 8, 10])
    ragged = Mask.from_scores(noise(3, 16), hide, least=7)
    assert ragged.padding.sum(dim=1).tolist() == [6, 1, 3]
    tokens = method.encoder.encode(method.encoder.embed(patches, ragged), ragged)
    prediction = method.decoder(tokens, ragged)
    for row in range(3):
        alone = Mask.from_scores(noise(3, 16)[row : row + 1], int(hide[row]))
        expected = method.encoder.encode(method.encoder.embed(patches[row : row + 1], alone), alone)
        visible = tokens.patches[row][~ragged.padding[row]]
        assert relative(visible, expected.patches[0]) < 1e-5
        assert relative(tokens.prefix[row], expected.prefix[0]) < 1e-5
        assert relative(prediction[row], method.decoder(expected, alone)[0]) < 1e-5


COMPILED = """
    import sys
    sys.path.insert(0, {tests!r})
    sys.path.insert(0, {support!r})
    import torch
    torch.set_num_threads(1)
    from mimkit.masks import RandomMasker
    from test_mae import RaggedGiven, batch_of, noise, pictures, relative, small_mae

    for masker in (RandomMasker(), RaggedGiven(scores=noise(3, 16), hide=torch.tensor([13, 8, 10]))):
        method = small_mae()
        method.mask_sampler.masker = masker
        batch = batch_of(pictures(3, (32, 32)))
        eager = method(batch, 0.0).loss
        eager.backward()
        gradients = {{name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}}
        method.zero_grad()
        torch._dynamo.reset()
        compiled = torch.compile(method, fullgraph=True)(batch, 0.0).loss
        compiled.backward()
        assert relative(compiled, eager) < 1e-5
        assert gradients
        for name, p in method.named_parameters():
            assert name not in gradients or relative(p.grad, gradients[name]) < 1e-4, name
    print("all equal")
"""


@pytest.mark.slow
def test_compiled_equals_eager():
    """In a process of its own: dynamo cannot trace what checks shapes."""
    script = textwrap.dedent(COMPILED.format(tests=str(Path(__file__).parent), support=str(SUPPORT)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "all equal" in done.stdout, done.stdout + done.stderr


@dataclass(frozen=True, kw_only=True, eq=False)
class RaggedGiven(Masker):
    """Given noise and another number of hidden patches in each row."""

    scores: Tensor
    hide: Tensor

    def __call__(self, signal, rng_keys, progress, grid) -> Mask:
        return Mask.from_scores(self.scores, self.hide, least=7)


@pytest.mark.parametrize("norm", [True, False])
def test_loss_against_numpy(norm):
    method = small_mae(norm=norm)
    images = pictures(3, (32, 32))
    with torch.no_grad():
        prediction, mask = predict(method, patchify(images, (8, 8)))
        loss = method(batch_of(images), 0.0).loss
    total, count = 0.0, 0
    for b in range(3):
        order = np.argsort(method.mask_sampler.masker.scores[b].numpy())
        for n in order[int(16 * (1 - 0.75)) :]:
            top, left = 8 * (n // 4), 8 * (n % 4)
            target = images[b, :, top : top + 8, left : left + 8].double().numpy()
            target = target.transpose(1, 2, 0).ravel()
            if norm:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            total += np.mean((prediction[b, n].double().numpy() - target) ** 2)
            count += 1
    assert count == int(mask.hidden.sum())
    assert abs(float(loss) - total / count) < 1e-6 * total / count


# Laws ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_pixels_do_not_leak():
    method = small_mae().eval()
    images = pictures(3, (32, 32))
    patches = patchify(images, (8, 8))
    before, mask = predict(method, patches)
    changed = torch.where(mask.hidden.unsqueeze(-1), 1e3 * torch.randn_like(patches), patches)
    after, _ = predict(method, changed)
    assert torch.equal(before, after)


def test_visible_pixels_all_count():
    method = small_mae()
    patches = patchify(pictures(3, (32, 32)), (8, 8)).requires_grad_()
    prediction, mask = predict(method, patches)
    prediction.square().sum().backward()
    reached = patches.grad.abs()
    assert (reached[~mask.hidden] > 0).all()
    assert (reached[mask.hidden] == 0).all()


def test_loss_is_local():
    method = small_mae()
    patches = patchify(pictures(3, (32, 32)), (8, 8))
    prediction, mask = predict(method, patches)
    prediction = prediction.detach().requires_grad_()
    target = method.target(patches)
    loss = squared_error(prediction, target, mask.hidden)
    other = torch.where(mask.hidden.unsqueeze(-1), target, torch.randn_like(target))
    assert torch.equal(loss, squared_error(prediction, other, mask.hidden))
    loss.backward()
    assert (prediction.grad[~mask.hidden] == 0).all() and (prediction.grad[mask.hidden] != 0).any(dim=-1).all()


@torch.no_grad()
def test_the_order_of_visible_tokens_does_not_matter():
    method = small_mae(ratio=0.5).eval()
    patches = patchify(pictures(3, (32, 32)), (8, 8))
    mask = Mask.from_scores(noise(3, 16), 8)
    shuffled = Mask(mask.hidden, mask.visible[:, torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])])
    one, two = (method.decoder(method.encoder.encode(method.encoder.embed(patches, m), m), m) for m in (mask, shuffled))
    assert relative(one, two) < 1e-5
    assert relative(one, one.flip(1)) > 0.1  # the measure can tell


@torch.no_grad()
def test_pictures_of_a_batch_do_not_meet():
    method = small_mae().eval()
    images, scores = pictures(3, (32, 32)), method.mask_sampler.masker.scores
    order = torch.tensor([2, 0, 1])

    def run(rows: Tensor) -> tuple[Tensor, Tensor]:
        method.mask_sampler.masker = Given(scores=scores[rows])
        prediction, _ = predict(method, patchify(images[rows], (8, 8)))
        return prediction, method(batch_of(images[rows]), 0.0).loss

    whole, loss = run(torch.arange(3))
    permuted, _ = run(order)
    assert relative(permuted, whole[order]) < 1e-5
    alone = torch.stack([run(torch.tensor([row]))[1] for row in range(3)])
    assert relative(alone.mean(), loss) < 1e-5


@torch.no_grad()
def test_unequal_rows_count_by_patch_not_by_picture():
    """With ragged masks the loss is the mean over all hidden patches, not the mean of the rows' losses."""
    mask = Mask.from_scores(noise(2, 16), torch.tensor([4, 12]), least=4)
    target = torch.zeros(2, 16, 3)
    prediction = torch.stack([torch.ones(16, 3), torch.zeros(16, 3)])
    assert float(squared_error(prediction, target, mask.hidden)) == pytest.approx(4 / 16)


@torch.no_grad()
def test_standardized_targets():
    patches = patchify(pictures(2, (32, 32)), (8, 8))
    target = Pixels()(patches)
    gain, offset = 0.5 + torch.rand(2, 16, 1), 3 * torch.randn(2, 16, 1)
    torch.testing.assert_close(Pixels()(patches * gain + offset), target, rtol=1e-4, atol=1e-4)
    assert (Pixels()(torch.full((1, 2, 192), 0.7)).abs() < 1e-3).all()
    everywhere = torch.ones(2, 16, dtype=torch.bool)
    zero = squared_error(torch.zeros_like(target), target, everywhere)
    assert float(zero) == pytest.approx(191 / 192, abs=1e-5)  # 1 with the biased variance
    assert torch.equal(Pixels(norm=False)(patches), patches)


@torch.no_grad()
@pytest.mark.parametrize("norm", [True, False])
def test_targets_are_restored_to_pixels(norm):
    patches = patchify(2 + 3 * pictures(2, (32, 32)), (8, 8))
    target = Pixels(norm=norm)
    torch.testing.assert_close(target.restore(target(patches), patches), patches)


@torch.no_grad()
def test_reconstructions_are_pictures():
    method = small_mae(norm=False)
    batch = batch_of(pictures(3, (32, 32)))
    pixels, mask = method.reconstruct(batch, 0.0)
    prediction, again = predict(method, patchify(batch.images, (8, 8)))
    assert torch.equal(mask.hidden, again.hidden)
    assert torch.equal(pixels[0, :, 8:16, 24:32], prediction[0, 7].reshape(8, 8, 3).permute(2, 0, 1))


def overfit(method: MAE, batch: Batch, steps: int) -> float:
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
    for _ in range(steps):
        loss = method(batch, 0.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(method(batch, 0.0).loss.detach())


def test_one_batch_is_learned_by_heart_and_only_with_positions():
    torch.manual_seed(0)
    config = EncoderConfig(name="vit_small_patch16_224", patch=4, width=48, depth=2, heads=3)
    config = MAEConfig(masker=Given(scores=noise(3, 16)), decoder=DecoderConfig(width=64, depth=1, heads=4))
    encoder = EncoderConfig(name="vit_small_patch16_224", patch=4, width=48, depth=1, heads=3)
    method = config.build(encoder.build((16, 16), 3))
    blind = copy.deepcopy(method)
    blind.decoder.positions.zero_()
    batch = batch_of(pictures(3, (16, 16)))
    patches = patchify(batch.images, (4, 4))
    hidden = predict(method, patches)[1].hidden
    target = method.target(patches)
    # The best prediction that is the same for all hidden patches of a picture.
    mean = torch.stack([rows[where].mean(dim=0, keepdim=True) for rows, where in zip(target, hidden, strict=True)])
    constant = float(squared_error(mean.expand_as(target), target, hidden))

    assert overfit(method, batch, 150) < 0.1 * constant
    with torch.no_grad():
        prediction, _ = predict(blind, patches)
        for row, where in zip(prediction, hidden, strict=True):
            assert relative(row[where], row[where][:1].expand_as(row[where])) < 1e-6
    assert overfit(blind, batch, 150) > 0.999 * constant


def test_gradients_reach_what_is_trained_and_nothing_else():
    torch.manual_seed(0)
    config = EncoderConfig(name="vit_small_patch16_224", patch=8, width=48, depth=2, heads=3)
    method = MAEConfig(decoder=DecoderConfig(width=32, depth=2, heads=4)).build(config.build((32, 32), 3))
    frozen = [name for name, p in method.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.timm.pos_embed"]
    tables = method.encoder.timm.pos_embed.clone(), method.decoder.positions.clone()
    batch = batch_of(pictures(3, (32, 32)))
    method(batch, 0.0).loss.backward()
    silent = [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not silent
    overfit(method, batch, 2)
    assert torch.equal(tables[0], method.encoder.timm.pos_embed)
    assert torch.equal(tables[1], method.decoder.positions)


def test_learned_positions_are_trained():
    config = EncoderConfig(name="vit_small_patch16_224", patch=8, width=48, depth=1, heads=3, positions="learned")
    method = MAEConfig(decoder=DecoderConfig(width=32, depth=1, heads=4)).build(config.build((32, 32), 3))
    method(batch_of(pictures(3, (32, 32))), 0.0).loss.backward()
    assert method.encoder.timm.pos_embed.grad.any()


@torch.no_grad()
def test_the_class_token_takes_part_in_decoding():
    method = small_mae().eval()
    mask = Mask.from_scores(noise(3, 16), 12)
    tokens = method.encoder(pictures(3, (32, 32)), mask)
    other = Tokens(tokens.prefix + 1, tokens.patches)
    assert relative(method.decoder(tokens, mask), method.decoder(other, mask)) > 1e-3
