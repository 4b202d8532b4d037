"""Embeddings: vectors of pictures enter; neighbors, duplicates, a map and files leave."""

import html
import io
import os
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import Image

from mimkit.api.embedding_files import About, VectorRows, open_writer, read_vectors
from mimkit.api.results import Rows, html_table, picture_tag
from mimkit.core.errors import UserError, at_least
from mimkit.data.decode import BadPicture
from mimkit.data.pictures import Pictures

AT_ONCE = 1 << 26  # bytes of similarities that are computed at once
PIECE = 4096  # vectors that are written at once
MOST_PAIRS = 1_000_000
THUMBNAIL = 72  # pixels
SHOWN = 5  # pictures with their neighbors
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")  # Paul Tol's bright
DRAWN = 5000  # points of a map


class Embeddings:
    """A vector of each picture, with where it lies and its label.

    Args:
        vectors: (N, D) float32.
        paths: where the N pictures lie; of sets that are no files the place in the set, in words.
        labels: (N,) int64, or None.
        classes: names of the labels, when they have names.
        about: where the vectors come from.
        pictures, numbers: the set and which of its pictures these are, to show them; not saved.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        paths: list[str],
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] | None = None,
        *,
        about: About = About(),
        pictures: Pictures | None = None,
        numbers: np.ndarray | None = None,
    ) -> None:
        if vectors.ndim != 2 or len(vectors) != len(paths) or (labels is not None and len(labels) != len(paths)):
            raise UserError(f"vectors of shape {vectors.shape} and {len(paths)} paths: wanted a row for each path")
        self.vectors, self.paths, self.labels, self.classes = vectors, paths, labels, classes
        self.about = about
        self.pictures, self.numbers = pictures, numbers

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        count, width = self.vectors.shape
        labels = f", {len(np.unique(self.labels))} labels" if self.labels is not None else ""
        return f"Embeddings({count:,} vectors of {width} numbers{labels}, {self.about.pool} of {self.about.target})"

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write a .parquet, .npz or .csv file. Raises UserError for another ending, a missing extra or a full disk."""
        place = Path(file)
        with open_writer(place) as writer:
            writer.about = self.about if self.classes == self.about.classes else About(classes=self.classes)
            for start in range(0, len(self), PIECE):
                piece = slice(start, start + PIECE)
                labels = None if self.labels is None else self.labels[piece]
                writer.write(VectorRows(self.vectors[piece].astype(np.float32), self.paths[piece], labels))
        return place

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "Embeddings":
        """Read what `save` or `mimkit embed` wrote of pictures. Raises UserError."""
        rows, about = read_vectors(Path(file).expanduser())
        return cls(rows.vectors, rows.paths, rows.labels, about.classes, about=about)

    def neighbors(self, k: int = 10, *, centered: bool = True) -> "Neighbors":
        """The k most similar other pictures of each one, by cosine, the nearest first.

        Args:
            centered: see `directions`.

        Raises UserError unless 1 <= k < N.
        """
        if not (isinstance(k, Integral) and 1 <= k < len(self)):
            raise UserError(f"k must be at least 1 and below the {len(self)} pictures, got {k!r}")
        unit = self.directions(centered)
        index = np.empty((len(self), k), np.int64)
        similarity = np.empty((len(self), k), np.float32)
        for start, stop in self._pieces():
            cosine = unit[start:stop] @ unit.T
            here = np.arange(stop - start)
            cosine[here, start + here] = -np.inf  # not itself
            nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(cosine, nearest, 1), axis=1, kind="stable")
            index[start:stop] = np.take_along_axis(nearest, order, 1)
            similarity[start:stop] = np.take_along_axis(cosine, index[start:stop], 1)
        return Neighbors(index, similarity, self)

    def duplicates(self, threshold: float = 0.99, *, centered: bool = True) -> "Rows":
        """Pairs of pictures whose vectors have a cosine of `threshold` or more, the most similar first.

        `centered`: see `directions`.

        Each is a dict: similarity, first and second (numbers of rows), first_path and second_path. Equal pictures have
        1 but for rounding; how similar others look at a threshold depends on the model.

        Raises UserError when there are more than a million pairs.
        """
        at_least(-1, threshold=threshold)
        if threshold > 1:
            raise UserError(f"threshold is a cosine, -1 to 1, got {threshold}; 0.99 is usual")
        unit = self.directions(centered)
        pairs: list[tuple[float, int, int]] = []
        for start, stop in self._pieces():
            cosine = unit[start:stop] @ unit[start:].T
            similar = cosine >= threshold - 1e-6  # float32 rounds equal ones below 1
            first, second = np.nonzero(np.triu(similar, k=1))
            values = cosine[first, second].tolist()
            pairs += zip(values, (first + start).tolist(), (second + start).tolist(), strict=True)
            if len(pairs) > MOST_PAIRS:
                raise UserError(f"more than {MOST_PAIRS:,} pairs are that similar: raise the threshold {threshold}")
        pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
        return Rows(
            {
                "similarity": min(1.0, similarity),
                "first": first,
                "second": second,
                "first_path": self.paths[first],
                "second_path": self.paths[second],
            }
            for similarity, first, second in pairs
        )

    def map(self, method: str = "auto", seed: int = 0) -> "Map":
        """The pictures as points of a plane, where similar ones lie together.

        Args:
            method: `umap`, which needs the package umap-learn; `tsne`, of scikit-learn behind a PCA to 50 numbers;
                `auto`: the first that is there.
            seed: of either.

        Raises UserError for fewer than 5 pictures, and where umap is not installed.
        """
        if method not in ("auto", "umap", "tsne"):
            raise UserError(f"there is no map '{method}': auto, umap or tsne")
        if len(self) < 5:
            raise UserError(f"a map needs 5 pictures or more, got {len(self)}")
        installed = find_spec("umap") is not None
        if method == "umap" and not installed:
            raise UserError("the map 'umap' needs a package: pip install umap-learn, or take 'tsne'")
        if method == "umap" or (method == "auto" and installed):
            from umap import UMAP  # type: ignore[missing-import]

            near = min(15, len(self) - 1)
            points = UMAP(n_neighbors=near, metric="cosine", random_state=seed).fit_transform(self.directions())
            return Map(np.asarray(points, np.float32), "umap", self)
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        width = min(50, *self.vectors.shape)
        reduced = PCA(width, random_state=seed).fit_transform(self.directions())
        near = min(30.0, (len(self) - 1) / 3)
        points = TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(reduced)
        return Map(points.astype(np.float32), "tsne", self)

    def label(self, row: int) -> str:
        """The name of a row's class, or the number of its label; empty without one."""
        number = -1 if self.labels is None else int(self.labels[row])
        if number < 0:
            return ""
        return self.classes[number] if self.classes else str(number)

    def thumbnail(self, row: int) -> str:
        """A small picture of a row as HTML, or its path where the picture cannot be opened."""
        try:
            picture = self._picture(row)
        except (OSError, BadPicture, ValueError, Image.DecompressionBombError):
            return html.escape(self.paths[row])
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        picture.save(data, "PNG")
        title = f"{self.paths[row]} {self.label(row)}".strip()
        return picture_tag(data.getvalue(), title, f"width:{THUMBNAIL}px;image-rendering:pixelated")

    def _picture(self, row: int) -> Image.Image:
        if self.pictures is None or self.numbers is None:
            return Image.open(self.paths[row]).convert("RGB")
        pixels = self.pictures.read(int(self.numbers[row]))
        pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def _repr_html_(self) -> str:
        """What they are, and some pictures with their neighbors."""
        page = f"<p>{html.escape(repr(self))}</p>"
        return page + (self.neighbors(min(6, len(self) - 1))._repr_html_() if len(self) > 1 else "")

    def directions(self, centered: bool = True) -> np.ndarray:
        """Vectors of length 1, (N, D) float32; those of length 0 stay.

        `centered`: of the differences from the mean vector. The vectors of masked autoencoders share a large part, by
        which all pictures look alike: cosines between them are 0.99 and more.
        """
        vectors = self.vectors - self.vectors.mean(axis=0) if centered else self.vectors
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _pieces(self) -> list[tuple[int, int]]:
        """First and last row, that one excluded, of pieces whose similarities to all rows fit into memory."""
        rows = max(1, AT_ONCE // (4 * len(self)))
        return [(start, min(start + rows, len(self))) for start in range(0, len(self), rows)]


@dataclass(frozen=True, repr=False)
class Neighbors:
    """The most similar pictures of each picture, the nearest first."""

    index: np.ndarray
    """(N, k) int64: numbers of rows."""
    similarity: np.ndarray
    """(N, k) float32: cosines, -1 to 1."""
    embeddings: Embeddings

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Neighbors(of {len(self):,} pictures, {self.index.shape[1]} each)"

    def paths(self, row: int) -> list[str]:
        """Where the neighbors of a picture lie."""
        return [self.embeddings.paths[number] for number in self.index[row]]

    def agreement(self) -> float:
        """How often a neighbor has the picture's own label, of pairs that have labels, 0..1.

        Raises UserError without labels.
        """
        labels = self.embeddings.labels
        both = None if labels is None else (labels[self.index] >= 0) & (labels[:, None] >= 0)
        if labels is None or both is None or not both.any():
            raise UserError("these pictures have no labels to compare")
        return float((labels[self.index] == labels[:, None])[both].mean())

    def _repr_html_(self) -> str:
        """Pictures spread over the set, each with its neighbors."""
        at_least(1, pictures=len(self))
        rows = np.unique(np.linspace(0, len(self) - 1, SHOWN).astype(int)).tolist()
        body = ""
        for row in rows:
            cells = [f"<td>{self.embeddings.thumbnail(row)}<br>{html.escape(self.embeddings.label(row))}</td>"]
            for number, cosine in zip(self.index[row, :8].tolist(), self.similarity[row].tolist(), strict=False):
                cells.append(f"<td>{self.embeddings.thumbnail(number)}<br>{cosine:.2f}</td>")
            body += "<tr>" + "".join(cells) + "</tr>"
        return f"<table><thead><tr><th>picture</th><th>nearest</th></tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, repr=False)
class Map:
    """Pictures as points of a plane."""

    points: np.ndarray
    """(N, 2) float32."""
    method: str
    """What laid them out: `umap` or `tsne`."""
    embeddings: Embeddings

    def __repr__(self) -> str:
        return f"Map({len(self.points):,} points by {self.method})"

    def _repr_html_(self) -> str:
        """A drawing with a color for each label, and the path and label of a point where the pointer stands."""
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        places = 10 + 580 * (self.points - low) / np.maximum(high - low, 1e-9)
        labels = self.embeddings.labels
        dots = []
        step = -(-len(places) // DRAWN)
        for row in range(0, len(places), step):
            color = COLORS[0 if labels is None else int(labels[row]) % len(COLORS)]
            title = html.escape(f"{self.embeddings.paths[row]} {self.embeddings.label(row)}".strip())
            x, y = places[row].tolist()
            dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{title}</title></circle>')
        return f'<svg width="600" height="600" viewBox="0 0 600 600">{"".join(dots)}</svg>' + html_table(
            ("", ""), [("method", self.method), ("points", len(dots))]
        )
