"""`mimkit outliers`: a target and pictures enter, those that look least like any others leave."""

from dataclasses import dataclass

from mimkit.cli.ordering import OrderArguments, put_in_order
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class OutliersArguments(OrderArguments):
    """Rank pictures by how little they look like any others."""

    count: int = 50
    """So many on the sheet; the table ranks all."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return OutliersArguments, None


def run(args: list[str]) -> int:
    """Pictures that stand out."""
    options = parse(OutliersArguments, args, "mimkit outliers")
    from mimkit.api.ordered import outliers

    return put_in_order(options, "outliers", lambda embeddings: outliers(embeddings, options.count))
