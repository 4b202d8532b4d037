"""What commands share that put a set in order: words enter, a folder with a contact sheet and a table leaves."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.cli.reading import ReadingFlags
from mimkit.core.flags import Arguments

if TYPE_CHECKING:
    from mimkit.api.embeddings import Embeddings
    from mimkit.api.ordered import Ordered


@dataclass(kw_only=True)
class OrderArguments(Arguments):
    """Base of their flags."""

    target: Positional[str]
    """Whose eyes: a run folder, an export, a timm model, a file of released weights, `pixels`, or `untrained:NAME`."""
    data: tuple[str, ...]
    """Pictures, as for pretrain."""
    label_column: str | None = None
    """The column of labels in Parquet files, lists and metadata; by default label, labels, fine_label, class, ..."""
    images: ReadingFlags = field(default_factory=ReadingFlags)
    """How files become pictures; a run or an export reads them as it was trained, but for what is said here."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """A new or empty folder for index.html, a contact sheet, and the table as CSV."""
    pool: Literal["auto", "mean", "class", "both", "grid", "blocks", "pixels"] = "auto"
    """Which vector of a picture, as for embed."""
    split: Literal["all", "train", "test"] = "all"
    """`all`: of data with a test split of its own the train split."""
    limit: int | None = None
    """So many pictures, spread over the set."""
    batch_size: int = 256
    """Pictures at once."""
    device: str = "auto"
    """`cpu` or `cuda`."""
    workers: int = 2
    """Processes that read pictures."""


def put_in_order(options: OrderArguments, kind: str, order: "Callable[[Embeddings], Ordered]") -> int:
    """Write the folder and say what was found; the exit status."""
    from mimkit.api import sets

    result = sets.put_in_order(
        options.target,
        options.data,
        options.out,
        kind,
        order,
        pool=options.pool,
        split=options.split,
        limit=options.limit,
        device=options.device,
        workers=options.workers,
        batch_size=options.batch_size,
        reading=options.images.reading(options.label_column),
    )
    table = sets.LIST if kind == "curate" else f"{kind}.csv"
    show(result, options.json, escape(f"{result['lead']}\nwrote {options.out}: index.html and {table}"))
    return 0
