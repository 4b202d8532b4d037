"""`mimkit analyze`: words enter, metrics of every layer and head of one target or several leave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Group
from rich.markup import escape
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.core.flags import Arguments, parse, refuse_unwritable


@dataclass(kw_only=True)
class AnalyzeArguments(Arguments):
    """What each layer and head does: attention, similarity of layers, frequencies, clusters, and more."""

    target: Positional[Annotated[tuple[str, ...], arg(metavar="TARGET ...")]]
    """Run folders, exports, timm models, or `untrained:` and one of these."""
    data: tuple[str, ...]
    """Pictures, as for pretrain; of those with a test split, that."""
    label_column: str | None = None
    """The column of labels in Parquet files, lists and metadata; by default label, labels, fine_label, class, ..."""
    metrics: tuple[str, ...] = ()
    """Some of attention, cka, fourier, variance, clusters, rank, drop, decoder and swap; by default all but swap."""
    pictures: int = 500
    """How many, spread over the set."""
    film: bool = False
    """Of one run: all checkpoints that it kept (train with --machine.keep 100), and when clusters appear."""
    out: Path | None = None
    """Folder to write JSON, Parquet and figures into."""
    device: str = "auto"
    """`cpu` or `cuda`."""
    workers: int = 2
    """Processes that read pictures."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return AnalyzeArguments, None


def run(args: list[str]) -> int:
    """Metrics of every layer and head of one target or several."""
    arguments = parse(AnalyzeArguments, args, "mimkit analyze")
    out = arguments.out
    if out is not None:
        refuse_unwritable(out / "analysis.json" if out.exists() else out)
    from mimkit.analysis.metrics import USUAL
    from mimkit.analysis.report import tables, write
    from mimkit.analysis.run import analyze

    result = analyze(
        arguments.target,
        arguments.data,
        metrics=arguments.metrics or USUAL,
        pictures=arguments.pictures,
        film=arguments.film,
        device=arguments.device,
        workers=arguments.workers,
        label_column=arguments.label_column,
    )
    answer = [tables(result)]
    if out is not None:
        answer += [*write(result, out), f"wrote {escape(str(out))}"]
    show(result, arguments.json, Group(*answer))
    return 0
