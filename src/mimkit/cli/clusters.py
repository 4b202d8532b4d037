"""`mimkit clusters`: a target and pictures enter, clusters with their most typical members leave."""

from dataclasses import dataclass

from mimkit.cli.ordering import OrderArguments, put_in_order
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class ClustersArguments(OrderArguments):
    """Put pictures into clusters, the most typical of each first."""

    clusters: int | None = None
    """So many; by default the root of half of the pictures, at most 50."""
    seed: int = 0
    """Where k-means starts."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return ClustersArguments, None


def run(args: list[str]) -> int:
    """Clusters of pictures."""
    options = parse(ClustersArguments, args, "mimkit clusters")
    from mimkit.api.ordered import clusters

    return put_in_order(options, "clusters", lambda embeddings: clusters(embeddings, options.clusters, options.seed))
