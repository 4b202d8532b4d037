"""`mimkit neighbors`: a target and pictures enter, the most similar ones of each leave."""

from dataclasses import dataclass

from mimkit.cli.ordering import OrderArguments, put_in_order
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class NeighborsArguments(OrderArguments):
    """Show the most similar pictures of each picture."""

    k: int = 8
    """So many of each."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return NeighborsArguments, None


def run(args: list[str]) -> int:
    """Neighbors of each picture."""
    options = parse(NeighborsArguments, args, "mimkit neighbors")
    from mimkit.api.ordered import neighbors

    return put_in_order(options, "neighbors", lambda embeddings: neighbors(embeddings, options.k))
