"""Objects: a folder of masks named like the pictures enters, the share of each patch that they cover leaves."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mimkit.core.errors import UserError
from mimkit.data.folders import index
from mimkit.data.pictures import Pictures
from mimkit.data.resize import crop_resize
from mimkit.data.views import View

DIFFERENT = 1.03  # how much the aspects of a picture and its mask may differ: a few pixels of rounding


def object_fractions(
    folder: Path,
    pictures: Pictures,
    numbers: Sequence[int],
    view: View,
    size: tuple[int, int],
    patch: tuple[int, int],
) -> Float[Tensor, "B N"]:
    """The share of each patch that belongs to the object, 0..1.

    Args:
        folder: masks, any kind of picture; what is not zero is the object. One belongs to the picture of the same
            name, endings aside, in the same subfolders or, where there is none, in none.
        pictures: the pictures, which must be files.
        numbers: which of them.
        view: what is seen of a picture: an unmirrored one without randomness. Masks are cut and resized alike.
        size: of the images in pixels.
        patch: of a patch in pixels.

    Raises:
        UserError: there is no folder, no mask of a picture, or one that cannot be read or has another aspect.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: --objects wants masks that are named like the pictures")
    files = {os.path.splitext(os.fsdecode(path))[0]: os.fsdecode(path) for path in index(folder).pictures}
    fractions = []
    for number in numbers:
        place = pictures.where(number)
        parts = PurePath(place).with_suffix("").parts
        # The longest path that a mask shares with the picture, from the end: names may repeat in other subfolders.
        match = next((files[name] for start in range(len(parts)) if (name := "/".join(parts[start:])) in files), None)
        if not Path(place).is_file():
            raise UserError(f"{place} is no file whose name an object mask could have: give --data a folder")
        if match is None:
            raise UserError(f"{folder} has no object mask of {place}: name it {parts[-1]}.png, or leave --objects away")
        whole = read_object(folder / match)
        height, width = pictures.size(number)
        # Masks may be of another size than the pictures, as long as the same box means the same part.
        stretch = (whole.shape[0] * width) / (whole.shape[1] * height)
        if not 1 / DIFFERENT < stretch < DIFFERENT:
            shape = f"{whole.shape[1]}x{whole.shape[0]}"
            raise UserError(f"{folder / match} is {shape} but {place} is {width}x{height}: let aspects agree")
        sides = torch.tensor([whole.shape[0]]), torch.tensor([whole.shape[1]])
        boxes, flip = view.boxes(torch.zeros(1, dtype=torch.int64), *sides, size)
        # As a picture of 0 and 255: the mask is cut and resized by the very code that cuts the picture.
        pixels = torch.from_numpy(whole.astype(np.uint8) * 255)[None, None]
        fractions.append(avg_pool2d(crop_resize(pixels, boxes, flip, size, "bilinear") / 255, patch).flatten())
    return torch.stack(fractions)


def read_object(file: Path) -> np.ndarray:
    """Which pixels of a mask are not zero, as booleans (height, width).

    Numbers are taken as they are stored: indices of a palette, 16 bits. Transparent pixels are zero.
    """
    try:
        with Image.open(file) as opened:
            values = np.asarray(ImageOps.exif_transpose(opened))
            alpha = opened.mode in ("LA", "PA", "RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"object mask {file} cannot be read ({error}): save it as PNG") from error
    # Compared before any conversion: of a palette the index tells the object, of 16 bits a value below 256 would
    # vanish.
    values = (values if values.ndim == 3 else values[..., None]) != 0
    inside = values[..., :-1].any(axis=2) & values[..., -1] if alpha else values.any(axis=2)
    return np.asarray(inside)
