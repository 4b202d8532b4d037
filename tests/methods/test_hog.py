"""Histograms of oriented gradients: loops over pixels, and the laws that the target must obey."""

import math

import numpy as np
import pytest
import torch

from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import RandomMasker
from mimkit.methods.simmim import SimMIMConfig
from mimkit.methods.targets.hog import HOG
from mimkit.model.build import EncoderConfig

ZERO, ONE = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)


def images(rows: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def by_loops(picture: np.ndarray, cell: int) -> np.ndarray:
    """One channel (H, W) pixel by pixel, as the formula reads."""
    height, width = picture.shape
    padded = np.pad(picture, 1, mode="reflect")
    histograms = np.zeros((9, height // cell, width // cell))
    for y in range(height):
        for x in range(width):
            block = padded[y : y + 3, x : x + 3]
            across = (block[:, 2] - block[:, 0]) @ [1, 2, 1]
            down = (block[2] - block[0]) @ [1, 2, 1]
            orientation = math.floor(9 * math.atan2(across, down) / math.pi) % 9
            histograms[orientation, y // cell, x // cell] += math.hypot(across, down)
    return histograms / np.maximum(np.linalg.norm(histograms, axis=0), 1e-12)


@pytest.mark.parametrize("cell", [4, 8])
def test_histograms_are_those_of_the_formula(cell):
    pictures = images()
    features = HOG(cell=cell)(pictures, ZERO, ONE).unflatten(1, (3, 9))
    for picture, feature in zip(pictures, features, strict=True):
        for channel in range(3):
            expected = by_loops(picture[channel].double().numpy(), cell)
            np.testing.assert_allclose(feature[channel].numpy(), expected, atol=1e-4)


def test_the_paper_s_patch_has_108_numbers():
    features = HOG()(images(2, 32), ZERO, ONE)
    patch = features[:, :, :2, :2]  # of a patch of 16 pixels
    assert patch[0].numel() == 108 == 4 * HOG().outputs(3)


def test_ramps_have_their_bins():
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    middle = HOG()(ramp, ZERO, ONE).unflatten(1, (3, 9))[0, :, :, 0, 0]
    assert torch.equal(middle.argmax(dim=1), torch.full((3,), 4))
    upright = HOG()(ramp.mT.contiguous(), ZERO, ONE).unflatten(1, (3, 9))[0, :, :, 0, 0]
    assert torch.equal(upright.argmax(dim=1), torch.zeros(3, dtype=torch.int64))


def test_neither_contrast_nor_brightness_nor_their_sign_matter():
    pictures = images()
    scale = torch.tensor([2.0, 0.1, -3.0]).view(3, 1, 1)
    features, changed = HOG()(pictures, ZERO, ONE), HOG()(pictures * scale + 5, ZERO, ONE)
    torch.testing.assert_close(features, changed, atol=1e-4, rtol=0)


def test_flat_cells_are_zero_and_all_others_unit_vectors():
    pictures = images(1)
    pictures[:, :, :, :] = torch.where(torch.arange(16) < 10, pictures, torch.zeros(()))
    pictures[:, :, :, 7:] = 1.0  # the right cells see no edge: it lies in the left ones
    norms = HOG()(pictures, ZERO, ONE).unflatten(1, (3, 9)).norm(dim=2)
    torch.testing.assert_close(norms[..., 0], torch.ones_like(norms[..., 0]))
    assert not norms[..., 1].any()
    assert HOG()(images(), ZERO, ONE).square().mean().item() == pytest.approx(1 / 9)  # what predicting 0 costs


def test_simmim_learns_it_and_draws_it():
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=8, width=32, depth=1, heads=2).build((16, 16), 3)
    method = SimMIMConfig(masker=RandomMasker(), target=HOG(cell=4), loss="l2").build(encoder)
    number = torch.arange(6)
    batch = Batch(images(6), rng_keys("test", number), number)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = method(batch, 0.0).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    drawn, _ = method.reconstruct(batch, 0.0)
    assert drawn.shape == (6, 3, 16, 16) and drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > 0.05
    with pytest.raises(UserError, match=r"target\.cell 3 does not divide"):
        SimMIMConfig(masker=RandomMasker(), target=HOG(cell=3), loss="l2").build(encoder)
    with pytest.raises(UserError, match=r"target\.cell must be at least 2"):
        HOG(cell=1)
