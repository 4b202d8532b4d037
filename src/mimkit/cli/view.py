"""`mimkit view`: a run folder enters, its page is served and follows it."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from tyro.conf import Positional

from mimkit.cli.console import show
from mimkit.cli.report import PageArguments, refuse_without_jinja2
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, flag_kinds, parse, split_words


@dataclass(kw_only=True)
class ViewArguments(PageArguments):
    """Serve the report of one run and follow it while it trains."""

    run: Positional[Path]
    """The folder that 'mimkit pretrain' writes."""
    port: int = 0
    """Where to listen; 0 finds a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback lets the network in."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return ViewArguments, None


def run(args: list[str]) -> int:
    """Serve the page of a run and follow it until Ctrl-C."""
    words, _ = split_words(args, flag_kinds(ViewArguments))
    if len(words) > 1:
        raise UserError(f"view follows one run; of several make a page: mimkit report {' '.join(words)}")
    arguments = parse(ViewArguments, args, "mimkit view")
    refuse_without_jinja2()
    from mimkit.report.page import Depth
    from mimkit.report.serve import Follower, Server

    depth = Depth(data=arguments.data, pictures=arguments.pictures, metrics=arguments.metrics, device=arguments.device)
    with Server(Follower(arguments.run.expanduser(), depth), arguments.host, arguments.port) as server:
        show({"url": server.url}, arguments.json, escape(f"{server.url} shows {arguments.run}; Ctrl-C ends"))
        sys.stdout.flush()
        if not server.private:
            print(
                "mimkit: whoever reaches this machine can read the page; --host 127.0.0.1 keeps it here",
                file=sys.stderr,
            )
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
