"""The commands report and view: arguments enter, a page as a file or a served one leaves. Nothing heavy comes early."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.markup import escape

from mimkit.cli.console import show
from mimkit.core.errors import UserError, missing_extra
from mimkit.core.flags import Arguments, parse, refuse_unwritable


@dataclass(kw_only=True)
class _Looking(Arguments):
    data: tuple[str, ...] = ()
    """Pictures to look at, as for pretrain; by default each run's own."""
    pictures: int = 8
    """How many pictures to show."""
    metrics: Literal["none", "fast", "all"] = "fast"
    """Of layers and heads: none, on 200 pictures, or all groups on 500."""
    device: str = "auto"
    """`cpu` or `cuda`."""


@dataclass(kw_only=True)
class ReportArguments(_Looking):
    """One self-contained HTML page of one run or several side by side."""

    out: Path | None = None
    """File to write; by default report.html in the run's folder, of several runs in the working folder."""


@dataclass(kw_only=True)
class ViewArguments(_Looking):
    """Serve the report of one run and follow it while it trains."""

    port: int = 0
    """Where to listen; 0 finds a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback lets the network in."""


def _need_jinja2() -> None:
    if find_spec("jinja2") is None:
        raise missing_extra("the report", "report")


def report(args: list[str]) -> int:
    """Write a page about one run or several; returns the exit status."""
    folders = []
    while args and not args[0].startswith("-"):
        folders.append(Path(args.pop(0)).expanduser())
    chosen = parse(ReportArguments, args, "mimkit report RUN [RUN ...]")
    _need_jinja2()
    from mimkit.report.page import report as make
    from mimkit.train.run_folder import RunFolder, disk_errors, write_text

    for folder in folders:
        if not RunFolder(folder).exists:
            raise UserError(f"{folder} holds no run of mimkit: give folders that 'mimkit pretrain' wrote")
    out = chosen.out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    refuse_unwritable(out)
    text, result = make(
        folders,
        data=chosen.data,
        pictures=chosen.pictures,
        metrics=chosen.metrics,
        device=chosen.device,
        log=lambda line: print(f"{line} ...", file=sys.stderr, flush=True),
    )
    with disk_errors(out.parent):
        write_text(out, text)
    lines = [f"wrote {out} ({result['bytes'] / 1e6:.1f} MB): open it in a browser"]
    lines += [f"  {name}: no {part}: {why}" for name, left in result["left_out"].items() for part, why in left.items()]
    show(result | {"out": str(out)}, chosen.json, escape("\n".join(lines)))
    return 0


def view(args: list[str]) -> int:
    """Serve the page of a run and follow it until Ctrl-C; returns the exit status."""
    words = []
    while args and not args[0].startswith("-"):
        words.append(args.pop(0))
    chosen = parse(ViewArguments, args, "mimkit view RUN")
    if len(words) > 1:
        raise UserError(f"view follows one run; of several make a page: mimkit report {' '.join(words)}")
    _need_jinja2()
    from mimkit.report.page import Depth
    from mimkit.report.serve import Follower, Server

    depth = Depth(data=chosen.data, pictures=chosen.pictures, metrics=chosen.metrics, device=chosen.device)
    with Server(Follower(Path(words[0]).expanduser(), depth), chosen.host, chosen.port) as server:
        show({"url": server.url}, chosen.json, escape(f"{server.url} shows {words[0]}; Ctrl-C ends"))
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
