"""The analyze command: networks of all kinds, against NumPy in float64, over training, its files and refusals."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from commandline import mimkit, refused
from mimkit.analysis import network as network_module
from mimkit.analysis import run as run_module
from mimkit.analysis.decoder import decoder_measures, refusal
from mimkit.analysis.metrics import GROUPS, METRICS, USUAL
from mimkit.analysis.network import Layer, Network
from mimkit.analysis.report import write
from mimkit.analysis.run import analyze, open_task
from mimkit.analysis.similarity import linear_cka
from mimkit.analysis.study import Study
from mimkit.core.errors import UserError
from mimkit.core.metrics import effective_rank
from mimkit.core.randomness import rng_keys
from mimkit.evaluate.target import Extractor
from mimkit.masks.ncut import ncut
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.simmim import SimMIMConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.run_folder import RunFolder

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
MODELS = {
    "class token": {},
    "registers": {"reg_tokens": 4},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "rectangular": {"img_size": (24, 48)},
}


def extractor(name: str = "vit_tiny_patch16_224", **settings) -> Extractor:
    """A small model with random weights that are large enough to make attention uneven."""
    torch.manual_seed(0)
    args = ({"img_size": (32, 32)} | SMALL if name.startswith("vit") else {}) | settings
    model = timm.create_model(name, **args).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3)
    return wrapped(model, args.get("img_size", (32, 32)))


def wrapped(model: nn.Module | None, size: tuple[int, int] = (32, 32)) -> Extractor:
    return Extractor(name="it", size=size, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3, fingerprint="", model=model)


def images(rows: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed))


def studied(one: Extractor, pictures: Tensor, groups=USUAL, *, labels=None, size: int = 8) -> Study:
    network = Network(one)
    setup = Study(network, frozenset(groups).difference(network.refusals, {"decoder"}))
    parts = zip(pictures.split(size), torch.arange(len(pictures)).split(size), strict=True)
    setup.batches(((part, None, index) for part, index in parts), labels)
    return setup


def values(setup: Study) -> dict:
    return {(r["metric"], r["layer"], r["head"]): r["value"] for r in setup.averages.rows("it", None)}


class Reference:
    """A timm ViT in NumPy and float64: what each block gives out, and its attention."""

    def __init__(self, model: nn.Module, pictures: Tensor) -> None:
        p = {k: v.double().numpy() for k, v in model.state_dict().items()}
        heads, prefix = model.blocks[0].attn.num_heads, model.num_prefix_tokens
        side = model.patch_embed.patch_size[0]
        x = pictures.double().numpy()
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // side, side, w // side, side).transpose(0, 2, 4, 1, 3, 5).reshape(b, -1, c * side**2)
        x = x @ p["patch_embed.proj.weight"].reshape(len(p["patch_embed.proj.bias"]), -1).T + p["patch_embed.proj.bias"]
        x = np.concatenate([np.repeat(p["cls_token"], b, axis=0), x], axis=1) + p["pos_embed"]
        self.tokens, self.attention = [], []
        for i in range(len(model.blocks)):
            q = {k.removeprefix(f"blocks.{i}."): v for k, v in p.items() if k.startswith(f"blocks.{i}.")}
            y = self.norm(x, q["norm1.weight"], q["norm1.bias"]) @ q["attn.qkv.weight"].T + q["attn.qkv.bias"]
            y = y.reshape(b, y.shape[1], 3, heads, -1).transpose(2, 0, 3, 1, 4)
            logits = y[0] @ y[1].swapaxes(2, 3) / math.sqrt(y.shape[-1])
            a = np.exp(logits - logits.max(axis=-1, keepdims=True))
            a /= a.sum(axis=-1, keepdims=True)
            mixed = (a @ y[2]).transpose(0, 2, 1, 3).reshape(x.shape)
            x = x + mixed @ q["attn.proj.weight"].T + q["attn.proj.bias"]
            y = self.norm(x, q["norm2.weight"], q["norm2.bias"]) @ q["mlp.fc1.weight"].T + q["mlp.fc1.bias"]
            erf = np.vectorize(math.erf)
            y = y * (1 + erf(y / math.sqrt(2))) / 2
            x = x + y @ q["mlp.fc2.weight"].T + q["mlp.fc2.bias"]
            kept = a[:, :, prefix:, prefix:]
            self.tokens.append(x[:, prefix:])
            self.attention.append(kept / kept.sum(axis=-1, keepdims=True))

    @staticmethod
    def norm(x, weight, bias):
        centered = x - x.mean(axis=-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6) * weight + bias


@pytest.fixture(scope="module")
def real() -> SimpleNamespace:
    one, pictures = extractor(), images(24)
    assert isinstance(one.model, nn.Module)
    return SimpleNamespace(setup=studied(one, pictures), reference=Reference(one.model, pictures), pictures=pictures)


def test_distance_and_entropy_of_a_real_vit_against_numpy(real):
    found = values(real.setup)
    for layer, a in enumerate(real.reference.attention):
        assert (a.max(axis=-1) > 0.5).any()  # uneven enough to mean something
        for head in range(3):
            total = 0.0
            for i in range(16):
                for j in range(16):
                    total += a[:, head, i, j].mean() * 8 * math.hypot(i // 4 - j // 4, i % 4 - j % 4) / 16
            assert found["attention_distance", layer, head] == pytest.approx(total, rel=1e-4)
            entropy = np.mean([-np.sum(row * np.log(row)) for row in a[:, head].reshape(-1, 16)])
            assert found["attention_entropy", layer, head] == pytest.approx(entropy, rel=1e-4)
            assert found["relative_entropy", layer, head] == pytest.approx(entropy / math.log(16), rel=1e-4)


def test_cka_of_a_real_vit_against_numpy(real):
    def hsic(k, l):  # noqa: E741
        n = len(k)
        k, l = (m - np.diag(np.diag(m)) for m in (k, l))  # noqa: E741
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))

    kernels = []
    for tokens in real.reference.tokens:
        flat = tokens.reshape(24, -1)
        kernels.append([flat[s : s + 8] @ flat[s : s + 8].T for s in range(0, 24, 8)])
    found, _ = linear_cka(real.setup.grams, real.setup.grams)
    for a in range(3):
        for b in range(3):
            sums = [
                sum(hsic(k, l) for k, l in zip(kernels[p], kernels[q], strict=True))  # noqa: E741
                for p, q in ((a, b), (a, a), (b, b))
            ]
            assert found[a, b].item() == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-4)
    uneven = [gram[:, :n, :n].clone() for gram, n in zip(real.setup.grams, (8, 5, 8), strict=True)]
    first, last = (
        linear_cka(uneven, uneven)[0][0, 2],
        [
            [n * hsic(k[i].numpy(), k[j].numpy()) for k, n in zip(uneven, (8, 5, 8), strict=True)]
            for i, j in ((0, 2), (0, 0), (2, 2))
        ],
    )
    a, b, c = map(sum, last)
    assert first.item() == pytest.approx(a / math.sqrt(b * c))
    assert found.diagonal().tolist() == pytest.approx([1, 1, 1])
    assert found[0, 2] < 0.99


def test_tokens_and_dropped_blocks_of_a_real_vit_against_numpy(real):
    found = values(real.setup)
    pooled = [Reference.norm(tokens, 1, 0).mean(axis=1) for tokens in real.reference.tokens]  # a new norm has 1 and 0
    for layer, tokens in enumerate(real.reference.tokens):
        unit = tokens / np.linalg.norm(tokens, axis=2, keepdims=True)
        m = unit @ unit.swapaxes(1, 2)
        off = ~np.eye(16, dtype=bool)
        assert found["feature_variance", layer, None] == pytest.approx((1 - m.mean(axis=(1, 2))).mean(), rel=1e-4)
        assert found["similarity_variance", layer, None] == pytest.approx(m[:, off].var(axis=1).mean(), rel=1e-4)
        side = ncut(torch.from_numpy(tokens)).side.numpy()
        same = side[:, :, None] == side[:, None]
        gaps = {
            "similarity_gap": [one[s & off].mean() - one[~s].mean() for one, s in zip(m, same, strict=True)],
            "attention_gap": [
                one[s & off].mean() - one[~s].mean()
                for one, s in zip(real.reference.attention[layer].mean(axis=1), same, strict=True)
            ],
        }
        for name, known in gaps.items():
            assert found[name, layer, None] == pytest.approx(np.mean(known), rel=1e-3, abs=1e-5)
        change = np.linalg.norm(pooled[layer] - pooled[2], axis=1) / np.linalg.norm(pooled[2], axis=1)
        assert found["drop_change", layer, None] == pytest.approx(change.mean(), rel=1e-4)
        fraction = np.linalg.svd(pooled[layer], compute_uv=False)
        fraction = fraction / fraction.sum()
        assert found["effective_rank", layer, None] == pytest.approx(
            np.exp(-(fraction * np.log(fraction)).sum()), rel=1e-3
        )


def test_standard_errors_are_over_pictures(real):
    a = real.reference.attention[1]
    each = -(a * np.log(a)).sum(axis=-1).mean(axis=-1)  # (pictures, heads)
    rows = [r for r in real.setup.averages.rows("it", None) if (r["metric"], r["layer"]) == ("attention_entropy", 1)]
    known = [each.mean(axis=1), *each.T]
    assert [r["stderr"] for r in rows] == pytest.approx([one.std(ddof=1) / math.sqrt(24) for one in known], rel=1e-3)
    assert {r["n"] for r in rows} == {24}


@pytest.mark.parametrize("kind", MODELS)
def test_every_vit_has_every_metric(kind):
    one = extractor(**MODELS[kind])
    labels = torch.arange(16) % 2
    setup = studied(one, images(16, one.size), (*USUAL, "swap"), labels=labels)
    found = values(setup)
    wanted = {name for name, m in METRICS.items() if m.group != "decoder" and not name.endswith("_kl")}
    assert {name for name, _, _ in found} == wanted
    assert all(value is not None and math.isfinite(value) for value in found.values())
    for name in wanted:
        layers = {layer for metric, layer, _ in found if metric == name}
        assert layers == set(range(2 if METRICS[name].group == "swap" else 3))
        heads = {head for metric, _, head in found if metric == name}
        assert heads == ({None, 0, 1, 2} if METRICS[name].group == "attention" else {None})
    assert found["drop_change", 2, None] == 0  # the control
    assert found["drop_change", 0, None] > 0.1 and found["swap_change", 0, None] > 0.01
    grid = one.model.patch_embed.grid_size  # type: ignore[union-attr]
    assert len(setup.spectrum("it", None)) == 3 * (min(grid) - min(grid) // 2)
    assert not any(part._forward_hooks for part in one.model.modules())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", MODELS)
def test_layers_are_those_of_timm(kind):
    one = extractor(**MODELS[kind])
    model, pictures = one.model, images(4, one.size)
    seen: list[Layer] = []
    Network(one).run(pictures, seen.append)
    known = model.forward_intermediates(pictures, output_fmt="NLC", intermediates_only=True)  # type: ignore[union-attr]
    for layer, tokens in zip(seen, known, strict=True):
        assert torch.equal(layer.tokens, tokens)
    assert torch.allclose(Network(one).pooled(seen[-1]), one(pictures)["mean"], atol=1e-6)


def test_attention_in_pieces_is_the_same(monkeypatch):
    one, pictures = extractor(), images(8)
    whole = values(studied(one, pictures, ("attention", "clusters")))
    monkeypatch.setattr(network_module, "_AT_ONCE", 3 * 17 * 17 * 3)
    for key, value in values(studied(one, pictures, ("attention", "clusters"))).items():
        assert value == pytest.approx(whole[key], rel=1e-5, abs=1e-6), key


def test_a_swin_has_what_makes_sense():
    one = extractor(
        "swin_tiny_patch4_window7_224",
        img_size=(32, 32),
        window_size=4,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(2, 2),
        num_classes=0,
    )
    assert set(Network(one).refusals) == {"attention", "drop", "swap"}
    setup = studied(one, images(8))
    names = {name for name, _, _ in values(setup)}
    assert names == {n for n, m in METRICS.items() if m.group in ("fourier", "variance", "rank")} | {
        "similarity_intra",
        "similarity_inter",
        "similarity_gap",
    }
    assert setup._grids == {0: (8, 8), 1: (4, 4)}
    assert linear_cka(setup.grams, setup.grams)[0].shape == (2, 2)


def test_blocks_of_another_kind_refuse_attention_alone():
    one = extractor(block_fn=ResPostBlock)
    refusals = Network(one).refusals
    assert set(refusals) == {"attention"} and "ResPostBlock" in refusals["attention"]
    assert ("drop_change", 0, None) in values(studied(one, images(8)))


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_a_changed_network_is_what_a_rebuilt_one_gives_of_what_was_trained(pool):
    one, pictures = replace(extractor(), headline=pool), images(8)
    found = values(studied(one, pictures, ("swap", "drop", "rank")))
    whole = one(pictures)[pool]
    for metric, layer, order in (("swap_change", 1, (0, 2, 1)), ("drop_change", 1, (0, 1))):
        other = extractor()
        blocks = list(other.model.blocks)  # type: ignore[union-attr]
        other.model.blocks = nn.Sequential(*(blocks[i] for i in order))  # type: ignore[union-attr]
        changed = other(pictures)[pool]
        change = ((whole - changed).norm(dim=1) / whole.norm(dim=1)).mean().item()
        assert found[metric, layer, None] == pytest.approx(change, rel=1e-5)
    assert found["effective_rank", 2, None] == pytest.approx(effective_rank(whole).item(), rel=1e-5)


def test_clusters_alone_have_the_gap_of_attention_too():
    one, pictures = extractor(), images(8)
    both, alone = (values(studied(one, pictures, groups)) for groups in (("attention", "clusters"), ("clusters",)))
    assert {name for name, *_ in alone} == {n for n, m in METRICS.items() if m.group == "clusters" and n[-2:] != "kl"}
    assert alone == {key: value for key, value in both.items() if METRICS[key[0]].group == "clusters"}


def test_too_many_classes_for_knn_are_told():
    labels = torch.arange(8) // 2
    setup = studied(extractor(), images(8), ("drop", "swap"), labels=labels)
    assert setup.left_out == {
        f"kNN of {kind}": "8 pictures of 4 classes are fewer than four of each" for kind in ("drop", "swap")
    }
    assert not studied(extractor(), images(8), ("drop",), labels=labels // 2).left_out


# The command, on a run


@pytest.fixture(scope="module")
def run(tmp_path_factory, forty) -> Path:
    """A run of MAE that kept its checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "<b>mae"
    flags = "--encoder.width 16 --encoder.depth 2 --encoder.heads 2 --method.decoder.width 8 --method.decoder.heads 2"
    keep = "--machine.keep 100 --machine.save-every 2 --method.decoder.depth 2 --epochs 1"
    said = mimkit(f"pretrain mae_mini_28 --data {forty} --run '{folder}' $TINY {flags} {keep}")
    assert said.status == 0, said.err
    return folder


@pytest.fixture(scope="module")
def both(run, forty) -> dict:
    return analyze([str(run), f"untrained:{run}"], [str(forty)], pictures=20, metrics=tuple(GROUPS))


def test_rows_are_tidy_and_json_is_strict(both, run):
    json.dumps(both, allow_nan=False)
    assert both["targets"] == [str(run), f"untrained:{run}"] and both["pictures"] == 20 and both["skipped"] == 0
    for row in both["rows"]:
        assert list(row) == ["target", "step", "metric", "layer", "head", "value", "stderr", "n"]
    addresses = [(r["target"], r["metric"], r["layer"], r["head"]) for r in both["rows"]]
    assert len(set(addresses)) == len(addresses)
    assert set(both["metrics"]) == {r["metric"] for r in both["rows"]}
    reasons = {(r["target"], r["metrics"]) for r in both["refused"]}
    assert reasons == {(f"untrained:{run}", "decoder")}


def test_cka_between_targets(both, run):
    pairs = {(r["target"], r["layer"], r["other"], r["other_layer"]): r for r in both["cka"]}
    names = (str(run), f"untrained:{run}")
    assert len(pairs) == len(both["cka"]) == 3 * 4  # each with itself, and the second with the first
    for layer in range(2):
        for name in names:
            assert pairs[name, layer, name, layer]["value"] == pytest.approx(1)
        assert 0.5 < pairs[names[1], layer, names[0], layer]["value"] < 1
    assert {r["n"] for r in both["cka"]} == {20} and pairs[names[0], 0, names[0], 1]["stderr"] is None


def test_batches_count_in_cka_by_their_pictures(run, forty, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "BATCH", 8)
    found = analyze([str(run)], [str(forty)], pictures=20, metrics=["cka", "rank"])
    assert {r["n"] for r in found["cka"]} == {r["n"] for r in found["rows"]} == {20}  # 8, 8 and 4
    assert all(r["stderr"] is not None for r in found["cka"])
    shutil.copytree(forty, tmp_path / "some")
    first = analyze([str(run)], [str(forty)], pictures=40, metrics=["rank"])
    assert first["skipped"] == 0
    numbers = torch.arange(40)[rng_keys("shuffle", torch.arange(40)).argsort()]
    (tmp_path / f"some/{numbers[0]:02d}.png").write_bytes(b"none")  # one of the first batch cannot be read
    found = analyze([str(run)], [str(tmp_path / "some")], pictures=40, metrics=["cka"])
    assert found["skipped"] == 1 and {r["n"] for r in found["cka"]} == {39}


def test_cka_does_not_depend_on_the_order_of_classes(run, tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    for number in range(64):
        (tmp_path / str(number // 16)).mkdir(exist_ok=True)
        pattern = np.kron(np.random.default_rng(number // 16).uniform(0, 200, (4, 4)), np.ones((7, 7)))
        shades = (pattern + noise.uniform(0, 55, (28, 28))).astype(np.uint8)
        Image.fromarray(shades).save(tmp_path / str(number // 16) / f"{number}.png")
    other = f"untrained:{run}"
    found = []
    for size in (64, 16):
        monkeypatch.setattr(run_module, "BATCH", size)
        result = analyze([str(run), other], [str(tmp_path)], pictures=64, metrics=["cka"])
        found.append([row["value"] for row in result["cka"]])
    assert np.allclose(*found, atol=0.03)


def test_decoder_measures_of_a_run(both, run):
    found = {(r["metric"], r["layer"]): r for r in both["rows"] if METRICS[r["metric"]].group == "decoder"}
    assert set(found) == {(n, d) for n in ("exploitation_masked", "mask_token_variance") for d in range(2)} | {
        (name, None) for name in ("reconstruction_error", "disagreement", "average_distance")
    }
    assert found["exploitation_masked", 1]["value"] == pytest.approx(0.75, abs=0.1)  # nothing learned yet
    assert found["disagreement", None]["value"] < found["reconstruction_error", None]["value"]


def test_decoder_measures_against_the_method(run):
    task, fresh = open_task(RunFolder(run))
    assert fresh
    task.load_state_dict(load_checkpoint(checkpoints(run)[-1])["model"])
    pictures, index = images(6, (28, 28)), torch.arange(6)
    with torch.inference_mode():
        found = {(name, layer): v for name, layer, v in decoder_measures(task, pictures, index)}
        alone = {(name, layer): v for name, layer, v in decoder_measures(task, pictures[4:], index[4:])}
    assert not torch.allclose(found["exploitation_masked", 0], found["exploitation_masked", 1], rtol=1e-6)
    assert all(torch.allclose(found[key][4:], alone[key], atol=1e-5) for key in found)  # masks go with the picture
    assert not any(block._forward_hooks for block in task.decoder.blocks)  # type: ignore[union-attr]

    from mimkit.masks import PartitionMasker
    from mimkit.model.patches import patchify

    patches = patchify(pictures, (7, 7))
    mask = PartitionMasker(parts=4)(patches[..., :0], rng_keys("analysis", index), 0.0, (4, 4))
    prediction = task.predict(patches, mask)  # type: ignore[operator]
    target = task.target(patches)  # type: ignore[operator]
    errors = (prediction - target.repeat_interleave(4, 0)).square().mean(-1)
    first = errors[:4][mask.hidden[:4]].mean() / target[0].var(correction=0)
    assert found["reconstruction_error", None][0].item() == pytest.approx(first.item(), rel=1e-4)


def test_which_methods_have_a_decoder():
    torch.manual_seed(0)
    settings = EncoderConfig(name="vit_tiny_patch16_224", patch=8, width=16, depth=1, heads=2)
    decoder = DecoderConfig(width=8, depth=1, heads=2)
    emae, simmim = (
        config.build(settings.build((32, 48), 3)).eval()  # type: ignore[arg-type]
        for config in (EMAEConfig(decoder=decoder), SimMIMConfig())
    )
    assert refusal(emae) is None and "SimMIM has no decoder" in (refusal(simmim) or "")
    with torch.inference_mode():
        found = [(name, layer) for name, layer, _ in decoder_measures(emae, images(3, (32, 48)), torch.arange(3))]
    assert len(found) == len(set(found)) == 5


def test_a_film_goes_from_before_the_first_step_to_the_last(run, forty, monkeypatch):
    found = analyze([str(run)], [str(forty)], pictures=40, film=True)
    steps = [int(path.stem.split("-")[1]) for path in checkpoints(run)]
    assert list(dict.fromkeys(row["step"] for row in found["rows"])) == [0, *steps]
    for kind in ("similarity_kl", "attention_kl"):
        for layer in range(2):
            over = [r["value"] for r in found["rows"] if (r["metric"], r["layer"]) == (kind, layer)]
            assert over[-1] == 0 and over[0] > over[-2] > 0
            assert {r["n"] for r in found["rows"] if r["metric"] == kind} == {32}
    last = analyze([str(run)], [str(forty)], pictures=40)
    for part in ("rows", "cka"):
        ended = [r | {"step": None} for r in found[part] if r["step"] == steps[-1]]
        ended = [r for r in ended if not r.get("metric", "").endswith("_kl")]
        assert [r | {"value": 0, "stderr": 0} for r in ended] == [r | {"value": 0, "stderr": 0} for r in last[part]]
        a, b = (np.array([r["value"] for r in one], dtype=float) for one in (ended, last[part]))
        assert np.allclose(a, b, atol=1e-5)  # the export is the last checkpoint
    assert [c["layer"] for c in found["clusters"]] == [0, 1]
    monkeypatch.setattr(network_module, "_AT_ONCE", 2 * 17 * 17 * 3)
    monkeypatch.setattr(run_module, "BATCH", 12)
    pieces = analyze([str(run)], [str(forty)], pictures=40, film=True, metrics=["attention", "clusters"])
    whole, parts = (
        {(r["metric"], r["layer"], r["step"]): (r["value"], r["n"]) for r in one["rows"] if r["metric"].endswith("_kl")}
        for one in (found, pieces)
    )
    assert whole.keys() == parts.keys()
    assert all(parts[key] == pytest.approx(whole[key], rel=1e-3, abs=1e-9) for key in whole)
    first = analyze([f"untrained:{run}"], [str(forty)], pictures=40, metrics=["attention"])
    begun = {(r["metric"], r["layer"], r["head"]): r["value"] for r in found["rows"] if r["step"] == 0}
    assert all(begun[r["metric"], r["layer"], r["head"]] == pytest.approx(r["value"], abs=1e-5) for r in first["rows"])


def test_a_run_is_analyzed_without_its_pictures(run, forty, tmp_path):
    folder = tmp_path / "moved"
    folder.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (folder / name).write_text((run / name).read_text().replace(str(forty), "/gone"))
    (folder / "checkpoints").symlink_to(run / "checkpoints")
    (folder / "export").symlink_to(run / "export")
    found = analyze([str(folder)], [str(forty)], pictures=8, metrics=["decoder"])
    assert {r["metric"] for r in found["rows"]} == {n for n, m in METRICS.items() if m.group == "decoder"}


def test_files_and_tables(run, forty, tmp_path):
    out, table = tmp_path / "out", tmp_path / "a.json"
    how = f"--data {forty} --pictures 12 --workers 0 --device cpu --out {out} --json {table}"
    said = mimkit(f"analyze '{run}' 'untrained:{run}' {how}")
    assert said.status == 0, said.err
    assert "<b>mae" in said.out and "entropy" in said.out and "no decoder" in said.out and "CKA of the last" in said.out
    assert json.loads((out / "analysis.json").read_text()) == json.loads(table.read_text())
    for name in ("attention", "layers", "fourier", "cka"):
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 200
    import pyarrow.parquet as pq

    for part in ("rows", "cka", "spectrum"):
        assert pq.read_table(out / f"{part}.parquet").to_pylist() == json.loads(table.read_text())[part]


def test_cka_alone_has_its_table(run, forty):
    said = mimkit(f"analyze '{run}' --data {forty} --metrics cka --pictures 20")
    assert said.status == 0 and re.search(r"CKA to.*\n *layer +last *\n +0 .*\n +1 +1 *\n", said.out), said.out


def test_a_film_is_drawn(run, forty, tmp_path):
    said = mimkit(f"analyze '{run}' --data {forty} --film True --pictures 8 --workers 0 --device cpu --out {tmp_path}")
    assert said.status == 0, said.err
    assert "clusters in layer 1: gap" in said.out and "last layer" in said.out
    assert {"film.png", "attention.png"} <= {path.name for path in tmp_path.iterdir()}


def test_without_matplotlib_and_pyarrow_json_is_written(both, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "mimkit.analysis.figures", None)
    left = write(both, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["analysis.json"]
    assert len(left) == 2 and "mimkit[report]" in left[1]


def test_refusals(run, forty, tmp_path):
    data = f"--data {forty} --workers 0 --device cpu"
    assert "'pixels' (pixels) has no row of blocks" in refused(f"analyze pixels {data}")
    assert "(ResNet) has no row of blocks" in refused(f"analyze untrained:resnet18 {data}")
    assert "did you mean 'attention'" in refused(f"analyze '{run}' {data} --metrics atention")
    assert "pictures must be at least 4" in refused(f"analyze '{run}' {data} --pictures 3")
    assert "a film is of one run" in refused(f"analyze '{run}' pixels {data} --film True")
    assert "is no run with checkpoints" in refused(f"analyze 'untrained:{run}' {data} --film True")
    assert "wanted: mimkit analyze TARGET" in refused(f"analyze {data}")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(f"analyze '{run}' {data} --out {tmp_path / 'file' / 'out'}")


def test_targets_that_read_different_pictures_are_not_compared(run, forty, monkeypatch):
    real, calls = run_module.batches_for, []

    def lossy(*args, **how):
        calls.append(1)
        for pictures, labels, index in real(*args, **how):
            yield (pictures, labels, index) if len(calls) < 2 else (pictures[1:], labels, index[1:])

    monkeypatch.setattr(run_module, "batches_for", lossy)
    with pytest.raises(UserError, match="could not read the same pictures"):
        analyze([str(run), f"untrained:{run}"], [str(forty)], pictures=8, metrics=["cka"])
