"""`mimkit curate`: a target and pictures enter, a balanced list without near-duplicates leaves."""

from dataclasses import dataclass

from mimkit.cli.ordering import OrderArguments, put_in_order
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class CurateArguments(OrderArguments):
    """Choose a balanced part of a folder without near-duplicates, as a list that --data takes."""

    count: int | None = None
    """So many pictures; by default no cluster gives more than the median one has."""
    threshold: float = 0.97
    """Cosine of centered vectors from which two pictures count as one, up to 1."""
    clusters: int | None = None
    """Clusters of which each gives equally many; by default the root of half of the pictures, at most 50."""
    seed: int = 0
    """Of the clusters and of the choice in each."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return CurateArguments, None


def run(args: list[str]) -> int:
    """A list of paths."""
    options = parse(CurateArguments, args, "mimkit curate")
    from mimkit.api.ordered import curate

    return put_in_order(
        options,
        "curate",
        lambda embeddings: curate(
            embeddings,
            options.count,
            threshold=options.threshold,
            number_of_clusters=options.clusters,
            seed=options.seed,
        ),
    )
