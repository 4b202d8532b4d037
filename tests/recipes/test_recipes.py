"""Recipes: each says what it is, builds its config, takes flags, and the one that is chosen fits the data."""

import re
from dataclasses import replace

import pytest
import torch

from mimkit.api.pretrain import resolve
from mimkit.cli.train import PretrainArguments
from mimkit.core.batch import Batch
from mimkit.core.config import from_dict, to_dict
from mimkit.core.flags import parse
from mimkit.core.randomness import rng_keys
from mimkit.data.decode import BadPicture
from mimkit.data.pictures import Decoded
from mimkit.methods.maskalign import MaskAlignConfig
from mimkit.recipes import find_recipe, recipes
from mimkit.recipes.choose import choose_recipe
from mimkit.train.prepare import Pretrain

NAMES = list(recipes())
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_names_stand_by_family():
    families = [name.split("_")[:2] for name in NAMES]
    assert len(set(map(tuple, families))) == sum(a != b for a, b in zip(families, [None, *families], strict=False))
    assert len(NAMES) == len(set(NAMES)) >= 10 and all(re.fullmatch(r"[a-z][a-z0-9]*_\w+", name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name):
    module, doc = recipes()[name]
    run = find_recipe(name)
    assert module.startswith("mimkit.recipes.") and len(doc.splitlines()[0]) <= 100
    words = " ".join(doc.split())
    assert f"{run.epochs} epochs with {run.batch_size} pictures a step" in words
    rates = [float(rate) for rate in re.findall(r"\d(?:\.\d+)?e-\d|(?<=rate )\d\.\d", words)]
    own = run.optimizer.peak_lr(run.batch_size)
    assert any(rate == pytest.approx(own) for rate in rates) or "As `mae_vit_b16`" in words
    assert str(max(run.images.shape())) in words


WARM = {  # epochs, as the papers have them
    "mae_vit_b16": 40, "mae_vit_l16": 40, "mae_vit_h14": 40, "emae_vit_b16": 40, "mae_vit_b16_amt": 40,
    "crossmae_vit_b16": 40, "emae_vit_b16_cross": 40, "bootmae_vit_b16": 40, "cae_vit_b16": 20,
    "mae_vit_b16_sbam": 40, "mae_vit_b16_amr": 40, "mae_vit_b16_self_guided": 40, "mae_vit_b16_attmask": 40,
    "simmim_vit_b16": 10, "simmim_swin_b": 10, "simmim_swinv2_b": 10, "maskalign_vit_b16": 20, "dino_vit_s16": 10,
    "ibot_vit_s16": 10, "ibot_vit_b16": 10, "cmae_vit_b16": 40, "msn_vit_s16": 15, "data2vec_vit_b16": 10,
    "ijepa_vit_h14": 40, "beit_vit_b16": 10,
    "moco_v3_vit_b16": 40, "moco_v3_resnet50": 10, "simclr_resnet50": 10, "simclr_resnet18_32": 10,
}  # fmt: skip


@pytest.mark.parametrize("name", WARM)
def test_papers_count_epochs_of_warm_up(name):
    schedule = find_recipe(name).schedule
    assert [schedule.of(epochs).share * epochs for epochs in (100, 400, 1600)] == [pytest.approx(WARM[name])] * 3


def test_a_chosen_recipe_s_warm_up_is_a_share_of_its_epochs(monkeypatch):
    """Of 47 epochs 40 would be left no time."""
    monkeypatch.setattr("mimkit.api.pretrain.choose_recipe", lambda pictures, device: ("mae_vit_b16", 47, "why"))
    monkeypatch.setattr("mimkit.api.pretrain.Prepared", lambda settings: Many(1, 1))
    monkeypatch.setattr(Many, "pictures", None, raising=False)
    config = resolve(None, settings=Pretrain()).config
    assert (config.epochs, config.schedule.warmup, config.schedule.warmup_epochs) == (47, 0.05, None)


def test_settings_are_those_of_the_released_code():
    for name in ("moco_v3_vit_b16", "moco_v3_vit_s16", "moco_v3_resnet50"):
        images = find_recipe(name).images
        least = 0.2 if "resnet" in name else 0.08
        assert {(view.interpolation, view.scale[0]) for view in (images.view, *images.other_views)} == {
            ("bilinear", least)
        }
    for name in ("simclr_resnet50", "simclr_resnet18_32"):
        assert (find_recipe(name).images.mean, find_recipe(name).images.std) == ((0.0,) * 3, (1.0,) * 3)
    for name in NAMES:
        run, papers = find_recipe(name), name.startswith(("mae_vit", "emae_vit", "crossmae_vit", "maskalign_vit"))
        expected = "mae-code" if papers else "simmim" if name in BEIT_LIKE else "mae"
        assert run.encoder.initialization == expected
        assert not isinstance(run.method, MaskAlignConfig) or run.method.antialias == ("_mini_" in name)


BEIT_LIKE = ("simmim_vit_b16", "data2vec_vit_b16", "beit_vit_b16")  # start as BEiT
MASKED = [name for name in NAMES if hasattr(find_recipe(name).method, "masker")]


def test_recipes_survive_json():
    assert all(from_dict(to_dict(find_recipe(name))) == find_recipe(name) for name in NAMES)


@pytest.mark.parametrize("name", MASKED)
def test_a_recipe_survives_json_and_the_command_line(name):
    run = find_recipe(name)
    assert find_recipe(name) is not run
    assert from_dict(to_dict(run)) == run
    setting, value = ("ratio", 0.4) if run.method.masker.ratio is not None else ("parts", 3)
    flags = [
        "--data",
        "a",
        "b",
        "--epochs",
        "3",
        f"--method.masker.{setting}",
        str(value),
        "--machine.compile",
        "False",
    ]
    changed = parse(PretrainArguments, flags, "mimkit", PretrainArguments(config=run)).config
    assert (changed.data, changed.epochs, getattr(changed.method.masker, setting)) == (("a", "b"), 3, value)
    assert changed.machine.compile is False
    method = replace(changed.method, masker=run.method.masker)
    assert replace(changed, data=(), epochs=run.epochs, machine=run.machine, method=method) == run


NEEDY = ("maskalign", "simmim_mini_32_tokens", "beit_", "cae_")  # a teacher, a tokenizer


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(NEEDY)])
def test_a_recipe_builds_its_model(name):
    run = find_recipe(name)
    small, size = "_mini_" in name, run.images.shape()
    with torch.device("cpu" if small else "meta"):
        task = run.method.build(run.encoder.build(size, 3))
    assert task.encoder.size == size
    if task.decoder is not None:
        assert task.decoder.head.out_features == 3 * task.encoder.patch[0] * task.encoder.patch[1]
    if small:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        other_views = (images.flip(3),) * len(run.images.other_views)
        step = task(Batch(images, rng_keys("test", torch.arange(2)), torch.arange(2), other_views=other_views), 0.0)
        step.loss.backward()
        assert step.loss.isfinite() and all(p.grad is not None for p in task.parameters() if p.requires_grad)


class Many(Decoded):
    """As many pictures as it says, all of one size, without taking their memory."""

    def __init__(self, count: int, height: int, width: int | None = None, bad: bool = False) -> None:
        super().__init__("many", torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
        self.count, self.shape, self.bad = count, (height, width or height), bad

    def __len__(self) -> int:
        return self.count

    def size(self, i: int) -> tuple[int, int]:
        if self.bad and i % 2 == 0:
            raise BadPicture("broken")
        return self.shape


@pytest.mark.parametrize(
    ("pictures", "device", "name", "epochs"),
    [
        (Many(60_000, 28), CPU, "mae_mini_28", 17),
        (Many(50_000, 32), CPU, "mae_mini_32", 20),
        (Many(8_568, 48), CPU, "mae_mini_48", 117),
        (Many(105_000, 64), CPU, "mae_mini_64", 10),
        (Many(5_000, 96), CPU, "mae_mini_96", 100),
        (Many(1_281_167, 256, 400), CPU, "mae_mini_96", 2),
        (Many(100, 300), CPU, "mae_mini_96", 1600),
        (Many(50_000, 32), CUDA, "mae_mini_32", 20),
        (Many(9_469, 160), CUDA, "mae_mini_96", 1600),
        (Many(20_000, 500, 300), CUDA, "mae_vit_s16", 1600),
        (Many(1_281_167, 400, 500), CUDA, "mae_vit_b16", 47),
        (Many(50_000, 32, bad=True), CPU, "mae_mini_32", 20),
    ],
    ids=lambda value: f"{value.count}x{value.shape[0]}x{value.shape[1]}" if isinstance(value, Many) else str(value),
)
def test_the_chosen_recipe_fits_pictures_and_machine(pictures, device, name, epochs):
    chosen, found, why = choose_recipe(pictures, device)
    assert (chosen, found) == (name, epochs)
    assert str(min(pictures.shape)) in why
    assert max(find_recipe(chosen).images.shape()) <= 1.4 * min(pictures.shape)  # nothing is enlarged much


def test_unreadable_pictures_get_some_recipe():
    class Broken(Many):
        def size(self, i: int) -> tuple[int, int]:
            raise BadPicture("broken")

    assert choose_recipe(Broken(10, 1), CPU)[0] in NAMES
