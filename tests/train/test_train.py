"""The training machinery: schedule, optimizer, config, bad numbers, bad pictures, and every option."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from drills import Child, tiny
from encoded import BAD
from mimkit.core.config import differences, from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.core.names import trust
from mimkit.data.augment import RandAugment
from mimkit.data.color import ColorAugment
from mimkit.data.views import RandomResizedCrop, Whole
from mimkit.masks import RandomMasker
from mimkit.methods.targets.pixels import Pixels
from mimkit.recipes import find_recipe, recipes
from mimkit.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mimkit.train.optimizer import AdamWConfig, set_lr
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.pretrain import pretrain
from mimkit.train.recorder import duration
from mimkit.train.run_folder import RunFolder, write_json
from mimkit.train.schedule import WarmupCosine

GOLDEN = {
    1: Path(__file__).parents[1] / "golden" / "mae_tiny.json",
    2: Path(__file__).parents[1] / "golden" / "mae_tiny_order_2.json",
}


def train(config: Pretrain, folder: Path, **how: Any) -> list[str]:
    """Trains; returns what was said before the first step."""
    said: list[str] = []
    pretrain(config, folder, recipe="tiny", log=said.append, **how)
    return said


def curve(folder: Path) -> list[float]:
    return [record["loss"] for record in RunFolder(folder).metrics()]


# ---- schedule and optimizer


def test_warmup_cosine_is_the_released_formula():
    """facebookresearch/mae:util/lr_sched.py, where the epoch is a fraction within an epoch."""
    schedule, epochs, warmup = WarmupCosine(warmup=40 / 800), 800, 40
    for step in range(0, 800 * 5, 7):
        epoch = step / 5
        if epoch < warmup:
            expected = epoch / warmup
        else:
            expected = 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        assert schedule(epoch / epochs) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert schedule(0.0) == 0 and schedule(0.05) == 1
    assert WarmupCosine(warmup=0.0, final=0.1)(1 - 1e-9) == pytest.approx(0.1)
    assert WarmupCosine(warmup=0.0)(0.0) == 1


def test_a_warm_up_in_epochs_is_as_long_in_every_training(forty, tmp_path):
    schedule = WarmupCosine(warmup=None, warmup_epochs=40)
    assert [schedule.of(epochs).share * epochs for epochs in (400, 800, 1600)] == [pytest.approx(40)] * 3
    assert schedule.of(60).share == 0.5 and WarmupCosine().of(400) == WarmupCosine()
    for wrong in ({"warmup_epochs": 40}, {"warmup": None}):
        with pytest.raises(UserError, match="give one, and None for the other"):
            WarmupCosine(**wrong)
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs must be at least 0"):
        WarmupCosine(warmup=None, warmup_epochs=-1)
    config = tiny(forty, log_every=1)
    for epochs, words in ((1, "warm-up 1 epochs"), (3, "warm-up 2 epochs, half of all, not the 3 of the recipe")):
        config.schedule = WarmupCosine(warmup=None, warmup_epochs=epochs)
        assert any(words in line for line in train(config, tmp_path / str(epochs), max_steps=8))
    rates = [record["learning_rate"] for record in RunFolder(tmp_path / "1").metrics()]
    peak = config.optimizer.peak_lr(8)  # 5 steps of 8 pictures are an epoch
    assert rates[:6] == [pytest.approx(peak * step / 5) for step in range(6)]
    rates = [record["learning_rate"] for record in RunFolder(tmp_path / "3").metrics()]
    assert rates == [pytest.approx(peak * step / 10) for step in range(8)]


def test_the_optimizer_is_mae_s():
    task = Prepared(tiny()).config.method.build(tiny().encoder.build((12, 12), 3))
    optimizer = AdamWConfig().build(task, 4096)
    names = {parameter: name for name, parameter in task.named_parameters()}
    groups = {group["weight_decay"]: {names[p] for p in group["params"]} for group in optimizer.param_groups}
    assert groups.keys() == {0.0, 0.05}
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert groups[0.0] | groups[0.05] == trained and not groups[0.0] & groups[0.05]
    assert groups[0.0] == {n for n in trained if task.get_parameter(n).ndim == 1 or n.endswith(".bias")}
    assert {"encoder.timm.cls_token", "decoder.mask_token", "encoder.timm.patch_embed.proj.weight"} <= groups[0.05]
    assert "encoder.timm.pos_embed" not in trained, "sine-cosine positions are not trained"
    assert "decoder.positions" not in names.values()
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(2.4e-3) and group["betas"] == (0.9, 0.95)
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.25 * 2.4e-3)] * 2


def test_the_rate_of_each_step_is_the_schedule_s(forty, tmp_path):
    train(tiny(forty, log_every=1), tmp_path / "run")
    rates = [record["learning_rate"] for record in RunFolder(tmp_path / "run").metrics()]
    peak = 0.05 * 8 / 256
    assert rates == [pytest.approx(peak * WarmupCosine()(step / 20)) for step in range(20)]


# ---- config


VALUES = {
    "data": st.lists(st.text(min_size=1), max_size=3).map(tuple),
    "encoder.name": st.text(),
    "encoder.patch": st.none() | st.integers(1, 32),
    "encoder.model_args": st.dictionaries(st.sampled_from(["init_values", "qk_norm"]), st.floats(0, 1)),
    "method.masker": st.builds(RandomMasker, ratio=st.floats(0.01, 0.99)),
    "method.target": st.builds(Pixels, norm=st.booleans()),
    "images.size": st.integers(8, 512) | st.tuples(st.integers(8, 512), st.integers(8, 512)),
    "images.view": st.builds(Whole, flip=st.floats(0, 1))
    | st.builds(RandomResizedCrop, scale=st.tuples(st.floats(0.1, 0.5), st.floats(0.5, 1))),
    "images.mean": st.none() | st.lists(st.floats(0, 1), min_size=1, max_size=5).map(tuple),
    "optimizer.betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    "optimizer.clip": st.none() | st.floats(0.1, 10),
    "schedule.warmup": st.floats(0, 0.5),
    "seed": st.integers(0, 2**40),
    "machine.workers": st.none() | st.integers(0, 9),
    "machine.tensorboard": st.booleans(),
}


def replaced(config: Any, path: str, value: Any) -> Any:
    """A copy of a tree of dataclasses with the value at a dotted path."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: replaced(getattr(config, name), rest, value) if rest else value})


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_configs_survive_json(changes):
    before = tiny()
    config = before
    for path, value in changes.items():
        config = replaced(config, path, value)
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and repr(again) == repr(config)
    assert not differences(again, config)
    changed = set(differences(before, config))
    really = {path for path, value in changes.items() if replaced(before, path, value) != before}
    assert {path for path in really if not any(key.startswith(path) for key in changed)} == set()
    assert {key for key in changed if not any(key.startswith(path) for path in really)} == set()


@pytest.mark.parametrize("name", recipes())
def test_recipes_survive_json(name):
    run = find_recipe(name)
    assert from_dict(json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": 3}, r"no setting of Pretrain 'epoch'; did you mean 'epochs'"),
        ({"class": "mimkit.train.prepare:Nothing"}, "does not have"),
        ({"class": "nowhere.at_all:Part"}, "--trust nowhere"),
        ({"class": ""}, "does not have"),
        ({"class": 5}, "class: expected a text, got 5"),
        ({"class": "subprocess:Popen"}, "--trust subprocess"),
        (
            {"schedule": {"class": "mimkit.train.schedule:WarmupCosine", "final": 0.0, "end": 1}},
            "WarmupCosine 'end'",
        ),
    ],
)
def test_unknown_names_in_a_config_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        from_dict(to_dict(tiny()) | change)


def test_what_is_no_plain_data_cannot_be_saved():
    with pytest.raises(TypeError, match="cannot be written"):
        to_dict(replaced(tiny(), "encoder.model_args", {"act": nn.GELU()}))


def test_a_config_from_the_working_folder(tmp_path, monkeypatch):
    """A recipe from outside is found there, so its classes must be as well when the run goes on."""
    source = "from dataclasses import dataclass\n@dataclass\nclass Part:\n    width: int = 2\n"
    (tmp_path / "parts_of_my_lab.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--trust parts_of_my_lab"):
        from_dict({"class": "parts_of_my_lab:Part", "width": 5})
    assert "parts_of_my_lab" not in sys.modules, "nothing was run"
    trust("parts_of_my_lab")
    part = from_dict({"class": "parts_of_my_lab:Part", "width": 5})
    assert part.width == 5


# ---- run folder and checkpoints


def test_differences_name_both_values():
    other = replaced(tiny(), "method.masker", RandomMasker(ratio=0.5))
    other.images.size = (12, 24)
    assert differences(tiny(), other) == {"method.masker.ratio": (0.75, 0.5), "images.size": (12, [12, 24])}
    other.images.view = Whole()
    found = differences(tiny(), other)
    assert found["images.view.scale"] == ([0.2, 1.0], None) and found["images.view.class"][1] == "Whole"


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 5, 20, 100):
        save_checkpoint(tmp_path, step, {"step": step, "model": {}, "optimizer": {}}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000020.pt", "step-000000100.pt"]
    assert load_checkpoint(checkpoints(tmp_path)[-1])["step"] == 100


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "evil",))

    torch.save({"model": Evil(), "optimizer": {}, "step": 1}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "evil").exists()


def test_json_is_whole_or_absent(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_durations():
    assert [duration(s) for s in (3, 200, 7200, 4e5)] == ["3 s", "3 min", "2.0 h", "4.6 d"]


# ---- numbers that go wrong


def test_a_loss_that_is_not_finite_stops_the_run(forty, tmp_path):
    folder = tmp_path / "run"
    config = tiny(forty, log_every=50, micro_batch=4)  # the second micro batch of step 8
    status, said = Child(tmp_path / "log", config, folder, ("not_finite", 15)).wait()
    assert status == 2 and "Traceback" not in said, said
    (line,) = (line for line in said.splitlines() if line.startswith("mimkit: "))
    assert re.search(r"the loss is nan at step 8 \(rank 0, pictures \S+\.png, \S+\.png, \S+\.png, \.\.\.\)", line)
    good = checkpoints(folder)[-1]
    assert f"the last good checkpoint is {good}" in line and good.name == "step-000000006.pt"
    assert "--optimizer.base-lr" in line and "--optimizer.clip" in line
    assert all(value.isfinite().all() for value in load_checkpoint(good)["model"].values())
    named = re.findall(r"(\d\d)\.png", line)
    order = Prepared(config).loader(
        torch.device("cpu"), rank=0, world=1, micro_batch=4, workers=0, log=lambda line: None
    )
    second = list(order.micro_batches(7, 8))[1].index[:3].tolist()
    assert [int(name) for name in named] == second, "the pictures of the micro batch that went wrong"


@pytest.mark.parametrize(
    ("log_every", "says"),
    [(50, "weights are no longer finite after step 9"), (1, "the gradient is not finite at step 9")],
)
def test_a_gradient_that_overflows_is_not_saved(log_every, says, forty, tmp_path):
    """The loss of the step is finite; a checkpoint right behind it would hold no numbers."""
    folder = tmp_path / "run"
    config = tiny(forty, log_every=log_every, precision="bfloat16")
    status, said = Child(tmp_path / "log", config, folder, ("bad_gradient", 8)).wait()
    assert status == 2 and says in said and "--machine.precision float32" in said, said
    assert checkpoints(folder)[-1].name == "step-000000006.pt"


# ---- bad pictures


@pytest.fixture(scope="module")
def spoilt(forty, tmp_path_factory) -> Path:
    """300 good pictures and one of every bad kind."""
    folder = tmp_path_factory.mktemp("data") / "spoilt"
    folder.mkdir()
    good = sorted(forty.iterdir())
    for number in range(300):
        (folder / f"{number:03d}.png").write_bytes(good[number % 40].read_bytes())
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("machine", [{"resident": True}, {"resident": False}, {"resident": False, "workers": 2}])
def test_bad_pictures_are_skipped_and_listed(machine, spoilt, tmp_path):
    config = tiny(spoilt, log_every=4, **machine)
    config.epochs, config.batch_size, config.images.bad_fraction = 1, 32, 0.1
    pretrain(config, tmp_path / "run", log=lambda line: None)
    skipped = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert {Path(name).name for name in skipped} == set(BAD)
    for name, reason in skipped.items():
        assert Path(name).parent == spoilt and re.search(BAD[Path(name).name][1], reason)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped"] == len(BAD)
    assert all(math.isfinite(loss) for loss in curve(tmp_path / "run"))


@pytest.mark.parametrize("resident", [True, False])
def test_too_many_bad_pictures_stop_the_run(resident, spoilt, tmp_path):
    config = tiny(spoilt, resident=resident, log_every=2)
    config.epochs, config.batch_size = 1, 32
    with pytest.raises(UserError, match=r"of 309 pictures cannot be read .*--images\.bad-fraction 0\.0") as caught:
        pretrain(config, tmp_path / "run", log=lambda line: None)
    listed = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert str(tmp_path / "run" / "skipped.json") in str(caught.value)
    assert len(listed) > 3 and {Path(name).name for name in listed} <= set(BAD)


# ---- every option does something


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    """Forty 16-bit gray pictures."""
    folder = tmp_path_factory.mktemp("data") / "deep"
    folder.mkdir()
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 40_000, (12, 12)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number:02d}.png")
    return folder


CHANGES = {
    "data": "another folder",
    "images.flips": "dihedral",
    "encoder.name": "vit_medium_patch16_gap_240",  # it has no class token
    "encoder.patch": 6,
    "encoder.width": 48,
    "encoder.depth": 2,
    "encoder.heads": 4,
    "encoder.positions": "learned",
    "encoder.initialization": "mae-code",
    "encoder.weights": "an export",
    "encoder.model_args": {"qkv_bias": False},
    "method.masker.ratio": 0.5,
    "method.target.norm": False,
    "method.decoder.width": 32,
    "method.decoder.depth": 2,
    "method.decoder.heads": 4,
    "images.size": 8,
    "images.view.interpolation": "bilinear",
    "images.view.scale": (0.5, 1.0),
    "images.view.ratio": (1.0, 1.0),
    "images.view.flip": 0.0,
    "images.view.color": ColorAugment(),
    "images.view.augment": RandAugment(),
    "images.view.erase": 0.25,
    "images.channels": 3,
    "images.mean": (0.1,),
    "images.std": (0.1,),
    "images.value_range": (0.0, 30_000.0),
    "images.value_transform": "sqrt",
    "images.window": (20_000.0, 30_000.0),
    "images.bands": (1, 1),
    "optimizer.base_lr": 0.06,
    "optimizer.per": 64,
    "optimizer.betas": (0.8, 0.95),
    "optimizer.weight_decay": 0.5,
    "optimizer.decay_all": True,
    "optimizer.layer_decay": 0.5,
    "optimizer.weight_decay_end": 5.0,
    "optimizer.clip": 0.1,
    "optimizer.clip_each": 0.1,
    "schedule.warmup": 0.1,
    "schedule.first": 0.5,
    "schedule.final": 0.2,
    "schedule.whole": True,
    "schedule.span": 0.5,
    "epochs": 5,
    "batch_size": 4,
    "lanes": 2,
    "seed": 1,
}

NO_CURVE = {
    "method.masker.throw": "what is thrown away is predicted by nobody: tests/methods/test_crossmae.py",
    "method.masker.same": "MSN's: tests/methods/test_msn.py",
    "window": "these are fewer than the smallest window: test_lanes_and_windows_reach_the_plan",
    "images.bad_fraction": "decides whether a run stops: test_too_many_bad_pictures_stop_the_run",
    "images.view.size": "is refused for the first view: test_images_refuse_views_that_cannot_be_meant",
    "images.nodata": "these pictures have no such value: tests/data/test_nodata.py",
    "images.axes": "these are no TIFF files: tests/data/test_decode.py",
    "images.plane": "these are no stacks: tests/data/test_decode.py",
    "images.tile": "these are too small: tests/data/test_tiles.py",
    "images.shown": "people alone see it: tests/core/test_display.py, tests/train/test_drawing.py",
    "images.stretch": "people alone see it: tests/core/test_display.py",
    "images.color_map": "people alone see it: tests/core/test_display.py",
    "images.other_views": "MAE looks at one view: test_further_views_have_addresses_too",
    "images.statistics": "these pictures are gray and deep: tests/train/test_prepare.py",
    "schedule.warmup_epochs": "excludes the share: test_a_warm_up_in_epochs_is_as_long_in_every_training",
    "label_column": "labels measure only: test_a_column_of_labels_can_be_named_for_every_command",
}


def leaves(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        deeper = dataclasses.is_dataclass(value)
        found += leaves(value, f"{prefix}{field.name}.") if deeper else [prefix + field.name]
    return found


@pytest.fixture(scope="module")
def plain(deep, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(tiny(deep, log_every=1, save_every=None, evals=0), folder, max_steps=5)
    return folder


def test_every_setting_is_tested_below():
    assert set(leaves(tiny())) == set(CHANGES) | set(NO_CURVE) | {f"machine.{name}" for name in MACHINE}


@pytest.mark.parametrize("path", CHANGES)
def test_no_dead_option(path, deep, forty, plain, tmp_path):
    value = {"data": (str(forty),), "encoder.weights": str(plain / "export")}.get(path, CHANGES[path])
    config = replaced(tiny(deep, log_every=1, save_every=None, evals=0), path, value)
    train(config, tmp_path / "run", max_steps=5)
    assert curve(tmp_path / "run") != curve(plain), f"{path} changes nothing"


def test_lanes_and_windows_reach_the_plan(deep):
    config = replaced(replaced(tiny(deep), "lanes", 2), "window", 512)
    plan = Prepared(config).loader(torch.device("cpu"), micro_batch=4, workers=0).plan
    assert (plan.lanes, plan.window, plan.version) == (2, 512, 2)


def test_the_same_settings_give_the_same_curve(deep, plain, tmp_path):
    """Else the test above would mean nothing."""
    train(tiny(deep, log_every=1, save_every=None, evals=0), tmp_path / "run", max_steps=5)
    assert curve(tmp_path / "run") == curve(plain)


def lines(folder: Path, said: list[str]) -> int:
    return len(RunFolder(folder).metrics())


# Each: another value, what shows that it was read, and how far the weights may lie from the others.
MACHINE: dict[str, tuple[Any, Any, float]] = {
    "device": ("cpu:0", lambda folder, said: any("cpu:0" in line for line in said), 0),
    "precision": ("bfloat16", lambda folder, said: any("bfloat16" in line for line in said), 0.02),
    "attention": ("plain", lambda folder, said: any("plain attention" in line for line in said), 1e-3),
    "compile": (True, lambda folder, said: any("compiled" in line for line in said), 1e-3),
    "sharding": ("full", lambda folder, said: any("sharding full" in line for line in said), 0),
    "recompute": (True, lambda folder, said: any("blocks recomputed" in line for line in said), 0),
    "threads": (2, lambda folder, said: any("2 threads" in line for line in said), 1e-3),
    "workers": (2, lambda folder, said: len(DATA_WORKERS) > 0, 0),
    "micro_batch": (2, lambda folder, said: any("(4 x 2)" in line for line in said), 1e-3),
    "resident": (False, lambda folder, said: any("streamed" in line for line in said), 0.05),
    "log_every": (5, lines, 0),
    "save_minutes": (1e-9, lambda folder, said: len(list(folder.glob("export"))) + len(SAVED), 0),
    "save_every": (2, lambda folder, said: len(SAVED), 0),
    "keep": (1, lambda folder, said: len(checkpoints(folder)), 0),
    "evals": (20, lambda folder, said: (folder / "pictures").exists(), 0),
    "tensorboard": (True, lambda folder, said: (folder / "tensorboard").exists(), 0),
}
SAVED: list[int] = []
DATA_WORKERS: list[int] = []


@pytest.mark.parametrize("name", MACHINE)
def test_the_machine_is_obeyed_and_changes_no_result(name, deep, tmp_path, monkeypatch):
    value, shows, tolerance = MACHINE[name]
    real_save, real_stream = save_checkpoint, DataLoader.__init__

    def save(folder: Path, step: int, *rest: Any) -> Path:
        SAVED.append(step)
        return real_save(folder, step, *rest)

    def load(loader: DataLoader, *words: Any, num_workers: int = 0, **how: Any) -> None:
        DATA_WORKERS.extend(range(num_workers))
        real_stream(loader, *words, num_workers=num_workers, **how)

    monkeypatch.setattr("mimkit.train.callbacks.save_checkpoint", save)
    monkeypatch.setattr(DataLoader, "__init__", load)
    monkeypatch.setattr(nn.Module, "compile", lambda module, **how: None)  # compiling takes minutes on CPUs
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    seen, weights = [], []
    for at in (None, value):
        config = tiny(deep, log_every=1, save_every=3 if name == "keep" else None, evals=0)
        if at is not None:
            config = replaced(config, f"machine.{name}", at)
        SAVED.clear(), DATA_WORKERS.clear()
        said = train(config, tmp_path / str(at), max_steps=5)
        seen.append(shows(tmp_path / str(at), said))
        weights.append(load_checkpoint(checkpoints(tmp_path / str(at))[-1])["model"])
    assert seen[0] != seen[1], f"machine.{name} is not read"
    for key, value in weights[0].items():
        other = weights[1][key]
        if key.endswith("attn.qkv.bias"):
            # What is added to all keys alike changes no attention: their gradient is rounding, which AdamW blows up.
            (q, _, v), (other_q, _, other_v) = value.chunk(3), other.chunk(3)
            value, other = torch.cat([q, v]), torch.cat([other_q, other_v])
        torch.testing.assert_close(value, other, rtol=0, atol=tolerance, msg=lambda line, key=key: f"{key}: {line}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("log_every", 0), ("keep", 0), ("evals", -1), ("threads", 0), ("micro_batch", 0), ("save_minutes", 0.0)]
    + [
        ("precision", "float16"),
        ("attention", "flash"),
        ("device", "gpu"),
        ("save_every", -1),
        ("workers", -2),
    ],
)
def test_a_machine_that_cannot_be_is_refused(name, value, forty, tmp_path):
    with pytest.raises(UserError, match=re.escape(str(value))):
        train(replaced(tiny(forty), f"machine.{name}", value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- golden curve


@pytest.mark.parametrize("order", [1, 2])
def test_golden_curve(tmp_path, request, order):
    """Twenty steps of the same tiny run as ever; --update-golden rewrites it for a reviewer to see.

    In the order of pictures of before version 0.3, and in today's.
    """
    data = tmp_path / "data"
    data.mkdir()
    for number in range(40):
        y, x = np.mgrid[:12, :12]
        shades = [(x * (number % 7 + c) + y * (number % 5 + 2 * c) + 13 * number) % 256 for c in range(3)]
        Image.fromarray(np.stack(shades, -1).astype(np.uint8)).save(data / f"{number:02d}.png")
    run = RunFolder(tmp_path / "run")
    if order == 1:  # as a run of an earlier version began
        train(tiny(data, log_every=1), run.folder, max_steps=0)
        saved = json.loads(run.config_path.read_text())
        assert saved["resolved"].pop("order") == 2
        write_json(run.config_path, saved)
    train(tiny(data, log_every=1), run.folder)
    losses, golden = curve(run.folder), GOLDEN[order]
    if request.config.getoption("--update-golden"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(json.dumps({"loss": losses}, indent=1) + "\n")
    assert losses == pytest.approx(json.loads(golden.read_text())["loss"], rel=1e-4)
    assert losses[-1] < 0.9 * losses[0], "it learns"


def test_three_pictures_in_two_class_folders_are_enough(tmp_path: Path):
    """Labels that are too few to measure with do not keep a run from training."""
    for number, name in enumerate(("a/1.png", "a/2.png", "b/3.png")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / name)
    config = tiny(tmp_path / "data", evals=1)
    assert "knn" not in pretrain(config, tmp_path / "run", max_steps=1, log=lambda line: None)
