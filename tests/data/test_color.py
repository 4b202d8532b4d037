"""What becomes of a view's colors: torchvision and timm as oracles, shares by counting, and addresses."""

import dataclasses
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms.v2 import functional as oracle

from mimkit.core.config import from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, parse
from mimkit.core.randomness import rng_keys, uniform
from mimkit.data.augment import RandAugment, erased
from mimkit.data.color import _CHANGES, ColorAugment
from mimkit.data.published import byol, moco_v1, moco_v2, simclr
from mimkit.data.views import CenterCrop, RandomResizedCrop, Whole
from mimkit.train.prepare import Images, Prepared, Pretrain

torch.set_num_threads(1)

ALL = ColorAugment(jitter=0.9, brightness=0.6, contrast=0.7, saturation=1.5, hue=0.5, gray=0.3, blur=0.6, solarize=0.4)
NONE = ColorAugment(jitter=0.0, gray=0.0, blur=0.0, solarize=0.0, sigma=(1.0, 2.0))
PART = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def some(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Pictures with smooth noise, flat stretches, ties between channels, and pure augment."""
    values = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    values[1::4] = (values[1::4] * 2.99).floor() / 2  # 0, 0.5, 1: ties and pure colors
    values[2::8] = values[2::8, :1]  # gray
    values[3::8] *= 0.01
    return values


def keys_of(n: int, name: str = "colors") -> torch.Tensor:
    return rng_keys(name, torch.arange(n))


def expected(augment: ColorAugment, picture: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """One picture by torchvision, with the numbers that its key draws."""
    jitter, gray, blur, spread, solarize, *rest = uniform(key, 13, 1).tolist()
    names = ("brightness", "contrast", "saturation", "hue")
    for number in np.argsort(rest[:4]):
        most = getattr(augment, names[number])
        low, high = (-most, most) if number == 3 else (max(0, 1 - most), 1 + most)
        if jitter < augment.jitter and most:
            amount = low + (high - low) * rest[4 + number]
            picture = getattr(oracle, f"adjust_{names[number]}")(picture, amount)
    if gray < augment.gray:
        picture = oracle.rgb_to_grayscale(picture, picture.shape[0])
    if blur < augment.blur:
        fraction, height = augment.blur_radius, picture.shape[1]
        reach = math.ceil(3 * augment.sigma[1]) if fraction is None else int(fraction * height)
        reach = min(reach, height - 1, picture.shape[2] - 1)
        sigma = augment.sigma[0] + (augment.sigma[1] - augment.sigma[0]) * spread
        picture = oracle.gaussian_blur(picture, [2 * reach + 1] * 2, [sigma] * 2)
    return oracle.solarize(picture, 0.5) if solarize < augment.solarize else picture


@pytest.mark.parametrize("shape", [(3, 24, 20), (3, 64, 64), (1, 24, 20), (3, 4, 9)])
@pytest.mark.parametrize("augment", [ALL, ColorAugment(), simclr().color, moco_v1().color, byol(False).color])
def test_every_picture_is_changed_as_torchvision_does(augment, shape):
    pictures, own = some(40, *shape), keys_of(40)
    before, found = pictures.clone(), augment(pictures, own)
    assert torch.equal(pictures, before) and found.shape == pictures.shape and found.dtype == torch.float32
    for picture, key, one in zip(pictures, own, found, strict=True):
        assert (expected(augment, picture, key) - one).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_change_is_torchvision_s_over_its_whole_range(name):
    amounts = torch.linspace(-0.5, 0.5, 41) if name == "hue" else torch.linspace(0, 3, 41)
    pictures = some(41, 3, 9, 11)
    found = _CHANGES[name](pictures.clone(), amounts)
    for picture, amount, one in zip(pictures, amounts.tolist(), found, strict=True):
        assert (getattr(oracle, f"adjust_{name}")(picture, amount) - one).abs().max() < 1e-5


def test_shares_are_kept():
    n = 4000
    pictures, own = some(4, 3, 6, 6)[:1].expand(n, -1, -1, -1), keys_of(n, "shares")
    for name in ("jitter", "gray", "blur", "solarize"):
        for fraction in (0.0, 0.3, 1.0):
            found = replace(NONE, **{name: fraction})(pictures, own)
            changed = (found != pictures).flatten(1).any(1).float().mean()
            assert abs(changed - fraction) <= 4 * math.sqrt(fraction * (1 - fraction) / n)


def test_amounts_are_even_and_independent():
    n = 4000
    flat = torch.full((n, 3, 2, 2), 0.3)
    found = replace(NONE, jitter=1.0, **PART | {"brightness": 0.4})(flat, keys_of(n))[:, 0, 0, 0] / 0.3
    steps = (torch.arange(n) + 0.5) / n
    assert (found.sort().values - (0.6 + 0.8 * steps)).abs().max() < 0.8 * 1.63 / math.sqrt(n)  # Kolmogorov, 1 %
    # neither the decisions nor the box of the same key go along with each other
    drawn = torch.cat([uniform(keys_of(n), 13, 1), uniform(keys_of(n), 23)], 1)
    off = torch.corrcoef(drawn.T) - torch.eye(36)
    assert off.abs().max() < 4.5 / math.sqrt(n)


def test_the_order_of_the_jitter_is_random():
    """What brightness clips, saturation cannot bring back: brightness first explains only a part of what comes out."""
    n, color = 600, torch.tensor([0.9, 0.5, 0.2]).view(1, 3, 1, 1).expand(600, 3, 2, 2)
    augment = replace(NONE, jitter=1.0, **PART | {"brightness": 0.6, "saturation": 0.9})
    found, own = augment(color, keys_of(n)), uniform(keys_of(n), 13, 1)
    first = torch.stack([expected(augment, p, k) for p, k in zip(color, keys_of(n), strict=True)])
    assert (found - first).abs().max() < 1e-5
    bright, saturated = 0.4 + 1.2 * own[:, 9], 0.1 + 1.8 * own[:, 11]
    other = _CHANGES["saturation"](_CHANGES["brightness"](color.clone(), bright), saturated)
    agree = (found - other).abs().flatten(1).amax(1) < 1e-5
    assert 0.4 < agree.float().mean() < 0.95  # half, and those that were not clipped


OTHER = {
    "jitter": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.3,
    "gray": 0.5,
    "blur": 0.2,
    "sigma": (1.0, 2.0),
    "blur_radius": 0.05,
    "solarize": 0.5,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ColorAugment)])
def test_every_option_changes_something(name):
    pictures, own = some(64, 3, 20, 20), keys_of(64)
    assert not torch.allclose(
        ColorAugment()(pictures, own), replace(ColorAugment(), **{name: OTHER[name]})(pictures, own)
    )


def test_a_change_depends_on_its_own_key_alone():
    pictures, own = some(30, 3, 16, 16), keys_of(30)
    together = ALL(pictures, own)
    assert torch.equal(together, ALL(pictures, own))
    back = ALL(pictures.flip(0), own.flip(0)).flip(0)
    assert (together - back).abs().max() < 1e-6
    for i in (0, 13, 29):
        assert (ALL(pictures[i : i + 1], own[i : i + 1]) - together[i]).abs().max() < 1e-6
    assert not torch.allclose(together, ALL(pictures, own.flip(0)))
    assert ALL(pictures[:0], own[:0]).shape == (0, 3, 16, 16)


def test_gray_pictures_and_other_channels():
    gray, own = some(20, 1, 16, 16), keys_of(20)
    colorless = replace(ALL, saturation=0.0, hue=0.0, gray=0.0)
    assert torch.equal(ALL(gray, own), colorless(gray, own))
    bands = some(20, 4, 16, 16)
    found = replace(colorless, contrast=0.0)(bands, own)  # band by band the same
    assert (found[:, 2:3] - replace(colorless, contrast=0.0)(bands[:, 2:3], own)).abs().max() < 1e-6
    strong = replace(NONE, jitter=1.0, **PART | {"contrast": 0.5})
    factor = (0.5 + uniform(own, 13, 1)[:, 10]).view(-1, 1, 1, 1)
    mean = bands.mean((1, 2, 3), keepdim=True)
    assert (strong(bands, own) - (mean + factor * (bands - mean)).clamp(0, 1)).abs().max() < 1e-5
    for augment, names in (
        (ALL, "color.saturation and color.hue and color.gray"),
        (replace(ALL, gray=0.0, hue=0.0), "color.saturation"),
        (replace(ALL, jitter=0.0), "color.gray"),
    ):
        with pytest.raises(UserError, match=f"4 channels have no {names}: set 0"):
            augment(bands, own)


@pytest.mark.parametrize(
    "wrong",
    [
        {"jitter": 1.1},
        {"gray": -0.1},
        {"blur": math.nan},
        {"solarize": 2.0},
        {"brightness": -1.0},
        {"contrast": -math.inf},
        {"saturation": math.nan},
        {"hue": 0.6},
        {"sigma": (0.0, 1.0)},
        {"sigma": (2.0, 1.0)},
        {"blur_radius": 1.0},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UserError, match=f"color.{next(iter(wrong))}"):
        ColorAugment(**wrong)


def test_published_views_are_as_published():
    """The fact sheet's numbers: area, brightness, contrast, saturation, hue; jitter, gray, blur, solarize."""
    said = {
        simclr(): ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2), (0.8, 0.2, 0.5, 0.0)),
        simclr(0.5, blur=False): ((0.08, 1.0), (0.4, 0.4, 0.4, 0.1), (0.8, 0.2, 0.0, 0.0)),
        moco_v1(): ((0.2, 1.0), (0.4, 0.4, 0.4, 0.4), (1.0, 0.2, 0.0, 0.0)),
        moco_v2(): ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), (0.8, 0.2, 0.5, 0.0)),
        byol(True): ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), (0.8, 0.2, 1.0, 0.0)),
        byol(False): ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), (0.8, 0.2, 0.1, 0.2)),
    }
    for view, (scale, strengths, relative_boxes) in said.items():
        c = view.color
        assert view.scale == scale and view.flip == 0.5 and c.sigma == (0.1, 2.0)
        assert (c.brightness, c.contrast, c.saturation, c.hue) == pytest.approx(strengths)
        assert (c.jitter, c.gray, c.blur, c.solarize) == relative_boxes


# ---- RandAugment and erasing


def bytes_of(n: int, channels: int = 3, side: int = 20) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    noise = torch.randint(0, 60, (n, channels, side, side), generator=torch.Generator().manual_seed(1))
    return (noise + 9 * x + 2 * y * torch.arange(1, channels + 1).view(-1, 1, 1) % 97).clamp(0, 255).byte()


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_is_timm_s_and_leaves_no_trace(channels):
    pictures, own = bytes_of(60, channels), keys_of(60)
    random.seed(5), np.random.seed(5)
    states = random.getstate(), np.random.get_state()
    found = RandAugment()(pictures, own)
    assert random.getstate() == states[0] and np.array_equal(np.random.get_state()[1], states[1][1])
    middle = (128, 128, 128) if channels == 3 else 128
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": middle, "interpolation": Image.BICUBIC})
    for picture, key, one in zip(pictures, own.tolist(), found, strict=True):
        random.seed(key % 2**64), np.random.seed(key % 2**32)
        image = theirs(Image.fromarray(picture.permute(1, 2, 0).squeeze(2).numpy()))
        assert np.array_equal(np.array(image).reshape(20, 20, -1), one.permute(1, 2, 0).numpy())
    same = (found == pictures).flatten(1).all(1).float().mean()
    assert 0.1 < same < 0.6  # a quarter loses both operations
    assert torch.equal(RandAugment()(pictures.flip(0), own.flip(0)).flip(0), found)


@pytest.mark.parametrize("change", [{"magnitude": 3}, {"spread": 3.0}, {"ops": 4}, {"increasing": False}], ids=str)
def test_every_option_of_randaugment_changes_something(change):
    pictures, own = bytes_of(40), keys_of(40)
    assert not torch.equal(RandAugment()(pictures, own), RandAugment(**change)(pictures, own))


@pytest.mark.parametrize("increasing, magnitude", [(True, 10), (False, 0)])
def test_randaugment_survives_the_ends_of_its_scale(increasing, magnitude):
    """There timm's posterize keeps no bit, which Pillow refuses; MAE's setting reaches it in 1 of 660 pictures."""
    augment = RandAugment(magnitude=magnitude, spread=0.0, increasing=increasing, ops=8)
    assert augment(bytes_of(40), keys_of(40)).any()


@pytest.mark.parametrize("wrong", [{"magnitude": 11}, {"spread": -1.0}, {"ops": 0}], ids=str)
def test_randaugment_refuses_what_cannot_be_meant(wrong):
    with pytest.raises(UserError, match=f"augment.{next(iter(wrong))}"):
        RandAugment(**wrong)
    with pytest.raises(UserError, match="these have 4: leave it out"):
        RandAugment()(bytes_of(2, 4), keys_of(2))


def boxes_of(changed: torch.Tensor) -> torch.Tensor:
    """Height and width of the box of changed pixels of each picture that has one."""
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(changed.sum((1, 2)), rows * columns)  # it is a full box
    return torch.stack([rows, columns], 1)[rows > 0].double()


def test_erasing_is_timm_s_in_distribution():
    n = 3000
    blank, own = torch.zeros(n, 2, 24, 32), keys_of(n, "erase")
    found = erased(blank.clone(), own, 0.25)
    assert ((found != 0).any(1) == (found != 0).all(1)).all()  # all channels
    hit = (found != 0).flatten(1).any(1).float().mean()
    assert abs(hit - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
    every = erased(blank.clone(), own, 1.0)
    values = every[every != 0]
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01 and values.abs().max() < 6
    assert abs((values > 1.2816).double().mean() - 0.1) < 0.003
    random.seed(0), torch.manual_seed(0)
    theirs = RandomErasing(1.0, mode="pixel", device="cpu")(blank.clone())
    mine, other = boxes_of(every[:, 0] != 0), boxes_of(theirs[:, 0] != 0)
    for measure in (lambda b: b[:, 0] * b[:, 1], lambda b: (b[:, 0] / b[:, 1]).log(), lambda b: b[:, 0]):
        a, b = measure(mine).sort().values, measure(other).sort().values
        places = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
        assert (a.quantile(places) - b.quantile(places)).abs().max() < 0.15 * a.std() + 1
    area = (every[:, 0] != 0).sum((1, 2)).float()
    along = torch.corrcoef(torch.cat([area[:, None], uniform(own, 13, 1), uniform(own, 23)], 1).T)[0, 1:]
    assert along.abs().max() < 4.5 / math.sqrt(n)  # with neither colors nor box of the same key
    for axis in (1, 2):  # where: covered as often as theirs
        fraction = (every[:, 0] != 0).any(axis).double().mean(0) - (theirs[:, 0] != 0).any(axis).double().mean(0)
        assert fraction.abs().max() < 5 * math.sqrt(0.5 / n)


def test_erasing_depends_on_its_own_key_alone():
    images, own = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)), keys_of(40)
    found = erased(images.clone(), own, 0.5)
    assert torch.equal(found, erased(images.flip(0), own.flip(0), 0.5).flip(0))
    assert ((found == images).flatten(1).all(1)).any() and not torch.equal(found, images)
    assert torch.equal(erased(images.clone(), own, 0.0), images)
    noise = (found - images)[(found != images).flatten(1).any(1)]
    assert len({round(float(one.abs().sum()), 4) for one in noise}) == len(noise)


# ---- as settings


def run() -> Pretrain:
    local = RandomResizedCrop(scale=(0.05, 0.4), size=16, color=byol(False).color)
    taught = Whole(augment=RandAugment(ops=3), erase=0.25)
    return Pretrain(images=Images(size=32, channels=3, view=byol(True), other_views=(simclr(0.5), local, taught)))


def test_views_survive_json():
    config = run()
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert (
        again == config
        and repr(again) == repr(config)
        and hash(again.images.other_views) == hash(config.images.other_views)
    )


@dataclasses.dataclass(kw_only=True)
class Words(Arguments):
    """Some words."""

    images: Images


def test_the_command_line_tunes_every_view(capsys):
    words = ["--images.other_views.0.scale", "0.3", "0.9", "--images.other_views.1.color.hue", "0.25"]
    words += ["--images.view.color.sigma", "0.5", "1.5", "--images.other_views.2.augment.magnitude", "5"]
    chosen = parse(Words, words, "words", Words(images=run().images)).images
    assert chosen.other_views[0].scale == (0.3, 0.9) and chosen.other_views[1].color.hue == 0.25
    assert chosen.view.color.sigma == (0.5, 1.5) and chosen.other_views[2].augment.magnitude == 5
    assert chosen.other_views[1].size == 16 and chosen.other_views[0].color == simclr(0.5).color
    for images, has in ((run().images, True), (Images(), False)):
        with pytest.raises(SystemExit):
            parse(Words, ["--help"], "words", Words(images=images))
        said = capsys.readouterr().out
        assert "--images.view.scale" in said and "subcommands" not in said
        assert ("--images.other-views.0.scale" in said) == ("--images.other-views.2.augment.ops" in said) == has


def test_images_refuse_views_that_cannot_be_meant():
    with pytest.raises(UserError, match=r"give --images.size 16, not images\.view\.size"):
        Prepared(Pretrain(images=Images(view=Whole(size=16))))
    for wrong, said in (({"erase": 1.5}, "view.erase"), ({"size": 0}, "view.size")):
        for view in (Whole, RandomResizedCrop, CenterCrop):
            with pytest.raises(UserError, match=said):
                view(**wrong)


def test_noise_has_the_shapes_of_all_views():
    config = run()
    known = {"channels": 3, "pictures": 40}
    prepared = Prepared(config, known)
    plain = Prepared(replace(config, images=replace(config.images, other_views=())), known)
    sample = prepared.sample(4)
    assert [tuple(one.shape) for one in sample.other_views] == [(4, 3, 32, 32), (4, 3, 16, 16), (4, 3, 32, 32)]
    assert torch.equal(sample.images, plain.sample(4).images) and not plain.sample(4).other_views
    assert not torch.equal(sample.images, sample.other_views[0])
