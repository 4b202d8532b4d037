"""`mimkit doctor`: a folder and a recipe enter, what is wrong with the pictures and what training would cost leave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, parse
from mimkit.recipes import check_recipe


@dataclass(kw_only=True)
class DoctorArguments(Arguments):
    """Read pictures, name the bad ones, and estimate memory, steps and time of a recipe."""

    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA ... [RECIPE]")]]
    """Pictures, as for pretrain; behind them, a recipe that shall train on them, by default one that fits."""
    label_column: str | None = None
    """The column of labels in Parquet files, lists and metadata; by default label, labels, fine_label, class, ..."""
    limit: int = 20_000
    """Read at most so many pictures, spread over the set."""
    batch_size: int | None = None
    """Pictures in a step, if other than the recipe's."""
    epochs: int | None = None
    """Passes over the pictures, if other than the recipe's."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return DoctorArguments, None


def run(args: list[str]) -> int:
    """Examine a folder before anything trains."""
    arguments = parse(DoctorArguments, args, "mimkit doctor")
    from mimkit.analysis.doctor import examine
    from mimkit.data.named import NAMES

    data, recipe = list(arguments.data), None
    if len(data) > 1 and data[-1] not in NAMES and not Path(data[-1]).exists():
        recipe = data.pop()
        check_recipe(recipe)
    result, table = examine(
        data,
        recipe,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        label_column=arguments.label_column,
    )
    show(result, arguments.json, table)
    if not result["readable"]:
        raise UserError(f"no picture of {result['data']} can be read, for the reasons above: give another folder")
    return 0
