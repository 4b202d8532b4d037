"""What decoding takes: a picture of noise in each format enters, bytes of memory a sample at the peak leave.

    python benchmarks/decoding.py

Each in a process of its own, on Linux; `mimkit.data.decode` refuses by these numbers what would take too much memory.
"""

import io
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mimkit.data.decode import decode, header
from mimkit.data.values import STORED, Storage

SIDE = 3000
KINDS = ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "AVIF", "JPEG2000")
SHAPES = {"gray": (SIDE, SIDE), "color": (SIDE, SIDE, 3), "16-bit gray": (SIDE, SIDE)}


def encoded(kind: str, name: str) -> bytes | None:
    """A file of noise, or None where the format has no such pictures."""
    deep = name.startswith("16")
    if (deep and kind in ("JPEG", "GIF", "WEBP", "AVIF")) or (kind == "GIF" and name == "color"):
        return None
    values = np.random.default_rng(0).integers(0, 1 << (16 if deep else 8), SHAPES[name])
    out = io.BytesIO()
    settings = {"WEBP": {"lossless": True, "method": 0}, "JPEG": {"progressive": True, "subsampling": 0}}
    Image.fromarray(values.astype(np.uint16 if deep else np.uint8)).save(out, kind, **settings.get(kind, {}))
    return out.getvalue()


def memory(name: str) -> int:
    """Bytes that this process holds (VmRSS) or has held since it was last asked to forget (VmHWM)."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


def measure(data: bytes) -> float:
    """Bytes a sample at the peak, beyond what was held before."""
    torch.set_num_threads(1)
    about = header(data)  # loads the decoder
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    pixels = decode(data, Storage(about.channels, STORED[about.dtype]))
    return (memory("VmHWM") - before) / pixels.numel()


def main() -> None:
    """Print the table."""
    context = multiprocessing.get_context("spawn")
    for kind in KINDS:
        cells = []
        for name in SHAPES:
            with context.Pool(1) as pool:
                data = pool.apply(encoded, (kind, name))
            if data is not None:
                with context.Pool(1) as pool:
                    cells.append(f"{name} {pool.apply(measure, (data,)):.1f}")
        print(f"{kind:10s} {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
