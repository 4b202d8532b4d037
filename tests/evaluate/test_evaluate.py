"""Evaluation: every kind of target, the cache of features, and the probe against its written rule."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import nn

from evaluation import DATA, MEAN, STD, TINY, colorize, images, toy
from mimkit.core.errors import UserError
from mimkit.core.randomness import integer, rng_keys
from mimkit.data.loader import statistics
from mimkit.data.sources import open_pictures
from mimkit.evaluate import features as cache
from mimkit.evaluate import probe, run
from mimkit.evaluate.features import Features, extract
from mimkit.evaluate.knn import evaluate_knn
from mimkit.evaluate.probe import Heads, batch_size, evaluate_probe, lars, train_heads
from mimkit.evaluate.run import evaluate, table
from mimkit.evaluate.target import open_target
from mimkit.model.build import EncoderConfig
from mimkit.weights.timm import export_timm

POOLS = ("mean", "class", "both", "grid", "blocks")


def export(folder: Path, *, seed: int = 0, size: tuple[int, int] = (16, 16), **config) -> nn.Module:
    """An export as a run writes it, and the timm model that it is of."""
    settings = EncoderConfig(**TINY | config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer("init", seed))
        encoder = settings.build(size, 3)
    args = settings.timm_args(size, 3)
    export_timm(encoder, folder, model_args=args, mean=MEAN, std=STD, card="", name=settings.name)
    return encoder.timm.eval()


def nudge(folder: Path) -> None:
    """Train a little: other weights, fixed positions as they were."""
    (folder / "identity.json").unlink(missing_ok=True)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v if k == "pos_embed" else v + 0.05 for k, v in weights.items()}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Class folders of 3 x 20 pictures, one of them damaged."""
    root = tmp_path_factory.mktemp("data")
    toy = colorize(60)
    for number, (pixels, label) in enumerate(zip(toy.tensor(), toy.labels, strict=True)):
        place = root / toy.classes[label]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    (root / "red" / "0.png").write_bytes(b"no picture")
    return root


# Targets


def test_export_gives_the_features_of_its_timm_model(tmp_path):
    vit = export(tmp_path / "export")
    extractor = open_target(str(tmp_path / "export"), **DATA)
    assert (extractor.size, extractor.channels) == ((16, 16), 3)
    assert (extractor.mean, extractor.std) == (MEAN, STD)  # its own, not the data's
    with torch.inference_mode():
        tokens, found = vit.forward_features(images()), extractor(images())
    assert torch.equal(found["class"], tokens[:, 0])
    assert torch.allclose(found["mean"], tokens[:, 1:].mean(1), atol=1e-6)
    assert torch.equal(found["both"], torch.cat([found["class"], found["mean"]], 1))


def test_run_folder_is_its_export(tmp_path):
    export(tmp_path / "run/export", size=(16, 24))
    saved = {"recipe": "some", "resolved": {}, "config": {"class": "Pretrain", "seed": 3}}
    (tmp_path / "run/config.json").write_text(json.dumps(saved))
    of_run, of_export = (open_target(str(tmp_path / f), **DATA) for f in ("run", "run/export"))
    assert of_run.size == (16, 24)
    assert of_run.fingerprint == of_export.fingerprint


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_untrained_folder_is_what_the_run_began_with(tmp_path, positions):
    fresh = export(tmp_path / "run/export", seed=3, positions=positions)
    saved = {"recipe": "some", "resolved": {}, "config": {"class": "Pretrain", "seed": 3}}
    (tmp_path / "run/config.json").write_text(json.dumps(saved))
    nudge(tmp_path / "run/export")
    trained = open_target(str(tmp_path / "run"), **DATA)
    untrained = open_target(f"untrained:{tmp_path / 'run'}", **DATA)
    assert untrained.fingerprint != trained.fingerprint
    assert (untrained.mean, untrained.std) == (MEAN, STD)
    weights = untrained.model.state_dict()
    for key, value in fresh.state_dict().items():
        if key == "pos_embed" and positions == "learned":  # timm's own draw
            assert value.std().item() == pytest.approx(weights[key].std().item(), rel=0.2)
        else:
            assert torch.equal(value, weights[key]), key


def test_untrained_timm_names_take_the_size_and_statistics_of_the_data():
    vit = open_target(
        "untrained:vit_tiny_patch16_224",
        **DATA | {"size": (32, 40), "channels": 1, "mean": (0.5,), "std": (0.2,)},
    )
    assert (vit.size, vit.channels, vit.mean) == ((32, 48), 1, (0.5,))  # the next size in whole patches
    with torch.inference_mode():
        found = vit(torch.randn(2, 1, 32, 48))
    widths = {"class": 192, "mean": 192, "both": 384, "grid": 768, "blocks": 1536}
    assert {k: v.shape[1] for k, v in found.items()} == widths
    again = open_target(
        "untrained:vit_tiny_patch16_224",
        **DATA | {"size": (32, 40), "channels": 1, "mean": (0.5,), "std": (0.2,)},
    )
    assert again.fingerprint == vit.fingerprint


def test_registers_stay_out_and_models_without_class_token_have_no_pool_of_it():
    size = {**DATA, "size": (28, 28)}
    registers = open_target("untrained:vit_small_patch14_reg4_dinov2", **size)
    x = images(2, (28, 28))
    with torch.inference_mode():
        tokens = registers.model.forward_features(x)
        assert torch.allclose(registers(x)["mean"], tokens[:, 5:].mean(1), atol=1e-6)
    resnet = open_target("untrained:resnet10t", **DATA)
    with torch.inference_mode():
        found = resnet(images(2))
        assert set(found) == set(resnet.pools) == {"mean", "grid"}
        assert torch.allclose(found["mean"], resnet.model.forward_features(images(2)).mean((2, 3)), atol=1e-5)


def test_pixels_are_the_normalized_images_themselves():
    pixels = open_target("pixels", **DATA)
    assert torch.equal(pixels(images())["pixels"], images().flatten(1))
    assert (pixels.mean, pixels.std) == (DATA["mean"], DATA["std"])
    assert open_target("pixels", **DATA | {"size": (96, 144)}).size == (32, 48)  # large ones are shrunk


def test_released_weights_of_timm_are_asked_for_and_a_failure_says_what_to_do(monkeypatch):
    asked = {}

    def offline(name, **args):
        asked.update(args, name=name)
        raise OSError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="use untrained:vit_tiny_patch16_224") as error:
        open_target("vit_tiny_patch16_224", **DATA)
    assert asked["pretrained"] and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("vit_tiny_patch16_242", "did you mean 'vit_tiny_patch16_224'"),
        ("untrained:vit_tiny_patch16_242", "did you mean 'untrained:vit_tiny_patch16_224'"),
        ("pixel", "did you mean 'pixels'"),
        ("vit_base_patch16_224.may", "did you mean 'vit_base_patch16_224.mae'"),
        ("runs/nothing", "no folder 'runs/nothing'"),
        ("untrained:", "no folder"),
    ],
)
def test_unknown_targets_are_answered_with_the_nearest(target, message):
    with pytest.raises(UserError, match="(?i)" + message) as error:
        open_target(target, **DATA)
    assert "\n" not in str(error.value)


def test_folders_without_a_model_say_what_they_lack(tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_target(str(tmp_path / "run"), **DATA)

    (tmp_path / "run").mkdir()
    refused("holds no model")
    (tmp_path / "run/config.json").write_text(json.dumps({"config": {}}))
    refused("no export yet")
    (tmp_path / "run/config.json").write_text("{}")
    refused("no timm model")
    with pytest.raises(UserError, match=r"did you mean .*run"):
        open_target(str(tmp_path / "rum"), **DATA)
    export(tmp_path / "run/export")
    weights = tmp_path / "run/export/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused("is damaged .* or remove identity.json if you changed it")
    (tmp_path / "run/export/identity.json").unlink()
    refused("cannot be loaded")
    weights.unlink()
    refused("holds no model.safetensors")


# Features and their cache


def test_features_come_from_the_cache_until_weights_or_pictures_change(tmp_path, monkeypatch):
    export(tmp_path / "export")
    calls = []
    compute = cache._compute
    monkeypatch.setattr(cache, "_compute", lambda *args: calls.append(1) or compute(*args))

    def features(pictures=colorize(30), **how) -> Features:
        return extract(open_target(str(tmp_path / "export"), **DATA), pictures, device="cpu", batch_size=8, **how)

    first, second = features(), features()
    assert len(calls) == 1
    assert first.values.keys() == second.values.keys() == {"class", "mean", "both", "grid", "blocks"}
    assert all(torch.equal(first.values[pool], second.values[pool]) for pool in first.values)
    assert torch.equal(first.labels, second.labels) and len(first) == 30
    limited = features(limit=10)
    assert len(limited) == 10 and len(calls) == 2
    features(colorize(30, seed=1))
    assert len(calls) == 3
    nudge(tmp_path / "export")
    changed = features()
    assert len(calls) == 4 and not torch.allclose(changed.values["mean"], first.values["mean"], atol=1e-3)
    for file in (tmp_path / "cache/mimkit/features").iterdir():  # damaged: computed anew
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(features().values["mean"], changed.values["mean"]) and len(calls) == 5


def test_limited_features_are_rows_of_all_features_with_their_labels(tmp_path):
    extractor = open_target("pixels", **DATA)
    everything = extract(extractor, colorize(31), device="cpu", batch_size=8)
    some = extract(extractor, colorize(31), device="cpu", batch_size=4, limit=7)
    rows = [int((everything.values["pixels"] == row).all(1).nonzero()) for row in some.values["pixels"]]
    assert torch.equal(everything.labels[rows], some.labels) and rows == sorted(set(rows))
    assert not (tmp_path / "cache").exists()  # pixels are not kept


def test_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    extractor = open_target("untrained:resnet10t", **DATA)
    assert len(extract(extractor, colorize(4), device="cpu")) == 4


def test_cache_drops_the_least_recently_used(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CACHE_LIMIT", 1000)
    files = [tmp_path / "f" / f"{i}.safetensors" for i in range(4)]
    for i, file in enumerate(files[:3]):
        cache._save(file, {"mean": torch.zeros(60)})  # 240 bytes and a header
        os.utime(file, (1000 + i, 1000 + i))
    assert cache._load(files[0], ["mean"]) is not None  # used now
    cache._save(files[3], {"mean": torch.zeros(60)})
    assert [file.exists() for file in files] == [True, False, True, True]
    cache._save(tmp_path / "f/large.safetensors", {"mean": torch.zeros(600)})
    assert len(list((tmp_path / "f").iterdir())) == 3


# The probe


def test_lars_is_the_written_rule():
    rates = (2.0, 6.4)
    heads = Heads(5, 3, 2, seed=0).double()
    for layer in heads.layers:
        nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    optimizer = lars(heads, rates)
    weights = [layer.weight.detach().numpy().copy() for layer in heads.layers]
    biases = [layer.bias.detach().numpy().copy() for layer in heads.layers]
    speed = [[np.zeros_like(w), np.zeros_like(b)] for w, b in zip(weights, biases, strict=True)]
    generator = np.random.default_rng(0)
    for step in range(4):
        for i, layer in enumerate(heads.layers):
            # No gradient in one step: the rule leaves it as it is (ratio 1), and momentum goes on.
            gw, gb = (generator.normal(size=s) * (step != 2) for s in (weights[i].shape, biases[i].shape))
            layer.weight.grad, layer.bias.grad = torch.from_numpy(gw), torch.from_numpy(gb)
            norms = np.linalg.norm(weights[i]), np.linalg.norm(gw)
            ratio = 0.001 * norms[0] / norms[1] if norms[1] > 0 else 1.0
            speed[i] = [0.9 * speed[i][0] + ratio * gw, 0.9 * speed[i][1] + gb]
            weights[i] = weights[i] - rates[i] * speed[i][0]
            biases[i] = biases[i] - rates[i] * speed[i][1]
        optimizer.step()
        for i, layer in enumerate(heads.layers):
            np.testing.assert_allclose(layer.weight.detach(), weights[i], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(layer.bias.detach(), biases[i], rtol=1e-12, atol=1e-14)


def test_parallel_heads_equal_heads_trained_alone():
    data = toy(300)
    values, labels = data.values["mean"].double(), data.labels
    torch.set_default_dtype(torch.float64)
    try:
        together = train_heads(values, labels, classes=4, rates=(0.1, 1.0, 10.0), epochs=4)
        alone = [train_heads(values, labels, classes=4, rates=(rate,), epochs=4) for rate in (0.1, 1.0, 10.0)]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, head in zip(alone, together.layers, strict=True):
        torch.testing.assert_close(one.layers[0].weight, head.weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.layers[0].bias, head.bias, rtol=1e-9, atol=1e-12)
        assert torch.equal(one.norm.running_var, together.norm.running_var)


def test_one_epoch_of_the_probe_is_mae_written_out():
    """BatchNorm without affine, cross-entropy, warm-up, cosine, rate x batch / 256 and LARS as formulas."""
    data, rate, epochs = toy(130), 3.0, 10
    values, labels = data.values["mean"].double(), data.labels
    size = batch_size(130)
    assert size == 32
    torch.set_default_dtype(torch.float64)
    try:
        heads = train_heads(values, labels, classes=4, rates=(rate,), epochs=epochs)
        start = Heads(12, 4, 1, seed=0).layers[0]
    finally:
        torch.set_default_dtype(torch.float32)
    w, b = start.weight.detach().clone(), start.bias.detach().clone()
    assert w.std().item() == pytest.approx(0.01, rel=0.3) and not b.any()
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    mean, var = torch.zeros(12).double(), torch.ones(12).double()
    warm = epochs * 10 / 90
    for epoch in range(epochs):
        order = rng_keys("probe", 0, epoch, torch.arange(130)).argsort()
        for step in range(4):
            done = epoch + step / 4
            lr = (
                rate
                * size
                / 256
                * (done / warm if done < warm else (1 + math.cos(math.pi * (done - warm) / (epochs - warm))) / 2)
            )
            x, y = (part[order[step * 32 : step * 32 + 32]] for part in (values, labels))
            mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0)
            x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt()
            g = ((x @ w.T + b).softmax(1) - F.one_hot(y, 4)) / 32
            gw, gb = g.T @ x, g.sum(0)
            vw = 0.9 * vw + 0.001 * w.norm() / gw.norm() * gw
            vb = 0.9 * vb + gb
            w, b = w - lr * vw, b - lr * vb
    torch.testing.assert_close(heads.layers[0].weight, w, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(heads.layers[0].bias, b, rtol=1e-8, atol=1e-11)
    assert not heads.training and not heads.norm.affine
    logits = ((values - mean) / (var + 1e-6).sqrt()) @ w.T + b  # running statistics when it is measured
    torch.testing.assert_close(heads(values)[:, 0], logits, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pictures, size", [(20, 20), (1000, 32), (50_000, 512), (1_281_167, 16384)])
def test_batches_shrink_with_the_set(pictures, size):
    assert batch_size(pictures) == size


@pytest.mark.parametrize("method", ["lars", "logistic"])
def test_probe_learns_what_can_be_learned_and_nothing_else(method):
    train, test = toy(320), toy(400, seed=1)
    found = evaluate_probe(train, test, method=method)["mean"]
    assert found["low"] <= found["accuracy"] <= found["high"] and found["method"] == method
    assert found["accuracy"] > 0.93
    shuffled = Features(train.values, train.labels[rng_keys("shuffle", torch.arange(320)).argsort()], 0)
    assert abs(evaluate_probe(shuffled, test, method=method)["mean"]["accuracy"] - 0.25) < 0.09


def test_wide_features_are_reduced_and_still_tell_the_classes(monkeypatch):
    """Pixels, mostly: more numbers than pictures would make logistic regression slow."""
    monkeypatch.setattr(probe, "WIDE", 10)
    monkeypatch.setattr(probe, "COMPONENTS", 5)
    train, test = toy(600, gap=3), toy(400, seed=1, gap=3)
    for part in (train, test):
        part.values["mean"] = (part.values["mean"] - 5) / torch.logspace(-3, 3, 12)
    assert evaluate_probe(train, test, method="logistic")["mean"]["accuracy"] > 0.9


def test_probe_chooses_without_the_test_set(monkeypatch):
    """The same choice whatever the test labels are, and by size of the set between the two methods."""
    monkeypatch.setattr(probe, "FEW", 100)
    for rows, setting in ((100, "penalty"), (101, "rate")):
        train, test = toy(rows), toy(100, seed=1)
        wrong = Features(test.values, (test.labels + 1) % 4, 0)
        right, other = (evaluate_probe(train, part)["mean"] for part in (test, wrong))
        assert right[setting] == other[setting] and right["held_out"] == other["held_out"]
        assert evaluate_probe(train, test)["mean"] == right  # no state, no luck
        assert right["accuracy"] > other["accuracy"]


def test_knn_counts_hits():
    bank = Features({"mean": torch.eye(3), "class": -torch.eye(3)}, torch.arange(3), 0)
    test = Features(
        {"mean": torch.eye(3)[[0, 1, 2, 2]], "class": torch.eye(3)[[0, 1, 2, 2]]},
        torch.tensor([0, 1, 2, 0]),
        0,
    )
    found = evaluate_knn(bank, test, k=1)
    assert found["mean"]["accuracy"] == 0.75
    assert list(found) == ["mean", "class"] and found["mean"]["low"] < 0.75 < found["mean"]["high"] <= 1
    assert list(evaluate_knn(bank, test, pools=["class"])) == ["class"]
    named = evaluate_knn(bank, test, k=1, classes=["a", "b", "c"])["mean"]
    assert named["per_class"]["a"] == {"accuracy": 0.5, "pictures": 2, "taken_for": "c"}
    assert named["balanced_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)


# All of it


def test_evaluate_on_a_folder_of_classes(tmp_path, folder):
    export(tmp_path / "export")
    results = [
        evaluate("knn", "pixels", [str(folder)], device="cpu"),
        evaluate("knn", str(tmp_path / "export"), [str(folder)], device="cpu", pools=["both"]),
        evaluate("probe", str(tmp_path / "export"), [str(folder)], device="cpu", limit_train=30, pools=["all"]),
    ]
    assert json.loads(json.dumps(results)) == results
    pixels, both, linear = results
    assert pixels["results"]["pixels"]["accuracy"] > 0.8 and pixels["classes"] == 3
    assert pixels["train"] + pixels["test"] == 59 and pixels["skipped"] == 1
    assert "80 %" in pixels["split_note"]
    assert (both["headline"], list(both["results"])) == ("both", ["both"])
    assert linear["headline"] == "mean" and set(linear["results"]) == set(POOLS)
    assert linear["train"] in (29, 30) and "penalty" in linear["results"]["mean"]
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table(results))
    text = captured.get()
    assert f"{linear['results']['mean']['accuracy']:.1%}" in text and "logistic regression" in text
    share = pixels["largest_class"]["share"]
    assert f"{share:.1%}" in text and "largest class" in text and "balanced" not in text and "no picture" not in text


@pytest.fixture
def noise(tmp_path) -> Path:
    """160 and 40 pictures of noise, 8 and 2 of them called `lesion`, and one tested that is called `new`."""
    root = tmp_path / "noise"
    for number in range(201):
        kind = "lesion" if number < 10 else "normal" if number < 200 else "new"
        place = root / ("test" if number % 5 == 0 else "train") / kind
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (root / "train" / "new").mkdir()
    (root / "train" / "gone").mkdir()
    (root / "test" / "gone").mkdir()
    (root / "train" / "lesion" / "1.png").rename(root / "train" / "gone" / "1.png")
    return root


@pytest.mark.parametrize("kind", ["knn", "probe", "attentive"])
def test_noise_reports_what_it_is(kind, noise, tmp_path):
    export(tmp_path / "export")
    result = evaluate(kind, str(tmp_path / "export"), [str(noise)], device="cpu")
    (scores,) = result["results"].values()
    assert json.loads(json.dumps(result)) == result
    assert result["largest_class"] == {"name": "normal", "share": 38 / 41}
    assert result["unseen_classes"] == ["new"] and result["untested_classes"] == ["gone"]
    assert scores["accuracy"] == pytest.approx(38 / 41, abs=0.03) and scores["high"] > scores["low"] + 0.1
    assert scores["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.02)
    assert scores["per_class"]["new"]["accuracy"] == 0 and scores["per_class"]["lesion"]["pictures"] == 2
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table([result]))
    text = captured.get()
    assert "92.7%" in text and "always 'normal'" in text and "balanced" in text and "33.3%" in text
    assert "always wrong: new" in text and "nothing is said of: gone" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "knm"}, "did you mean 'knn'"),
        ({"k": 0}, "k must be at least 1"),
        ({"limit_test": 0}, "limit_test must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"kind": "probe", "method": "lasr"}, "did you mean 'lars'"),
        ({"target": "untrained:resnet10t", "pools": ["class"]}, "no class token"),
    ],
)
def test_wrong_settings_are_answered_in_a_line(folder, change, message):
    given = {"kind": "knn", "target": "pixels", "data": [str(folder)], "device": "cpu"} | change
    with pytest.raises(UserError, match=message):
        evaluate(given.pop("kind"), given.pop("target"), given.pop("data"), **given)


def test_labels_are_needed_and_enough_of_them(folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in sorted((folder / "green").iterdir()):
        (flat / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"DATA/cat/1\.jpg"):
        evaluate("knn", "pixels", [str(flat)], device="cpu")
    with pytest.raises(UserError, match="two classes"):
        evaluate("knn", "pixels", [str(folder)], device="cpu", limit_train=1)
    for method in ("lars", "logistic"):
        with pytest.raises(UserError, match="too few for a probe"):
            evaluate("probe", "pixels", [str(folder)], device="cpu", limit_train=2, method=method)


def test_pictures_are_opened_and_normalized_as_the_target_wants_them(tmp_path, monkeypatch):
    """Gray pictures: an export of color sees three channels in its own normalization, pixels one in theirs."""
    for number, pixels in enumerate(colorize(20).tensor()):
        place = tmp_path / "gray" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(place / f"{number}.png")
    export(tmp_path / "export")
    seen = []
    monkeypatch.setattr(
        run, "extract", lambda extractor, pictures, **how: seen.append(extractor) or extract(extractor, pictures, **how)
    )
    for target in (str(tmp_path / "export"), "pixels"):
        evaluate("knn", target, [str(tmp_path / "gray")], device="cpu", k=3)
    colored_export, pixels = seen[0], seen[-1]
    assert (colored_export.channels, colored_export.mean) == (3, MEAN)
    assert pixels.channels == 1 and (pixels.mean, pixels.std) == statistics(open_pictures([str(tmp_path / "gray")]))


@pytest.mark.slow
def test_pixels_of_cifar10_reach_their_known_accuracy():
    data = Path(os.environ.get("MIMKIT_SHARED_DATA", "../shared/data")) / "cifar10"
    if not data.is_dir():
        pytest.skip("no CIFAR-10 here")
    found = evaluate("knn", "pixels", [str(data)], device="cpu", limit_test=2000)["results"]["pixels"]
    assert found["accuracy"] == pytest.approx(0.4675, abs=0.005)  # the data's README: 46.5 % for the first 2,000
