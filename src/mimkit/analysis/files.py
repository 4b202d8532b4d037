"""Files: pictures enter; how large their files are and what reading them costs, as they are and re-encoded, leave."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn.functional import interpolate

from mimkit.data.decode import BadPicture
from mimkit.data.encoded import Encoded, encoded_bytes
from mimkit.data.pictures import Pictures, Subset, sample
from mimkit.data.stream import MicroBatches
from mimkit.data.stream import Plan as Order
from mimkit.data.views import View

SHORTER_SIDE, QUALITY = 256, 90  # of files that are re-encoded
_READ = 64  # pictures
_SECONDS = 3.0  # of trying, at most about


@dataclass(frozen=True, kw_only=True)
class Files:
    """What was measured."""

    count: int
    """Pictures that were read."""
    size: float | None
    """Mean bytes of a file; None where pictures lie in memory as pixels."""
    per_second: float
    """Pictures that become views in a second of one core here."""
    small_size: float | None = None
    """Mean bytes of a file, re-encoded as JPEG with a shorter side of SHORTER_SIDE; None where that saves nothing."""
    small_per_second: float | None = None


class _Held(Encoded):
    """JPEG files in memory."""

    def __init__(self, pictures: Pictures, files: Sequence[bytes]) -> None:
        self.name, self.reading, self._files = pictures.name, pictures.reading, files

    def __len__(self) -> int:
        return len(self._files)

    @property
    def fingerprint(self) -> str:
        return ""

    def data(self, i: int) -> bytes:
        return self._files[i]

    def where(self, i: int) -> str:
        return f"{self.name} picture {i}"


def measure_files(pictures: Pictures, views: Sequence[View], size: tuple[int, int]) -> Files:
    """Read some pictures, spread over the set, as a reader does: decoded, cut and resized on one core.

    Raises:
        UserError: hardly any can be read.
    """
    index = sample(len(pictures), _READ)
    few = Subset(pictures, torch.tensor(index))
    sizes = [len(data) for i in index if (data := _data(pictures, i)) is not None]
    result = Files(
        count=len(index), size=sum(sizes) / len(sizes) if sizes else None, per_second=_per_second(few, views, size)
    )
    files = _re_encoded(few) if sizes and pictures.values.plain and pictures.channels in (1, 3) else []
    small = sum(map(len, files)) / max(1, len(files))
    if not files or result.size is None or small > 0.9 * result.size:
        return result
    return Files(
        count=result.count,
        size=result.size,
        per_second=result.per_second,
        small_size=small,
        small_per_second=_per_second(_Held(pictures, files), views, size),
    )


def _data(pictures: Pictures, i: int) -> bytes | None:
    """The bytes of a file; None where there is none, or it cannot be read."""
    try:
        return encoded_bytes(pictures, i)
    except BadPicture:
        return None


def _per_second(pictures: Pictures, views: Sequence[View], size: tuple[int, int]) -> float:
    """By the CPU time of this thread; the fastest of a few times, since others only ever add."""
    n, threads = len(pictures), torch.get_num_threads()
    order = Order(seed=0, n=n, batch_size=n, micro_batch=n, other_views=len(views) - 1)
    make, least, end = MicroBatches(pictures, tuple(views), size, order, 0), float("inf"), time.monotonic() + _SECONDS
    torch.set_num_threads(1)
    try:
        for step in range(4):
            start = time.process_time()
            make(step)
            least = min(least, time.process_time() - start)
            if time.monotonic() > end:
                break
    finally:
        torch.set_num_threads(threads)
    return n / max(least, 1e-9)


def _re_encoded(pictures: Pictures) -> list[bytes]:
    """Pictures as JPEG files with a shorter side of SHORTER_SIDE; none where one has no larger side than that."""
    files = []
    for i in range(len(pictures)):
        try:
            pixels = pictures.read(i)
        except BadPicture:
            continue
        shorter = min(pixels.shape[1:])
        if shorter > SHORTER_SIDE:
            shape = [round(side * SHORTER_SIDE / shorter) for side in pixels.shape[1:]]
            pixels = interpolate(pixels[None], shape, mode="bicubic", antialias=True)[0]
        out = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(out, "JPEG", quality=QUALITY)
        files.append(out.getvalue())
    return files
