"""Where masks lie: pictures whose objects are known enter; how much more of them each masker hides than chance leaves.

Trains a small MAE with random masks on one thread, keeps it at five moments, and asks it at each of them. Two sets:
`synthetic`, made here (regions of other textures, 64 px), with a model trained on other pictures of the same kind; and
`photographs`, COCO pictures with the mask of their largest object, with a model trained on Imagenette at 64 px.

    python benchmarks/coverage.py --work runs/coverage --json benchmarks/results/coverage.json --images docs/images

Shared data are looked for beside the repository or where MIMKIT_SHARED_DATA says. Intervals are 95 % bootstrap
intervals over pictures.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mimkit.analysis.mask_drawing import MaskDrawing, draw_masks
from mimkit.core.randomness import rng_keys, uniform
from mimkit.guidance.signals import compute_signal
from mimkit.masks import (
    AMTMasker,
    AttMaskMasker,
    Mask,
    Masker,
    MultinomialMasker,
    RandomMasker,
    SalienceMasker,
    SelfGuidedMasker,
    Signal,
    ncut,
)
from mimkit.masks.ncut import RULES, object_side
from mimkit.masks.random import hidden_count
from mimkit.masks.salience import salience, salient_fraction
from mimkit.masks.statistics import object_hidden, score_entropy
from mimkit.model.patches import patchify
from mimkit.model.vit import Encoder
from mimkit.recipes import find_recipe
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.prepare import Prepared
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder
from scenes import PATCH, SIZE, Scenes, photographs, synthetic

GRID = (SIZE // PATCH, SIZE // PATCH)
RATIOS = (0.75, 0.5)
PROGRESS_POINTS = (0.1, 0.3, 0.6, 1.0)  # shares of training, besides none
SEEDS = 4  # masks of each picture
EPOCHS = {"synthetic": 28, "photographs": 12}
TRAINED_ON = 4000  # synthetic pictures; those after them are measured
MEASURED = 512


def train(what: str, data: str, folder: Path) -> None:
    """`mae_mini_64` on one thread, with a checkpoint at every tenth of the steps; goes on where it was stopped."""
    config = find_recipe("mae_mini_64")
    config.data, config.epochs = (data,), EPOCHS[what]
    machine = config.machine
    machine.device, machine.threads, machine.workers = "cpu", 1, 0
    machine.precision, machine.attention = "bfloat16", "plain"
    machine.evals, machine.tensorboard, machine.save_minutes = 0, False, 1e6
    machine.save_every, machine.keep = -(-Prepared(config).steps // 10), 10
    if not RunFolder(folder).finished:
        pretrain(config, folder, recipe="mae_mini_64")


def moments(folder: Path) -> Iterator[tuple[float, Encoder]]:
    """The encoder before training and at the moments kept."""
    saved = RunFolder(folder).read_config()
    known = saved["resolved"]
    yield 0.0, Prepared(saved["config"], known).encoder.eval()
    kept = {int(path.stem.removeprefix("step-")): path for path in checkpoints(folder)}
    for moment in PROGRESS_POINTS:
        ready = Prepared(saved["config"], known, begun=True)
        step = min(kept, key=lambda step: abs(step - moment * known["steps"]))
        ready.task.load_state_dict(load_checkpoint(kept[step])["model"])
        yield moment, ready.encoder.eval()


def asked(ratio: float) -> dict[str, Masker]:
    """The maskers, all of them begun; AMT's throwing keeps the proportions of its paper, 0.45 and 0.40."""
    return {
        "random": RandomMasker(ratio=ratio),
        "salience": SalienceMasker(ratio=ratio),
        "salience, noise 0": SalienceMasker(ratio=ratio, noise=0.0),
        "salience, AMR": SalienceMasker(ratio=ratio, spread=0.1),
        "AttMask, high": AttMaskMasker(ratio=ratio),
        "AMT, nothing thrown": AMTMasker(ratio=ratio, throw=0.0),
        "AMT": AMTMasker(ratio=0.6 * ratio, throw=ratio * 0.4 / 0.75),
        "self-guided, no hints": SelfGuidedMasker(ratio=ratio, start=0.0, hints=0.0),
        "self-guided, hints 0.1": SelfGuidedMasker(ratio=ratio, start=0.0, hints=0.1),
        "MaskAlign": MultinomialMasker(ratio=ratio),
    }


CONTROLS = ("the object itself", "center", "contrast", "cut of raw pixels")
SCORED = ("salience, noise 0", "AttMask, high", "self-guided, no hints")  # a fixed score decides


def interval(values: Tensor) -> list[float]:
    """Mean over pictures and its 95 % bootstrap interval."""
    draws = uniform(rng_keys("coverage", "bootstrap", torch.arange(1000)), len(values))
    means = values[(draws * len(values)).long()].double().mean(dim=1)
    ends = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [round(x, 3) for x in (values.mean().item(), *ends.tolist())]


def gain(masks: list[Mask], objects: Tensor) -> Tensor:
    """Share of the object that is hidden over the share of all patches that is, a number a picture."""
    return torch.stack([object_hidden(mask, objects) / mask.hidden.float().mean(dim=1) for mask in masks]).mean(dim=0)


def thrown_gain(masks: list[Mask], objects: Tensor) -> Tensor:
    """The same for the patches thrown away."""
    return gain([Mask(mask.thrown, mask.visible) for mask in masks], objects)


def measure(scenes: Scenes, encoder: Encoder) -> dict[str, Any]:
    """What each masker hides, by the signals of this encoder."""
    assert encoder.mean is not None and encoder.std is not None
    mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (encoder.mean, encoder.std))
    patches = patchify((scenes.pixels / 255 - mean) / std, encoder.patch)
    objects, n = scenes.objects, patches.shape[1]
    with torch.inference_mode():
        signals = {signal: compute_signal(signal, encoder, patches, -2) for signal in Signal}
        layers = {layer: compute_signal(Signal.FEATURES, encoder, patches, layer) for layer in (-4, -3, -2, -1)}
    addresses = [rng_keys("coverage", "mask", seed, torch.arange(len(objects))) for seed in range(SEEDS)]
    rows = []

    def add(ratio: float, name: str, masks: list[Mask], **more: Any) -> None:
        values = gain(masks, objects)
        row = {"ratio": ratio, "masker": name, "gain": interval(values)}
        for kind in sorted(set(scenes.kinds)):
            row[kind] = interval(values[torch.tensor([one == kind for one in scenes.kinds])])
        rows.append(row | more)

    place = torch.arange(n)
    outwards = (place % GRID[1] - (GRID[1] - 1) / 2) ** 2 + (place // GRID[1] - (GRID[0] - 1) / 2) ** 2
    cutting = SelfGuidedMasker(start=0.0, hints=0.0)
    controls = {
        "the object itself": objects,
        "center": -outwards.float().expand(len(objects), -1),
        "contrast": patches.std(dim=2),
        "cut of raw pixels": cutting.maps(patches, GRID)[..., 0],
        "self-guided, place taken out": cutting.maps(placeless(layers[-2]), GRID)[..., 0],
    }
    for ratio in RATIOS:
        count = hidden_count(n, ratio)
        for name, score in controls.items():
            noise = uniform(addresses[0], n, stream=9) * 1e-3  # equal scores in no order
            add(ratio, name, [Mask.from_scores(score + noise, count)])
        for name, masker in asked(ratio).items():
            maps = masker.maps(signals[masker.reads(0.5)], GRID)
            masks = [masker(maps, address, 0.5, GRID) for address in addresses]
            more: dict[str, Any] = {}
            if masks[0].decoded is not None:
                more["thrown"] = interval(thrown_gain(masks, objects))
                together = [Mask(mask.hidden | mask.thrown, mask.visible) for mask in masks]
                more["hidden or thrown"] = interval(gain(together, objects))
            if name in SCORED:
                usual = maps[..., 0].argsort(dim=1).argsort(dim=1).float().mean(dim=0)
                same = Mask.from_scores(usual.expand(len(objects), -1), count)
                more["by place alone"] = interval(gain([same], objects))
            add(ratio, name, masks, **more)
    found = salience(signals[Signal.PATCHES])
    attention = signals[Signal.ATTENTION].mean(dim=2)
    return {
        "rows": rows,
        "cuts": [cut_of(name, features, objects, rule) for name, features, rule in cuts(patches, layers)],
        "of place": {str(name): of_place(x) for name, x in layers.items()}
        | {"patches": of_place(signals[Signal.PATCHES])},
        "salience": round(found.mean().item(), 3),
        "salient_fraction": round(salient_fraction(found).item(), 3),
        "attention_entropy": round(score_entropy(attention).mean().item(), 4),
    }


def cuts(patches: Tensor, layers: dict[int, Tensor]) -> Iterator[tuple[str, Tensor, str]]:
    for rule in RULES:
        yield "layer -2", layers[-2], rule
    for layer in (-4, -3, -1):
        yield f"layer {layer}", layers[layer], "argmax"
    yield "layer -2, place taken out", placeless(layers[-2]), "argmax"
    yield "pixels", patches, "argmax"


def placeless(features: Tensor) -> Tensor:
    """Features less their mean over pictures at each place."""
    return features - features.mean(dim=0)


def of_place(features: Tensor) -> float:
    """Share of the variance of features that their place alone explains."""
    whole = features - features.mean(dim=(0, 1))
    return round((1 - placeless(features).square().sum() / whole.square().sum()).item(), 3)


def cut_of(name: str, features: Tensor, objects: Tensor, rule: str) -> dict[str, Any]:
    """How well the object's side, or the other one, is the object: intersection over union of areas.

    `by chance` is about what a side of that size at a random place has. `agreement` of the cuts of two pictures, with
    sides swapped where that agrees better: 1 where all pictures are cut alike.
    """
    side = object_side(ncut(features), GRID, rule)
    one, other = (
        (objects * part).sum(dim=1) / (objects.sum(dim=1) + part.sum(dim=1) - (objects * part).sum(dim=1))
        for part in (side, ~side)
    )
    inside, whole = side.float().mean(dim=1), objects.mean(dim=1)
    signs = side.float() * 2 - 1
    alike = (signs @ signs.mT / side.shape[1]).abs()
    return {
        "features": name,
        "rule": rule,
        "iou": interval(one),
        "by chance": round((inside * whole / (inside + whole - inside * whole)).mean().item(), 3),
        "agreement": round((alike.sum() - len(alike)).item() / (len(alike) ** 2 - len(alike)), 3),
        "share of picture": interval(inside),
        "side is object": interval((one > 0.5).float()),
        "other side is object": interval((other > 0.5).float()),
        "better side": interval(torch.maximum(one, other)),
    }


def tables(results: dict[str, Any]) -> str:
    """Markdown: what needs no model, each set's maskers over training at both ratios, and the cuts."""
    sets = [(what, ratio) for what in results for ratio in RATIOS]
    lines = header(["hidden without a model", *(f"{what}, {ratio}" for what, ratio in sets)])
    for name in CONTROLS:
        cells = [shown(row_of(results[what]["moments"][0], ratio, name)["gain"]) for what, ratio in sets]
        lines.append(line([name, *cells]))
    for what, ratio in sets:
        measured = results[what]["moments"]
        lines += ["", *header([f"{what}, {ratio}", *(f"{100 * one['moment']:.0f} %" for one in measured)])]
        for name in ["random", *(name for name in asked(ratio) if name != "random"), "self-guided, place taken out"]:
            found = [row_of(one, ratio, name) for one in measured]
            lines.append(line([name, *(shown(row["gain"]) for row in found)]))
            for more in ("thrown", "by place alone"):
                if more in found[0]:
                    lines.append(line([f"- {more}", *(shown(row[more]) for row in found)]))
    for what, result in results.items():
        measured = result["moments"]
        lines += [
            "",
            *header([f"{what}: cut of", "object's side", *(f"{100 * one['moment']:.0f} %" for one in measured)]),
        ]
        for place, cut in enumerate(measured[0]["cuts"]):
            found = [one["cuts"][place] for one in measured]
            lines.append(line([cut["features"], cut["rule"], *map(agreed, found)]))
        lines.append(line(["layer -2", "by chance", *(f"{one['cuts'][0]['by chance']:.2f}" for one in measured)]))
        lines.append(line(["layer -2", "alike", *(f"{one['cuts'][0]['agreement']:.2f}" for one in measured)]))
        lines.append(line(["layer -2", "of place", *(f"{one['of place']['-2']:.2f}" for one in measured)]))
    return "\n".join(lines)


def agreed(cut: dict[str, Any]) -> str:
    """Intersection over union, and in how many pictures the object's side, or the other one, passes 0.5."""
    return f"{cut['iou'][0]:.2f} ({100 * cut['side is object'][0]:.0f} / {100 * cut['other side is object'][0]:.0f} %)"


def header(cells: list[str]) -> list[str]:
    return [line(cells), "|-" * len(cells) + "|"]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def row_of(one: dict[str, Any], ratio: float, name: str) -> dict[str, Any]:
    return next(row for row in one["rows"] if (row["masker"], row["ratio"]) == (name, ratio))


def shown(value: list[float]) -> str:
    """A mean and half the width of its interval."""
    return f"{value[0]:.2f} ± {(value[2] - value[1]) / 2:.2f}"


def figure(results: dict[str, Any], file: Path) -> None:
    """The gain over training, ratio 0.75: a panel for each set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = ("random", "salience", "salience, noise 0", "AttMask, high", "AMT", "self-guided, no hints", "MaskAlign")
    panels, axes = pyplot.subplots(1, len(results), figsize=(1.6 + 4 * len(results), 3.4), sharey=True, squeeze=False)
    for axis, (what, result) in zip(axes[0], results.items(), strict=True):
        for name in drawn:
            points = [(100 * one["moment"], *row_of(one, 0.75, name)["gain"]) for one in result["moments"]]
            x, y, low, high = (np.array(values) for values in zip(*points, strict=True))
            axis.errorbar(x, y, [y - low, high - y], marker="o", markersize=3, capsize=2, linewidth=1.2, label=name)
        ceiling = row_of(result["moments"][0], 0.75, "the object itself")
        axis.axhline(ceiling["gain"][0], color="gray", linewidth=0.8, linestyle=":")
        axis.text(0, ceiling["gain"][0], "all of the object", va="top", fontsize=7, color="gray")
        axis.set_title(f"{what}, {result['pictures']} pictures", fontsize=9)
        axis.set_xlabel("training so far, %")
    axes[0][0].set_ylabel("object hidden / hidden at random")
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    panels.tight_layout()
    panels.savefig(file, dpi=120)


def draw(run: Path, work: Path, file: Path) -> None:
    """`mimkit masks` on photographs that scikit-image carries, three maskers side by side."""
    import skimage

    folder = work / "scikit-image"
    folder.mkdir(exist_ok=True)
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        Image.open(Path(skimage.__file__).parent / "data" / name).save(folder / f"{Path(name).stem}.png")
    parts = []
    for name, masker in {
        "salience": SalienceMasker(noise=0.0),
        "attmask": AttMaskMasker(),
        "self-guided": SelfGuidedMasker(start=0.0, hints=0.0),
    }.items():
        out = work / f"{name}.png"
        draw_masks(MaskDrawing(data=(str(folder),), masker=masker, model=str(run), out=out, show=4, seeds=1))
        parts.append(Image.open(out))
        parts[-1].info["name"] = name
    sheet = Image.new("RGB", (sum(part.width for part in parts), parts[0].height + 24), "white")
    left = 0
    for part in parts:
        ImageDraw.Draw(sheet).text((left + 6, 4), f"mimkit masks {part.info['name']}", "black", font_size=15)
        sheet.paste(part, (left, 24))
        left += part.width
    sheet.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="synthetic, photographs; by default both")
    parser.add_argument("--work", type=Path, required=True, help="runs and made pictures; finished runs are used again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=Path, help="folder for the figure and the drawn masks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(os.environ.get("MIMKIT_SHARED_DATA", beside))
    results = {}
    for what in arguments.sets or EPOCHS:
        run = arguments.work / what
        if what == "synthetic":
            folder = arguments.work / "pictures"
            if not folder.exists():
                folder.mkdir(parents=True)
                for number, picture in enumerate(synthetic(0, TRAINED_ON).pixels):
                    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
            train(what, str(folder), run)
            scenes = synthetic(TRAINED_ON, MEASURED)
        else:
            train(what, str(data / "imagenette128"), run)
            scenes = photographs(data / "coco_mini")
        results[what] = {
            "pictures": len(scenes.objects),
            "kinds": {kind: scenes.kinds.count(kind) for kind in sorted(set(scenes.kinds))},
            "object": interval(scenes.objects.mean(dim=1)),
            "epochs": EPOCHS[what],
            "moments": [{"moment": moment} | measure(scenes, encoder) for moment, encoder in moments(run)],
        }
    print(tables(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.images:
        figure(results, arguments.images / "masks-coverage.png")
        draw(arguments.work / "photographs", arguments.work, arguments.images / "masks-drawn.png")


if __name__ == "__main__":
    main()
