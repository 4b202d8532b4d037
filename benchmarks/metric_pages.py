"""The charts of docs/metrics: results of `mimkit analyze` enter, docs/images/metrics-*.png leave.

The runs are those of docs/metrics/README.md; the results that were drawn lie in benchmarks/results/metrics.

    RUNS="runs/mae runs/simmim runs/simclr runs/supervised untrained:runs/mae"
    mimkit analyze $RUNS --data DIR --json five.json
    mimkit analyze $RUNS --data DIR --metrics rank drop swap --pictures 2000 --json depth.json
    mimkit analyze runs/mae runs/mae2 runs/emae --data DIR --metrics decoder --json decoder.json
    mimkit analyze runs/film --film True --data DIR --metrics clusters decoder --pictures 200 --json film.json
    python benchmarks/metric_pages.py --results .

`--weigh DIR` draws nothing and prints what the runs' trainings cost: FLOPs for a picture and in all.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib import colormaps

from mimkit.analysis.figures import COLORS, line, panels
from mimkit.recipes.overrides import configured
from mimkit.train.cost import WEIGHED, count_flops, flops

RUNS = {
    "runs/mae": ("MAE", COLORS[0]),
    "runs/simmim": ("SimMIM", COLORS[4]),
    "runs/simclr": ("SimCLR", COLORS[1]),
    "runs/supervised": ("supervised", COLORS[2]),
    "untrained:runs/mae": ("untrained", COLORS[7]),
    "runs/mae2": ("MAE, 2 epochs", COLORS[4]),
    "runs/emae": ("EMAE, 2 epochs", COLORS[1]),
}
HEADS = {  # metric: label, file, a reference and what it is
    "attention_distance": ("attention distance (px)", "attention-distance", (16.546, "uniform attention")),
    "attention_entropy": ("attention entropy (nats)", "attention-entropy", (math.log(64), "ln 64")),
    "head_divergence": ("head divergence (nats)", "head-diversity", None),
    "mutual_information": ("NMI", "nmi", None),
}
LAYERS = 4


def save(figure, name: str) -> None:
    figure.savefig(Path(__file__).parents[1] / "docs/images" / f"metrics-{name}.png", dpi=110)


def rows(result: dict, metric: str, target: str) -> list[dict]:
    found = (row for row in result["rows"] if (row["metric"], row["target"]) == (metric, target))
    return [row for row in found if row["value"] is not None]


def draw_heads(result: dict, metric: str) -> None:
    """A panel for each target: a dot for each head, a line through their means."""
    label, name, reference = HEADS[metric]
    figure, axes = panels(len(result["targets"]), len(result["targets"]), side=(2.1, 2.6), sharey=True, sharex=True)
    for one, target in zip(axes, result["targets"], strict=True):
        title, color = RUNS[target]
        some = rows(result, metric, target)
        heads = [row for row in some if row["head"] is not None]
        one.scatter(
            [row["layer"] for row in heads], [row["value"] for row in heads], s=16, color=color, alpha=0.55, lw=0
        )
        line(one, [row for row in some if row["head"] is None], "layer", color=color)
        if reference:
            one.axhline(reference[0], color="#888", lw=0.8, ls="--")
        one.set_title(title, fontsize=10)
        one.set(xlabel="layer", xticks=range(LAYERS))
    if reference:
        place = dict(xytext=(0, -9), textcoords="offset points", fontsize=7, color="#666")
        axes[0].annotate(reference[1], (0, reference[0]), **place)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel(label)
    save(figure, name)


def draw_layers(result: dict, metrics: dict[str, str], name: str, side: tuple[float, float] = (3.6, 2.7)) -> None:
    """A panel for each metric, a line for each target."""
    figure, axes = panels(len(metrics), len(metrics), side=side)
    for one, (metric, label) in zip(axes, metrics.items(), strict=True):
        for target in result["targets"]:
            some = [row for row in rows(result, metric, target) if row["head"] is None]
            if some:
                line(one, some, "layer", color=RUNS[target][1], label=RUNS[target][0])
        one.set(xlabel="layer", ylabel=label, xticks=range(LAYERS))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    save(figure, name)


def draw_spectra(result: dict) -> None:
    targets = result["targets"]
    figure, axes = panels(len(targets), len(targets), side=(2.1, 2.7), sharey=True)
    for one, target in zip(axes, targets, strict=True):
        for layer in range(LAYERS):
            some = [row for row in result["spectrum"] if (row["target"], row["layer"]) == (target, layer)]
            line(one, some, "frequency", band=False, color=shade(layer, LAYERS), label=f"layer {layer}")
        one.set(title=RUNS[target][0], xlabel="frequency")
        one.title.set_fontsize(10)
    axes[-1].legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("relative log amplitude")
    save(figure, "fourier")


def draw_cka(result: dict) -> None:
    targets = result["targets"]
    count = LAYERS * len(targets)
    matrix = np.full((count, count), np.nan)
    for row in result["cka"]:
        a = LAYERS * targets.index(row["target"]) + row["layer"]
        b = LAYERS * targets.index(row["other"]) + row["other_layer"]
        matrix[a, b] = matrix[b, a] = row["value"]
    figure, (one,) = panels(1, 1, side=(6.2, 4.8))
    drawn = one.imshow(matrix, vmin=0, vmax=1, cmap="magma", origin="lower")
    for border in range(LAYERS, count, LAYERS):
        one.axhline(border - 0.5, color="white", lw=1)
        one.axvline(border - 0.5, color="white", lw=1)
    middle = [LAYERS * number + 1.5 for number in range(len(targets))]
    names = [RUNS[target][0] for target in targets]
    one.set_xticks(middle, names, rotation=30, ha="right")
    one.set_yticks(middle, names, fontsize=9)
    one.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=one, label="linear CKA", shrink=0.8)
    save(figure, "cka")


def draw_reconstruction(result: dict) -> None:
    metrics = {
        "reconstruction_error": "error, of variance",
        "disagreement": "disagreement, of variance",
        "average_distance": "AvgDist (px)",
    }
    figure, axes = panels(3, 3, side=(2.7, 2.6))
    targets = result["targets"]
    names = ["\n".join(RUNS[target][0].split(", ")) for target in targets]
    for one, (metric, label) in zip(axes, metrics.items(), strict=True):
        values = [rows(result, metric, target)[0] for target in targets]
        spread = [1.96 * row["stderr"] for row in values]
        colors = [RUNS[target][1] for target in targets]
        one.bar(range(len(targets)), [row["value"] for row in values], yerr=spread, color=colors, width=0.6)
        one.set_xticks(range(len(targets)), names, fontsize=8)
        one.set_ylabel(label)
    save(figure, "reconstruction")


def draw_film(result: dict) -> None:
    figure, axes = panels(2, 2, side=(4.0, 2.8))
    labels = {"similarity_kl": "KL of cosines (nats)", "attention_kl": "KL of attention (nats)"}
    for one, (metric, label) in zip(axes, labels.items(), strict=True):
        some = rows(result, metric, "runs/film")
        layers = sorted({row["layer"] for row in some})
        for layer in layers:
            mine = [row for row in some if row["layer"] == layer]
            line(one, mine, "step", color=shade(layer, len(layers)), label=f"layer {layer}")
        one.set(xlabel="step", ylabel=label)
        one.set_ylim(bottom=min(0, one.get_ylim()[0]))
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, "layer-kl")
    figure, axes = panels(2, 2, side=(4.0, 2.8))
    labels = {"exploitation_masked": "share owed to mask tokens", "mask_token_variance": "mask-token variance"}
    for one, (metric, label) in zip(axes, labels.items(), strict=True):
        line(one, rows(result, metric, "runs/film"), "step", color=COLORS[0])
        one.set(xlabel="step", ylabel=label, ylim=(0, 1))
    axes[0].axhline(0.75, color="#888", lw=0.8, ls="--")
    place = dict(xytext=(40, 3), textcoords="offset points", fontsize=8, color="#666")
    axes[0].annotate("uniform attention: 0.75", (0, 0.75), **place)
    save(figure, "decoder")


def shade(layer: int, layers: int) -> tuple[float, ...]:
    return colormaps["viridis"](0.92 * layer / max(1, layers - 1))


def print_work(data: str) -> None:
    """A table of the trainings in docs/metrics/README.md."""
    trained = {"mae_mini_32": 6, "simmim_mini_32": 3, "simclr_mini_32": 1}
    work = dict(
        zip(trained, count_flops([configured([name], [name, "--data", data]) for name in trained]), strict=True)
    )
    shape = dict(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4, num_classes=10)
    vit = timm.create_model("vit_tiny_patch16_224", **shape)
    for block in vit.blocks:
        block.attn.fused_attn = False  # fused attention is not counted
    work["supervised"] = flops(lambda images: vit(images).sum().backward(), torch.randn(WEIGHED, 3, 32, 32))
    for name, epochs in (trained | {"supervised": 2}).items():
        each, total = work[name] / 1e6, 50_000 * epochs * work[name] / 1e12
        print(f"{name:15} {epochs} epochs  {each:4.0f} MFLOP a picture  {total:4.1f} TFLOP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results/metrics")
    parser.add_argument("--weigh", metavar="DIR", help="CIFAR-10")
    asked = parser.parse_args()
    if asked.count_flops:
        return print_work(asked.count_flops)
    folder = asked.results
    five, depth, decoder, film = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("five", "depth", "decoder", "film")
    )
    for metric in HEADS:
        draw_heads(five, metric)
    draw_layers(
        five, {"feature_variance": "feature variance", "similarity_variance": "similarity variance"}, "variance"
    )
    draw_layers(five, {"similarity_gap": "gap of cosines", "attention_gap": "gap of attention"}, "ncut-gap")
    draw_spectra(five)
    draw_cka(five)
    draw_layers(depth, {"effective_rank": "effective rank"}, "effective-rank", (6.6, 2.9))
    changes = {
        "drop_change": "change, dropped",
        "drop_knn": "kNN, dropped",
        "swap_change": "change, swapped",
        "swap_knn": "kNN, swapped",
    }
    draw_layers(depth, changes, "drop-and-swap", (3.0, 2.7))
    draw_reconstruction(decoder)
    draw_film(film)


if __name__ == "__main__":
    main()
