"""What is found of planted pictures: a folder and targets enter, shares of near-duplicates and outliers found leave.

    python benchmarks/planted.py FOLDER TARGET ... [--pictures 2000] [--json FILE]

Into a sample of the folder go 99 near-duplicates (33 crops of 80 % of each side, 33 re-encodings at half the size and
JPEG quality 30, 33 mirror images) and 20 foreign pictures (galaxies, cells, the moon, of `photos`). Found is a planted
pair among the 99 most similar pairs, or by cosine at the threshold of `mimkit duplicates`; a foreign picture among the
20 that lie farthest out. Pairs that the folder had before count as wrong, so precision is a lower bound.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from mimkit.api.embed import embed
from mimkit.api.embeddings import Embeddings
from mimkit.api.ordered import outliers
from mimkit.core.randomness import rng_keys, uniform
from mimkit.data.pictures import Pictures, sample
from mimkit.data.sources import open_pictures

KINDS = ("crop", "encoding", "mirror")
EACH, FOREIGN, THRESHOLD = 33, 20, 0.97
STRANGE = ("galaxies", "cell", "moon", "retina", "tissue")


def altered(picture: Image.Image, kind: str, number: int) -> Image.Image:
    """A near-duplicate of a picture."""
    width, height = picture.size
    if kind == "mirror":
        return ImageOps.mirror(picture)
    if kind == "encoding":
        return picture.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BICUBIC)
    left, top = (0.2 * uniform(rng_keys("planted", torch.tensor(number)), 2)).tolist()
    box = (left * width, top * height, (left + 0.8) * width, (top + 0.8) * height)
    return picture.crop(tuple(round(side) for side in box))


def as_image(pictures: Pictures, number: int) -> Image.Image:
    """A picture of a set for Pillow."""
    pixels = pictures.read(number)
    return Image.fromarray((pixels if len(pixels) == 3 else pixels.expand(3, -1, -1)).permute(1, 2, 0).numpy())


def plant(source: str, count: int, folder: Path) -> None:
    """Write `count` pictures of the source, near-duplicates of the first of them, and foreign ones."""
    pictures = open_pictures([source], "all")
    numbers = sample(len(pictures), count, 0)
    for row, number in enumerate(numbers):
        image = as_image(pictures, number)
        image.save(folder / f"{row:05d}.png")
        kind = KINDS[row // EACH] if row < EACH * len(KINDS) else ""
        if kind == "encoding":
            altered(image, kind, row).save(folder / f"{row:05d}-{kind}.jpg", quality=30)
        elif kind:
            altered(image, kind, row).save(folder / f"{row:05d}-{kind}.png")
    strange = open_pictures(["photos"], "all")
    assert strange.labels is not None and strange.classes is not None
    wanted = [place for place, name in enumerate(strange.classes) if name in STRANGE]
    rows = [row for row, label in enumerate(strange.labels.tolist()) if label in wanted]
    for place in np.linspace(0, len(rows) - 1, FOREIGN).astype(int).tolist():
        as_image(strange, rows[place]).save(folder / f"foreign-{place}.png")


def score(embeddings: Embeddings) -> dict[str, float]:
    """Shares of what was planted that are found, 0..1."""
    names = [Path(path).stem for path in embeddings.paths]
    row_of = {name: row for row, name in enumerate(names)}
    planted = {
        (min(pair), max(pair)): name.rpartition("-")[2]
        for name in names
        if name.endswith(KINDS)
        for pair in [(row_of[name], row_of[name[:5]])]
    }
    unit = embeddings.directions()
    cosine = np.triu(unit @ unit.T, k=1)
    first, second = np.unravel_index(np.argsort(-cosine, axis=None)[: len(planted)], cosine.shape)
    top = {*zip(first.tolist(), second.tolist(), strict=True)}
    similar = {*zip(*(side.tolist() for side in np.nonzero(cosine >= THRESHOLD)), strict=True)}
    result = {"among the most similar": len(top & planted.keys()) / len(planted)}
    for kind in KINDS:
        pairs = {pair for pair, name in planted.items() if name == kind}
        result[f"of these, {kind}"] = len(top & pairs) / len(pairs)
    result["recall at threshold"] = len(similar & planted.keys()) / len(planted)
    result["precision at threshold"] = len(similar & planted.keys()) / max(1, len(similar))
    farthest = outliers(embeddings, FOREIGN).groups[0].rows
    result["foreign among outliers"] = sum(names[row].startswith("foreign") for row in farthest) / FOREIGN
    return result


def main() -> None:
    """Print a table, a row a target."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        plant(options.folder, options.pictures, Path(temporary))
        for target in options.targets:
            results[target] = score(embed(target, [temporary], workers=2))
            cells = ", ".join(f"{name} {value:.2f}" for name, value in results[target].items())
            print(f"{target}: {cells}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
