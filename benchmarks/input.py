"""What input costs: mimkit's loaders against per-picture pipelines, as ratios of CPU time in one run.

    python benchmarks/input.py [--small DATA] [--photos FOLDER] [--rounds N] [--json FILE]

`small`: pictures in memory; cut, mirrored and normalized as batches, against a DataLoader that does it for
each picture with torchvision's v2 transforms. `gray`: the same with gray ones of 28 px, cut from these.
`photos`: JPEG files to crops of 224 px, against the recipe of MAE's release (Pillow and torchvision's v1
transforms). All end in normalized float32, and all run with the allocator setting of training. Rounds are
interleaved; times are medians over the rounds, ratios medians of each round's.
"""

import argparse
import io
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from mimkit.data.loader import Loader, Plan, ViewSettings
from mimkit.data.pictures import Decoded, Pictures
from mimkit.data.sources import open_pictures
from mimkit.data.views import RandomResizedCrop, View, Whole
from mimkit.train.machine import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OneByOne(Dataset):
    """The usual data set: read one picture, transform it."""

    def __init__(self, read: Callable[[int], object], count: int, transform: Callable) -> None:
        self.read, self.count, self.transform = read, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(self.read(i))


def loader(pictures: Pictures, view: View, side: int, batch: int, **how) -> Loader:
    channels = pictures.channels
    settings = ViewSettings(view=view, size=(side, side), mean=MEAN[:channels], std=STD[:channels])
    return Loader(pictures, settings, Plan(0, len(pictures), batch, batch), **how)


def per_picture(read: Callable[[int], object], count: int, transform: Callable, batch: int) -> Callable[[], int]:
    batches = DataLoader(OneByOne(read, count, transform), batch_size=batch, shuffle=True)
    return lambda: sum(len(images) for images in batches)


def picture_of(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def png(pixels: torch.Tensor) -> bytes:
    out = io.BytesIO()
    picture_of(pixels).save(out, "PNG")
    return out.getvalue()


def gray(pictures: Pictures) -> Pictures:
    """As many and as large as MNIST's: the green of the middle 28 x 28 pixels, of some several times."""
    pixels = torch.stack([pictures.read(i)[1:2, 2:30, 2:30] for i in range(10_000)])
    return Decoded("gray", pixels.repeat(6, 1, 1, 1))


def small(pictures: Pictures, side: int) -> dict[str, Callable[[], int]]:
    batch, steps, count = 256, 40, 2048
    ours = {
        "mimkit, resident, crop": loader(pictures, RandomResizedCrop(), side, batch),
        "mimkit, resident, flip": loader(pictures, Whole(), side, batch),
    }
    assert all(one.resident for one in ours.values())
    pixels = torch.stack([pictures.read(i) for i in range(count)])
    arrays = [picture_of(picture) for picture in pixels]
    crop = v2.RandomResizedCrop(side, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)
    normalize = v2.Normalize(MEAN[: pictures.channels], STD[: pictures.channels])
    common = [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), normalize]
    encoded = [png(picture) for picture in pixels]
    pillow = v2.Compose([crop, v2.ToImage(), *common])
    peers = {
        "DataLoader, decoding PNG, v2 on Pillow, crop": (
            lambda i: Image.open(io.BytesIO(encoded[i])),
            pillow,
        ),
        "DataLoader, v2 on Pillow, crop": (arrays.__getitem__, pillow),
        "DataLoader, v2 on tensors, crop": (pixels.__getitem__, v2.Compose([crop, *common])),
        "DataLoader, v2 on tensors, flip": (pixels.__getitem__, v2.Compose(common)),
    }
    runs = {name: per_picture(read, count, how, batch) for name, (read, how) in peers.items()}
    for name, one in ours.items():
        runs[name] = lambda one=one: sum(len(made.images) for made in one.micro_batches(0, steps))
    return runs


def photos(folder: str) -> dict[str, Callable[[], int]]:
    pictures = open_pictures([folder], "all", channels=3)
    count, batch = 128, 32
    paths = [pictures.where(i) for i in range(0, len(pictures), max(1, len(pictures) // count))][:count]
    recipe = v1.Compose(
        [
            v1.RandomResizedCrop(224, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    )
    ours = loader(pictures, RandomResizedCrop(), 224, batch, resident=False)

    def read(i: int) -> Image.Image:
        with open(paths[i], "rb") as file:
            return Image.open(file).convert("RGB")

    return {
        "DataLoader, MAE's recipe (Pillow, v1), JPEG": per_picture(read, len(paths), recipe, batch),
        "mimkit, streaming, JPEG": lambda: sum(len(made.images) for made in ours.micro_batches(0, count // batch)),
    }


def measure(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """CPU microseconds a picture, one number a round; the first, warming round is dropped."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            count = run()
            found[name].append((time.process_time() - start) / count * 1e6)
    return {name: times[1:] for name, times in found.items()}


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """How many times less `one` costs than `other`."""
    return statistics.median(b / a for a, b in zip(times[one], times[other], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("MIMKIT_SHARED_DATA", "../shared/data")
    parser.add_argument("--small", default=f"{shared}/cifar10", help="pictures of 32x32")
    parser.add_argument("--photos", default=f"{shared}/in1k_sample", help="a folder of JPEG files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="a file, or - for standard output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    results = []
    color = open_pictures([args.small], "train", channels=3)
    settings = {"small": small(color, 32), "gray": small(gray(color), 28), "photos": photos(args.photos)}
    for setting, runs in settings.items():
        times = measure(runs, args.rounds)
        for name in runs:
            row = {"setting": setting, "pipeline": name, "us_per_picture": statistics.median(times[name])}
            if name.startswith("mimkit"):
                kind = name.split(", ")[-1]  # compared with the peers that do the same work
                peers = [peer for peer in runs if not peer.startswith("mimkit") and peer.endswith(kind)]
                row["times_less"] = {peer: ratio(times, name, peer) for peer in peers}
            results.append(row)
    table = Table("setting", "pipeline", "CPU us / picture", "pictures / s / core", title="input, one thread")
    for row in results:
        microseconds = row["us_per_picture"]
        table.add_row(row["setting"], row["pipeline"], f"{microseconds:,.1f}", f"{1e6 / microseconds:,.0f}")
    console = Console(stderr=args.json == "-")
    console.print(table)
    for row in results:
        for peer, times in row.get("times_less", {}).items():
            console.print(f"{row['setting']}: {row['pipeline']}: {times:.1f} times less CPU than {peer}")
    if args.json:
        text = json.dumps(results, indent=1)
        print(text) if args.json == "-" else Path(args.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
