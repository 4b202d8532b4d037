"""Holes: pixels without data are no target, patches of them are never seen, and no loss or gradient depends on them."""

import pytest
import torch

from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.masks import AMTMasker, PartitionMasker, RandomMasker
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.mae import MAEConfig
from mimkit.methods.simmim import SimMIMConfig
from mimkit.methods.targets.hog import HOG
from mimkit.methods.targets.pixels import EPSILON, Pixels
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import patchify

torch.set_num_threads(1)

DECODER = DecoderConfig(width=32, depth=1, heads=2)
METHODS = {
    "mae": MAEConfig(decoder=DECODER),
    "mae, plain pixels": MAEConfig(decoder=DECODER, target=Pixels(norm=False)),
    "amt": MAEConfig(decoder=DECODER, masker=AMTMasker(ratio=0.4, throw=0.2, start=1.0)),
    "emae": EMAEConfig(decoder=DECODER, masker=PartitionMasker(parts=4)),
    "simmim": SimMIMConfig(masker=RandomMasker(ratio=0.5)),
    "simmim, everywhere": SimMIMConfig(masker=RandomMasker(ratio=0.5), everywhere=True),
    "simmim, hog": SimMIMConfig(masker=RandomMasker(ratio=0.5), target=HOG(cell=4), loss="l2"),
}


def method_of(name: str):
    torch.manual_seed(0)
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=2, heads=2).build((24, 24), 2)
    encoder.mean, encoder.std = (0.0, 0.0), (1.0, 1.0)
    return METHODS[name].build(encoder)


def batch_of(valid: torch.Tensor | None, fill: float = 0.0) -> Batch:
    """Three pictures of noise, `fill` times other noise where they have no data."""
    generator = torch.Generator().manual_seed(1)
    images, under = torch.randn(2, 3, 2, 24, 24, generator=generator).unbind(0)
    images = images if valid is None else torch.where(valid, images, fill * under)
    number = torch.arange(3)
    return Batch(images, rng_keys("holes", number), number, valid=valid)


def holes() -> torch.Tensor:
    """Whole patches without data: half of a picture, a row of another."""
    valid = torch.ones(3, 2, 24, 24, dtype=torch.bool)
    valid[0, :, :12] = False
    valid[1, :, 8:12, 4:] = False
    return valid


def loss_and_gradient(method, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    method.zero_grad()
    loss = method.eval()(batch, 0.5).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", METHODS)
def test_what_lies_in_a_hole_changes_nothing(name):
    method = method_of(name)
    loss, gradient = loss_and_gradient(method, batch_of(holes()))
    other_loss, other_gradient = loss_and_gradient(method, batch_of(holes(), fill=1e4))
    assert loss > 0 and torch.equal(loss, other_loss) and torch.equal(gradient, other_gradient)


@pytest.mark.parametrize("name", METHODS)
def test_without_holes_nothing_changes(name):
    method = method_of(name)
    loss, gradient = loss_and_gradient(method, batch_of(None))
    other_loss, other_gradient = loss_and_gradient(method, batch_of(torch.ones(3, 2, 24, 24, dtype=torch.bool)))
    assert torch.allclose(loss, other_loss, rtol=1e-5)
    assert torch.allclose(gradient, other_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
def test_the_loss_is_the_mean_over_hidden_pixels_with_data(norm):
    """Against a loop in float64: each pixel with data in a hidden patch counts once."""
    method = method_of("mae" if norm else "mae, plain pixels").eval()
    valid = holes() & (torch.rand(3, 2, 24, 24, generator=torch.Generator().manual_seed(2)) < 0.9)
    batch = batch_of(valid)
    with torch.no_grad():
        patches, mask, _ = method.sample(batch, 0.5)
        prediction = method.predict(patches, mask).double()
        loss = method(batch, 0.5).loss
    patches, shown, total, count = patches.double(), patchify(valid, (4, 4)), 0.0, 0
    for row in range(3):
        for place in mask.hidden[row].nonzero().flatten().tolist():
            here = shown[row, place]
            if not here.any():
                continue
            target = patches[row, place][here]
            if norm:
                variance = target.var() if len(target) > 1 else torch.zeros(()).double()
                target = (target - target.mean()) / (variance + EPSILON).sqrt()
            total += (prediction[row, place][here] - target).square().sum().item()
            count += int(here.sum())
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_a_patch_of_holes_is_never_seen_and_some_patch_always_is():
    mask = RandomMasker(ratio=0.5)(torch.zeros(4, 16, 1), rng_keys("m", torch.arange(4)), 0.0, (4, 4))
    measured = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    measured[3] = 0.0
    masked = mask.without_holes(measured)
    seen = ~masked.hidden
    assert (seen[:3] & (measured[:3] < 0.5)).sum() == 0 and (masked.hidden | ~mask.hidden).all()
    assert seen.sum(dim=1).min() >= 1 and int(seen[3].sum()) == 1
    assert torch.equal(masked.counted, masked.hidden * measured)
    latents = masked.take(torch.ones(4, 16, 1))
    assert torch.equal(masked.put(latents, torch.zeros(1, 1, 1))[..., 0].bool(), seen)


def test_all_maskers_of_several_views_know_the_holes_of_their_picture():
    views = PartitionMasker(parts=4)(torch.zeros(2, 16, 1), rng_keys("m", torch.arange(2)), 0.0, (4, 4))
    measured = torch.ones(2, 16)
    measured[1, :8] = 0.0
    masked = views.without_holes(measured)
    assert not (masked.hidden & ~views.hidden)[:4].any()
    assert masked.measured.shape == (8, 16) and (masked.counted[4:, :8] == 0).all()


def test_a_batch_without_any_data_gives_zero():
    for name in ("mae", "emae", "simmim"):
        loss, gradient = loss_and_gradient(method_of(name), batch_of(torch.zeros(3, 2, 24, 24, dtype=torch.bool)))
        assert loss == 0 and gradient.isfinite().all()
