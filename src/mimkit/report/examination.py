"""The doctor's page: an examination enters, a self-contained HTML text with thumbnails of the odd pictures leaves."""

import base64
import hashlib
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from mimkit.analysis.doctor import Examination, rows
from mimkit.analysis.survey import Facts, Survey, duplicates, odd_ones
from mimkit.core.display import Display, hatched, split_holes
from mimkit.data.header import BadPicture
from mimkit.data.loader import evaluation_batches
from mimkit.data.pictures import Pictures
from mimkit.data.resize import crop_resize_one
from mimkit.data.views import CenterCrop
from mimkit.report.images import picture, uri
from mimkit.train.images import Images

THUMB = 144  # pixels of a thumbnail's longer side
FITTED = 64  # pictures that say what is black and white on the page
MOST_CLASSES, MOST_COPIES, MOST_BAD, MOST_CHANNELS = 60, 12, 50, 32  # rows and pictures of a part of the page


def examination_page(examination: Examination) -> str:
    """The page's text; it loads nothing and runs no script."""
    return filled("examination.html", contents(examination))


def filled(template: str, page: dict[str, Any]) -> str:
    """A page of this look with its contents."""
    source = files("mimkit.report")
    style = "".join((source / name).read_text(encoding="utf-8") for name in ("page.css", "examination.css"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    # Names of folders and classes come from people: all that enters is escaped, and a forgotten value raises.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source_text = (source / template).read_text(encoding="utf-8")
    text = environment.from_string(source_text).render(page=page, style=Markup(style), policy=Markup(policy))
    return text.encode("utf-8", "replace").decode()


def contents(examination: Examination) -> dict[str, Any]:
    """Everything the template wants to know."""
    result, train, test = examination.result, examination.train, examination.test
    page: dict[str, Any] = {
        "title": result["data"],
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rows": joined(rows(result)),
        "bad": [{"place": place, "reason": reason} for place, reason in list(result["bad"].items())[:MOST_BAD]],
        "bad_count": len(result["bad"]),
        "splits": [split for split in ("train", "test") if split in (result["labels"]["classes"] or [{}])[0]],
        "counts": result["labels"]["classes"],
        "channels": [],
        "odd": [],
        "classes": [],
        "copies": [],
        "copies_count": 0,
    }
    if not train.facts:
        return page
    display = display_of(train.pictures)
    page["channels"] = channel_rows(result["values"])
    page["odd"] = [
        figure(train.pictures, facts, display) | {"title": name, "detail": detail(name, facts)}
        for name, facts in odd_ones(train.facts).items()
    ]
    page["classes"] = class_examples(train, display)
    groups = duplicates(train, test)["groups"]
    page["copies_count"] = len(groups)
    splits = {"train": train.pictures, "test": test.pictures if test else train.pictures}
    page["copies"] = [
        [figure(splits[name], facts, display) | {"title": name} for name, facts in (group[0], group[-1])]
        for group in groups[:MOST_COPIES]
    ]
    return page


def joined(lines: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Rows with the lines that go on below them."""
    entries: list[tuple[str, list[str]]] = []
    for name, text in lines:
        if name:
            entries.append((name, [text]))
        else:
            entries[-1][1].append(text)
    return entries


def channel_rows(values: dict[str, Any]) -> list[list[str]]:
    """Of each channel its number, black, white, and the lowest and highest value that occur."""
    columns = zip(values["least"], values["most"], strict=True)
    low, high = (row * len(values["least"]) if len(row) == 1 else row for row in (values["low"], values["high"]))
    table = []
    for number, (least, most) in enumerate(columns):
        cells = (low[number], high[number], least, most)
        table.append([str(number + 1), *("none" if cell is None else f"{cell:,.6g}" for cell in cells)])
    return table[:MOST_CHANNELS]


def display_of(pictures: Pictures) -> Display:
    """How these pictures are shown: stretched alike, so that dark ones look dark."""
    zero, one = [0.0] * pictures.channels, [1.0] * pictures.channels
    display = Images().display(pictures.values, zero, one)
    settings: Any = dict(size=(THUMB, THUMB), mean=zero, std=one, view=CenterCrop(fraction=1.0), limit=FITTED)
    batches = [images for images, _, _ in evaluation_batches(pictures, keep_holes=True, **settings)]
    return display.fitted(*split_holes(torch.cat(batches))) if batches else display


def figure(pictures: Pictures, facts: Facts, display: Display) -> dict[str, str]:
    """A picture as a thumbnail with where it lies and its size."""
    size = f"{facts.width} x {facts.height} px"
    where = "/".join(Path(pictures.where(facts.number)).parts[-2:])
    return {"src": thumbnail(pictures, facts, display), "where": where, "detail": size}


def thumbnail(pictures: Pictures, facts: Facts, display: Display) -> str:
    """The whole picture, made smaller where it is large; empty where it can be read no more."""
    try:
        return thumbnail_of(pictures, facts.number, display)
    except BadPicture:
        return ""


def thumbnail_of(pictures: Pictures, number: int, display: Display) -> str:
    """A picture of a set, made smaller where it is large, as a data URI. Raises BadPicture."""
    raw = pictures.read(number)
    height, width = raw.shape[1:]
    scale = min(1.0, THUMB / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    levels = crop_resize_one(raw, torch.tensor([0, 0, height, width]), False, size, values=pictures.values)
    images, valid = split_holes(levels.float().unsqueeze(0) / 255)
    return uri(picture(hatched(display(images), display.holes(valid))[0], THUMB))


def detail(name: str, facts: Facts) -> str:
    """What makes a picture stand out, in numbers."""
    if name in ("smallest", "largest"):
        return f"{facts.width} x {facts.height} px"
    if name == "most without data":
        return f"{100 * facts.empty:.0f} % without data"
    if name == "one value everywhere":
        return f"{facts.least[0]:,.6g}" if facts.least[0] == facts.least[0] else "no data at all"
    return f"{100 * facts.level:.0f} % of the way from black to white"


def class_examples(train: Survey, display: Display) -> list[dict[str, str]]:
    """One picture of each class that was read, the first."""
    pictures = train.pictures
    if pictures.labels is None or not pictures.classes:
        return []
    first: dict[int, Facts] = {}
    for facts in train.facts:
        first.setdefault(int(pictures.labels[facts.number]), facts)
    numbers = [number for number in sorted(first) if number >= 0][:MOST_CLASSES]
    return [figure(pictures, first[number], display) | {"title": pictures.classes[number]} for number in numbers]
