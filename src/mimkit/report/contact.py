"""Contact sheets: groups of pictures with words enter, a self-contained HTML text with thumbnails leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mimkit.core.display import Display
from mimkit.data.header import BadPicture
from mimkit.data.pictures import Pictures
from mimkit.report.examination import display_of, filled, thumbnail_of

MOST_GROUPS, MOST_PICTURES = 60, 24  # groups of a sheet, and pictures of a group, with thumbnails
MOST_THUMBNAILS = 480  # of a sheet: some kilobytes each


@dataclass(frozen=True)
class Shown:
    """A group of pictures on a sheet."""

    title: str
    numbers: Sequence[int]
    """Of the set."""
    words: Sequence[str]


def contact_sheet(pictures: Pictures, groups: Sequence[Shown], *, kind: str, lead: str, target: str, file: str) -> str:
    """The page's text; it loads nothing and runs no script. `file`: the name of the table beside it."""
    display = display_of(pictures)
    each = min(MOST_PICTURES, max(len(group.numbers) for group in groups)) if groups else 1
    few = [*groups[: max(1, min(MOST_GROUPS, MOST_THUMBNAILS // max(1, each)))]]
    most = MOST_THUMBNAILS if len(few) == 1 else each
    page = {
        "kind": kind,
        "data": pictures.name,
        "lead": lead,
        "target": target,
        "file": file,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "groups": [shown(pictures, group, display, most) for group in few],
        "more": len(groups) - len(few),
    }
    return filled("contact.html", page)


def shown(pictures: Pictures, group: Shown, display: Display, most: int) -> dict[str, object]:
    """A group as the template has it."""
    entries = zip(group.numbers[:most], group.words, strict=False)
    return {
        "title": group.title,
        "pictures": [item(pictures, number, display) | {"words": words} for number, words in entries],
        "more": max(0, len(group.numbers) - most),
    }


def item(pictures: Pictures, number: int, display: Display) -> dict[str, str]:
    """A picture as a thumbnail with the end of its path; no thumbnail where it can be read no more."""
    where = "/".join(Path(pictures.where(number)).parts[-2:])
    try:
        return {"src": thumbnail_of(pictures, number, display), "where": where}
    except BadPicture:
        return {"src": "", "where": where}
