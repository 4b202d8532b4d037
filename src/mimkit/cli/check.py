"""`mimkit check`: a run folder enters, whether its files are what was written leaves."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from mimkit.cli.console import show
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class CheckArguments(Arguments):
    """Verify checksums, numbers and identity of all that a run left: config, metrics, checkpoints, export."""

    run: Positional[Path]
    """The folder that 'mimkit pretrain' wrote."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return CheckArguments, None


def run(args: list[str]) -> int:
    """Status 0 when every file is what was written, 2 when one is not."""
    arguments = parse(CheckArguments, args, "mimkit check")
    from mimkit.train.check import check_run

    files = check_run(arguments.run)
    table = Table(box=None, pad_edge=False, show_header=False)
    for file in files:
        table.add_row("[green]good[/]" if file.good else "[red]bad[/]", escape(file.file), escape(file.about))
    show([asdict(file) for file in files], arguments.json, table)
    if bad := [file.file for file in files if not file.good]:
        raise UserError(f"{len(bad)} of {len(files)} files of {arguments.run} are bad: {', '.join(bad)}")
    return 0
