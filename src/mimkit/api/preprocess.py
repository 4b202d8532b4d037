"""Preprocessing: a path, a picture of Pillow or an array enters; the image that a model was trained to see leaves."""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.data.decode import BadPicture, decode, dtype_of, from_array, from_pillow, header
from mimkit.data.normalize import Normalize
from mimkit.data.resize import crop_resize_one
from mimkit.data.values import STORED, Storage, given_values
from mimkit.evaluate.target import Extractor

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""What can be preprocessed: the path of a file, a picture of Pillow, or an array (H, W) or (H, W, C)."""


class Preprocess:
    """From one picture to one normalized image (C, H, W), bit for bit as evaluation makes it from files.

    Decoding, the central box, antialiased resizing to whole numbers and normalization are those of
    `evaluation_batches`. Of a JPEG, a path is decoded by torchvision as in training, while Pillow's own decoder may
    differ by a step of 255 here and there.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.size, self.channels = extractor.size, extractor.channels
        self.mean, self.std = extractor.mean, extractor.std
        self.view, self.reading = extractor.view, extractor.reading

    def __call__(self, picture: Picture) -> Float[Tensor, "C H W"]:
        """The image in float32 on the CPU; `torch.stack` makes a batch of several.

        Args:
            picture: a path; a picture of Pillow, turned upright by its EXIF note; or an array (H, W) or (H, W, C). What
                stands for black, white and no data, and which bands are seen, is as in training. A model of 8-bit
                pictures takes uint16 by 0..65535 and float by 0..1.

        Raises:
            UserError: it cannot be read, or has channels that the model does not take.
        """
        pixels = self.pixels(picture)
        values = given_values(self.reading, Storage(self.channels, pixels.dtype, self.reading.nodata))
        assert values is not None  # other types than uint8 come with a range
        height, width = torch.tensor(pixels.shape[1:]).split(1)
        boxes, _ = self.view.boxes(torch.zeros(1, dtype=torch.int64), height, width, self.size)
        image = crop_resize_one(pixels, boxes[0], False, self.size, self.view.interpolation, values)
        return Normalize(self.mean, self.std, torch.device("cpu"))(image.unsqueeze(0))[0].nan_to_num_(0.0)

    def pixels(self, picture: Picture) -> Shaped[Tensor, "C H W"]:
        """The whole picture upright in the model's channels, before any crop: in its own type, or in uint8 for a model
        of 8-bit pictures.

        Raises UserError.
        """
        name, reading = "the picture", self.reading
        ranged = reading.value_range is not None
        try:
            if isinstance(picture, np.ndarray):
                return from_array(picture, self.channels, reading)
            if isinstance(picture, Image.Image):
                if self.channels not in (1, 3):
                    raise BadPicture(f"has at most 4 channels, the model sees {self.channels}: give an array")
                return from_pillow(picture, self._storage(dtype_of(picture) if ranged else "uint8"), reading)
            if not isinstance(picture, (str, os.PathLike)):
                raise UserError(f"a picture is a path, one of Pillow or an array, got {type(picture).__name__}")
            name = os.fspath(picture)
            data = Path(picture).expanduser().read_bytes()
            return decode(data, self._storage(header(data, reading).dtype if ranged else "uint8"), reading)
        except BadPicture as error:
            raise UserError(f"{name} cannot be used: {error}") from error
        except OSError as error:
            raise UserError(f"{name} cannot be opened: {error.strerror or error}") from error

    def _storage(self, dtype: str) -> Storage:
        nodata = None if STORED[dtype] == torch.float32 else self.reading.nodata
        return Storage(self.channels, STORED[dtype], nodata)

    def __repr__(self) -> str:
        sides = f"{self.size[0]}x{self.size[1]}"
        return f"Preprocess({self.channels} channels, {sides}, mean {self.mean}, std {self.std}, {self.view})"
