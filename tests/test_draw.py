"""Pictures for people: masks and their statistics, grids, and originals beside reconstructions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commandline import mimkit
from mimkit.draw import MaskArguments, draw_masks, mask_statistics, of_recipe
from mimkit.masks import Mask, RandomMasker
from mimkit.methods.mae import MAEConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.encoder import EncoderConfig
from mimkit.model.patches import patchify
from mimkit.pictures import GAP, HIDDEN, TITLE, displayable, masked, pasted, save_picture, spread_mask, titled_grid
from mimkit.randomness import keys
from mimkit.recipes import find_recipe
from mimkit.targets import Pixels
from mimkit.task import Batch
from mimkit.train.machine import Engine
from mimkit.train.monitor import SHOWN, Monitor


def random_masks(size: int, patch: int, ratio: float, count: int = 200) -> tuple[list[Mask], tuple[int, int]]:
    grid = (size // patch, size // patch)
    signal = torch.zeros(count, grid[0] * grid[1], 0)
    return [RandomMasker(ratio=ratio)(signal, keys("draw", torch.arange(count)), 0.0, grid)], grid


# Reference values of AvgDist for random masks at 192 x 192 by another implementation over 200 masks, which rounds the
# hidden patches up as ours does; +- 0.3, more where few large patches are visible.
@pytest.mark.parametrize(
    ("patch", "ratio", "expected", "tolerance"),
    [
        (4, 0.6, 2.08, 0.3),
        (8, 0.6, 3.70, 0.3),
        (16, 0.1, 3.78, 0.3),
        (16, 0.6, 7.19, 0.3),
        (16, 0.7, 9.07, 0.3),
        (16, 0.9, 20.2, 0.6),
        (32, 0.2, 8.80, 0.4),
        (32, 0.6, 15.5, 0.6),
        (32, 0.7, 20.1, 1.0),
    ],
)
def test_average_distance_agrees_with_reference_values(patch, ratio, expected, tolerance):
    drawn, grid = random_masks(192, patch, ratio)
    found = mask_statistics(drawn, grid, (patch, patch))
    assert found["average_distance"] == pytest.approx(expected, abs=tolerance)
    assert found["masks"] == 200 and found["patches"] == grid[0] * grid[1]


def test_average_distance_of_three_quarters_lies_between_its_neighbours():
    for patch, low, high in ((16, 9.07, 12.5), (32, 20.1, 25.9)):
        drawn, grid = random_masks(192, patch, 0.75)
        assert low < mask_statistics(drawn, grid, (patch, patch))["average_distance"] < high


def test_statistics_of_masks_known_by_hand():
    hidden = torch.tensor([[True, False, False, False], [True, True, False, False]])
    mask = Mask(hidden, torch.tensor([[1, 2], [2, 3]]))
    found = mask_statistics([mask], (2, 2), (2, 2))
    assert (found["ratio_lowest"], found["ratio"], found["ratio_highest"]) == (0.25, 0.375, 0.5)
    # A hidden corner of 2x2 pixels: the outermost is 2 away, three are 1 away. A hidden upper half: 2 and 1 away.
    assert found["average_distance"] == pytest.approx(((2 + 1 + 1 + 1) / 4 + 1.5) / 2)


def test_masks_that_hide_nothing_have_no_distance():
    mask = Mask(torch.zeros(2, 4, dtype=torch.bool), torch.arange(4).repeat(2, 1))
    assert mask_statistics([mask], (2, 2), (8, 8))["average_distance"] == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pictures_with_any_number_of_channels(channels):
    pixels = torch.rand(2, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    mean, std = [0.1 * (c + 1) for c in range(channels)], [0.3 + 0.1 * c for c in range(channels)]
    normalised = (pixels - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    shown = displayable(normalised, mean, std)
    assert shown.shape == (2, 3, 4, 6)
    torch.testing.assert_close(shown, pixels if channels == 3 else pixels[:, :1].expand(-1, 3, -1, -1))
    far = displayable(normalised * 1000, mean, std)
    assert far.min() >= 0 and far.max() <= 1


def test_hidden_patches_as_pixels():
    hidden = torch.tensor([[True, False, False, False, True, False]])
    spread = spread_mask(hidden, (2, 3), (2, 4))
    assert spread.shape == (1, 1, 4, 12)
    expected = torch.zeros(4, 12)
    expected[:2, :4] = expected[2:, 4:8] = 1
    assert torch.equal(spread[0, 0], expected)
    images = torch.rand(1, 3, 4, 12)
    grey = masked(images, spread)
    assert torch.equal(grey[:, :, 0, 4:], images[:, :, 0, 4:]) and grey[0, :, 0, 0].tolist() == pytest.approx(
        [HIDDEN] * 3
    )
    both = pasted(images, torch.zeros_like(images), spread)
    assert both[0, :, :2, :4].max() == 0 and torch.equal(both[:, :, 2:, :4], images[:, :, 2:, :4])


@pytest.mark.parametrize(("count", "sets", "rows"), [(3, 1, 3), (8, 2, 4), (5, 2, 3)])
def test_places_in_a_grid(count, sets, rows):
    one = (torch.arange(count) * 20 / 255).view(-1, 1, 1, 1).expand(-1, 3, 30, 40)
    two = 1 - one
    sheet = titled_grid([("one", one), ("two", two)], sets=sets)
    factor = 3  # 40 pixels are shown at least 112 wide
    height, width = 30 * factor, 40 * factor
    step = 2 * (width + GAP) + GAP
    assert sheet.size == (sets * step, TITLE + rows * (height + GAP))
    for place in range(count):
        left, top = GAP + place // rows * step, TITLE + place % rows * (height + GAP)
        for column, images in enumerate((one, two)):
            corner = (left + column * (width + GAP), top)
            shade = round(float(images[place, 0, 0, 0]) * 255)
            for x, y in ((0, 0), (width - 1, height - 1)):
                assert sheet.getpixel((corner[0] + x, corner[1] + y)) == (shade,) * 3
            assert sheet.getpixel((corner[0] - 1, top)) == sheet.getpixel((corner[0] + width, top)) == (255,) * 3
    title = np.array(sheet.crop((0, 0, sheet.width, TITLE)))
    assert (title < 128).any() and (np.array(sheet)[-1] == 255).all() and (np.array(sheet)[:, -1] == 255).all()


def test_small_pictures_are_enlarged_without_blur_and_large_ones_left():
    pixels = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(1, 3, 2, 2)
    sheet = np.array(titled_grid([("", pixels)]))[TITLE : TITLE + 112, GAP : GAP + 112, 0]
    assert (sheet[:56, :56] == 0).all() and (sheet[:56, 56:] == 255).all()
    assert titled_grid([("", torch.zeros(1, 3, 200, 130))]).size == (2 * GAP + 130, TITLE + 200 + GAP)


def test_saving_leaves_a_whole_picture_or_nothing(tmp_path):
    picture = Image.new("RGB", (4, 4))
    save_picture(picture, tmp_path / "new" / "one.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError):
        save_picture(picture, tmp_path / "folder.png")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.png", "new", "one.png"]


def exact_method(norm: bool, channels: int):
    """An MAE whose decoder knows the answer: it predicts just what the target asks for."""
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=8, width=16, depth=1, heads=2).build((32, 24), channels)
    method = MAEConfig(target=Pixels(norm=norm), decoder=DecoderConfig(width=8, depth=1, heads=2)).build(encoder)
    known = {}
    method.predict_freely = method.predict

    def predict(patches, keys, progress):
        _, mask = method.predict_freely(patches, keys, progress)
        known["mask"] = mask
        return method.target(patches), mask

    method.predict = predict
    return method, known


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("norm", [True, False])
def test_an_exact_prediction_looks_like_the_original(norm, channels):
    method, _ = exact_method(norm, channels)
    images = torch.randn(3, channels, 32, 24, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, keys("test", torch.arange(3)), torch.arange(3))
    restored, mask = method.reconstruct(batch, 0.0)
    torch.testing.assert_close(restored, images, rtol=1e-4, atol=1e-4)
    hidden = spread_mask(mask.hidden, method.encoder.grid, method.encoder.patch)
    mean, std = [0.5] * channels, [0.2] * channels
    original = displayable(images, mean, std)
    torch.testing.assert_close(
        pasted(original, displayable(restored, mean, std), hidden), original, rtol=1e-4, atol=1e-4
    )
    assert hidden.mean() == 0.75  # of 12 patches 9 are hidden
    half = pasted(original, displayable(torch.zeros_like(images), mean, std), hidden)
    assert torch.equal(patchify(half, (8, 8))[~mask.hidden], patchify(original, (8, 8))[~mask.hidden])
    assert patchify(half, (8, 8))[mask.hidden] == pytest.approx(0.5)


@pytest.mark.parametrize("norm", [True, False])
def test_the_monitor_draws_original_masked_and_reconstruction(norm, tmp_path, forty):
    from mimkit.data.sources import open_pictures

    method, known = exact_method(norm, 3)
    engine = Engine(device=torch.device("cpu"), precision="float32", attention="fused", compile=False, threads=1)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    how = {"size": (32, 24), "mean": mean, "std": std, "engine": engine, "workers": 0, "seed": 0}
    Monitor(open_pictures([str(forty)], "all"), None, **how).draw(method, method.encoder, tmp_path / "look.png")
    sheet = np.array(Image.open(tmp_path / "look.png")).astype(int)
    height, width = 32 * 4, 24 * 4
    rows = SHOWN // 2
    step = 3 * (width + GAP) + GAP
    for place in range(SHOWN):
        left, top = GAP + place // rows * step, TITLE + place % rows * (height + GAP)
        original, hidden, again = (
            sheet[top : top + height, left + i * (width + GAP) : left + i * (width + GAP) + width] for i in range(3)
        )
        assert np.abs(again - original).max() <= 1 and original.std() > 5
        grey = (hidden == round(HIDDEN * 255)).all(-1)
        assert grey.mean() == pytest.approx(0.75, abs=0.01)
        assert (hidden[~grey] == original[~grey]).all()
        shown = known["mask"].hidden[place].view(4, 3).repeat_interleave(32, 0).repeat_interleave(32, 1).numpy()
        assert (grey == shown).mean() > 0.99


def test_masks_of_a_recipe_have_its_patches():
    for name, size, patch in (("mae_vit_h14", 224, 14), ("mae_vit_b16", 224, 16), ("mae_mini_28", 28, 7)):
        arguments = of_recipe(name, find_recipe(name))
        assert (arguments.size, arguments.patch) == (size, patch)


def test_masks_on_pictures(forty, tmp_path):
    arguments = MaskArguments(data=(str(forty),), size=(24, 12), patch=4, out=tmp_path / "m.png", show=3, seeds=2)
    result, _ = draw_masks(arguments)
    assert result["masks"] == 6 and result["patches"] == 18 and result["ratio"] == pytest.approx(14 / 18)
    with Image.open(tmp_path / "m.png") as sheet:
        factor = 5  # 24 pixels are shown at least 112 high
        assert sheet.size == (3 * (12 * factor + GAP) + GAP, TITLE + 3 * (24 * factor + GAP))
    first = (tmp_path / "m.png").read_bytes()
    draw_masks(arguments)
    assert (tmp_path / "m.png").read_bytes() == first  # the same masks every time


def test_masks_on_grey_pictures_and_those_with_bad_ones(tmp_path):
    for number in range(3):
        Image.new("L", (20, 20), 60 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    said = mimkit(f"masks random --data {tmp_path} --size 32 --out {tmp_path / 'out' / 'm.png'} --json -")
    assert said.status == 0, said.err
    assert json.loads(said.out)["masks"] == 12 and Path(json.loads(said.out)["out"]).exists()
