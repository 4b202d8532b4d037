"""Images of a page: tensors or files enter, small data URIs leave."""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, features
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.files import open_regular
from mimkit.core.grids import TITLE

SIDE = 128  # pixels of a picture's longer side at most
_CRISP = 64  # sides up to which pictures are kept exactly: the colors of single pixels would run otherwise
_KIND = "WEBP" if features.check("webp") else "PNG"
MIME = f"image/{_KIND.lower()}"
_LETTERS = 128  # gray of titles that reads on light and on dark


def uri(picture: Image.Image, *, exact: bool = False, side: int | None = None) -> str:
    """A picture inside a page; `exact` when its pixels are numbers. `side`: of the cells, when they are several."""
    data = base64.b64encode(encoded(picture, exact=exact, side=side)).decode()
    return f"data:{MIME};base64,{data}"


def encoded(picture: Image.Image, *, exact: bool = False, side: int | None = None) -> bytes:
    """The bytes of `uri`, of type `MIME`."""
    # Small pictures are enlarged by the page; lossy compression would run over the edges of their pixels.
    exact = exact or (max(picture.size) if side is None else side) <= _CRISP
    file = io.BytesIO()
    if _KIND == "WEBP":
        picture.save(file, "WEBP", lossless=exact, quality=60 if exact else 84, method=4)
    else:
        picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def picture(image: Float[Tensor, "3 H W"], side: int = SIDE) -> Image.Image:
    """RGB in [0, 1], reduced to `side` where it is larger."""
    drawn = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    scale = side / max(drawn.size)
    if scale >= 1:
        return drawn
    size = max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))
    return drawn.resize(size, Image.Resampling.LANCZOS)


def sheet(cells: list[list[Image.Image]]) -> Image.Image:
    """Rows of equally large pictures without gaps."""
    width, height = cells[0][0].size
    whole = Image.new("RGB", (width * len(cells[0]), height * len(cells)))
    for y, line in enumerate(cells):
        for x, cell in enumerate(line):
            whole.paste(cell, (x * width, y * height))
    return whole


def numbers(cells: Float[Tensor, "rows columns h w"]) -> str:
    """Maps in [0, 1] as one gray sprite of 32 levels."""
    rows, columns, height, width = cells.shape
    # 32 levels: an eye sees no more in a map, and the sprite compresses to a fraction.
    level = (cells.clamp(0, 1) * 31).round() * 255 / 31
    gray = level.permute(0, 2, 1, 3).reshape(rows * height, columns * width)
    return uri(Image.fromarray(gray.round().numpy().astype(np.uint8)), exact=True)


def film_frame(path: Path, width: int = 820) -> Image.Image:
    """One picture of an evaluation, small enough for a page, with nothing where its sheet is white.

    Raises:
        UserError: it cannot be read.
    """
    return narrowed(clear(opened(path)), width)


def opened(path: Path) -> Image.Image:
    """A picture of a run folder in RGB. Raises UserError where it cannot be read."""
    try:
        with open_regular(path) as file, Image.open(file) as sheet:
            return sheet.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # of damaged files
        raise UserError(f"{path} cannot be read ({error}): delete it and make the report again") from error


def narrowed(drawn: Image.Image, width: int) -> Image.Image:
    """A picture at most so wide."""
    if drawn.width <= width:
        return drawn
    return drawn.resize((width, round(drawn.height * width / drawn.width)), Image.Resampling.LANCZOS)


def clear(sheet: Image.Image) -> Image.Image:
    """A `titled_grid` whose gaps are transparent and whose titles are gray: it lies on light and on dark pages."""
    pixels = np.asarray(sheet)
    # Gaps are rows and columns of nothing but white: a picture's own white pixels stay.
    white = (pixels[TITLE:] == 255).all(axis=2)
    gaps = white.all(axis=0, keepdims=True) | white.all(axis=1, keepdims=True)
    titles = np.full((*pixels[:TITLE].shape[:2], 4), _LETTERS, np.uint8)
    titles[:, :, 3] = np.minimum(255, 1.6 * (255.0 - pixels[:TITLE].min(axis=2)))  # thin strokes fade when reduced
    grid = np.dstack([pixels[TITLE:], np.where(gaps, 0, 255).astype(np.uint8)])
    return Image.fromarray(np.concatenate([titles, grid]))
