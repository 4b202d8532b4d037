"""The command line: words enter, a command runs, an exit status leaves. Nothing heavy is imported early."""

import errno
import importlib
import os
import re
import sys

from mimkit.cli.crash import forget_run, write_report
from mimkit.cli.overview import COMMANDS, overview
from mimkit.cli.places import with_local_runs
from mimkit.core.announced import announced, may_speak, refuse_lone_tasks, refuse_together
from mimkit.core.errors import UserError, unknown
from mimkit.core.names import renamed_flag, trust
from mimkit.core.urls import withhold_all

__all__ = ["COMMANDS", "main"]

COMPLETION = "--print-completion"


def main(argv: list[str] | None = None) -> int:
    """Run one command. 0: done; 1: a crash; 2: something to mend, said in one line; 128 + N: stopped by signal N."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads that spin ruin small models on shared cores
    args = withhold_all(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        from mimkit import __version__

        print(f"mimkit {__version__}")
        return 0
    debug = "--debug" in args
    forget_run()
    try:
        command, *rest = trusting([renamed_flag(arg) for arg in args if arg != "--debug"]) or [""]
        return run(command, rest)
    except UserError as error:
        if debug:
            raise
        say(_flat(error))
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except BrokenPipeError:  # `mimkit recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return crashed(error, args, debug)


def run(command: str, args: list[str]) -> int:
    """Hand the words over to the module of the command, which is imported only now."""
    option, _, shell = command.partition("=")
    if option == COMPLETION:
        from mimkit.cli.completion import completion

        print(completion(" ".join(word for word in (shell, *args) if word)))
        return 0
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    if command == "pretrain" or (command == "evaluate" and "finetune" in args):
        refuse_lone_tasks(command if command == "pretrain" else "evaluate finetune")
        announced()  # refuses half of what a launcher sets
    else:
        refuse_together(command)
    return importlib.import_module(f"mimkit.cli.{command}").run(with_local_runs(command, args))


def say(line: str) -> None:
    """An error's line; of several processes that were started together one prints it."""
    speaks = may_speak()
    if speaks is not None:
        if speaks:
            print(f"mimkit: {line}", file=sys.stderr)
        return
    from mimkit.core.board import speaking  # imports torch

    with speaking() as first:
        if first:
            print(f"mimkit: {line}", file=sys.stderr, flush=True)


def crashed(error: Exception, args: list[str], debug: bool) -> int:
    """Say in one line what nobody expected, and where its details are; with --debug, raise it."""
    if fix := _fix(error):
        if debug:
            raise error
        say(fix)
        return 2
    report = write_report(error, args, debug)
    if debug:
        raise error
    say(f"{type(error).__name__}: {_flat(error)} (not expected: {report}; please report it)")
    return 1


def _fix(error: Exception) -> str:
    """What to do about an error of the system, in one line; empty for one of ours."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return "the GPU's memory is full: lower --machine.micro-batch or --batch-size"
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's allocator
    if isinstance(error, MemoryError) or on_cpu or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "the memory is full: lower --machine.micro-batch, --batch-size or --workers, or look at fewer pictures"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the name {str(error.filename)[:60]}... is too long for a file: give another name"
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a name holds a NUL, which no path can: give another name"
    return ""


def trusting(args: list[str]) -> list[str]:
    """Trust the packages that the person names: by `--trust PACKAGE`, or as `package.module:name` anywhere."""
    rest, words = [], iter(args)
    for word in words:
        if word == "--trust" or word.startswith("--trust="):
            package = word.partition("=")[2] or next(words, "")
            if not re.fullmatch(r"[A-Za-z_][\w.:]*", package):
                raise UserError("--trust takes the name of a package, whose code a run folder may name: --trust my_lab")
            trust(package)
        else:
            if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", word):
                trust(word)
            rest.append(word)
    return rest


def _flat(error: Exception) -> str:
    return " ".join(str(error).splitlines())


if __name__ == "__main__":
    sys.exit(main())
