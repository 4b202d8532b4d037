"""The command embed: arguments enter, a file of vectors leaves. Nothing heavy is imported early."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape

from mimkit.cli.console import show
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class EmbedArguments(Arguments):
    """Write a vector of each picture, or of each patch, into a file, while pictures are read: sets of any size."""

    data: tuple[str, ...]
    """Pictures, as for pretrain."""
    out: Path
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


def embed(args: list[str]) -> int:
    """Vectors of pictures by a run, an export, a timm model or a file of weights; returns the exit status."""
    words = []
    while args and not args[0].startswith("-"):
        words.append(args.pop(0))
    args = [spelled for n, word in enumerate(args) for spelled in _spelled_out(word, args[n + 1 : n + 2])]
    prog = f"mimkit embed {words[0] if words else 'TARGET'}"
    options = parse(EmbedArguments, args, prog)
    if len(words) != 1:
        raise UserError(f"embed looks through one target, got {len(words)}: mimkit embed TARGET --data DATA --out FILE")
    from mimkit.api.embed import embed_to_file

    result = embed_to_file(
        words[0],
        options.data,
        options.out,
        tokens=options.tokens,
        pool=options.pool,
        split=options.split,
        limit=options.limit,
        device=options.device,
        workers=options.workers,
        batch_size=options.batch_size,
    )
    unit = "patches" if options.tokens else "pictures"
    lines = [f"wrote {result['out']}: {result['rows']:,} {unit}, {result['width']} numbers each ({result['pool']})"]
    if result["skipped"]:
        lines.append(f"  {result['skipped']:,} pictures cannot be read: see 'mimkit doctor'")
    if "assumed" in result:
        lines.append(f"  assumed: {result['assumed']}")
    show(result, options.json, escape("\n".join(lines)))
    return 0


def _spelled_out(word: str, following: list[str]) -> list[str]:
    """`--tokens` alone means `--tokens True`."""
    return [word, "True"] if word == "--tokens" and following not in (["True"], ["False"]) else [word]
