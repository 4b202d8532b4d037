"""`mimkit report`: run folders enter, a page as a file leaves. Nothing heavy is imported early."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.core.errors import UserError, missing_extra
from mimkit.core.flags import Arguments, parse, refuse_unwritable


@dataclass(kw_only=True)
class PageArguments(Arguments):
    """What a page shows."""

    data: tuple[str, ...] = ()
    """Pictures to look at, as for pretrain; by default each run's own."""
    pictures: int = 8
    """How many pictures to show."""
    metrics: Literal["none", "fast", "all"] = "fast"
    """Of layers and heads: none, on 200 pictures, or all groups on 500."""
    device: str = "auto"
    """`cpu` or `cuda`."""


@dataclass(kw_only=True)
class ReportArguments(PageArguments):
    """One self-contained HTML page of one run or several side by side."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN ...")]]
    """Folders that 'mimkit pretrain' wrote; several stand side by side."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """File to write; by default report.html in the run's folder, of several runs in the working folder."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return ReportArguments, None


def refuse_without_jinja2() -> None:
    """Refuse to begin what only the extra can finish."""
    if find_spec("jinja2") is None:
        raise missing_extra("the report", "report")


def run(args: list[str]) -> int:
    """Write a page about one run or several."""
    arguments = parse(ReportArguments, args, "mimkit report")
    refuse_without_jinja2()
    from mimkit.report.page import report
    from mimkit.train.run_folder import RunFolder, disk_errors, write_text

    folders = [folder.expanduser() for folder in arguments.runs]
    for folder in folders:
        if not RunFolder(folder).exists:
            raise UserError(f"{folder} holds no run of mimkit: give folders that 'mimkit pretrain' wrote")
    out = arguments.out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    refuse_unwritable(out)
    text, result = report(
        folders,
        data=arguments.data,
        pictures=arguments.pictures,
        metrics=arguments.metrics,
        device=arguments.device,
        log=lambda line: print(f"{line} ...", file=sys.stderr, flush=True),
    )
    with disk_errors(out.parent):
        write_text(out, text)
    lines = [f"wrote {out} ({result['bytes'] / 1e6:.1f} MB): open it in a browser"]
    for name, left_out in result["left_out"].items():
        lines += [f"  {name}: no {content}: {reason}" for content, reason in left_out.items()]
    show(result | {"out": str(out)}, arguments.json, escape("\n".join(lines)))
    return 0
