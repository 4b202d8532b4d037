"""Maps: the file of a number, a color or a depth for each pixel enters; an array leaves, or what all of them hold."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.core.files import read_regular
from mimkit.data.annotations.remembered import Arrays, in_threads, remembered
from mimkit.data.folders import Files
from mimkit.data.header import BadPicture, check_size

ENDINGS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".npy")
"""Of maps; JPEG changes values."""
_FORMATS = ("PNG", "BMP", "GIF", "TIFF")
COLORS = 256  # at most so many colors stand for classes: more is a photograph, or a blurred mask
INDEX, GRAY, COLOR = 0, 1, 2  # what a map holds: numbers, numbers written thrice as R, G and B, or colors


def read_values(path: bytes) -> np.ndarray:
    """The stored values of a map: (H, W) numbers, of a palette the indices; (H, W, 3) uint8 of colors.

    Raises BadPicture.
    """
    try:
        data = read_regular(path)
        if path.lower().endswith(b".npy"):
            return _of_numpy(np.load(io.BytesIO(data), allow_pickle=False))
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        check_size(*picture.size)
        return _of_pillow(picture, data)
    except BadPicture:
        raise
    except OSError as error:
        raise BadPicture(f"cannot be opened: {error.strerror or error}") from error
    except Exception as error:  # decoders meet damaged bytes
        raise BadPicture(
            f"cannot be decoded: {(str(error).splitlines() or [type(error).__name__])[0][:100]}"
        ) from error


def _of_numpy(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 or array.dtype.kind not in "uifb":
        raise BadPicture(f"holds an array {array.shape} of {array.dtype}, not (H, W) of numbers")
    check_size(array.shape[1], array.shape[0])
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _of_pillow(picture: Image.Image, data: bytes) -> np.ndarray:
    png = picture.format == "PNG"
    depth, color_type = (data[24], data[25]) if png else (8, 0)
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode in ("L", "P"):
        values = np.array(picture)
        # Pillow spreads the 4 or 16 shades of such files over 0..255.
        return values // (255 // (2**depth - 1)) if png and color_type == 0 and depth in (2, 4) else values
    if depth == 16 and not picture.mode.startswith("I"):
        raise BadPicture("holds 16-bit colors, which no map has")
    if picture.mode in ("LA", "PA"):
        return np.array(picture.getchannel(0))
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.array(picture)
    if picture.mode in ("RGB", "RGBA"):
        return np.array(picture.convert("RGB"))
    raise BadPicture(f"is a picture of the mode {picture.mode}, not of numbers")


def packed(values: np.ndarray) -> np.ndarray:
    """(H, W) numbers; colors as red * 65,536 + green * 256 + blue."""
    if values.ndim == 2:
        return values
    red, green, blue = (values[:, :, channel].astype(np.int32) for channel in range(3))
    return (red << 16) | (green << 8) | blue


@dataclass(frozen=True)
class Census:
    """What the maps of a set hold; n files."""

    sizes: np.ndarray
    """(n, 2) height and width; 0 of those that cannot be read."""
    kinds: np.ndarray
    """(n) INDEX, GRAY or COLOR."""
    values: np.ndarray
    """Stored values of the first file, of the second and so on, each once a file; colors packed."""
    pixels: np.ndarray
    """How many pixels of that file have each."""
    ends: np.ndarray
    """(n) where each file's values end."""
    reasons: np.ndarray
    """(n) why a file cannot be read; empty texts of others."""

    @property
    def bad(self) -> list[int]:
        """Files that cannot be read."""
        return np.flatnonzero(self.reasons != "").tolist()

    def file_of(self, value: int) -> int:
        """The first file that holds a value."""
        return int(np.searchsorted(self.ends, np.flatnonzero(self.values == value)[0], side="right"))


def census(files: Files) -> Census:
    """Look at every map; from the cache if none has changed since."""
    paths = [files.path(number) for number in range(len(files))]
    return Census(**remembered("census 1", paths, lambda: _look(paths)))


def _look(paths: Sequence[bytes]) -> Arrays:
    rows = in_threads(_look_at, paths)
    return {
        "sizes": np.array([row[0] for row in rows], np.int32).reshape(-1, 2),
        "kinds": np.array([row[1] for row in rows], np.int8),
        "values": np.concatenate([row[2] for row in rows]) if rows else np.zeros(0, np.int64),
        "pixels": np.concatenate([row[3] for row in rows]) if rows else np.zeros(0, np.int64),
        "ends": np.cumsum([len(row[2]) for row in rows]),
        "reasons": np.array([row[4] for row in rows], str),
    }


def _look_at(path: bytes) -> tuple[tuple[int, int], int, np.ndarray, np.ndarray, str]:
    nothing = np.zeros(0, np.int64)
    try:
        array = read_values(path)
    except BadPicture as error:
        return (0, 0), INDEX, nothing, nothing, str(error)
    size = (array.shape[0], array.shape[1])
    if array.dtype.kind == "f":
        return size, INDEX, nothing, nothing, "holds fractions, not numbers of classes"
    kind = INDEX
    if array.ndim == 3:
        gray = (array[:, :, 0] == array[:, :, 1]).all() and (array[:, :, 0] == array[:, :, 2]).all()
        kind, array = (GRAY, array[:, :, 0]) if gray else (COLOR, packed(array))
    if array.dtype == np.uint8:
        pixels = np.bincount(array.ravel(), minlength=256)
        values = np.flatnonzero(pixels)
        return size, kind, values, pixels[values], ""
    values, pixels = np.unique(array, return_counts=True)
    return size, kind, values[: 4 * COLORS].astype(np.int64), pixels[: 4 * COLORS], ""


def header_sizes(pictures: Files) -> np.ndarray:
    """(n, 2) height and width of each picture, upright; 0 of those that cannot be read, which the loader meets."""

    def size(number: int) -> tuple[int, int]:
        try:
            return pictures.size(number)
        except BadPicture:
            return 0, 0

    def sizes() -> Arrays:
        return {"sizes": np.array(in_threads(size, range(len(pictures))), np.int32).reshape(-1, 2)}

    paths = [pictures.path(number) for number in range(len(pictures))]
    return remembered(f"sizes 1 {pictures.reading}", paths, sizes)["sizes"]


def same_shape(size: np.ndarray, other_size: np.ndarray) -> np.ndarray:
    """Whether two sizes (..., 2) have one aspect, but for a pixel of rounding."""
    height, width = size[..., 0].astype(float), size[..., 1].astype(float)
    rows, columns = other_size[..., 0].astype(float), other_size[..., 1].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        tall = np.abs(rows - height * columns / width)
        wide = np.abs(columns - width * rows / height)
    return np.asarray(np.minimum(tall, wide) <= 1)


def check_sizes(pictures: np.ndarray, maps: np.ndarray, files: Files, word: str) -> tuple[str, ...]:
    """Compare sizes (n, 2) of pictures and their maps; 0 is not known. What is scaled becomes a note.

    Raises UserError where the aspects differ.
    """
    both = (pictures > 0).all(1) & (maps > 0).all(1)
    differ = both & (pictures != maps).any(1)
    wrong = np.flatnonzero(differ & ~same_shape(pictures, maps))
    if len(wrong):
        names = [
            f"{files.where(number)} ({maps[number, 1]}x{maps[number, 0]} for a picture of "
            f"{pictures[number, 1]}x{pictures[number, 0]})"
            for number in wrong[:3].tolist()
        ]
        turned = pictures[wrong] == maps[wrong][:, ::-1]
        hint = "; they lie on their side: turn pictures as their EXIF says, or the files" if turned.all() else ""
        raise UserError(
            f"{len(wrong):,} {word} have another shape than their picture: {', '.join(names)}{hint}: make them anew"
        )
    if not differ.any():
        return ()
    first = files.where(int(np.flatnonzero(differ)[0]))
    return (f"{int(differ.sum()):,} {word} have another size than their picture, as {first}: scaled by nearest pixels",)


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (H, W) of another size, by the nearest pixel's middle."""
    if values.shape == size:
        return values
    rows = ((np.arange(size[0]) + 0.5) * values.shape[0] / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * values.shape[1] / size[1]).astype(np.int64)
    return values[rows[:, None], columns]
