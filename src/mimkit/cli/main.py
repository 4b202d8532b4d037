"""The command line: words enter, a command runs, an exit status leaves. Nothing heavy is imported early."""

import importlib
import itertools
import os
import re
import sys

from mimkit.core.errors import UserError, unknown
from mimkit.core.names import renamed_flag, trust

KINDS = ("knn", "probe", "attentive", "all", "finetune")

COMMANDS = {
    "recipes": ("[--json FILE]", "list the recipes"),
    "pretrain": ("[RECIPE] --data DATA [--run DIR] [--epochs N] ...", "learn from pictures without labels"),
    "evaluate": (
        "knn|probe|attentive|all|finetune TARGET ... --data DATA",
        "measure a run, an export, a timm model or a baseline",
    ),
    "embed": ("TARGET --data DATA --out FILE [--tokens]", "a vector of each picture, into Parquet, npz or csv"),
    "compare": ("RECIPE RECIPE ... --data DATA [--budget compute]", "train and measure several under one budget"),
    "analyze": ("TARGET ... --data DATA [--out DIR]", "what each layer and head of a model does"),
    "report": ("RUN [RUN ...] [--out FILE]", "one page of curves, pictures and metrics, to open anywhere"),
    "view": ("RUN [--port 0] [--host 127.0.0.1]", "the same page, following a run that still trains"),
    "masks": ("MASKER|RECIPE --data DATA [--from RUN]", "draw masks on your pictures"),
    "export": ("RUN --to timm|huggingface --out DIR", "leave with the model"),
    "doctor": ("DATA [RECIPE]", "what is wrong with a folder before anything trains"),
    "diff": ("RUN RUN", "what differs between two runs"),
}

USAGE = """usage: mimkit COMMAND ...

{commands}

'mimkit COMMAND --help' explains one. DATA: folders, text files of paths, Parquet files, or photos,
fashion-mnist, cifar10, cifar100, stl10, imagenette. Every command takes --json FILE (or - for the standard
output) and --debug.

A first run, no data needed:   mimkit pretrain --data photos
"""


def usage() -> str:
    """The text of `mimkit --help`."""
    lines = (f"  {name:<9} {args:<55} {what}" for name, (args, what) in COMMANDS.items())
    return USAGE.format(commands="\n".join(lines))


def main(argv: list[str] | None = None) -> int:
    """Run one command. 0: done; 2: something to mend, said in one line; 128 + N: stopped by signal N."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads that spin ruin small models on shared cores
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        from mimkit import __version__

        print(f"mimkit {__version__}")
        return 0
    debug = "--debug" in args
    args = trusting([renamed_flag(arg) for arg in args if arg != "--debug"])
    try:
        if args[0] not in COMMANDS:
            raise unknown("command", args[0], COMMANDS)
        return run(args[0], args[1:])
    except UserError as error:
        if debug:
            raise
        print(f"mimkit: {_flat(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mimkit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mimkit recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        if kind == "OutOfMemoryError":  # torch's, which is not imported here
            print(
                "mimkit: the GPU's memory is full: lower --machine.micro-batch or --batch-size",
                file=sys.stderr,
            )
            return 2
        report = "not expected: --debug shows where; please report it"
        print(f"mimkit: {kind}: {_flat(error)} ({report})", file=sys.stderr)
        return 1


def trusting(args: list[str]) -> list[str]:
    """Trust the packages that the person names: by `--trust PACKAGE`, or as `package.module:name` anywhere."""
    rest, words = [], iter(args)
    for word in words:
        if word == "--trust":
            trust(next(words, ""))
        elif word.startswith("--trust="):
            trust(word.removeprefix("--trust="))
        else:
            if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", word):
                trust(word)
            rest.append(word)
    return rest


def _flat(error: Exception) -> str:
    return " ".join(str(error).splitlines())


def run(command: str, args: list[str]) -> int:
    """Check what can be checked without torch, then hand over."""
    words = list(itertools.takewhile(lambda arg: not arg.startswith("-"), args))
    if command == "pretrain" and words:
        from mimkit.recipes import check_recipe

        check_recipe(words[0])
        if words[1:]:
            raise UserError(f"pictures go behind --data: mimkit pretrain {words[0]} --data {' '.join(words[1:])}")
    if command == "evaluate" and words and words[0] not in KINDS:
        raise unknown("kind of evaluation", words[0], KINDS)
    if not {"-h", "--help"} & set(args):
        twice = dict.fromkeys(("evaluate", "compare", "diff"), 2)
        least = (twice | dict.fromkeys(("analyze", "report", "view", "masks", "export", "doctor"), 1)).get(command, 0)
        missing = command == "pretrain" and not {arg.split("=")[0] for arg in args} & {"--data", "--run"}
        if len(words) < least or missing:
            raise UserError(f"wanted: mimkit {command} {COMMANDS[command][0]}; 'mimkit {command} --help' explains")
    lists = ("--data", "--metrics", "--measure", "--finetune", *(["--epochs"] if command == "compare" else []))
    for flag in lists:
        if args.count(flag) > 1:  # of which the parser would take the last alone
            what = "sources" if flag == "--data" else "values"
            raise UserError(f"{flag} is given twice: several {what} go behind one {flag}")
    return getattr(importlib.import_module("mimkit.cli.commands"), command)(args)


if __name__ == "__main__":
    sys.exit(main())
