"""`mimkit recipes`: words enter, the list of recipes leaves."""

from dataclasses import dataclass

from mimkit.core.flags import Arguments, parse
from mimkit.recipes import recipes


@dataclass(kw_only=True)
class RecipesArguments(Arguments):
    """List the recipes with the first line of what they say about themselves."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return RecipesArguments, None


def run(args: list[str]) -> int:
    """List the recipes."""
    arguments = parse(RecipesArguments, args, "mimkit recipes")
    from rich.markup import escape
    from rich.table import Table

    from mimkit.cli.console import show

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    result = []
    for finetuning in (False, True):
        if finetuning:
            table.add_row("", "")
            table.add_row("[bold]with labels[/]", "[bold]mimkit evaluate finetune TARGET RECIPE --data DATA[/]")
        for name, (module, doc) in recipes(finetuning).items():
            summary = doc.splitlines()[0] if doc else ""
            table.add_row(name, escape(summary))
            result.append({"name": name, "module": module, "summary": summary, "description": doc})
    show(result, arguments.json, table)
    return 0
