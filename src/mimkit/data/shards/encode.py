"""What is packed of a picture: its number enters; the bytes of its file, or of a smaller JPEG, and its name leave."""

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision.io import encode_jpeg, encode_png

from mimkit.core.errors import UserError, at_least, within
from mimkit.data.classes import UNLABELED
from mimkit.data.encoded import encoded_bytes
from mimkit.data.folders import ENDINGS
from mimkit.data.header import BadPicture
from mimkit.data.pictures import Pictures
from mimkit.data.resize import crop_resize_one

AT_ONCE = 32  # pictures that a worker hands over together
_LONGEST = 120  # bytes of the name of a class in that of a member
_STARTS = (
    *((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"RIFF", "webp")),
    *((b"II", "tif"), (b"MM", "tif"), (b"\0\0\0\x0cjP", "jp2"), (b"\xff\x4f\xff\x51", "jp2")),
)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How pictures become shards."""

    shorter_side: int | None = None
    """Pictures whose shorter side is longer are shrunk to it and become JPEG; None: every file is kept as it is."""
    quality: int | None = None
    """Of JPEG, 1 to 100, by default 95; without a shorter side, every picture becomes JPEG of this quality."""
    shard_mb: float = 256
    """Millions of bytes in a shard."""

    def check(self) -> None:
        """Raises UserError."""
        at_least(8, **{"shorter-side": self.shorter_side})
        within(1, 100, quality=self.quality)
        if not self.shard_mb > 0:
            raise UserError(f"shard-mb must be above 0, got {self.shard_mb:g}")


class Entry(NamedTuple):
    """A picture that is to be packed."""

    number: int
    data: bytes
    reason: str
    """Why it cannot be; empty."""


@dataclass(frozen=True)
class Entries:
    """Number of a chunk -> its pictures. For workers."""

    pictures: Pictures
    order: Int64[Tensor, " n"]
    packing: Packing

    def __call__(self, i: int) -> list[Entry]:
        return [self.entry(number) for number in self.order[i * AT_ONCE : (i + 1) * AT_ONCE].tolist()]

    def entry(self, number: int) -> Entry:
        """One of them."""
        try:
            return Entry(number, self.encoded(number), "")
        except BadPicture as error:
            return Entry(number, b"", str(error))

    def encoded(self, number: int) -> bytes:
        """What is packed of a picture, which has been decoded once. Raises BadPicture."""
        data, pixels = encoded_bytes(self.pictures, number), self.pictures.read(number)
        side, quality = self.packing.shorter_side, self.packing.quality
        shorter = min(pixels.shape[1:])
        if side is not None and shorter > side:
            return _jpeg(shrunk(pixels, side), quality or 95)
        if side is None and quality is not None:
            return _jpeg(pixels, quality)
        return encode_png(pixels.contiguous()).numpy().tobytes() if data is None else data


def _jpeg(pixels: UInt8[Tensor, "C H W"], quality: int) -> bytes:
    data = encode_jpeg(pixels.contiguous(), quality)
    assert isinstance(data, Tensor)
    return data.numpy().tobytes()


def shrunk(pixels: UInt8[Tensor, "C H W"], side: int) -> UInt8[Tensor, "C h w"]:
    """A picture whose shorter side has so many pixels."""
    height, width = pixels.shape[1:]
    size = (side, round(width * side / height)) if height < width else (round(height * side / width), side)
    return crop_resize_one(pixels, torch.tensor([0, 0, height, width]), False, size)


def refuse_deep(pictures: Pictures, packing: Packing) -> None:
    """Raises UserError where pictures have to be encoded, and are not what JPEG or PNG of 8 bits hold."""
    encode = packing.shorter_side is not None or packing.quality is not None
    plain = pictures.storage.dtype == torch.uint8 and pictures.channels in (1, 3)
    if plain or not (encode or encoded_bytes(pictures, 0) is None):
        return
    fix = "leave out --shorter-side and --quality" if encode else "pack the files that they are made of"
    raise UserError(f"the pictures of {pictures.name} are not gray or color of 8 bits, which is what is encoded: {fix}")


def class_folders(pictures: Pictures) -> dict[int, str]:
    """What names of pictures begin with, by label: others who read the shards see the classes there."""
    folders = {UNLABELED: "unlabeled/" if pictures.labels is not None else ""}
    for number, name in enumerate(pictures.classes or ()):
        plain = re.sub(r"^\.|[/\\\0]", "_", name) or "_"
        folders[number] = plain.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore") + "/"
    return folders


def ending_of(data: bytes, where: str) -> str:
    """The ending of a picture by its first bytes, else that of its name."""
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    if data[128:132] == b"DICM":
        return "dcm"
    named = os.path.splitext(where)[1].lower()
    return next((name for start, name in _STARTS if data.startswith(start)), named[1:] if named in ENDINGS else "ppm")
