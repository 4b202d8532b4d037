"""Look: a run folder and pictures enter; masks, clusters, attention, colors and neighbors leave as plain data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.cluster import KMeans
from torch import Tensor

from mimkit.analysis.network import Layer, Network
from mimkit.analysis.run import open_task
from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.core.grids import colorize, displayable, mask_to_pixels, masked, pasted, patches_to_pixels
from mimkit.core.randomness import rng_keys
from mimkit.data.loader import evaluation_batches
from mimkit.data.pictures import Pictures
from mimkit.data.sources import open_pictures
from mimkit.data.stream import all_bad
from mimkit.evaluate.target import Extractor, open_target
from mimkit.masks.ncut import ncut, object_side
from mimkit.model.attention import attention_weights
from mimkit.report.images import numbers, picture, sheet, uri
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.run_folder import RunFolder

BANK = 500  # pictures among which neighbors are looked for
NEIGHBORS, SEEDS, CLUSTERS = 6, 4, 6
_THUMB = 64  # pixels of a neighbor
_ATTENTION = 3_000_000  # attention weights kept of a run, about a byte each before compression


@torch.inference_mode()
def look(folder: Path, data: list[str], count: int, device: torch.device) -> dict[str, Any]:
    """What the page shows of a model on `count` pictures, spread over the set.

    Returns pictures [{src, label, name}], size, patch, grid, parameters, and `masks`, `layers`, `attention` and
    `neighbors` where they make sense; under `left` the reason why one of them is missing.

    Raises:
        UserError: there is no export to look at, or the pictures cannot be found.
    """
    extractor = open_target(str(folder), size=(1, 1), channels=3)
    shown = _pictures(data, extractor)
    images, labels, index = _some(shown, extractor, device)
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    rgb = displayable(images, extractor.mean, extractor.std)
    names = None if shown.classes is None else list(shown.classes)

    def label(place: int) -> str:
        if labels is None:
            return ""
        number = int(labels[place])
        return names[number] if names and number < len(names) else str(number)

    model: Any = extractor.model
    model.to(device)
    found: dict[str, Any] = {
        "pictures": [
            {"src": uri(picture(rgb[i])), "label": label(i), "name": Path(shown.where(int(index[i]))).name}
            for i in chosen.tolist()
        ],
        "size": list(extractor.size),
        "data": shown.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "left": {},
    }
    features = torch.cat([extractor(part)[extractor.headline].cpu() for part in images.to(device).split(50)])
    found["neighbors"] = _neighbors(features, rgb, chosen, labels, label)
    _try(found, "masks", lambda: _masks(RunFolder(folder), images[chosen], extractor, device))
    try:
        network = Network(extractor)
    except UserError as error:
        found["left"] |= dict.fromkeys(("layers", "attention"), str(error))
        return found
    refused = network.refusals.get("attention")
    if refused:
        found["left"]["attention"] = refused
    layers, maps = _layers(network, images[chosen].to(device), attention=refused is None)
    found["layers"] = layers
    if maps is not None:
        found["attention"] = maps
    return found


def _try(found: dict[str, Any], part: str, make: Callable[[], Any]) -> None:
    try:
        found[part] = make()
    except UserError as error:
        found["left"][part] = str(error)


def _pictures(data: list[str], extractor: Extractor) -> Pictures:
    """The test split where there is one of its own, else everything."""
    how: Any = {"channels": extractor.channels, "value_range": extractor.value_range}
    test = open_pictures(data, "test", **how)
    return test if test.has_test else open_pictures(data, "all", **how)


def _some(
    shown: Pictures, extractor: Extractor, device: torch.device
) -> tuple[Float[Tensor, "N C H W"], Tensor | None, Tensor]:
    """Normalized images on the CPU, labels and numbers."""
    skipped: dict[int, str] = {}
    settings: Any = dict(size=extractor.size, mean=extractor.mean, std=extractor.std, view=extractor.view)
    parts = list(evaluation_batches(shown, device=device, limit=BANK, skipped=skipped, batch_size=50, **settings))
    if not parts:
        raise all_bad(shown, skipped)
    images, labels, index = zip(*parts, strict=True)
    labeled = None if labels[0] is None else torch.cat([one for one in labels if one is not None])
    return torch.cat([one.cpu() for one in images]), labeled, torch.cat(index)


def _neighbors(
    features: Float[Tensor, "N D"],
    rgb: Float[Tensor, "N 3 H W"],
    chosen: Tensor,
    labels: Tensor | None,
    label: Callable[[int], str],
) -> dict[str, Any]:
    """The pictures of highest cosine, each query's as one strip."""
    unit = F.normalize(features, dim=1)
    cosine = unit[chosen] @ unit.T
    cosine.scatter_(1, chosen.unsqueeze(1), -2)
    values, places = cosine.topk(min(NEIGHBORS, len(features) - 1), dim=1)
    found = []
    for query, (near, how) in enumerate(zip(places.tolist(), values.tolist(), strict=True)):
        if not near:
            continue
        strip = sheet([[picture(rgb[i], _THUMB) for i in near]])
        items = [
            {"label": label(i), "cosine": round(c, 3), "same": labels is not None and bool(labels[i] == labels[q])}
            for i, c, q in zip(near, how, [int(chosen[query])] * len(near), strict=True)
        ]
        found.append({"src": uri(strip, side=_THUMB), "items": items})
    return {"bank": len(features), "labeled": labels is not None, "queries": found}


def _masks(
    run: RunFolder, images: Float[Tensor, "B C H W"], extractor: Extractor, device: torch.device
) -> dict[str, Any]:
    """Each picture's sprite: a row for each seed, in it the masked picture and what the model made of it."""
    saves = checkpoints(run.folder)
    if not saves:
        raise UserError("the run keeps no checkpoint, and an export has no masks")
    task, _ = open_task(run)
    state = load_checkpoint(saves[-1])
    task.load_state_dict(state["model"])
    task.to(device)
    progress = min(0.999, state["step"] / max(1, run.read_config()["resolved"].get("steps") or 1))
    number = torch.arange(len(images))
    originals = displayable(images, extractor.mean, extractor.std)
    rows: list[list[Any]] = [[] for _ in images]
    third, views, fraction = "", 1, 0.0
    for seed in range(SEEDS):
        batch = Batch(images.to(device), rng_keys("report", seed, number).to(device), number)
        drawn = task.reconstruct(batch, progress)
        found = drawn or task.agreement(batch, progress)
        if found is None:
            raise UserError(f"{type(task).__name__} hides no patches")
        values, mask = found
        values, views, encoder = values[:: mask.views], mask.views, task.encoder
        fraction = mask.hidden.float().mean().item()
        hidden, thrown = (
            mask_to_pixels(part[:: mask.views], encoder.grid, encoder.patch) for part in (mask.hidden, mask.thrown)
        )
        if drawn is None:
            third = "agreement with the teacher"
            made = masked(colorize(patches_to_pixels(values, encoder.grid, encoder.patch), (0, 1)), hidden, thrown)
        else:
            third = "reconstruction"
            shown = displayable(values, extractor.mean, extractor.std)
            made = masked(pasted(originals, shown, hidden), hidden * 0, thrown)
        for row, left, right in zip(rows, masked(originals, hidden, thrown), made, strict=True):
            row.append([picture(left), picture(right)])
    return {
        "src": [uri(sheet(row), side=max(row[0][0].size)) for row in rows],
        "seeds": SEEDS,
        "columns": ["masked", third],
        "views": views,
        "hidden": round(fraction, 3),
    }


def _layers(
    network: Network, images: Float[Tensor, "B C H W"], *, attention: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Of each layer the clusters and colors of all pictures together; of each picture its attention."""
    made: list[dict[str, Any]] = []
    kept: list[Tensor] = []
    pictures, patches = len(images), 0
    wanted: list[tuple[int, int]] = []
    with_class = not network.windows and getattr(network.model, "cls_token", None) is not None

    def visit(layer: Layer) -> None:
        tokens = layer.tokens.float().cpu()
        cut = ncut(tokens)
        side = object_side(cut, layer.grid)
        made.append(
            {
                "grid": list(layer.grid),
                "cut": ["".join("01"[int(one)] for one in row) for row in side],
                "kmeans": _kmeans(tokens),
                "pca": _colors(tokens, layer.grid),
            }
        )
        if attention:
            kept.append(_attention(layer, wanted, with_class).cpu())

    if attention:
        patches = network.grid[0] * network.grid[1]
        heads = sum(block.attn.num_heads for block in network.layers)  # type: ignore[union-attr]
        wanted = _queries(network.grid, max(1, _ATTENTION // (pictures * heads * patches) - 2))
    network.run(images, visit)
    if not kept:
        return made, None
    rows = torch.cat(kept, dim=1)  # (B, L H, Q, N)
    maps = (rows / rows.amax(dim=3, keepdim=True).clamp_min(1e-12)).unflatten(3, network.grid)
    return made, {
        "src": [numbers(one) for one in maps],
        "grid": list(network.grid),
        "heads": [one.shape[1] for one in kept],
        "queries": (["class token"] if with_class else []) + ["mean of all patches"],
        "places": [list(place) for place in wanted],
    }


def _queries(grid: tuple[int, int], most: int) -> list[tuple[int, int]]:
    """Rows and columns of at most so many patches, evenly spread, whose own attention is kept."""
    if most >= grid[0] * grid[1]:
        return [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    side = int(most**0.5)
    rows, columns = ([int((i + 0.5) * length / side) for i in range(side)] for length in grid)
    return list(dict.fromkeys((row, column) for row in rows for column in columns))


def _attention(layer: Layer, wanted: list[tuple[int, int]], with_class: bool) -> Float[Tensor, "B H Q N"]:
    """What the class token, the patches on average and single patches attend to, among patches."""
    parts = []
    for some in layer.entered.split(2):
        weights = attention_weights(layer.block, some)[..., layer.prefix :]
        patches = weights[:, :, layer.prefix :]
        single = [row * layer.grid[1] + column for row, column in wanted]
        rows = [patches.mean(dim=2, keepdim=True), patches[:, :, single]]
        parts.append(torch.cat([weights[:, :, :1], *rows] if with_class else rows, dim=2))
    return torch.cat(parts)


def _kmeans(tokens: Float[Tensor, "B N D"]) -> list[str]:
    """Clusters of the patches of all pictures together, the largest first, one digit a patch."""
    unit = F.normalize(tokens, dim=-1).flatten(0, 1).double().numpy()
    labels = torch.from_numpy(KMeans(CLUSTERS, n_init=3, random_state=0).fit_predict(unit).astype("int64"))
    order = labels.bincount(minlength=CLUSTERS).argsort(descending=True, stable=True).argsort()
    return ["".join(map(str, row)) for row in order[labels].view(tokens.shape[:2]).tolist()]


def _colors(tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> str:
    """The first three principal components of all patches together as red, green and blue: one row of pictures."""
    flat = tokens.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    vectors = vectors[:, -3:].flip(1)
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    values = flat @ vectors
    low, high = (values.quantile(q, dim=0) for q in (0.01, 0.99))
    colors = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()
    colors = torch.cat([colors, colors.new_zeros(len(colors), 3 - colors.shape[1])], dim=1)
    cells = colors.view(len(tokens), *grid, 3).permute(3, 1, 0, 2).flatten(2)  # (3, h, B w)
    return uri(picture(cells, side=1 << 20), exact=True)
