"""Fine-tuning: against timm alone, against closed forms, and from a target to scores on the command line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from sklearn.metrics import confusion_matrix
from timm.data.mixup import Mixup
from timm.models import VisionTransformer
from torch import Tensor, nn

from commandline import FAST, mimkit, refused
from mimkit.core.batch import Batch, DatasetView
from mimkit.core.config import from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.core.metrics import confusion_counts
from mimkit.core.randomness import rng_keys
from mimkit.data.labels import label_subset
from mimkit.data.pictures import Decoded
from mimkit.evaluate.finetune import Start, draw_confusion, start_of, table
from mimkit.methods.finetune import FineTune, FineTuneConfig, set_drop_path
from mimkit.model.build import EncoderConfig
from mimkit.recipes import find_recipe, recipes
from mimkit.recipes.finetune import LEAST_STEPS, choose_finetuning, fit_to_labels
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.prepare import Prepared
from mimkit.train.run_folder import RunFolder
from mimkit.weights.load import load_weights
from mimkit.weights.timm import export_timm

PLAIN = dict(mixup=0.0, cutmix=0.0, drop_path=0.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def encoder_config(**more) -> EncoderConfig:
    return EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=16, depth=2, heads=2, **more)


def tuned(classes: int = 4, encoder: EncoderConfig | None = None, labels: Tensor | None = None, **settings) -> FineTune:
    torch.manual_seed(0)
    task = FineTuneConfig(classes=classes, **settings).build((encoder or encoder_config()).build((12, 12), 3))
    task.setup(dataset(torch.arange(24) % classes if labels is None else labels), resumed=False)
    return task


def dataset(labels: Tensor | None) -> DatasetView:
    return DatasetView(0 if labels is None else len(labels), lambda: torch.zeros(0), lambda: iter(()), labels)


def batch(count: int = 8, first: int = 3) -> Batch:
    number = torch.arange(first, first + count)
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(count, 3, 12, 12, generator=generator), rng_keys("x", number), number)


@pytest.mark.parametrize("settings", [{}, {"cutmix": 0.0}, {"mixup": 0.0}, {"switch": 1.0}])
def test_mixing_is_timm_s_and_has_an_address(settings):
    task, given = tuned(**settings), batch()
    labels = task.labels[given.index]
    config = FineTuneConfig(**settings)
    theirs = Mixup(config.mixup, config.cutmix, prob=1.0, switch_prob=config.switch, label_smoothing=0.1, num_classes=4)
    blended = 0
    for seed in range(6):
        np.random.seed(99)
        before, kept = np.random.get_state()[1].copy(), given.images.clone()
        torch.manual_seed(seed)
        images, targets = task.mix(given.images, labels)
        assert np.array_equal(np.random.get_state()[1], before) and torch.equal(given.images, kept)
        torch.manual_seed(seed)
        np.random.seed(int(torch.randint(1 << 32, ())))
        expected = theirs(given.images.clone(), labels)
        assert torch.equal(images, expected[0]) and torch.equal(targets, expected[1])
        assert torch.allclose(targets.sum(dim=1), torch.ones(8))
        # 0.9 of a label where it is, and 0.1 spread over four classes.
        fraction = (targets[0, labels[0]] - 0.025) / 0.9
        wanted = 0.9 * (fraction * F.one_hot(labels, 4) + (1 - fraction) * F.one_hot(labels.flip(0), 4)) + 0.025
        torch.testing.assert_close(targets, wanted)
        if torch.allclose(images, fraction * kept + (1 - fraction) * kept.flip(0), atol=1e-5):
            blended += 1
        else:  # a box of the other picture takes what its label takes
            torch.testing.assert_close((images == kept).float().mean(), fraction)
    assert {"{}": 0 < blended < 6, "cutmix": blended == 6}.get(next(iter(settings), "{}"), blended == 0)


def test_odd_batches_mix_too_and_other_steps_mix_otherwise():
    task, given = tuned(), batch(7)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(task.mix(given.images, task.labels[given.index])[1])
    assert not torch.equal(*found)


def test_without_mixing_the_loss_is_smoothed_cross_entropy():
    task, given = tuned(head_std=0.5, **PLAIN), batch()
    images, _ = task.mix(given.images, task.labels[given.index])
    assert torch.equal(images, given.images)
    step = task(given, 0.0)
    logits = task.encoder.timm(given.images)
    torch.testing.assert_close(step.loss, F.cross_entropy(logits, given.index % 4, label_smoothing=0.1))
    assert step.logs["train_accuracy"] == (logits.argmax(1) == given.index % 4).float().mean()


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_the_first_step_is_that_of_timm_alone(tmp_path, pool):
    trained = encoder_config().build((12, 12), 3)
    nn.init.normal_(trained.timm.norm.weight)
    args = encoder_config().timm_args((12, 12), 3)
    about = dict(mean=(0.5,) * 3, std=(0.5,) * 3, card="", name="vit_tiny_patch16_224")
    export_timm(trained, tmp_path / "export", model_args=args, **about)
    where = f"local-dir:{tmp_path / 'export'}"
    task = tuned(pool=pool, smoothing=0.0, **PLAIN)
    report = load_weights(str(tmp_path / "export"), task.encoder)
    if pool == "class":
        alone = timm.create_model(where, pretrained=True, num_classes=4, global_pool="token")
        assert not report.missing and not report.unexpected
    else:
        alone = timm.create_model(where, num_classes=4, fc_norm=True)
        lost = alone.load_state_dict(trained.timm.state_dict(), strict=False)
        assert set(lost.missing_keys) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
        assert report.missing == ["vit.fc_norm.weight", "vit.fc_norm.bias"]
        assert set(report.unexpected) == {"vit.norm.weight", "vit.norm.bias"}
    task.encoder.timm.head.load_state_dict(alone.head.state_dict())
    given, optimizers = batch(), []
    for model in (alone, task.encoder.timm):
        assert torch.equal(model.pos_embed, trained.timm.pos_embed)
        assert torch.equal(model.cls_token, trained.timm.cls_token)
        optimizers.append(torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(2):
        expected = F.cross_entropy(alone(given.images), given.index % 4)
        loss = task(given, 0.0).loss
        torch.testing.assert_close(loss, expected)
        for one, optimizer in zip((expected, loss), optimizers, strict=True):
            optimizer.zero_grad()
            one.backward()
            optimizer.step()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 24}),
        ("swin_tiny_patch4_window7_224", {"depths": (2, 1, 2, 1), "embed_dim": 24}),
        ("resnet10t", {}),
    ],
)
def test_drop_path_is_timm_s(name, more):
    def rates(model: nn.Module) -> list[float]:
        return [round(part.drop_prob, 6) for part in model.modules() if type(part).__name__ == "DropPath"]

    ours = timm.create_model(name, drop_path_rate=0.3, **more)
    set_drop_path(ours, 0.2)
    assert rates(ours) == rates(timm.create_model(name, drop_path_rate=0.2, **more)) and rates(ours)[-1] == 0.2
    set_drop_path(ours, 0.0)
    assert rates(ours) == []


def test_the_head_is_mae_s_and_positions_learn():
    task = tuned(classes=500, labels=torch.arange(500))
    head = task.encoder.timm.get_classifier()
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.05) and not head.bias.any()
    assert isinstance(task.encoder.timm, VisionTransformer) and isinstance(task.encoder.timm.norm, nn.Identity)
    assert all(parameter.requires_grad for parameter in task.parameters())
    config = find_recipe("finetune_mae_vit_b16", finetuning=True).optimizer
    decays = {
        name: group["weight_decay"]
        for group in config.build(task, 1024).param_groups
        for name, parameter in task.named_parameters()
        if any(parameter is p for p in group["params"])
    }
    assert decays["encoder.timm.pos_embed"] == decays["encoder.timm.cls_token"] == 0 and len(decays) == len(
        list(task.parameters())
    )
    assert decays["encoder.timm.head.weight"] == decays["encoder.timm.blocks.0.mlp.fc1.weight"] == 0.05
    assert "labels" not in task.state_dict()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet10t"])
def test_swins_and_resnets_learn_too(name, tmp_path):
    shape = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16, "window_size": 4} if "swin" in name else {}
    config = EncoderConfig(name=name, model_args=shape)
    encoder = config.build((32, 32), 3)
    task = FineTuneConfig(classes=6, drop_path=0.0).build(encoder)
    task.setup(dataset(torch.arange(24) % 6), resumed=False)
    given = batch()
    task(Batch(torch.randn(8, 3, 32, 32), given.rng_keys, given.index), 0.0).loss.backward()
    assert all(parameter.grad is not None for parameter in task.parameters())
    about = dict(mean=(0.5,) * 3, std=(0.5,) * 3, card="", name=name)
    export_timm(encoder, tmp_path / "export", model_args=config.timm_args((32, 32), 3), **about)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), encoder.timm.eval()(images)) and loaded(images).shape == (2, 6)
    again = FineTuneConfig(classes=3).build(config.build((32, 32), 3))  # from a model with another head
    assert not load_weights(str(tmp_path / "export"), again.encoder).missing


def test_a_share_of_the_labels_holds_every_class():
    labels = torch.tensor([0] * 200 + [2] * 100 + [3] * 4)[torch.randperm(304)]
    n = torch.arange(304)
    pictures = Decoded(
        "x", torch.stack([n // 256, n % 256], 1).view(-1, 1, 1, 2).to(torch.uint8), labels, tuple("abcd")
    )
    parts = {fraction: label_subset(pictures, fraction, 5) for fraction in (0.02, 0.1, 0.5, 1.0)}
    for fraction, part in parts.items():
        counts = torch.bincount(part.labels).tolist()
        assert counts == [round(200 * fraction), 0, round(100 * fraction), max(1, round(4 * fraction))]
    numbers = [{tuple(part.read(i).flatten().tolist()) for i in range(len(part))} for part in parts.values()]
    assert numbers[0] < numbers[1] < numbers[2] < numbers[3]
    assert label_subset(pictures, 0.1, 6).fingerprint != parts[0.1].fingerprint
    assert label_subset(pictures, 0.1, 5).fingerprint == parts[0.1].fingerprint
    for fraction, said in ((0.0, "above 0"), (1.5, "above 0"), (math.nan, "above 0"), (0.005, "one for each of 3")):
        with pytest.raises(UserError, match=said):
            label_subset(pictures, fraction)
    with pytest.raises(UserError, match="needs labels"):
        label_subset(Decoded("x", torch.zeros(9, 1, 2, 2, dtype=torch.uint8)), 1.0)


def test_confusion_is_scikit_learn_s_and_can_be_drawn():
    generator = torch.Generator().manual_seed(0)
    true, predicted = (torch.randint(6, (300,), generator=generator) for _ in range(2))
    found = confusion_counts(true, predicted, 7)
    assert np.array_equal(found, confusion_matrix(true, predicted, labels=range(7)))
    picture = np.array(draw_confusion(torch.eye(3, dtype=torch.int64) * 5, ["a", "b", "c"]))
    cells = picture[-10 - 3 * 34 + 2 : -10 : 34, -10 - 3 * 34 + 2 : -10 : 34].sum(axis=2).astype(int)
    assert (cells.diagonal() > 400).all() and (cells[~np.eye(3, dtype=bool)] < 250).all()
    assert max(draw_confusion(torch.ones(1000, 1000, dtype=torch.int64), ["x"] * 1000).size) < 1100


def test_the_table_says_what_an_unbalanced_accuracy_is_worth(finished):
    result = finished[1] | {
        "largest_class": {"name": "[b]", "share": 0.9},
        "unseen_classes": list("abcdefg"),
        "untested_classes": [],
    }
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table(result))
    text = captured.get()
    assert f"{result['balanced_accuracy']:.1%}, the mean over the classes" in text
    assert "90.0% of the measured pictures are '[b]'" in text
    assert "always wrong: a, b, c, d, e and 2 more" in text and "no measured picture" not in text
    for key in ("largest_class", "unseen_classes", "untested_classes"):
        del result[key]
    table(result)  # of version 0.2


SHEET = {  # epochs, base rate, layer decay, drop path, warm-up epochs, batch, rate at the end
    "finetune_mae_vit_b16": (100, 5e-4, 0.65, 0.1, 5, 1024, 1e-6),
    "finetune_mae_vit_l16": (50, 1e-3, 0.75, 0.2, 5, 1024, 1e-6),
    "finetune_mae_vit_h14": (50, 1e-3, 0.75, 0.3, 5, 1024, 1e-6),
    "finetune_simmim_vit_b16": (100, 1.25e-3, 0.65, 0.1, 20, 2048, 1e-6),
    "finetune_simmim_swin_b": (100, 1.25e-3, 0.8, 0.1, 20, 2048, 1e-6),
    "finetune_maskalign_vit_b16": (100, 3e-4, 0.55, 0.2, 5, 1024, 1e-6),
    "finetune_maskalign_vit_l16": (50, 3e-4, 0.75, 0.4, 5, 1024, 1e-6),
}


@pytest.mark.parametrize("name", recipes(finetuning=True))
def test_recipes_are_the_papers(name):
    run = find_recipe(name, finetuning=True)
    assert from_dict(json.loads(json.dumps(to_dict(run)))) == run and run.method.supervised and run.machine.evals == 0
    run.optimizer.check()
    assert name not in recipes()
    if name not in SHEET:
        return
    method, optimizer, view = run.method, run.optimizer, run.images.view
    assert isinstance(method, FineTuneConfig)
    peak = optimizer.peak_lr(run.batch_size)
    found = (run.epochs, optimizer.base_lr, optimizer.layer_decay, method.drop_path)
    assert (*found, run.schedule.warmup_epochs, run.batch_size) == SHEET[name][:-1]
    assert peak * run.schedule.final == pytest.approx(SHEET[name][-1], rel=0.05)
    assert peak == pytest.approx(5e-3 if "simmim" in name else optimizer.base_lr * 4)
    assert (optimizer.clip, optimizer.betas) == (5.0 if "simmim" in name else None, (0.9, 0.999))
    assert (method.mixup, method.cutmix, method.switch, method.smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert view.augment is not None and (view.augment.magnitude, view.augment.spread) == (9, 0.5) and view.erase == 0.25


def test_simmim_s_cosine_begins_under_its_warm_up():
    """microsoft/SimMIM:lr_scheduler.py: timm's cosine over all epochs, whose first 20 the warm-up overwrites."""
    for name in ("finetune_simmim_vit_b16", "finetune_simmim_swin_b"):
        run = find_recipe(name, finetuning=True)
        schedule = run.schedule.of(run.epochs)
        theirs = [2e-4 + (1 - 2e-4) * (1 + math.cos(math.pi * epoch / 100)) / 2 for epoch in (20, 50, 99)]
        assert [schedule(epoch / 100) for epoch in (20, 50, 99)] == pytest.approx(theirs)
        assert schedule(0.2) == pytest.approx(0.9045, abs=1e-4) and schedule(0.2 - 1e-9) == pytest.approx(1)
    assert not find_recipe("finetune_mae_vit_b16", finetuning=True).schedule.whole


def test_a_recipe_is_chosen_by_the_target():
    def choice(name: str, width: int, side: int = 224, method: str = "MAE") -> str:
        start = Start(encoder=EncoderConfig(name=name), size=(side, side), width=width, method=method)
        return choose_finetuning(start)[0]

    assert choice("vit_tiny_patch16_224", 128, 32) == "finetune_mini_32"
    assert choice("vit_base_patch16_224", 768) == "finetune_mae_vit_b16"
    assert choice("vit_large_patch16_224", 1024) == "finetune_mae_vit_l16"
    assert choice("vit_huge_patch14_224", 1280) == "finetune_mae_vit_h14"
    assert choice("vit_large_patch16_224", 1024, method="MaskAlign") == "finetune_maskalign_vit_l16"
    assert choice("vit_base_patch16_224", 768, method="SimMIM") == "finetune_simmim_vit_b16"
    assert choice("swin_base_patch4_window7_224", 1024) == "finetune_simmim_swin_b"
    assert choice("resnet50", 2048) == "finetune_resnet50"


def test_where_a_timm_name_starts():
    start = start_of("vit_base_patch16_224.mae")
    assert start.encoder == EncoderConfig(name="vit_base_patch16_224.mae", positions="learned", weights="timm")
    assert (start.size, start.width, start.channels) == ((224, 224), 768, 3)
    assert start.mean == (0.485, 0.456, 0.406)
    start = start_of("untrained:resnet50")
    assert start.encoder.weights is None and start.mean is None and start.width == 2048
    for target, said in (("vit_bas_patch16_224", "did you mean"), ("vit_tiny_patch16_18", "no run folder")):
        with pytest.raises(UserError, match=said):
            start_of(target)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six classes by brightness and channel, 20 to learn from and 5 to be measured on, of 12 x 12 pixels."""
    folder = tmp_path_factory.mktemp("six")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 5)):
        for kind in range(6):
            (folder / split / f"kind{kind}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (12, 12, 3))
                pixels[:, :, kind % 3] += 60 + 130 * (kind // 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"kind{kind}" / f"{i}.png")
    return folder


SHORT = f"--optimizer.base-lr 0.1 --batch-size 12 {FAST} --machine.save-every 5"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A few steps of pre-training."""
    folder = tmp_path_factory.mktemp("runs") / "mae"
    shape = "--encoder.patch 4 --encoder.width 16 --encoder.depth 1 --encoder.heads 2 --images.size 12"
    small = f"{shape} --method.decoder.width 8 --method.decoder.heads 2 --batch-size 12 --epochs 1 {FAST}"
    assert mimkit(f"pretrain mae_mini_28 --data {data} --run {folder} {small}").status == 0
    return folder


@pytest.fixture(scope="module")
def finished(run, data, tmp_path_factory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    words = f"evaluate finetune {run} --data {data} --run {folder} --epochs 6 {SHORT} --json {folder}.json"
    said = mimkit(words)
    assert said.status == 0, said
    return folder, json.loads(Path(f"{folder}.json").read_text()), said.out + said.err


def test_a_run_is_fine_tuned_and_measured(finished, data, run):
    folder, result, said = finished
    assert "finetune_mini_32" in said and "kind0" in said and "labels of 6 classes, to learn" in said
    assert (result["train"], result["test"], result["steps"], result["epochs"]) == (120, 30, 60, 6)
    assert json.loads((folder / "result.json").read_text()) == result
    model = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).eval()
    cfg = model.pretrained_cfg
    images, truth = [], []
    for path in sorted((data / "val").rglob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        images.append((pixels - torch.tensor(cfg["mean"]).view(3, 1, 1)) / torch.tensor(cfg["std"]).view(3, 1, 1))
        truth.append(int(path.parent.name[-1]))
    with torch.inference_mode():
        logits = model(torch.stack(images))
    predicted, truth = logits.argmax(1), torch.tensor(truth)
    assert result["accuracy"] == (predicted == truth).double().mean().item() >= 0.8
    assert result["low"] <= result["accuracy"] <= result["high"]
    assert result["top5"] == (logits.topk(5).indices == truth[:, None]).any(1).double().mean().item()
    assert np.array_equal(result["confusion"], confusion_matrix(truth, predicted, labels=range(6)))
    assert {one["pictures"] for one in result["per_class"].values()} == {5}
    assert result["balanced_accuracy"] == pytest.approx(result["accuracy"])  # five of each
    assert result["largest_class"]["share"] == 5 / 30 and not result["unseen_classes"] and "largest class" in said
    assert "balanced" not in said
    assert Image.open(folder / "confusion.png").size[0] > 200
    own, trained = RunFolder(run).read_config(), RunFolder(folder).read_config()
    assert trained["resolved"]["mean"] == own["resolved"]["mean"]
    names = [f"kind{number}" for number in range(6)]
    assert (
        json.loads((folder / "export" / "config.json").read_text())["label_names"] == names == list(result["per_class"])
    )
    assert "| 5 | kind5 |" in (folder / "export" / "README.md").read_text()
    assert "label_names" not in (run / "export" / "config.json").read_text()
    assert "image-classification" in (folder / "export" / "README.md").read_text()
    assert "holds a finished run" in refused(f"evaluate finetune {run} finetune_mini_32 --data {data} --run {folder}")


def test_a_fine_tuned_model_is_a_target(finished, data, tmp_path):
    folder = finished[0]
    assert mimkit(f"evaluate knn {folder} --data {data} --workers 0 --device cpu").status == 0
    start = start_of(str(folder))
    assert "fc_norm" not in start.encoder.model_args and start.method == "FineTune"
    assert start_of(f"untrained:{folder}").encoder.weights is None
    words = f"evaluate finetune {folder} --data {data} --run {tmp_path / 'again'} --epochs 1 {SHORT}"
    assert mimkit(words).status == 0


def test_an_unfinished_run_goes_on_to_the_same_end(finished, run, data, tmp_path):
    folder = tmp_path / "run"
    words = f"evaluate finetune {run} finetune_mini_32 --data {data} --run {folder} --epochs 6 {SHORT}"
    said = mimkit(f"{words} --max-steps 23")
    assert said.status == 0 and f"mimkit evaluate finetune {folder}" in said.out
    assert not (folder / "result.json").exists()
    assert mimkit(f"evaluate finetune {folder}").status == 0
    states = [load_checkpoint(checkpoints(place)[-1]) for place in (finished[0], folder)]
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)
    result = json.loads((folder / "result.json").read_text())
    assert result["accuracy"] == finished[1]["accuracy"]
    del result["accuracy"]  # killed before it was measured
    (folder / "result.json").write_text(json.dumps(result))
    assert mimkit(f"evaluate finetune {folder}").status == 0
    assert json.loads((folder / "result.json").read_text())["accuracy"] == finished[1]["accuracy"]


@pytest.mark.parametrize(
    ("pictures", "before", "after"),
    [
        (40, (20, 128), (60, 8)),  # 300 steps of 8
        (120, (20, 128), (40, 16)),
        (3, (20, 128), (800, 8)),
        (1_000, (20, 128), (39, 128)),
        (5_000, (20, 128), (20, 128)),
        (2_000, (100, 1024), (100, 256)),
        (1_000_000, (100, 1024), (100, 1024)),
        (40, (20, 4), (30, 4)),
    ],
)
def test_a_plan_fits_the_labels(pictures, before, after):
    config = find_recipe("finetune_mini_32", finetuning=True)
    config.epochs, config.batch_size = before
    line = fit_to_labels(config, pictures)
    assert (config.epochs, config.batch_size) == after
    assert config.epochs * pictures >= LEAST_STEPS * config.batch_size
    assert (line == "") == (before == after)
    assert not line or all(f"{number}" in line for number in (*before, *after, "--batch-size"))
    assert fit_to_labels(config, pictures) == "", "what fits stays"


def test_few_labels_get_steps_enough_unless_the_person_says_how_many(run, data, tmp_path):
    words = f"evaluate finetune {run} --data {data} --label-fraction 0.1 --max-steps 1 {FAST}"
    plans = {
        "": (200, 8),
        "--epochs=7": (7, 128),
        "--batch_size 20": (20, 20),
        "--epochs 20 --batch-size 128": (20, 128),
    }
    for number, (flags, plan) in enumerate(plans.items()):
        said = mimkit(f"{words} {flags} --run {tmp_path / str(number)}")
        assert said.status == 0, said.err
        config = RunFolder(tmp_path / str(number)).read_config()["config"]
        assert (config.epochs, config.batch_size) == plan
        assert ("12 pictures with labels are few: 200 epochs of batches of 8" in said.err) == (not flags)
    said = mimkit(f"{words} --run {tmp_path / '0'}")  # the same command goes on with the same plan
    assert said.status == 0 and "goes on" not in said.out, said.err


def test_few_labels_and_no_training_before(run, data, tmp_path):
    words = f"evaluate finetune untrained:{run} --data {data} --label-fraction 0.1 --epochs 1 {SHORT}"
    assert mimkit(f"{words} --run {tmp_path / 'few'} --json {tmp_path / 'few.json'}").status == 0
    result = json.loads((tmp_path / "few.json").read_text())
    assert result["train"] == 12 and result["weights"] is None
    config = RunFolder(tmp_path / "few").read_config()["config"]
    assert config.method.label_fraction == 0.1 and config.method.classes == 6
    config.data, config.method.label_fraction = (str(data / "train"),), 1.0
    assert len(Prepared(config).pictures) == 96, "a fifth is set apart where there is no test split"
    config = RunFolder(tmp_path / "few").read_config()["config"]
    ready, scratch = Prepared(config), Prepared(RunFolder(run).read_config()["config"])
    assert torch.equal(ready.pictures.labels.bincount(), torch.full((6,), 2))
    assert ready.sample(64).index.max() < 12, "a step that is timed has pictures with labels alone"
    assert torch.equal(ready.encoder.timm.pos_embed, scratch.encoder.timm.pos_embed), "begins where pre-training did"
    assert torch.equal(ready.encoder.timm.blocks[0].attn.qkv.weight, scratch.encoder.timm.blocks[0].attn.qkv.weight)


def test_what_cannot_be_learned_is_refused_in_one_line(run, data, tmp_path):
    bare, one = tmp_path / "bare", tmp_path / "one"
    for place in (bare, one / "cat"):
        place.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (12, 12), (i, i, i)).save(place / f"{i}.png")
    words = f"evaluate finetune {run} {{}} --data {{}} --run {tmp_path / 'run'} {FAST}"
    assert "fine-tuning needs labels" in refused(words.format("", bare))
    assert "needs labels" in refused(words.format("", one))
    assert "less than one for each of 6 classes" in refused(words.format("", data) + " --label-fraction 0.01")
    assert "above 0" in refused(words.format("", data) + " --label-fraction=2")
    assert "finetune_mini_32" in refused(words.format("finetune_mini_23", data))
    assert "one target and one recipe" in refused(words.format("finetune_mini_32 other", data))
    assert "--data" in refused(f"evaluate finetune {run}")
    assert "wanted" in refused(f"evaluate finetune --data {data}")
    assert "optimizer.layer_decay" in refused(words.format("finetune_mini_32", data) + " --optimizer.layer-decay 2")
    assert "method.mixup" in refused(words.format("finetune_mini_32", data) + " --method.mixup -1")
    assert "method.smoothing" in refused(words.format("finetune_mini_32", data) + " --method.smoothing 1")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="labels"):
        tuned().setup(dataset(None), resumed=False)
    with pytest.raises(UserError, match="one label"):
        tuned(labels=torch.ones(5, dtype=torch.int64))
    with pytest.raises(UserError, match="5 classes"):
        tuned(labels=torch.arange(5))
    with pytest.raises(UserError, match="no class token"):
        tuned(encoder=encoder_config(model_args={"class_token": False}), pool="class")


def test_help_and_list():
    assert "--method.mixup" in mimkit("evaluate finetune --help").out
    listed = mimkit("recipes").out
    assert listed.index("mae_vit_b16") < listed.index("with labels") < listed.index("finetune_mini_32")
