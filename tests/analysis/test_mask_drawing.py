"""Pictures for people: masks on pictures by the command line, grids, and originals beside reconstructions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commandline import mimkit, refused
from mimkit.analysis.mask_drawing import MaskDrawing, draw_masks, masker_of, patch_of, with_ratio
from mimkit.core.batch import Batch
from mimkit.core.display import Display
from mimkit.core.grids import (
    GAP,
    HIDDEN,
    RAMP,
    THROWN,
    TITLE,
    colorize,
    faded,
    mask_to_pixels,
    masked,
    pasted,
    save_picture,
    titled_grid,
)
from mimkit.core.randomness import rng_keys
from mimkit.data.objects import object_fractions
from mimkit.data.sources import open_pictures
from mimkit.data.views import CenterCrop
from mimkit.masks import AMTMasker, MixtureMasker, RandomMasker, SalienceMasker, maskers
from mimkit.methods.mae import MAEConfig
from mimkit.methods.targets.pixels import Pixels
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import patchify
from mimkit.recipes import find_recipe
from mimkit.train.machine import Engine
from mimkit.train.monitor import SHOWN, Monitor
from mimkit.train.prepare import Images, Prepared, Pretrain


def test_hidden_patches_as_pixels():
    hidden = torch.tensor([[True, False, False, False, True, False]])
    spread = mask_to_pixels(hidden, (2, 3), (2, 4))
    assert spread.shape == (1, 1, 4, 12)
    expected = torch.zeros(4, 12)
    expected[:2, :4] = expected[2:, 4:8] = 1
    assert torch.equal(spread[0, 0], expected)
    images = torch.rand(1, 3, 4, 12)
    gray = masked(images, spread)
    assert torch.equal(gray[:, :, 0, 4:], images[:, :, 0, 4:]) and gray[0, :, 0, 0].tolist() == pytest.approx(
        [HIDDEN] * 3
    )
    thrown = mask_to_pixels(torch.tensor([[False, False, False, True, False, False]]), (2, 3), (2, 4))
    grays = masked(images, spread, thrown)
    assert torch.equal(grays[:, :, :2], gray[:, :, :2]) and torch.equal(grays[..., 4:], gray[..., 4:])
    assert grays[0, :, 3, 3].tolist() == pytest.approx([THROWN] * 3)
    pale = faded(images, spread)
    assert torch.equal(pale[0, :, :2, :4], images[0, :, :2, :4]) and (pale[0, :, 2:, :4] >= 0.75).all()
    both = pasted(images, torch.zeros_like(images), spread)
    assert both[0, :, :2, :4].max() == 0 and torch.equal(both[:, :, 2:, :4], images[:, :, 2:, :4])


def test_numbers_as_colors():
    score_maps = torch.tensor([[-2.0, 2.0, 6.0, 0.0], [3.0, 3.0, 3.0, 3.0]]).view(2, 1, 2, 2)
    found = colorize(score_maps).flatten(2).mT
    ramp = torch.tensor(RAMP)
    torch.testing.assert_close(found[0], torch.stack([ramp[0], ramp[2], ramp[4], ramp[1]]))
    torch.testing.assert_close(found[1], ramp[:1].expand(4, -1))
    assert (ramp.sum(1).diff() > 0).all()  # brighter is higher


def dark(sheet: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    return np.array(sheet.crop(box).convert("L")) < 128


def test_long_titles_and_labels_have_room():
    white = torch.ones(2, 3, 100, 20)
    title, label = "a title of 31 letters, no fewer", "0.12345"
    sheet = titled_grid([(title, white), ("b", white)], labels=[label, label])
    alone = titled_grid([("b", white), ("b", white)])
    assert sheet.width > alone.width + 300
    everything = dark(sheet, (0, 0, *sheet.size))
    assert not everything[:, :3].any() and not everything[:, -3:].any()  # nothing is cut off
    assert not everything[:2].any() and not everything[-2:].any()
    columns = everything[TITLE:].any(0).nonzero()[0]
    assert columns.max() - columns.min() > 30  # the labels, left of all pictures, in both rows
    assert all(everything[TITLE + row * (200 + GAP) :][:200].any() for row in range(2))


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

    def predict(patches, mask):
        known["mask"] = mask
        return method.target(patches)

    method.predict = predict
    return method, known


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("norm", [True, False])
def test_an_exact_prediction_looks_like_the_original(norm, channels):
    method, _ = exact_method(norm, channels)
    images = torch.randn(3, channels, 32, 24, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, rng_keys("test", torch.arange(3)), torch.arange(3))
    restored, mask = method.reconstruct(batch, 0.0)
    torch.testing.assert_close(restored, images, rtol=1e-4, atol=1e-4)
    hidden = mask_to_pixels(mask.hidden, method.encoder.grid, method.encoder.patch)
    display = Display(mean=[0.5] * channels, std=[0.2] * channels)
    original = display(images)
    torch.testing.assert_close(pasted(original, display(restored), hidden), original, rtol=1e-4, atol=1e-4)
    assert hidden.mean() == 0.75  # of 12 patches 9 are hidden
    half = pasted(original, display(torch.zeros_like(images)), hidden)
    assert torch.equal(patchify(half, (8, 8))[~mask.hidden], patchify(original, (8, 8))[~mask.hidden])
    assert patchify(half, (8, 8))[mask.hidden] == pytest.approx(0.5)


@pytest.mark.parametrize("norm", [True, False])
def test_the_monitor_draws_original_masked_and_reconstruction(norm, tmp_path, forty):
    method, known = exact_method(norm, 3)
    engine = Engine(device=torch.device("cpu"), precision="float32", attention="fused", compile=False, threads=1)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    images = Images(size=(32, 24), mean=mean, std=std)
    prepared = Prepared(Pretrain(data=(str(forty),), images=images))
    Monitor(prepared, engine, workers=0).draw(method, method.encoder, tmp_path, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reconstruction.png", "step-000000007.png"]
    sheet = np.array(Image.open(tmp_path / "reconstruction.png")).astype(int)
    height, width = 32 * 4, 24 * 4
    rows = SHOWN // 2
    step = 3 * (width + GAP) + GAP
    for place in range(SHOWN):
        left, top = GAP + place // rows * step, TITLE + place % rows * (height + GAP)
        original, hidden, again = (
            sheet[top : top + height, left + i * (width + GAP) : left + i * (width + GAP) + width] for i in range(3)
        )
        assert np.abs(again - original).max() <= 1 and original.std() > 5
        gray = (hidden == round(HIDDEN * 255)).all(-1)
        assert gray.mean() == pytest.approx(0.75, abs=0.01)
        assert (hidden[~gray] == original[~gray]).all()
        shown = known["mask"].hidden[place].view(4, 3).repeat_interleave(32, 0).repeat_interleave(32, 1).numpy()
        assert (gray == shown).mean() > 0.99


def test_masks_of_a_recipe_have_its_patches():
    for name, size, patch in (("mae_vit_h14", 224, 14), ("mae_vit_b16", 224, 16), ("mae_mini_28", 28, 7)):
        recipe = find_recipe(name)
        assert patch_of(recipe.encoder, recipe.images.shape()) == (patch, patch)
        assert recipe.images.shape() == (size, size) and masker_of(name, recipe) == RandomMasker()


def test_masks_on_pictures(forty, tmp_path):
    arguments = MaskDrawing(data=(str(forty),), size=(24, 12), patch=4, out=tmp_path / "m.png", show=3, seeds=2)
    result, _ = draw_masks(arguments)
    assert result["masks"] == 6 and result["patches"] == 18 and result["ratio"] == pytest.approx(14 / 18)
    with Image.open(tmp_path / "m.png") as sheet:
        factor = 5  # 24 pixels are shown at least 112 high
        assert sheet.size == (3 * (12 * factor + GAP) + GAP, TITLE + 3 * (24 * factor + GAP))
    first = (tmp_path / "m.png").read_bytes()
    draw_masks(arguments)
    assert (tmp_path / "m.png").read_bytes() == first  # the same masks every time


def test_masks_on_gray_pictures_and_those_with_bad_ones(tmp_path):
    for number in range(3):
        Image.new("L", (20, 20), 60 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    said = mimkit(f"masks random --data {tmp_path} --size 32 --out {tmp_path / 'out' / 'm.png'} --json -")
    assert said.status == 0, said.err
    assert json.loads(said.out)["masks"] == 12 and Path(json.loads(said.out)["out"]).exists()


TINY_ENCODER = (
    "--encoder.width 16 --encoder.depth 2 --encoder.heads 2 --method.decoder.width 8 --method.decoder.heads 2 "
    "--machine.device cpu --machine.precision float32 --machine.workers 0 --machine.evals 0 --machine.threads 1"
)


@pytest.fixture(scope="module")
def done(forty, tmp_path_factory):
    """A run with a model of 28 pixels, patches of 7."""
    folder = tmp_path_factory.mktemp("run") / "done"
    said = mimkit(f"pretrain mae_mini_28 --data {forty} --run {folder} --batch-size 20 --epochs 1 {TINY_ENCODER}")
    assert said.status == 0, said.err
    return folder


def drawn(command: str) -> dict:
    said = mimkit(f"masks {command} --json -")
    assert said.status == 0, said.err
    return json.loads(said.out)


@pytest.mark.parametrize("name", maskers())
def test_every_masker_is_drawn_with_a_trained_model(name, forty, done, tmp_path):
    out = tmp_path / "m.png"
    result = drawn(f"{name} --data {forty} --from {done} --show 2 --seeds 2 --out {out}")
    evals = name in ("salience", "self-guided", "attmask", "amt", "multinomial", "mixture")
    views = {"partition": 4, "complementary": 2}.get(name, 1)
    unseen = result["ratio"] + result.get("thrown", 0.0)
    assert result["masks"] == 4 * views and result["patches"] == 16 and 0.3 < unseen < 0.9
    assert (result["score_entropy"] is not None) == evals
    assert (result["model"], result["trained"]) == (str(done), True)
    columns = 1 + evals + (name == "self-guided") + 2 * views
    with Image.open(out) as sheet:
        assert sheet.height == TITLE + 2 * (112 + GAP)
        assert sheet.width >= columns * (112 + GAP) + GAP and sheet.width < (columns + 1) * (112 + GAP)
    assert ("thrown" in result) == (name in ("amt", "inverse-block"))
    if name == "self-guided":
        assert 0 < result["masker_object"] < 1 and 0 <= result["masker_object_hidden"] <= 1
        assert result["progress"] == 0.125


def test_an_untrained_model_is_called_so(forty, tmp_path):
    said = mimkit(f"masks attmask --data {forty} --size 32 --patch 8 --out {tmp_path / 'm.png'} --show 1 --seeds 2")
    assert said.status == 0 and "untrained" in said.out and "--from" in said.out
    # Attention decides alone: two seeds hide the same, as many as of any other patches by chance.
    result = drawn(f"attmask --data {forty} --size 32 --patch 8 --out {tmp_path / 'm.png'} --show 1 --seeds 2")
    assert result["trained"] is False and result["overlap_seeds"] == 1 and result["overlap_expected"] == 0.75
    recipe = drawn(f"mae_mini_32_attmask --data {forty} --out {tmp_path / 'm.png'} --show 1 --seeds 1")
    assert recipe["patches"] == 64 and recipe["progress"] == 0.125 and recipe["trained"] is False


def test_the_model_asked_is_the_trained_one(forty, done, tmp_path):
    score_maps = []
    for target in (done, f"untrained:{done}"):
        result = drawn(f"attmask --data {forty} --from {target} --show 3 --seeds 1 --out {tmp_path / 'm.png'}")
        score_maps.append((result["score_entropy"], result["trained"]))
    assert score_maps[0][0] != score_maps[1][0] and [trained for _, trained in score_maps] == [True, False]


def test_the_moment_of_training(forty, done, tmp_path):
    command = f"self-guided --data {forty} --from {done} --show 2 --seeds 1 --out {tmp_path / 'm.png'}"
    before, after, late = (drawn(f"{command} --progress {moment}") for moment in (0.1, 0.2, 0.95))
    assert before["score_entropy"] is None and before["overlap_random"] == 1 and "masker_object" not in before
    assert after["score_entropy"] is not None
    assert late["masker_object_hidden"] > after["masker_object_hidden"]  # fewer hints
    assert drawn(f"{command} --start 0.4")["progress"] == 0.4
    never = drawn(f"{command} --start 1")  # a trigger may start it
    assert never["score_entropy"] is not None


def test_several_ratios_one_below_the_other(forty, tmp_path):
    out = tmp_path / "m.png"
    result = drawn(f"random --data {forty} --size 40 --patch 4 --ratios 0.5 0.75 0.9 --show 2 --seeds 3 --out {out}")
    asked = result["ratios"]
    assert [(one["asked"], one["masks"]) for one in asked] == [(0.5, 6), (0.75, 6), (0.9, 6)]
    assert [one["ratio"] for one in asked] == pytest.approx([0.5, 0.75, 0.91])  # MAE's rounding
    with Image.open(out) as sheet:
        sheet = sheet.convert("RGB")
    assert sheet.height == TITLE + 6 * (120 + GAP)
    shares = []
    for row in range(6):  # the last column
        cell = np.array(sheet.crop((sheet.width - GAP - 120, TITLE + row * (120 + GAP), sheet.width - GAP, 0 + 99999)))
        shares.append((cell[:120] == round(HIDDEN * 255)).all(-1).mean())
    assert shares == pytest.approx([0.5, 0.75, 0.91] * 2, abs=0.01)


def test_a_ratio_reaches_all_parts_of_a_masker():
    mixed = with_ratio(MixtureMasker(other=SalienceMasker(noise=0.1)), 0.6)
    assert mixed == MixtureMasker(one=RandomMasker(ratio=0.6), other=SalienceMasker(noise=0.1, ratio=0.6))
    assert with_ratio(AMTMasker(throw=0.1), 0.6) == AMTMasker(throw=0.1, ratio=0.6)


def test_objects_are_cut_and_resized_like_the_pictures(tmp_path):
    for name in ("pictures/a/one", "pictures/b/one", "pictures/two"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (9, 9, 9)).save((tmp_path / name).with_suffix(".jpg"))
    whole = np.zeros((20, 40), np.uint8)
    for folder, mode, left in (("a", "L", 10), ("b", "P", 20), ("", "I;16", 15)):
        values = whole.astype(np.uint16 if mode == "I;16" else np.uint8)
        values[:, left : left + 10] = 1
        mask = Image.fromarray(values)
        if mode == "P":
            mask = Image.fromarray(values, "P")
            mask.putpalette([0, 0, 0, 0, 0, 0])  # two indices, both black
        (tmp_path / "objects" / folder).mkdir(parents=True, exist_ok=True)
        mask.save(tmp_path / "objects" / folder / ("two.png" if not folder else "one.png"))
    pictures = open_pictures([str(tmp_path / "pictures")], "all")
    found = object_fractions(
        tmp_path / "objects", pictures, range(3), CenterCrop(fraction=1.0, interpolation="bilinear"), (8, 8), (8, 4)
    )
    # The central square shows columns 10 to 29: the left half, the right half, and the middle.
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), atol=0.08, rtol=0)


def test_the_hidden_share_of_objects_on_the_command_line(forty, tmp_path):
    objects = tmp_path / "objects"
    objects.mkdir()
    for number in range(40):
        Image.fromarray(np.ones((24, 24), np.uint8)).save(objects / f"{number:02d}.webp", lossless=True)
    command = f"random --data {forty} --size 32 --patch 8 --show 3 --seeds 2 --out {tmp_path / 'm.png'}"
    result = drawn(f"{command} --objects {objects}")
    assert result["object"] == pytest.approx(1) and result["object_hidden"] == pytest.approx(0.75)  # all is object
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.width == 4 * (128 + GAP) + GAP
    assert "object" not in drawn(command)


def test_wrong_arguments_are_answered_in_one_line(forty, done, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    Image.new("L", (30, 12), 1).save(tmp_path / "other" / "28.png")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "28.png").write_text("no picture")
    out = f"--data {forty} --show 1 --out {tmp_path / 'm.png'}"
    for command, answer in (
        (f"random --objects {tmp_path / 'nosuch'}", "there is no folder"),
        (f"random --objects {tmp_path / 'empty'}", "name it 28.png, or leave --objects away"),
        (f"random --objects {tmp_path / 'other'}", "is 30x12 but"),
        (f"random --objects {tmp_path / 'text'}", "cannot be read"),
        (f"random --from {tmp_path / 'nosuch'}", "there is no folder"),
        (f"random --from {tmp_path / 'empty'}", "holds no model"),
        ("attmask --from pixels", "is no model that a masker could ask"),
        ("attmask --from untrained:resnet18", "use a vit_* or deit* model"),
        ("attmask --from untrained:vit_wee_patch16_reg1_gap_256", "has no class token"),
        (f"attmask --from {done} --size 56", "sees images of 28x28 in patches of 7"),
        (f"attmask --from {done} --scorer vit_tiny_patch16_224", "leave --from away, or use --scorer online"),
        (f"self-guided --from {done} --layer -9", "lies before the first of 2 blocks"),
        ("random --ratios 0.5 1.5", "must lie between 0 and 1"),
        ("grid --ratios 0.5", "leave --ratios away"),
        ("amt --ratios 0.9", "must leave visible patches"),
        ("random --progress 1", "got 1"),
        ("random --patch 0", "must be at least 1"),
    ):
        assert answer in refused(f"masks {command} {out}"), command
    assert not (tmp_path / "m.png").exists()
    assert "give --data a folder" in refused(f"masks random --data photos --objects {tmp_path / 'other'} --show 1")
