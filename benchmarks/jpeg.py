"""What JPEG files cost to become crops: files enter, CPU microseconds a picture and the distance to Pillow's leave.

    python benchmarks/jpeg.py [--images FOLDER] [--count N] [--rounds N] [--json FILE]

Each way decodes a file, cuts a random box (20 to 100 % of the area, as MAE does), resizes it to 224 x 224 with
antialiasing and mirrors half of them. All see the same files, boxes and mirrors, and end in uint8 (3, 224, 224), but
for the one that is MAE's recipe to its end in float32. Files are made from the photographs of scikit-image and
scikit-learn at several sizes, or taken from a folder. Ways go in turns on one thread; times are medians of CPU time
over rounds, ratios medians of each round's. simplejpeg, OpenCV and torchcodec take part where they are installed.
"""

import argparse
import importlib.util
import io
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as v1

from mimkit.core.randomness import rng_keys
from mimkit.data.decode import decode
from mimkit.data.photos import PHOTOGRAPHS, photograph
from mimkit.data.resize import crop_resize_one
from mimkit.data.values import Storage
from mimkit.data.views import RandomResizedCrop
from mimkit.train.machine import keep_freed_memory

SIDE, COLOR = 224, Storage(3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {  # name: width, height, quality
    "500x375, q 90": (500, 375, 90),
    "500x375, q 95": (500, 375, 95),
    "1024x768, q 90": (1024, 768, 90),
    "341x256, q 90": (341, 256, 90),
}
Box = tuple[int, int, int, int]  # top, left, height, width
Way = Callable[[bytes, Box, bool], object]


def generated(count: int, width: int, height: int, quality: int) -> list[bytes]:
    """JPEG files of boxes of the photographs; those that are too small are enlarged first."""
    files = []
    for number in range(count):
        pixels = photograph(number % len(PHOTOGRAPHS)).permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels)
        zoom = max(1.0, width / picture.width, height / picture.height)
        if zoom > 1:
            size = (max(width, round(picture.width * zoom)), max(height, round(picture.height * zoom)))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        across, down = (rng_keys("jpeg", number, torch.arange(2)) % 1000).tolist()
        left, top = across * (picture.width - width) // 1000, down * (picture.height - height) // 1000
        out = io.BytesIO()
        picture.crop((left, top, left + width, top + height)).save(out, "JPEG", quality=quality)
        files.append(out.getvalue())
    return files


def of_folder(folder: str, count: int) -> list[bytes]:
    """Color JPEG files below a folder, spread over it."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = [path.read_bytes() for path in paths[:: max(1, len(paths) // count)]]
    return [data for data in files if Image.open(io.BytesIO(data)).mode == "RGB"][:count]


def boxes_of(files: list[bytes]) -> list[tuple[Box, bool]]:
    """A random box in each file, and whether it is mirrored."""
    sizes = torch.tensor([Image.open(io.BytesIO(data)).size for data in files])
    keys = rng_keys("box", torch.arange(len(files)))
    boxes, flips = RandomResizedCrop().boxes(keys, sizes[:, 1], sizes[:, 0], (SIDE, SIDE))
    return [(tuple(box), flip) for box, flip in zip(boxes.tolist(), flips.tolist(), strict=True)]


def pillow(data: bytes, box: Box, flip: bool) -> Image.Image:
    """MAE's recipe up to the mirror: torchvision's first transforms on Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture = v1.resized_crop(picture, *box, [SIDE, SIDE], InterpolationMode.BICUBIC)
    return v1.hflip(picture) if flip else picture


def cut(pixels: torch.Tensor, box: Box, flip: bool) -> torch.Tensor:
    """A box of (3, H, W), resized in uint8 by torch."""
    return crop_resize_one(pixels, torch.tensor(box), flip, (SIDE, SIDE)).contiguous()


def of_array(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def by_torchvision(data: bytes) -> torch.Tensor:
    return decode_jpeg(as_tensor(data), mode=ImageReadMode.RGB)


def scaled(simplejpeg: object, data: bytes, box: Box, flip: bool) -> torch.Tensor:
    """Decoded at half, a quarter or an eighth of the size by DCT scaling, where the box stays as large as the view."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    part = next((part for part in (8, 4, 2) if min(box[2:]) >= part * SIDE), 1)
    if part == 1:
        return cut(of_array(simplejpeg.decode_jpeg(data)), box, flip)
    pixels = of_array(simplejpeg.decode_jpeg(data, min_height=-(-height // part), min_width=-(-width // part)))
    edges = [round(edge / part) for edge in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
    edges[2:] = min(edges[2], pixels.shape[1]), min(edges[3], pixels.shape[2])
    return cut(pixels, (edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]), flip)


def ways() -> dict[str, Way]:
    """Names and functions; those that only decode have names of their own."""
    found: dict[str, Way] = {
        "Pillow": lambda data, box, flip: v1.pil_to_tensor(pillow(data, box, flip)),
        "Pillow, normalized float32": lambda *words: v1.normalize(v1.to_tensor(pillow(*words)), MEAN, STD),
        "torchvision decode_jpeg + torch": lambda data, box, flip: cut(by_torchvision(data), box, flip),
        "mimkit": lambda data, box, flip: cut(decode(data, COLOR), box, flip),
        "decode: Pillow": lambda data, *_: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "decode: torchvision": lambda data, *_: by_torchvision(data),
        "decode: mimkit": lambda data, *_: decode(data, COLOR),
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg + torch"] = lambda data, box, flip: cut(of_array(simplejpeg.decode_jpeg(data)), box, flip)
        found["simplejpeg, DCT scaling + torch"] = lambda *words: scaled(simplejpeg, *words)
        found["decode: simplejpeg"] = lambda data, *_: simplejpeg.decode_jpeg(data)
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)

        def opened(data: bytes) -> np.ndarray:
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

        found["OpenCV decode + torch"] = lambda data, box, flip: cut(of_array(opened(data)), box, flip)
        found["decode: OpenCV"] = lambda data, *_: opened(data)
    if importlib.util.find_spec("torchcodec"):
        from torchcodec.decoders import decode_jpeg as codec

        found["torchcodec decode_jpeg + torch"] = lambda data, box, flip: cut(codec(as_tensor(data)), box, flip)
        found["decode: torchcodec"] = lambda data, *_: codec(as_tensor(data))
    return found


def measure(files: list[bytes], rounds: int) -> list[dict]:
    """A row for each way: CPU microseconds a picture, times less than Pillow, and levels away from its pictures."""
    boxes, functions = boxes_of(files), ways()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, way in functions.items():
            start = time.process_time()
            for data, (box, flip) in zip(files, boxes, strict=True):
                way(data, box, flip)
            times[name].append((time.process_time() - start) / len(files) * 1e6)
    times = {name: values[1:] for name, values in times.items()}  # the first round warms up
    rows = []
    for name, values in times.items():
        first = times["decode: Pillow" if name.startswith("decode") else "Pillow"]
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        row = {"way": name, "us": round(statistics.median(values)), "times_less": round(ratio, 2)}
        if not name.startswith("decode") and "float32" not in name:
            row |= distance(files, boxes, functions[name], functions["Pillow"])
        rows.append(row)
    return rows


def distance(files: list[bytes], boxes: list[tuple[Box, bool]], way: Way, to: Way) -> dict:
    """Mean and largest difference in levels of 255 over all values, and the share of them beyond one level."""
    differences = [
        (way(data, box, flip).int() - to(data, box, flip).int()).abs().flatten()
        for data, (box, flip) in zip(files, boxes, strict=True)
    ]
    levels = torch.cat(differences)
    return {
        "mean": round(levels.double().mean().item(), 4),
        "most": int(levels.max()),
        "beyond_1": round((levels > 1).double().mean().item(), 6),
    }


def main() -> None:
    """Print a table for each kind of files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of JPEG files, instead of generated ones")
    parser.add_argument("--count", type=int, default=102, help="files of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="append the tables to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if arguments.images:
        kinds = {"own": of_folder(arguments.images, arguments.count)}
    else:
        kinds = {name: generated(arguments.count, *size) for name, size in SIZES.items()}
    for name, files in kinds.items():
        size = sum(map(len, files)) / len(files) / 1000
        rows = measure(files, arguments.rounds)
        print(f"\n{name}: {len(files)} files of {size:.0f} kB on average\n")
        print(
            "| way | CPU us a picture | times less than Pillow | levels away: mean, most, share beyond 1 |\n|-|-|-|-|"
        )
        for row in rows:
            away = f"{row['mean']}, {row['most']}, {row['beyond_1']:.2g}" if "mean" in row else ""
            print(f"| {row['way']} | {row['us']:,} | {row['times_less']} | {away} |", flush=True)
        if arguments.json:
            with open(arguments.json, "a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"files": name, "kB": round(size), "rounds": arguments.rounds, "rows": rows}) + "\n"
                )


if __name__ == "__main__":
    main()
