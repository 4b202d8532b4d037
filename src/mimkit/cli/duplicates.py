"""`mimkit duplicates`: a target and pictures enter, groups that look alike leave."""

from dataclasses import dataclass

from mimkit.cli.ordering import OrderArguments, put_in_order
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class DuplicatesArguments(OrderArguments):
    """Find groups of pictures that look alike: copies, crops, other encodings."""

    threshold: float = 0.97
    """Cosine of centered vectors from which two pictures look alike, up to 1; it depends on the target."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return DuplicatesArguments, None


def run(args: list[str]) -> int:
    """Groups of near-duplicates."""
    options = parse(DuplicatesArguments, args, "mimkit duplicates")
    from mimkit.api.ordered import duplicates

    return put_in_order(options, "duplicates", lambda embeddings: duplicates(embeddings, options.threshold))
