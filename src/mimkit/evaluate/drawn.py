"""Truth beside prediction: pictures with what is known and what is said of them enter, one sheet for people leaves."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mimkit.core.annotation import VOID, Annotation, DenseTask, Joints, Prediction
from mimkit.core.display import Display, hatched
from mimkit.core.grids import RAMP, colorize
from mimkit.data.values import Values
from mimkit.evaluate.measured import SURE

SIDE = 300  # pixels of the longer side of each picture
GAP, LINE = 8, 20  # pixels between pictures; of a line of words
DIMMED = 0.55  # of a picture's brightness under outlines and skeletons
LEGEND = 24  # classes named below the sheet
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_STEP = 0.61803398875  # of the color circle from a class to the next: neighbors differ most (golden ratio)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture to be drawn."""

    pixels: Float[Tensor, "3 H W"]
    """In 0..1."""
    truth: Annotation | None
    prediction: Prediction
    title: str


def class_color(number: int) -> tuple[int, int, int]:
    """The fixed color of a class, in 0..255; those of neighboring numbers lie far apart."""
    red, green, blue = colorsys.hsv_to_rgb(number * _STEP % 1, 0.75 - 0.25 * (number % 3 == 2), 1 - 0.3 * (number % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def shown_pixels(picture: Shaped[Tensor, "C H W"], values: Values) -> Float[Tensor, "3 H W"]:
    """A picture as colors in 0..1; of more than three channels the first three."""
    levels = (picture.float() if values.plain else values.levels(picture)) / 255
    channels = len(levels)
    return Display(mean=(0.0,) * channels, std=(1.0,) * channels)(levels.nan_to_num(0.5).unsqueeze(0))[0]


def draw(
    rows: Sequence[Shown], kind: DenseTask, categories: Sequence[str], joints: Joints | None = None
) -> Image.Image:
    """A sheet with a row for each picture: the picture, the truth where it is known, the prediction, and for depths
    the error, with a legend of the classes that are there or a scale.
    """
    scale = _depth_range(rows) if kind == "depth" else (0.0, 1.0)
    strips = [_strip(row, kind, categories, joints, scale) for row in rows]
    width = max(strip.width for strip in strips)
    legend = _legend(rows, kind, categories, scale, width)
    sheet = Image.new("RGB", (width, sum(strip.height + GAP for strip in strips) + legend.height), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + GAP
    sheet.paste(legend, (0, top))
    return sheet


def _strip(
    row: Shown, kind: DenseTask, categories: Sequence[str], joints: Joints | None, scale: tuple[float, float]
) -> Image.Image:
    """One picture, its truth and its prediction side by side under their titles."""
    height, width = row.pixels.shape[1:]
    zoom = SIDE / max(height, width)
    size = (max(1, round(height * zoom)), max(1, round(width * zoom)))
    pixels = F.interpolate(row.pixels.unsqueeze(0), size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    cells = [(row.title, _image(pixels))]
    for title, annotation in (("truth", row.truth), ("prediction", row.prediction)):
        if annotation is not None:
            cells.append((title, _annotated(pixels, annotation, kind, categories, joints, zoom, scale)))
    if kind == "depth" and row.truth is not None and row.truth.depth is not None and row.prediction.depth is not None:
        error = (row.prediction.depth - row.truth.depth).abs()
        cells.append(("error", _depths(error, size, (0.0, (scale[1] - scale[0]) / 4))))
    font = ImageFont.load_default(size=13)
    strip = Image.new("RGB", (len(cells) * (size[1] + GAP), size[0] + LINE), "white")
    pen = ImageDraw.Draw(strip)
    for number, (title, cell) in enumerate(cells):
        x = number * (size[1] + GAP)
        pen.text((x, LINE - 5), title, fill="black", font=font, anchor="ls")
        strip.paste(cell, (x, LINE))
    return strip


def _annotated(
    pixels: Float[Tensor, "3 h w"],
    annotation: Annotation,
    kind: DenseTask,
    categories: Sequence[str],
    joints: Joints | None,
    zoom: float,
    scale: tuple[float, float],
) -> Image.Image:
    size = (pixels.shape[1], pixels.shape[2])
    if kind == "segment" and annotation.segments is not None:
        return _segments(pixels, annotation.segments)
    if kind == "depth" and annotation.depth is not None:
        return _depths(annotation.depth, size, scale)
    if isinstance(annotation, Prediction) and annotation.scores is not None and kind == "detect":
        annotation = annotation.at(annotation.scores >= SURE)
    image = _image(_outlined(pixels * DIMMED, annotation) if kind == "detect" else pixels * DIMMED)
    pen = ImageDraw.Draw(image)
    if kind == "keypoints" and joints is not None:
        _skeletons(pen, annotation, joints, zoom)
    elif kind == "detect":
        _boxes(pen, annotation, categories, zoom)
    return image


def _segments(pixels: Float[Tensor, "3 h w"], segments: Shaped[Tensor, "H W"]) -> Image.Image:
    """Classes as colors over the picture in gray; what has none is hatched."""
    size = pixels.shape[1:]
    small = F.interpolate(segments[None, None].float(), size, mode="nearest")[0, 0].long()
    table = torch.tensor([class_color(number) for number in range(max(1, int(small.max()) + 1))]) / 255
    colors = table[small.clamp(min=0)].permute(2, 0, 1)
    mixed = 0.35 * pixels.mean(0, keepdim=True) + 0.65 * colors
    return _image(hatched(mixed[None], (small == VOID)[None, None])[0])


def _depths(depth: Float[Tensor, "H W"], size: Sequence[int], scale: tuple[float, float]) -> Image.Image:
    """Meters as colors, dark violet (near) to yellow (far); what is not known is hatched."""
    small = F.interpolate(depth[None, None], (size[0], size[1]), mode="nearest")
    return _image(hatched(colorize(small.nan_to_num(scale[0]), scale), small.isnan())[0])


def _outlined(pixels: Float[Tensor, "3 h w"], annotation: Annotation) -> Float[Tensor, "3 h w"]:
    """The outlines of masks in the colors of their classes, and a little of the color inside."""
    if annotation.masks is None or annotation.labels is None or not len(annotation.masks):
        return pixels
    size, pixels = pixels.shape[1:], pixels.clone()
    masks = F.interpolate(annotation.masks[None].float(), (size[0], size[1]), mode="nearest")[0] > 0.5
    for mask, label in zip(masks, annotation.labels.tolist(), strict=True):
        color = torch.tensor(class_color(label)).view(3, 1) / 255
        pixels[:, mask] = 0.7 * pixels[:, mask] + 0.3 * color
        pixels[:, _edge(mask)] = color
    return pixels


def _edge(mask: Bool[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Pixels of a mask beside one that is not."""
    inner = -F.max_pool2d(-F.pad(mask[None, None].float(), (1, 1, 1, 1)), 3, stride=1)[0, 0]
    return mask & (inner < 1)


def _boxes(pen: ImageDraw.ImageDraw, annotation: Annotation, categories: Sequence[str], zoom: float) -> None:
    assert annotation.boxes is not None and annotation.labels is not None
    font = ImageFont.load_default(size=12)
    scores = annotation.scores if isinstance(annotation, Prediction) else None
    crowd = annotation.crowd
    for number, (box, label) in enumerate(zip(annotation.boxes, annotation.labels.tolist(), strict=True)):
        x0, y0, x1, y1 = (box * zoom).tolist()
        color = class_color(label)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=2)
        words = categories[label] if label < len(categories) else f"class {label}"
        words += f" {scores[number]:.2f}" if scores is not None else ""
        words += " (crowd)" if crowd is not None and bool(crowd[number]) else ""
        place = pen.textbbox((x0 + 2, max(0, y0 - 14)), words, font=font)
        pen.rectangle(place, fill=color)
        pen.text((x0 + 2, max(0, y0 - 14)), words, fill="white" if sum(color) < 420 else "black", font=font)


def _skeletons(pen: ImageDraw.ImageDraw, annotation: Annotation, joints: Joints, zoom: float) -> None:
    if annotation.keypoints is None:
        return
    floor = 0.2 if isinstance(annotation, Prediction) else 0.0
    for number, person in enumerate(annotation.keypoints):
        color = class_color(number)
        points = (person[:, :2] * zoom).tolist()
        labeled = (person[:, 2] > floor).tolist()
        for start, end in joints.bones:
            if labeled[start] and labeled[end]:
                pen.line((*points[start], *points[end]), fill=color, width=3)
        for (column, row), drawn in zip(points, labeled, strict=True):
            if drawn:
                pen.ellipse((column - 3, row - 3, column + 3, row + 3), fill="white", outline=color, width=2)


def _depth_range(rows: Sequence[Shown]) -> tuple[float, float]:
    """The nearest and the farthest depth of the sheet, one scale for all."""
    depths = [a.depth for row in rows for a in (row.truth, row.prediction) if a is not None and a.depth is not None]
    values = torch.cat([depth[~depth.isnan()] for depth in depths])
    return (float(values.min()), max(float(values.max()), float(values.min()) + 1e-3)) if len(values) else (0.0, 1.0)


def _legend(
    rows: Sequence[Shown], kind: DenseTask, categories: Sequence[str], scale: tuple[float, float], width: int
) -> Image.Image:
    """Names of the classes that are shown, or what the colors of depths and errors mean."""
    font = ImageFont.load_default(size=13)
    if kind == "keypoints":
        return Image.new("RGB", (width, 0), "white")
    if kind == "depth":
        return _scale(scale, width, font)
    present = set[int]()
    for row in rows:
        for annotation in filter(None, (row.truth, row.prediction)):
            numbers = annotation.segments if kind == "segment" else annotation.labels
            if isinstance(annotation, Prediction) and kind == "detect" and annotation.scores is not None:
                numbers = annotation.at(annotation.scores >= SURE).labels
            present |= set() if numbers is None else set(numbers.unique().tolist()) - {VOID}
    entries = [(class_color(i), categories[i] if i < len(categories) else f"class {i}") for i in sorted(present)]
    if len(entries) > LEGEND:
        entries = [*entries[:LEGEND], ((255, 255, 255), f"and {len(entries) - LEGEND} more")]
    return _entries(entries, width, font)


def _entries(entries: list[tuple[tuple[int, int, int], str]], width: int, font: Font) -> Image.Image:
    places, x, top = [], 0, 0
    for color, name in entries:
        needed = 22 + int(font.getlength(name)) + 14
        if x and x + needed > width:
            x, top = 0, top + LINE
        places.append((x, top, color, name))
        x += needed
    legend = Image.new("RGB", (width, top + LINE if entries else 0), "white")
    pen = ImageDraw.Draw(legend)
    for x, top, color, name in places:
        pen.rectangle((x, top + 4, x + 14, top + 16), fill=color)
        pen.text((x + 20, top + 10), name, fill="black", font=font, anchor="lm")
    return legend


def _scale(scale: tuple[float, float], width: int, font: Font) -> Image.Image:
    """A bar from near to far with its ends in meters, and what the error's colors reach to."""
    legend = Image.new("RGB", (width, LINE), "white")
    pen = ImageDraw.Draw(legend)
    bar = min(200, width // 3)
    ramp = torch.tensor(RAMP)
    for column in range(bar):
        place = column / bar * (len(RAMP) - 1)
        below = min(int(place), len(RAMP) - 2)
        color = torch.lerp(ramp[below], ramp[below + 1], place - below)
        pen.line((50 + column, 4, 50 + column, 16), fill=tuple((color * 255).round().int().tolist()))
    pen.text((46, 10), f"{scale[0]:.2f}", fill="black", font=font, anchor="rm")
    words = f"{scale[1]:.2f} m; errors from 0 to {(scale[1] - scale[0]) / 4:.2f} m; hatched: not known"
    pen.text((56 + bar, 10), words, fill="black", font=font, anchor="lm")
    return legend


def _image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
