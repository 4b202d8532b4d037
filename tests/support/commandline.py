"""The command line in this process: a command enters, its exit status and what it printed leave."""

import contextlib
import io
import shlex
from dataclasses import dataclass

from mimkit.cli import main as cli

FAST = (
    "--machine.device cpu --machine.precision float32 --machine.attention fused --machine.threads 1 "
    "--machine.workers 0 --machine.evals 0 --machine.tensorboard False"
)
SMALL = "--encoder.width 16 --encoder.depth 1 --encoder.heads 2 --method.decoder.width 8 --method.decoder.heads 2"
TINY = f"--batch-size 8 --epochs 1 {SMALL} {FAST}"  # flags that make mae_mini_28 train in no time


@dataclass(frozen=True)
class Said:
    """What came of a command."""

    status: int
    out: str
    err: str


def mimkit(command: str) -> Said:
    """Run `mimkit COMMAND`, where $TINY stands for the flags above."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(shlex.split(command.replace("$TINY", TINY)))
        except SystemExit as stop:  # --help
            status = int(stop.code or 0)
    return Said(status, out.getvalue(), err.getvalue())


def refused(command: str) -> str:
    """The one line that answers a wrong command."""
    said = mimkit(command)
    assert said.status == 2, said
    assert said.err.startswith("mimkit: ") and said.err.endswith("\n") and said.err.count("\n") == 1, said.err
    return said.err
