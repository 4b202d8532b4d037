"""Probing: pools and headlines against plain timm, the protocols of papers and the attentive head against formulas."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from commandline import FAST, mimkit, refused
from evaluation import DATA, MEAN, STD, TINY, colorize, images, toy
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.pictures import Decoded
from mimkit.evaluate import attentive, features
from mimkit.evaluate.attentive import PROTOCOL, AttentiveHeads, adamw, evaluate_attentive, heads_of
from mimkit.evaluate.features import Features, extract
from mimkit.evaluate.pools import pooled, pools_of, tokens_of
from mimkit.evaluate.probe import PROTOCOLS, Heads, batch_size, evaluate_probe, train_heads
from mimkit.evaluate.run import choose_pools, evaluate, table
from mimkit.evaluate.target import Extractor, open_target
from mimkit.methods.moco import MoCoConfig
from mimkit.methods.moco_v3 import MoCoV3Config
from mimkit.methods.simclr import SimCLRConfig
from mimkit.model.build import EncoderConfig
from mimkit.weights.timm import export_timm


def vit(size: tuple[int, int] = (16, 24), depth: int = 5, **args) -> nn.Module:
    """A small ViT of timm with patches of 4 x 4 and norms that are not the identity."""
    torch.manual_seed(0)
    made = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        patch_size=4,
        embed_dim=24,
        depth=depth,
        num_heads=3,
        num_classes=0,
        **args,
    )
    for name, value in made.named_parameters():
        if "norm" in name:
            nn.init.normal_(value, mean=1.0)
    return made.eval().requires_grad_(False)


def by_hand(model: nn.Module, x: Tensor) -> list[np.ndarray]:
    """What every block gives out, behind the last norm, block by block."""
    x, outputs = model._pos_embed(model.patch_embed(x)), []
    for block in model.blocks:
        x = block(x)
        outputs.append(model.norm(x).numpy())
    return outputs


# Pools


@pytest.mark.parametrize("depth", [5, 2])
@pytest.mark.parametrize("registers", [0, 2])
def test_pools_are_the_written_ones(depth, registers):
    """A grid of 4 x 6 patches, by NumPy; of 2 blocks both are concatenated."""
    model, x = vit(depth=depth, reg_tokens=registers), images(3, (16, 24))
    found, outputs = pooled(model, x), by_hand(model, x)
    assert tuple(found) and set(found) == set(pools_of(model))
    last = outputs[-1]
    patches = last[:, 1 + registers :].reshape(3, 4, 6, 24)
    cells = [patches[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean((1, 2)) for i in range(2) for j in range(2)]
    blocks = [part for one in outputs[-4:] for part in (one[:, 0], one[:, 1 + registers :].mean(1))]
    mean = last[:, 1 + registers :].mean(1)
    expected = {
        "class": last[:, 0],
        "mean": mean,
        "both": np.concatenate([last[:, 0], mean], 1),
        "grid": np.concatenate(cells, 1),
        "blocks": np.concatenate(blocks, 1),
    }
    assert expected["blocks"].shape[1] == 2 * 24 * min(depth, 4)
    for pool, rows in expected.items():
        np.testing.assert_allclose(found[pool], rows, atol=1e-5, err_msg=pool)


def test_a_norm_behind_the_pooling_is_behind_every_part():
    model, x = vit(global_pool="avg", fc_norm=True), images(2, (16, 24))
    nn.init.normal_(model.fc_norm.weight)
    found, outputs = pooled(model, x), by_hand(model, x)  # whose norm is the identity
    norm = model.fc_norm
    expected = [norm(torch.from_numpy(o[:, part].mean(1))) for o in outputs[-4:] for part in (slice(1), slice(1, None))]
    torch.testing.assert_close(found["blocks"], torch.cat(expected, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["mean"], expected[-1], atol=1e-5, rtol=1e-5)
    cell = torch.from_numpy(outputs[-1][:, 1:].reshape(2, 4, 6, 24)[:, 2:, 3:].mean((1, 2)))
    torch.testing.assert_close(found["grid"][:, -24:], norm(cell), atol=1e-5, rtol=1e-5)


def test_uneven_grids_share_their_middle_and_narrow_ones_have_fewer_cells():
    model, x = vit((12, 4)), images(2, (12, 4))  # 3 x 1 patches
    rows = torch.from_numpy(by_hand(model, x)[-1][:, 1:])
    expected = torch.cat([rows[:, :2].mean(1), rows[:, 1:].mean(1)], 1)
    torch.testing.assert_close(pooled(model, x)["grid"], expected, atol=1e-5, rtol=1e-5)


def test_models_without_class_token_and_other_models():
    x = images(2, (64, 64))
    plain = vit((64, 64), class_token=False, global_pool="avg", fc_norm=False)
    assert pools_of(plain) == ("mean", "grid", "blocks") and pooled(plain, x)["blocks"].shape == (2, 4 * 24)
    for name, args in (("resnet10t", {}), ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2})):
        model = timm.create_model(name, num_classes=0, **args).eval().requires_grad_(False)
        map_ = model.forward_features(x)
        map_ = map_ if name == "resnet10t" else map_.permute(0, 3, 1, 2)  # 2 x 2
        assert set(pooled(model, x)) == set(pools_of(model)) == {"mean", "grid"}
        expected = torch.cat([map_[:, :, i, j] for i in range(2) for j in range(2)], 1)
        torch.testing.assert_close(pooled(model, x)["grid"], expected)
        torch.testing.assert_close(tokens_of(model, x, name), map_.flatten(2).transpose(1, 2))
    other = timm.create_model("convnext_atto", num_classes=0).eval()
    assert pools_of(other) == ("mean",) and set(pooled(other, x)) == {"mean"}
    split = timm.create_model("xcit_nano_12_p16_224", num_classes=0).eval().requires_grad_(False)
    assert pools_of(split) == ("mean", "class", "both")
    assert torch.equal(pooled(split, x)["class"], split.forward_features(x)[:, 0])


def test_tokens_are_class_token_and_patches():
    x = images(2, (16, 24))
    with_registers = vit(reg_tokens=2)
    expected = with_registers.forward_features(x)[:, [0, *range(3, 27)]]
    assert torch.equal(tokens_of(with_registers, x, ""), expected)
    without = vit(class_token=False, global_pool="avg", fc_norm=False)
    assert torch.equal(tokens_of(without, x, ""), without.forward_features(x))


def test_wide_pools_are_kept_from_when_they_are_asked_for(tmp_path, monkeypatch):
    exported(tmp_path / "export")
    passes = []
    compute = features._compute
    monkeypatch.setattr(features, "_compute", lambda *args: passes.append(args[3]) or compute(*args))

    def ask(*pools: str) -> Features:
        return extract(open_target(str(tmp_path / "export"), **DATA), colorize(20), device="cpu", pools=pools)

    narrow = ask("mean")
    assert set(narrow.values) == {"mean"} and passes == [{"mean", "class"}]
    assert set(ask("both", "class").values) == {"both", "class"} and len(passes) == 1
    assert ask("grid").values["grid"].shape == (20, 96) and passes[1:] == [{"mean", "class", "grid"}]
    everything = extract(open_target(str(tmp_path / "export"), **DATA), colorize(20), device="cpu")
    assert set(everything.values) == {"mean", "class", "both", "grid", "blocks"} and len(passes) == 3
    assert torch.equal(ask("grid", "blocks", "mean").values["mean"], narrow.values["mean"]) and len(passes) == 3
    assert torch.equal(everything.values["both"][:, 24:], narrow.values["mean"])


def test_features_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(features, "memory_budget", lambda: 3840)  # half of what 5 rows of 384 numbers take
    with pytest.raises(UserError, match=r"20 pictures take .* take 5 with --limit-train"):
        extract(open_target("untrained:vit_tiny_patch16_224", **DATA), colorize(20), device="cpu", pools=["mean"])


# Headlines


def exported(folder: Path, method=None, **config) -> nn.Module:
    """An export of a fresh encoder, as a run of this method leaves it."""
    settings = EncoderConfig(**TINY | config)
    encoder = settings.build((16, 16), 3)
    if method is not None:
        encoder = method.build(encoder).encoder
    args = settings.timm_args((16, 16), 3)
    export_timm(encoder, folder, model_args=args, mean=MEAN, std=STD, card="", name=settings.name)
    return encoder.timm.eval()


@pytest.mark.parametrize("method", [SimCLRConfig(), MoCoConfig(queue=8), MoCoV3Config(hidden=8)])
@pytest.mark.parametrize("pool", [None, "class", "mean"])
def test_the_headline_is_the_token_that_was_trained_wherever_the_export_is(tmp_path, method, pool):
    method.pool = pool
    model = exported(tmp_path / "export", method)
    headline = "mean" if pool == "mean" else "class"
    for name in (str(tmp_path / "export"), f"untrained:{tmp_path / 'export'}"):
        found = open_target(name, **DATA)
        assert found.headline == headline and found.pools == ("mean", "class", "both", "grid", "blocks")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    with torch.inference_mode():  # timm itself gives what was trained, bit for bit
        tokens = model.forward_features(images())
        assert torch.equal(loaded.forward_features(images()), tokens)
        expected = tokens[:, 1:].mean(1) if pool == "mean" else tokens[:, 0]
        torch.testing.assert_close(loaded(images()), expected)


def test_other_headlines(tmp_path):
    exported(tmp_path / "mae")
    exported(tmp_path / "none", SimCLRConfig(), model_args={"class_token": False})
    exported(tmp_path / "resnet", SimCLRConfig(), name="resnet10t", patch=None, width=None, depth=None, heads=None)
    assert [open_target(str(tmp_path / name), **DATA).headline for name in ("mae", "none", "resnet")] == ["mean"] * 3
    assert open_target("pixels", **DATA).headline == "pixels"
    assert open_target("untrained:vit_tiny_patch16_224", **DATA).headline == "mean"


@pytest.mark.parametrize(
    ("method", "headline"),
    [
        ({"class": "mimkit.methods.simclr:SimCLRConfig", "pool": None}, "class"),
        ({"class": "mimkit.methods.simclr:SimCLRConfig", "pool": "mean"}, "mean"),
        ({"class": "mimkit.methods.mae:MAEConfig"}, "mean"),
    ],
)
def test_exports_that_say_nothing_have_a_run_that_does(tmp_path, method, headline):
    exported(tmp_path / "run/export")
    saved = {"recipe": "x", "config": {"class": "Pretrain", "seed": 3, "method": method}, "resolved": {}}
    (tmp_path / "run/config.json").write_text(json.dumps(saved))
    found = open_target(str(tmp_path / "run"), **DATA)
    assert found.headline == open_target(f"untrained:{tmp_path / 'run'}", **DATA).headline == headline
    assert found.fingerprint == open_target(str(tmp_path / "run/export"), **DATA).fingerprint


# Protocols of papers


def one_step(protocol: str, rate: float, epochs: int) -> None:
    """Plain SGD written out against `train_heads`, in float64."""
    how, data = PROTOCOLS[protocol], toy(130, gap=0.5)
    values, labels = data.values["mean"].double() / torch.logspace(-3, 3, 12), data.labels
    size = batch_size(130)
    torch.set_default_dtype(torch.float64)
    try:
        heads = train_heads(values, labels, classes=4, protocol=how, rates=(rate,), epochs=epochs)
        start = Heads(12, 4, 1, seed=0, norm=False, std=0.0 if protocol == "simclr" else 0.01).layers[0]
    finally:
        torch.set_default_dtype(torch.float32)
    w, b = start.weight.detach().clone(), start.bias.detach().clone()
    assert w.any() == (protocol != "simclr") and not b.any()
    speed = [torch.zeros_like(w), torch.zeros_like(b)]
    for epoch in range(epochs):
        order = rng_keys("probe", 0, epoch, torch.arange(130)).argsort()
        for step in range(4):
            done = (epoch + step / 4) / epochs
            lr = rate * size / 256
            if protocol == "moco":
                lr *= 1 if done < 0.6 else 0.1 if done < 0.8 else 0.01
            else:
                lr *= (1 + math.cos(math.pi * done)) / 2
            x, y = (part[order[step * 32 : step * 32 + 32]] for part in (values, labels))
            g = ((x @ w.T + b).softmax(1) - F.one_hot(y, 4)) / 32
            gradients = [g.T @ x, g.sum(0)]
            speed = [0.9 * v + g for v, g in zip(speed, gradients, strict=True)]
            moves = speed if protocol != "simclr" else [g + 0.9 * v for g, v in zip(gradients, speed, strict=True)]
            w, b = w - lr * moves[0], b - lr * moves[1]
    torch.testing.assert_close(heads.layers[0].weight, w, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(heads.layers[0].bias, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("protocol", ["moco", "moco_v3", "simclr", "dino"])
def test_sgd_protocols_are_written_out(protocol):
    one_step(protocol, 0.3, epochs=5)


def test_the_published_rates_are_tried():
    published = {"lars": 0.1, "maskalign": 0.025, "moco": 30.0, "moco_v3": 3.0, "simclr": 0.1, "dino": 0.001}
    assert PROTOCOLS.keys() == published.keys()
    for name, rate in published.items():
        assert rate in PROTOCOLS[name].rates and sorted(PROTOCOLS[name].rates) == list(PROTOCOLS[name].rates)
    assert {PROTOCOLS[name].epochs for name in ("lars", "maskalign", "moco_v3", "simclr")} == {90}
    assert {PROTOCOLS[name].epochs for name in ("moco", "dino")} == {100}
    assert [name for name in PROTOCOLS if PROTOCOLS[name].norm] == ["lars", "maskalign"]


def test_mae_s_probe_warms_up_for_ten_epochs_and_is_of_the_class_token():
    """facebookresearch/mae:main_linprobe.py; the 68.0 % of the paper are of the class token."""
    for name in ("lars", "maskalign"):
        assert [PROTOCOLS[name].fraction(epoch / 90) for epoch in (0, 5, 10)] == pytest.approx([0, 0.5, 1])
    extractor = open_target("untrained:vit_tiny_patch16_224", **DATA)
    for method in ("lars", "maskalign"):
        assert choose_pools(extractor, ["auto"], method) == ["class", "mean"]
        assert choose_pools(extractor, ["mean"], method) == ["mean"]
    for method in ("auto", "logistic", "moco", ""):
        assert choose_pools(extractor, ["auto"], method) == ["mean"]
    assert choose_pools(open_target("untrained:resnet18", **DATA), ["auto"], "lars") == ["mean"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_learns_what_can_be_learned(protocol):
    train, test = toy(120), toy(300, seed=1)
    for part in (train, test):  # without BatchNorm a probe wants features of one scale
        part.values["mean"] = (part.values["mean"] - 5) / torch.logspace(-3, 3, 12)
    found = evaluate_probe(train, test, method=protocol)["mean"]
    assert found["accuracy"] > 0.9 and found["method"] == protocol and found["rate"] in PROTOCOLS[protocol].rates


# The attentive probe


@pytest.mark.parametrize("heads", [1, 3])
def test_attentive_head_is_multi_head_attention(heads):
    """torch's own, with the learned query as it is and no projection behind."""
    probe = AttentiveHeads(24, 5, 2, seed=0, heads=heads).double().eval()
    tokens = torch.randn(4, 7, 24, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for layer in probe.layers:
            layer.query.normal_()
            layer.linear.weight.normal_()
        x = probe.norm(tokens.flatten(0, 1)).unflatten(0, (4, 7))
        for i, layer in enumerate(probe.layers):
            attention = nn.MultiheadAttention(24, heads, bias=False, batch_first=True).double()
            attention.in_proj_weight.copy_(torch.cat([torch.eye(24), layer.key.weight, layer.value.weight]))
            attention.out_proj.weight.copy_(torch.eye(24))
            pooled, _ = attention(layer.query.reshape(1, 1, 24).expand(4, 1, 24), x, x)
            torch.testing.assert_close(probe(tokens)[:, i], layer.linear(pooled[:, 0]), rtol=1e-9, atol=1e-9)


def test_attentive_head_normalizes_over_all_tokens():
    probe = AttentiveHeads(8, 3, 1, seed=0)
    tokens = 5 + 3 * torch.randn(6, 4, 8)
    assert torch.equal(probe(tokens).isfinite().all(), torch.tensor(True)) and not probe.norm.affine
    torch.testing.assert_close(probe.norm.running_mean, 0.1 * tokens.mean((0, 1)))


def test_attentive_heads_differ_by_their_rates_alone_and_train_apart():
    tokens, labels = planted(64)
    found = []
    for rates in ((1e-3, 1e-2), (1e-3,), (1e-2,)):
        probe = AttentiveHeads(8, 4, len(rates), seed=0)
        optimizer = adamw(probe, rates)
        for _ in range(3):
            logits = probe(tokens)
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, None].expand(-1, len(rates)).flatten())
            optimizer.zero_grad()
            (loss * len(rates)).backward()
            optimizer.step()
        found.append(probe(tokens).detach())
    torch.testing.assert_close(found[0], torch.cat(found[1:], 1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1], found[2], atol=1e-3)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (192, 3), (96, 1), (24, 1), (200, 2)])
def test_attention_heads_have_64_numbers_or_more(width, heads):
    assert heads_of(width) == heads


def planted(pictures: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens (pictures, 9, 8) of which one, marked by its first number, tells the class.

    The others cancel it: the mean of the tokens tells nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (pictures,), generator=generator)
    place = torch.randint(9, (pictures,), generator=generator)
    sign = F.one_hot(labels, 4).float()
    tokens = 0.2 * torch.randn(pictures, 9, 8, generator=generator)
    tokens[:, :, :5] -= tokens[:, :, :5].mean(1, keepdim=True)
    tokens[:, :, 1:5] -= sign.unsqueeze(1) / 8
    tokens[torch.arange(pictures), place, 0] += 1.0
    tokens[torch.arange(pictures), place, 1:5] += sign * 9 / 8
    return tokens, labels


class Planted(nn.Module):
    """Pictures that are tokens already: a channel a number, a pixel a token."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def planted_extractor(monkeypatch) -> Extractor:
    monkeypatch.setattr(Extractor, "tokens", lambda self, images: images.flatten(2).transpose(1, 2).float())
    still = ((0.0,) * 8, (1.0,) * 8)
    return Extractor(
        name="planted", size=(3, 3), channels=8, mean=still[0], std=still[1], fingerprint="", model=Planted()
    )


def batches_of(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    tokens, labels = planted(rows, seed)
    return tokens.transpose(1, 2).unflatten(2, (3, 3)), labels


@pytest.fixture
def planted_sets(monkeypatch) -> tuple[Decoded, Decoded]:
    """Two sets of pictures, and reading them gives the planted tokens as they are; training is short."""
    sets = {}
    for name, rows, seed in (("learn", 400, 0), ("measure", 200, 1)):
        pixels, labels = batches_of(rows, seed)
        sets[name] = (pixels, labels)

    def batches(extractor, pictures, what, *, device, batch_size, workers, limit, skipped):
        pixels, labels = sets[pictures.name]
        parts = pixels[:limit], labels[:limit], torch.arange(limit)
        return zip(*(part.split(batch_size) for part in parts), strict=True)

    monkeypatch.setattr(attentive, "batches_for", batches)
    monkeypatch.setattr(attentive, "PROTOCOL", replace(PROTOCOL, epochs=15))
    return tuple(
        Decoded(name, torch.zeros(len(sets[name][1]), 3, 3, 3, dtype=torch.uint8), sets[name][1], tuple("abcd"))
        for name in ("learn", "measure")
    )


def test_attention_finds_what_a_mean_cannot_tell(planted_sets, monkeypatch):
    found = evaluate_attentive(planted_extractor(monkeypatch), *planted_sets)
    scores = found["results"]["tokens"]
    assert (found["train"], found["test"], found["skipped"]) == (400, 200, 0)
    assert scores["accuracy"] > 0.8 and scores["low"] < scores["accuracy"] < scores["high"]
    assert scores["rate"] in PROTOCOL.rates and scores["held_out"] > 0.7
    rows = [Features({"mean": tokens.mean(1)}, labels, 0) for tokens, labels in (planted(400, 0), planted(200, 1))]
    for method in ("lars", "logistic"):
        assert evaluate_probe(*rows, method=method)["mean"]["accuracy"] < 0.4  # chance is 0.25
    again = evaluate_attentive(planted_extractor(monkeypatch), *planted_sets)
    assert again == found  # no state, no luck


def test_tokens_that_do_not_fit_are_refused(planted_sets, monkeypatch):
    monkeypatch.setattr(attentive, "memory_budget", lambda: 9 * 8 * 2 * 100)
    with pytest.raises(UserError, match=r"tokens of 400 pictures .* take 100 with --limit-train"):
        evaluate_attentive(planted_extractor(monkeypatch), *planted_sets)
    assert evaluate_attentive(planted_extractor(monkeypatch), *planted_sets, limit_train=100)["train"] == 100


def test_targets_without_tokens_are_refused():
    for name in ("pixels", "untrained:convnext_atto"):
        with pytest.raises(UserError, match="attentive probe measures ViTs"):
            open_target(name, **DATA | {"size": (32, 32)}).tokens(images(1, (32, 32)))


# All of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Class folders of 3 x 20 pictures."""
    root, toys = tmp_path_factory.mktemp("data"), colorize(60)
    for number, (pixels, label) in enumerate(zip(toys.tensor(), toys.labels, strict=True)):
        place = root / toys.classes[label]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    return root


def test_one_command_makes_one_table(tmp_path, folder):
    exported(tmp_path / "model", SimCLRConfig())
    words = f"--data {folder} --workers 0 --device cpu --json {tmp_path / 'found.json'}"
    said = mimkit(f"evaluate all pixels {tmp_path / 'model'} --attentive True {words}")
    assert said.status == 0, said.err
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [(one["kind"], one["headline"]) for one in found] == [
        ("knn", "pixels"),
        ("probe", "pixels"),
        ("knn", "class"),
        ("probe", "class"),
        ("attentive", "tokens"),
    ]
    assert all(len(one["results"]) == 1 for one in found)
    assert (
        "attentive probe" in said.out and "tokens" in said.out and said.out.count("├") == 2
    )  # a part for each model, and the row below them
    assert mimkit(f"evaluate probe {tmp_path / 'model'} --pool all --method moco_v3 {words}").status == 0
    (one,) = json.loads((tmp_path / "found.json").read_text())["results"]
    assert next(iter(one["results"])) == one["headline"] == "class" and len(one["results"]) == 5
    assert mimkit(f"evaluate knn {tmp_path / 'model'} --pool grid {words}").status == 0
    assert json.loads((tmp_path / "found.json").read_text())["results"][0]["headline"] == "grid"


def test_a_run_is_measured_by_the_token_that_it_trained(tmp_path, folder):
    run = tmp_path / "run"
    small = "--encoder.width 16 --encoder.depth 1 --encoder.heads 2 --method.outputs 8"
    evals = FAST.replace("--machine.evals 0", "--machine.evals 1")
    words = f"pretrain simclr_mini_32 --data {folder} --run {run} --batch-size 8 --epochs 1 {small} {evals}"
    assert mimkit(words).status == 0
    measured = evaluate("knn", str(run), [str(folder)], device="cpu")
    assert (measured["headline"], list(measured["results"])) == ("class", ["class"])
    assert json.loads((run / "export/config.json").read_text())["model_args"]["global_pool"] == "token"


def test_monitor_looks_at_the_token_that_is_trained():
    from types import SimpleNamespace

    from mimkit.train.machine import Engine
    from mimkit.train.monitor import Monitor

    engine = Engine(device=torch.device("cpu"), precision="float32", attention="plain", compile=False, threads=1)
    monitor = SimpleNamespace(engine=engine)
    for pool, which in (("class", 0), ("mean", slice(1, None))):
        encoder = SimCLRConfig(pool=pool).build(EncoderConfig(**TINY).build((16, 16), 3)).encoder.eval()
        with torch.no_grad():
            tokens = encoder.timm.forward_features(images())[:, which]
        found = Monitor.features(monitor, encoder, images())
        torch.testing.assert_close(found, tokens if pool == "class" else tokens.mean(1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate attentive pixels", "'pixels' has no tokens"),
        ("evaluate knn pixels --attentive True", "--attentive goes with 'mimkit evaluate all'"),
        ("evaluate knn untrained:resnet10t --pool blocks", "no pool of untrained:resnet10t 'blocks'"),
        ("evaluate knn untrained:resnet10t --pool both", "no class token"),
        ("evaluate probe pixels --method mocov3", "--method"),
        ("evaluate atentive pixels", "did you mean 'attentive'"),
    ],
)
def test_wrong_words_are_answered_in_a_line(folder, words, message):
    assert message in refused(f"{words} --data {folder} --workers 0 --device cpu")


def test_the_table_says_how(folder):
    found = evaluate("probe", "pixels", [str(folder)], device="cpu", method="simclr")
    cells = [list(column.cells) for column in table([found]).columns]
    assert cells[1] == ["linear probe", "largest class"] and cells[5][0].startswith("simclr, base rate ")
