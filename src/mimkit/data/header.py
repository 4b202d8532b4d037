"""What a picture's header says, and why a picture is refused: what every decoder shares."""

from typing import Any, NamedTuple

from PIL import Image

LARGEST = 1 << 31  # bytes that decoding one picture may take
SMALLEST = 8  # pixels on a side; anything smaller is an icon, a tracking pixel or damage


class BadPicture(Exception):
    """A picture that cannot be read right. The message is a short reason, such as 'truncated'."""


class Header(NamedTuple):
    """What a picture says before any pixel is decoded; height and width after EXIF orientation."""

    height: int
    width: int
    channels: int
    """Alpha not counted: 1 gray, 3 color, N bands."""
    dtype: str = "uint8"
    """NumPy's name of the type of its values."""
    nodata: float | None = None
    """The value that stands for no data, where the file says so."""
    planes: int = 1
    """How many pictures a stack holds, of which one is read."""
    axes: str = ""
    """Letters of the file's axes, as ZCYX, where it has such notes."""


def check_size(width: int, height: int, *, whole: bool = True) -> None:
    """Refuse icons, and what is larger than Pillow's limit against decompression bombs if it is decoded as a whole."""
    if min(width, height) < SMALLEST:
        raise BadPicture(f"{width}x{height}: smaller than {SMALLEST} pixels")
    if whole and Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise BadPicture(f"larger than {2 * Image.MAX_IMAGE_PIXELS:,} pixels")


def check_inflated(stream: Any, data: bytes, largest: int) -> None:
    """Refuse deflated bytes that become more than `largest` bytes, in little memory; `stream` is a decompressobj."""
    size = 0
    while data and not stream.eof:
        size += len(stream.decompress(data, 1 << 22))
        data = stream.unconsumed_tail
        if size > largest:
            raise BadPicture(f"becomes more than {largest:,} bytes when it is inflated")
