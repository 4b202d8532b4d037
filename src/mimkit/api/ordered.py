"""A set put in order: embeddings enter; groups of pictures for a contact sheet, and rows for a CSV, leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from torch import from_numpy

from mimkit.api.embeddings import Embeddings
from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import rng_keys

EXACT = 200_000  # pictures up to which all are compared with all
NEAR = 10  # neighbors whose similarity says how far out a picture lies
MOST_CLUSTERS = 50  # by default
SHEET = 40  # pictures whose neighbors a sheet shows, spread over the set


@dataclass(frozen=True)
class Group:
    """Pictures that belong together, with words below each."""

    title: str
    rows: Sequence[int]
    """Numbers of embeddings."""
    words: Sequence[str]


@dataclass(frozen=True)
class Ordered:
    """A set in an order: for eyes in groups, for programs in rows, and in a few numbers."""

    lead: str
    """One sentence: what was found."""
    groups: list[Group]
    table: list[dict[str, Any]]
    """Rows of the CSV, all with the same keys."""
    numbers: dict[str, Any]
    """For JSON."""


def neighbors(embeddings: Embeddings, k: int = 8) -> Ordered:
    """The k most similar other pictures of each, by centered cosine. Raises UserError."""
    refuse_many(embeddings)
    near, paths = embeddings.neighbors(k), embeddings.paths
    table = [
        {"path": paths[row], "rank": rank, "neighbor": paths[other], "cosine": round(cosine, 4)}
        for row, (others, cosines) in enumerate(zip(near.index.tolist(), near.similarity.tolist(), strict=True))
        for rank, (other, cosine) in enumerate(zip(others, cosines, strict=True), start=1)
    ]
    few = np.unique(np.linspace(0, len(embeddings) - 1, SHEET).astype(int)).tolist()
    groups = [
        Group(
            f"{Path(paths[row]).name} {embeddings.label(row)}".strip(),
            [row, *near.index[row].tolist()],
            ["the picture", *(f"{cosine:.2f}" for cosine in near.similarity[row].tolist())],
        )
        for row in few
    ]
    numbers: dict[str, Any] = {"pictures": len(embeddings), "k": k}
    lead = f"The {k} most similar of {len(embeddings):,} pictures, for each of them."
    if embeddings.labels is not None and (embeddings.labels >= 0).any():
        numbers["agreement"] = near.agreement()
        lead += f" {100 * near.agreement():.0f} % of the neighbors have the picture's own class."
    return Ordered(lead, groups, table, numbers)


def duplicates(embeddings: Embeddings, threshold: float = 0.97) -> Ordered:
    """Groups of pictures that look alike: any two that a chain of pairs of such a cosine joins. Raises UserError."""
    refuse_many(embeddings)
    groups, cosines = alike(embeddings, threshold)
    table = [
        {
            "group": number + 1,
            "keep": place == 0,
            "path": embeddings.paths[row],
            "cosine": round(float(cosines[row, group[0]]), 4) if place else 1.0,
        }
        for number, group in enumerate(groups)
        for place, row in enumerate(group)
    ]
    sheets = [
        Group(
            f"group {number + 1}: {len(group)} pictures",
            group,
            [f"{cosines[row, group[0]]:.3f}" if place else "the first" for place, row in enumerate(group)],
        )
        for number, group in enumerate(groups)
    ]
    surplus = sum(len(group) - 1 for group in groups)
    lead = f"{surplus:,} of {len(embeddings):,} pictures look like another one (cosine of {threshold:g} or more)."
    numbers = {"pictures": len(embeddings), "groups": len(groups), "surplus": surplus, "threshold": threshold}
    return Ordered(lead, sheets, table, numbers)


class Cosines(dict[tuple[int, int], float]):
    """Cosines of pairs of rows, either way round; of pictures that a chain joins without a pair of their own, 0."""

    def __missing__(self, pair: tuple[int, int]) -> float:
        return self.get((pair[1], pair[0]), 0.0)


def alike(embeddings: Embeddings, threshold: float) -> tuple[list[list[int]], Cosines]:
    """Rows of pictures that look alike, the largest groups first, in the order of the set; cosines of the pairs."""
    pairs = embeddings.duplicates(threshold)
    first, second = (np.array([pair[name] for pair in pairs], np.int64) for name in ("first", "second"))
    n = len(embeddings)
    _, component = connected_components(coo_matrix((np.ones(len(first)), (first, second)), (n, n)), directed=False)
    sizes = np.bincount(component)
    members = np.flatnonzero(sizes[component] > 1)
    grouped: dict[int, list[int]] = {}
    for row in members.tolist():
        grouped.setdefault(int(component[row]), []).append(row)
    cosines = Cosines({(pair["first"], pair["second"]): pair["similarity"] for pair in pairs})
    return sorted(grouped.values(), key=lambda group: (-len(group), group[0])), cosines


def clusters(embeddings: Embeddings, count: int | None = None, seed: int = 0) -> Ordered:
    """Pictures in `count` clusters (k-means of centered directions), the most typical of each first. Raises UserError.

    By default as many as the root of half of the pictures, at most 50.
    """
    assigned, closeness = _clustered(embeddings, count, seed)
    order = np.lexsort((-closeness, assigned))
    sizes = np.bincount(assigned)
    by_size = np.argsort(-sizes, kind="stable")
    rank = {int(number): place + 1 for place, number in enumerate(by_size)}
    members = {number: order[assigned[order] == number].tolist() for number in by_size.tolist()}
    groups, table = [], []
    for number, rows in members.items():
        title = f"cluster {rank[number]}: {len(rows):,} pictures{_commonest(embeddings, rows)}"
        groups.append(Group(title, rows, [f"{closeness[row]:.2f}" for row in rows]))
        table += [
            {"cluster": rank[number], "path": embeddings.paths[row], "typical": round(float(closeness[row]), 4)}
            for row in rows
        ]
    lead = f"{len(embeddings):,} pictures in {len(groups)} clusters of {sizes.min():,} to {sizes.max():,}."
    numbers = {"pictures": len(embeddings), "clusters": len(groups), "sizes": sizes[by_size].tolist()}
    return Ordered(lead, groups, table, numbers)


def _clustered(embeddings: Embeddings, count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which cluster each picture is in, and its cosine with the center."""
    at_least(1, clusters=count)
    n = len(embeddings)
    count = max(1, min(MOST_CLUSTERS, round((n / 2) ** 0.5))) if count is None else count
    if count > n:
        raise UserError(f"{n} pictures cannot form {count} clusters: use --clusters {n} or fewer")
    unit = embeddings.directions()
    means = KMeans(count, n_init=4, random_state=seed).fit(unit)
    centers = means.cluster_centers_ / np.maximum(np.linalg.norm(means.cluster_centers_, axis=1, keepdims=True), 1e-12)
    return means.labels_, (unit * centers[means.labels_]).sum(axis=1)


def _commonest(embeddings: Embeddings, rows: Sequence[int]) -> str:
    """The commonest class of some pictures and its share, where there are labels."""
    if embeddings.labels is None:
        return ""
    labels = embeddings.labels[list(rows)]
    labels = labels[labels >= 0]
    if not len(labels):
        return ""
    commonest = int(np.bincount(labels).argmax())
    row = next(row for row in rows if embeddings.labels[row] == commonest)
    return f", {100 * (labels == commonest).mean():.0f} % {embeddings.label(row)}"


def outliers(embeddings: Embeddings, count: int = 50) -> Ordered:
    """Pictures by how little they look like any others: 1 - the mean cosine with their 10 nearest. Raises UserError.

    The distance to the k-th neighbor as a measure of outliers: Ramaswamy, Rastogi, Shim 2000; here the mean over k.
    """
    refuse_many(embeddings)
    at_least(1, count=count)
    near = embeddings.neighbors(min(NEAR, len(embeddings) - 1))
    score = 1 - near.similarity.mean(axis=1)
    order = np.argsort(-score, kind="stable")
    table = [
        {"rank": rank, "score": round(float(score[row]), 4), "path": embeddings.paths[row]}
        for rank, row in enumerate(order.tolist(), start=1)
    ]
    top = order[:count].tolist()
    words = [f"{score[row]:.2f} {embeddings.label(row)}".strip() for row in top]
    lead = (
        f"The {len(top)} of {len(embeddings):,} pictures that look least like any others "
        f"(half of all have a score below {np.median(score):.2f})."
    )
    numbers = {"pictures": len(embeddings), "median": float(np.median(score)), "highest": float(score.max())}
    return Ordered(lead, [Group("farthest out", top, words)], table, numbers)


def curate(
    embeddings: Embeddings,
    count: int | None = None,
    *,
    threshold: float = 0.97,
    number_of_clusters: int | None = None,
    seed: int = 0,
) -> Ordered:
    """A balanced choice without near-duplicates: of each cluster as equally many pictures as there are.

    Args:
        count: pictures to choose; by default no cluster gives more than the median one has.
        threshold: cosine from which two pictures count as one; the first stays.
        number_of_clusters: as for `clusters`.
        seed: of the clusters and of the choice in each.

    Raises UserError.
    """
    refuse_many(embeddings)
    at_least(1, count=count)
    surplus = {row for group in alike(embeddings, threshold)[0] for row in group[1:]}
    assigned, _ = _clustered(embeddings, number_of_clusters, seed)
    chance = rng_keys("curate", seed, from_numpy(np.arange(len(embeddings)))).argsort().tolist()
    members: dict[int, list[int]] = {}
    for row in chance:
        if row not in surplus:
            members.setdefault(int(assigned[row]), []).append(row)
    sizes = sorted(len(rows) for rows in members.values())
    total = len(embeddings) - len(surplus)
    if count is not None and count > total:
        raise UserError(f"only {total:,} pictures are left without near-duplicates: use --count {total} or less")
    quota = _quota(sizes, count) if count is not None else sizes[len(sizes) // 2]
    chosen = {number: rows[:quota] for number, rows in members.items()}
    if count is not None:  # the last round may be more than is wanted
        surplus_of_quota = sum(map(len, chosen.values())) - count
        for number in [number for number, rows in chosen.items() if len(rows) == quota][:surplus_of_quota]:
            chosen[number] = chosen[number][:-1]
    rows = sorted(row for part in chosen.values() for row in part)
    groups = [
        Group(f"cluster {place + 1}: {len(part):,} of {len(members[number]):,}", part, [""] * len(part))
        for place, (number, part) in enumerate(sorted(chosen.items(), key=lambda entry: -len(members[entry[0]])))
        if part
    ]
    lead = (
        f"{len(rows):,} of {len(embeddings):,} pictures: {len(surplus):,} near-duplicates left out, at most {quota:,} "
        f"of each of {len(members)} clusters."
    )
    numbers = {"pictures": len(embeddings), "chosen": len(rows), "duplicates": len(surplus), "at_most": quota}
    return Ordered(lead, groups, [{"path": embeddings.paths[row]} for row in rows], numbers)


def _quota(sizes: list[int], count: int) -> int:
    """The least number for which that many of each cluster, or all it has, are at least `count` together."""
    low, high = 1, sizes[-1]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(min(size, middle) for size in sizes) >= count else (middle + 1, high)
    return low


def refuse_many(embeddings: Embeddings) -> None:
    """Raises UserError where comparing all with all would take hours, or there is nothing to compare."""
    if len(embeddings) < 3:
        raise UserError(f"{len(embeddings)} pictures cannot be put in an order: give three or more")
    if len(embeddings) > EXACT:
        raise UserError(
            f"{len(embeddings):,} pictures are more than the {EXACT:,} that are compared with each other: "
            f"give --limit {EXACT}"
        )
