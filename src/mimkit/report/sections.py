"""Look: a run folder and pictures enter; masks, clusters, attention, colors and neighbors leave as plain data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from sklearn.cluster import KMeans
from torch import Tensor

from mimkit.analysis.network import Layer, Network
from mimkit.analysis.run import open_task, shown_pictures
from mimkit.core.batch import Batch
from mimkit.core.display import Display, hatched, split_holes
from mimkit.core.errors import UserError
from mimkit.core.grids import agreement_map, mask_to_pixels, masked, pasted
from mimkit.core.randomness import rng_keys
from mimkit.data.loader import evaluation_batches
from mimkit.data.pictures import Pictures
from mimkit.data.stream import all_bad
from mimkit.evaluate.target import Extractor, open_target
from mimkit.masks.ncut import ncut, object_side
from mimkit.model.attention import attention_weights
from mimkit.report.images import numbers, picture, sheet, uri
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.drawing import run_display
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
    shown = shown_pictures(data, extractor.reading)
    images, valid, labels, index = _some(shown, extractor, device)
    queries = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    display = run_display(folder, shown.values, extractor.mean, extractor.std).fitted(images, valid)
    rgb = hatched(display(images), display.holes(valid))
    names = None if shown.classes is None else list(shown.classes)

    def label(place: int) -> str:
        if labels is None:
            return ""
        number = int(labels[place])
        if number < 0:
            return ""
        return names[number] if names and number < len(names) else str(number)

    model: Any = extractor.model
    model.to(device)
    sections: dict[str, Any] = {
        "pictures": [
            {"src": uri(picture(rgb[i])), "label": label(i), "name": Path(shown.where(int(index[i]))).name}
            for i in queries.tolist()
        ],
        "size": list(extractor.size),
        "data": shown.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "left": {},
    }
    features = torch.cat([extractor(batch)[extractor.headline].cpu() for batch in images.to(device).split(50)])
    sections["neighbors"] = _neighbors(features, rgb, queries, labels, label)
    here = None if valid is None else valid[queries]
    _try(sections, "masks", lambda: _masks(RunFolder(folder), images[queries], here, display, device))
    try:
        network = Network(extractor)
    except UserError as error:
        sections["left"] |= dict.fromkeys(("layers", "attention"), str(error))
        return sections
    refused = network.refusals.get("attention")
    if refused:
        sections["left"]["attention"] = refused
    layers, maps = _layers(network, images[queries].to(device), attention=refused is None)
    sections["layers"] = layers
    if maps is not None:
        sections["attention"] = maps
    return sections


def _try(sections: dict[str, Any], name: str, make: Callable[[], Any]) -> None:
    try:
        sections[name] = make()
    except UserError as error:
        sections["left"][name] = str(error)


def _some(
    shown: Pictures, extractor: Extractor, device: torch.device
) -> tuple[Float[Tensor, "N C H W"], Bool[Tensor, "N C H W"] | None, Tensor | None, Tensor]:
    """Normalized images on the CPU, where they have data if not everywhere, labels and numbers."""
    skipped: dict[int, str] = {}
    settings: Any = dict(size=extractor.size, mean=extractor.mean, std=extractor.std, view=extractor.view)
    parts = list(
        evaluation_batches(
            shown, device=device, limit=BANK, skipped=skipped, batch_size=50, keep_holes=True, **settings
        )
    )
    if not parts:
        raise all_bad(shown, skipped)
    images, labels, index = zip(*parts, strict=True)
    labeled = None if labels[0] is None else torch.cat([batch for batch in labels if batch is not None])
    return *split_holes(torch.cat([batch.cpu() for batch in images])), labeled, torch.cat(index)


def _neighbors(
    features: Float[Tensor, "N D"],
    rgb: Float[Tensor, "N 3 H W"],
    queries: Tensor,
    labels: Tensor | None,
    label: Callable[[int], str],
) -> dict[str, Any]:
    """The pictures of highest cosine, each query's as one strip."""
    unit = F.normalize(features, dim=1)
    cosine = unit[queries] @ unit.T
    cosine.scatter_(1, queries.unsqueeze(1), -2)  # a picture is no neighbor of itself
    values, places = cosine.topk(min(NEIGHBORS, len(features) - 1), dim=1)
    strips = []
    for number, (near, cosines) in enumerate(zip(places.tolist(), values.tolist(), strict=True)):
        if not near:
            continue
        strip = sheet([[picture(rgb[i], _THUMB) for i in near]])
        query = int(queries[number])
        items = [
            {
                "label": label(i),
                "cosine": round(c, 3),
                "same": labels is not None and bool(labels[i] == labels[query] >= 0),
            }
            for i, c in zip(near, cosines, strict=True)
        ]
        strips.append({"src": uri(strip, side=_THUMB), "items": items})
    return {"bank": len(features), "labeled": labels is not None, "queries": strips}


def _masks(
    run: RunFolder,
    images: Float[Tensor, "B C H W"],
    valid: Bool[Tensor, "B C H W"] | None,
    display: Display,
    device: torch.device,
) -> dict[str, Any]:
    """Each picture's sprite: a row for each seed, in it the masked picture and what the model made of it."""
    # Masks come from the method, which only a checkpoint has.
    saves = checkpoints(run.folder)
    if not saves:
        raise UserError("the run keeps no checkpoint, and an export has no masks")
    task, _ = open_task(run)
    state = load_checkpoint(saves[-1])
    task.load_state_dict(state["model"])
    task.to(device)
    progress = min(0.999, state["step"] / max(1, run.read_config()["resolved"].get("steps") or 1))
    number = torch.arange(len(images))
    originals, holes = display(images), display.holes(valid)
    valid = None if valid is None else valid.to(device)
    rows: list[list[Any]] = [[] for _ in images]
    third, views, fraction = "", 1, 0.0
    for seed in range(SEEDS):
        batch = Batch(images.to(device), rng_keys("report", seed, number).to(device), number, valid=valid)
        reconstructed = task.reconstruct(batch, progress)
        reconstruction = reconstructed or task.agreement(batch, progress)
        if reconstruction is None:
            raise UserError(f"{type(task).__name__} hides no patches")
        values, mask = reconstruction
        values, views, encoder = values[:: mask.views], mask.views, task.encoder
        fraction = mask.hidden.float().mean().item()
        hidden = mask_to_pixels(mask.hidden[:: mask.views], encoder.grid, encoder.patch)
        thrown = mask_to_pixels(mask.thrown[:: mask.views], encoder.grid, encoder.patch)
        if reconstructed is None:
            third = "agreement with the teacher"
            shown_cells = agreement_map(values, encoder.grid, encoder.patch)
        else:
            third = "reconstruction"
            shown_cells = masked(pasted(originals, display(values), hidden), hidden * 0, thrown)
        hidden_cells, shown_cells = (
            hatched(cells, holes) for cells in (masked(originals, hidden, thrown), shown_cells)
        )
        for row, hidden_cell, result_cell in zip(rows, hidden_cells, shown_cells, strict=True):
            row.append([picture(hidden_cell), picture(result_cell)])
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
    layers: list[dict[str, Any]] = []
    attentions: list[Tensor] = []
    pictures, patches = len(images), 0
    queries: list[tuple[int, int]] = []
    with_class = not network.windows and getattr(network.model, "cls_token", None) is not None

    def visit(layer: Layer) -> None:
        tokens = layer.tokens.float().cpu()
        cut = ncut(tokens)
        side = object_side(cut, layer.grid)
        layers.append(
            {
                "grid": list(layer.grid),
                "cut": ["".join("01"[int(digit)] for digit in row) for row in side],
                "kmeans": _kmeans(tokens),
                "pca": _colors(tokens, layer.grid),
            }
        )
        if attention:
            attentions.append(_attention(layer, queries, with_class).cpu())

    if attention:
        patches = network.grid[0] * network.grid[1]
        heads = sum(block.attn.num_heads for block in network.layers)  # type: ignore[union-attr]
        queries = _queries(network.grid, max(1, _ATTENTION // (pictures * heads * patches) - 2))
    # One pass for clusters, colors and attention of all layers; only these small results are kept.
    network.run(images, visit)
    if not attentions:
        return layers, None
    rows = torch.cat(attentions, dim=1)  # (B, L H, Q, N)
    # Each map from 0 to its own largest weight: with hundreds of patches a weight is far below 1.
    maps = (rows / rows.amax(dim=3, keepdim=True).clamp_min(1e-12)).unflatten(3, network.grid)
    return layers, {
        "src": [numbers(rows) for rows in maps],
        "grid": list(network.grid),
        "heads": [layer.shape[1] for layer in attentions],
        "queries": (["class token"] if with_class else []) + ["mean of all patches"],
        "places": [list(place) for place in queries],
    }


def _queries(grid: tuple[int, int], most: int) -> list[tuple[int, int]]:
    """Rows and columns of at most so many patches, evenly spread, whose own attention is kept."""
    if most >= grid[0] * grid[1]:
        return [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    # A square of evenly spread patches, as many as there is room for.
    side = int(most**0.5)
    rows = [int((i + 0.5) * grid[0] / side) for i in range(side)]
    columns = [int((i + 0.5) * grid[1] / side) for i in range(side)]
    return list(dict.fromkeys((row, column) for row in rows for column in columns))


def _attention(layer: Layer, queries: list[tuple[int, int]], with_class: bool) -> Float[Tensor, "B H Q N"]:
    """What the class token, the patches on average and single patches attend to, among patches."""
    parts = []
    # Two pictures at a time: attention of a batch is the largest tensor of the whole page.
    for pair in layer.entered.split(2):
        weights = attention_weights(layer.block, pair)[..., layer.prefix :]
        patches = weights[:, :, layer.prefix :]
        single = [row * layer.grid[1] + column for row, column in queries]
        rows = [patches.mean(dim=2, keepdim=True), patches[:, :, single]]
        parts.append(torch.cat([weights[:, :, :1], *rows] if with_class else rows, dim=2))
    return torch.cat(parts)


def _kmeans(tokens: Float[Tensor, "B N D"]) -> list[str]:
    """Clusters of the patches of all pictures together, the largest first, one digit a patch."""
    # Unit vectors: k-means then clusters by cosine, as everything else here compares tokens.
    unit = F.normalize(tokens, dim=-1).flatten(0, 1).double().numpy()
    labels = torch.from_numpy(KMeans(CLUSTERS, n_init=3, random_state=0).fit_predict(unit).astype("int64"))
    # The rank of each cluster by size: k-means numbers them by chance, and colors on the page should agree by layer.
    order = labels.bincount(minlength=CLUSTERS).argsort(descending=True, stable=True).argsort()
    return ["".join(map(str, row)) for row in order[labels].view(tokens.shape[:2]).tolist()]


def _colors(tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> str:
    """The first three principal components of all patches together as red, green and blue: one row of pictures."""
    flat = tokens.flatten(0, 1).double()
    # In float64 and by eigh of the D x D products: far fewer numbers than an SVD of all patches.
    flat = flat - flat.mean(dim=0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    vectors = vectors[:, -3:].flip(1)
    # A component has no sign of its own: its largest entry is made positive, so that equal models get equal colors.
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    values = flat @ vectors
    low, high = values.quantile(0.01, dim=0), values.quantile(0.99, dim=0)  # without the few patches that lie far out
    colors = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()
    colors = torch.cat([colors, colors.new_zeros(len(colors), 3 - colors.shape[1])], dim=1)
    cells = colors.view(len(tokens), *grid, 3).permute(3, 1, 0, 2).flatten(2)  # (3, h, B w)
    return uri(picture(cells, side=1 << 20), exact=True)
