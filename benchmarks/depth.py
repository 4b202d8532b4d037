"""What depth costs: the same pictures in 8 and in 16 bits and as floats enter, CPU seconds as ratios leave.

    python benchmarks/depth.py

Resident pictures of 48 x 48 and streamed ones of 256 x 256, decoded, cropped and normalized in one process on one
thread; rounds in turns, the median of each kind divided by that of 8 bits.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from mimkit.data.loader import Loader, Plan, ViewSettings, statistics
from mimkit.data.sources import open_pictures
from mimkit.data.views import RandomResizedCrop

KINDS = {"8-bit": np.uint8, "16-bit": np.uint16, "float": np.float32}
ROUNDS = 7


def write(folder: Path, dtype: type, side: int, count: int) -> str:
    """Gray pictures of smooth noise: PNG, floats as TIFF."""
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).uniform(0, 1, (side // 8, side // 8))
        smooth = np.asarray(Image.fromarray(noise.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        most = {np.uint8: 255, np.uint16: 4095, np.float32: 1}[dtype]
        ending = "tif" if dtype is np.float32 else "png"
        Image.fromarray((smooth.clip(0, 1) * most).astype(dtype)).save(folder / f"{number}.{ending}")
    return str(folder)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for way, side, count, resident in (("resident", 48, 2000, True), ("streamed", 256, 400, False)):
            loaders = {}
            for name, dtype in KINDS.items():
                pictures = open_pictures([write(Path(folder) / f"{way}-{name}", dtype, side, count)], "all")
                mean, std = statistics(pictures)
                size = (48, 48) if resident else (224, 224)
                settings = ViewSettings(view=RandomResizedCrop(), size=size, mean=mean, std=std)
                loaders[name] = Loader(pictures, settings, Plan(0, count, 100, 100), resident=resident)
            seconds: dict[str, list[float]] = {name: [] for name in KINDS}
            for _ in range(ROUNDS):
                for name, loader in loaders.items():
                    start = time.process_time()
                    for _ in loader.micro_batches(0, count // 100):
                        pass
                    seconds[name].append(time.process_time() - start)
            base = median(seconds["8-bit"])
            cells = [f"{name} {median(each) / base:.2f}" for name, each in seconds.items()]
            print(f"{way:10s} {'  '.join(cells)}   ({1000 * base / count:.3f} ms a picture in 8 bits)")
            if resident:
                held = {name: loader.pictures.storage.dtype.itemsize for name, loader in loaders.items()}
                sizes = [f"{name} {size / held['8-bit']:.0f}" for name, size in held.items()]
                print(f"{'memory':10s} {'  '.join(sizes)}")


if __name__ == "__main__":
    main()
