"""`mimkit embed`: a target and pictures enter, a file of vectors leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class EmbedArguments(Arguments):
    """Write a vector of each picture, or of each patch, into a file, while pictures are read: sets of any size."""

    target: Positional[str]
    """A run folder, an export, a timm model, a file of released weights, `pixels`, or `untrained:NAME`."""
    data: tuple[str, ...]
    """Pictures, as for pretrain."""
    label_column: str | None = None
    """The column of labels in Parquet files, lists and metadata; by default label, labels, fine_label, class, ..."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File to write: .parquet, .npz or .csv."""
    pool: Literal["auto", "mean", "class", "both", "grid", "blocks", "pixels"] = "auto"
    """Which vector of a picture: mean of the patch tokens, class token, both side by side, means of 2 x 2 cells, class
    token and mean of each of the last 4 blocks; `auto`: what was trained, class token or mean."""
    tokens: bool = False
    """A vector of each patch instead, with its row and column."""
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


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return EmbedArguments, None


def run(args: list[str]) -> int:
    """Vectors of pictures by a run, an export, a timm model or a file of weights."""
    options = parse(EmbedArguments, _spelled_out(args), "mimkit embed")
    from mimkit.api.embed import embed_to_file

    result = embed_to_file(
        options.target,
        options.data,
        options.out,
        tokens=options.tokens,
        pool=options.pool,
        split=options.split,
        limit=options.limit,
        device=options.device,
        workers=options.workers,
        batch_size=options.batch_size,
        label_column=options.label_column,
    )
    unit = "patches" if options.tokens else "pictures"
    lines = [f"wrote {result['out']}: {result['rows']:,} {unit}, {result['width']} numbers each ({result['pool']})"]
    if result["skipped"]:
        lines.append(f"  {result['skipped']:,} pictures cannot be read: see 'mimkit doctor'")
    if "assumed" in result:
        lines.append(f"  assumed: {result['assumed']}")
    show(result, options.json, escape("\n".join(lines)))
    return 0


def _spelled_out(args: Sequence[str]) -> list[str]:
    """`--tokens` alone means `--tokens True`."""
    pairs = zip_longest(args, args[1:])
    return list(
        chain.from_iterable(
            [word, "True"] if word == "--tokens" and following not in ("True", "False") else [word]
            for word, following in pairs
        )
    )
