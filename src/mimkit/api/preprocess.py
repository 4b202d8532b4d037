"""Preprocessing: a path, a picture of Pillow or an array enters; the image that a model was trained to see leaves."""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.data.decode import BadPicture, decode, from_array, from_pillow
from mimkit.data.loader import Normalize
from mimkit.data.resize import crop_resize_one
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
            picture: a path; a picture of Pillow, turned upright by its EXIF note; or an array of uint8, uint16 (0 to
                65535) or float (0 to 1), (H, W) or (H, W, C). What stands for black and white in 16-bit and float
                pictures is as in training, where that was set.

        Raises:
            UserError: it cannot be read, or has channels that the model does not take.
        """
        pixels = self.pixels(picture)
        height, width = torch.tensor(pixels.shape[1:]).split(1)
        boxes, _ = self.view.boxes(torch.zeros(1, dtype=torch.int64), height, width, self.size)
        image = crop_resize_one(pixels, boxes[0], False, self.size, self.view.interpolation)
        return Normalize(self.mean, self.std, torch.device("cpu"))(image.unsqueeze(0))[0]

    def pixels(self, picture: Picture) -> UInt8[Tensor, "C H W"]:
        """The whole picture upright in the model's channels, before any crop. Raises UserError."""
        name = "the picture"
        try:
            if isinstance(picture, np.ndarray):
                return from_array(picture, self.channels, self.reading.value_range)
            if isinstance(picture, Image.Image):
                if self.channels not in (1, 3):
                    raise BadPicture(f"has at most 4 channels, the model sees {self.channels}: give an array")
                return from_pillow(picture, self.channels, self.reading.value_range)
            if not isinstance(picture, (str, os.PathLike)):
                raise UserError(f"a picture is a path, one of Pillow or an array, got {type(picture).__name__}")
            name = os.fspath(picture)
            return decode(Path(picture).expanduser().read_bytes(), self.channels, self.reading.value_range)
        except BadPicture as error:
            raise UserError(f"{name} cannot be used: {error}") from error
        except OSError as error:
            raise UserError(f"{name} cannot be opened: {error.strerror or error}") from error

    def __repr__(self) -> str:
        sides = f"{self.size[0]}x{self.size[1]}"
        return f"Preprocess({self.channels} channels, {sides}, mean {self.mean}, std {self.std}, {self.view})"
