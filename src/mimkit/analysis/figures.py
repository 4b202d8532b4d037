"""Figures of an analysis: its result enters, PNG files leave. Needs matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mimkit.analysis.metrics import METRICS

Rows = list[dict[str, Any]]
COLORS = ("#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#a16207", "#be185d", "#404040")
HEADS = ("attention_distance", "attention_entropy", "head_divergence", "mutual_information")
LAYERS = (
    "high_frequency",
    "feature_variance",
    "similarity_variance",
    "similarity_gap",
    "attention_gap",
    "effective_rank",
    "drop_change",
    "drop_knn",
)
FILM = ("similarity_gap", "attention_gap", "similarity_kl", "attention_kl")


def draw(result: dict[str, Any], out: Path) -> None:
    """attention.png, layers.png, fourier.png, cka.png and for a film film.png, of what the result holds."""
    rows, spectrum, cka = result["rows"], result["spectrum"], result["cka"]
    film = "clusters" in result
    if film:
        _film(rows, out / "film.png")
        last = max(row["step"] for row in rows)
        rows = [row for row in rows if row["step"] == last]
        spectrum = [row for row in spectrum if row["step"] == last]
        cka = [row for row in cka if row["step"] == last]
    targets = [target for target in dict.fromkeys(result["targets"]) if any(row["target"] == target for row in rows)]
    _heads(rows, targets, out / "attention.png")
    _curves(rows, targets, out / "layers.png")
    _spectra(spectrum, targets, out / "fourier.png")
    _matrix(cka, targets, out / "cka.png")


def panels(
    count: int, columns: int, *, side: tuple[float, float] = (3.6, 2.8), **options: Any
) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    lines = -(-count // columns)
    # Without pyplot, which keeps figures alive and picks a backend that may want a screen.
    figure = Figure(figsize=(side[0] * columns, side[1] * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(lines, columns, squeeze=False, **options)).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def _heads(rows: Rows, targets: list[str], out: Path) -> None:
    """A point a head, a line through the means of layers; one row of panels a metric, one column a target."""
    names = [name for name in HEADS if any(row["metric"] == name for row in rows)]
    # Swins have no attention to draw: they get no empty column.
    shown = [t for t in targets if any(row["target"] == t and row["metric"] in names for row in rows)]
    if not names:
        return
    if len(shown) == 1:
        figure, axes = panels(len(names), 2, side=(4.4, 2.5), sharex="col")
        figure.suptitle(_short(shown[0]), fontsize=10)
    else:
        figure, axes = panels(len(names) * len(shown), len(shown), side=(4.4, 2.5), sharey="row", sharex="col")
    for place, panel in enumerate(axes):
        name, target = names[place // len(shown)], shown[place % len(shown)]
        color = COLORS[targets.index(target) % len(COLORS)]
        points = [r for r in rows if (r["metric"], r["target"]) == (name, target) and r["value"] is not None]
        heads = [r for r in points if r["head"] is not None]
        panel.scatter([r["layer"] for r in heads], [r["value"] for r in heads], s=14, color=color, alpha=0.55, lw=0)
        line(panel, [r for r in points if r["head"] is None], "layer", color=color)
        # One scale for all targets: that is what the panels are side by side for.
        highest = max((r["value"] for r in rows if r["metric"] == name and r["value"] is not None), default=1.0)
        panel.set_ylim(0, 1.06 * highest or 1.0)
        if place < len(shown) > 1:
            panel.set_title(_short(target), fontsize=10)
        if place % len(shown) == 0:
            panel.set_ylabel(_labeled(name))
        if place >= len(axes) - max(2, len(shown)):
            panel.set_xlabel("layer")
            panel.locator_params(axis="x", integer=True)
    figure.savefig(out, dpi=130)


def line(axes: Axes, rows: Rows, key: str, *, band: bool = True, **style: Any) -> None:
    """Values over layers, frequencies or steps, with a band of two standard errors on either side."""
    rows = sorted((row for row in rows if row["value"] is not None), key=lambda row: row[key])
    x, y = [row[key] for row in rows], np.array([row["value"] for row in rows], dtype=float)
    error = 2 * np.array([row["stderr"] or 0.0 for row in rows], dtype=float)
    axes.plot(x, y, linewidth=1.6, marker="." if len(x) < 3 else None, **style)
    if band:
        axes.fill_between(x, y - error, y + error, alpha=0.2, linewidth=0, color=style.get("color"))


def _curves(rows: Rows, targets: list[str], out: Path) -> None:
    """Metrics without heads over layers, one line a target."""
    names = [name for name in LAYERS if any(row["metric"] == name for row in rows)]
    if not names:
        return
    figure, axes = panels(len(names), 4)
    for panel, name in zip(axes, names, strict=True):
        for number, target in enumerate(targets):
            points = [r for r in rows if (r["metric"], r["target"], r["head"]) == (name, target, None)]
            if points:
                line(panel, points, "layer", color=COLORS[number % len(COLORS)], label=_short(target))
        panel.set(xlabel="layer", ylabel=_labeled(name))
        panel.locator_params(axis="x", integer=True)
    _legend(figure, targets)
    figure.savefig(out, dpi=130)


def _spectra(rows: Rows, targets: list[str], out: Path) -> None:
    """Log amplitude over frequency, one panel a target, one line a layer from early (dark) to late (light)."""
    targets = [target for target in targets if any(row["target"] == target for row in rows)]
    if not targets:
        return
    figure, axes = panels(len(targets), 4, side=(4.2, 3.2), sharey=True)
    for panel, target in zip(axes, targets, strict=True):
        layers = sorted({row["layer"] for row in rows if row["target"] == target})
        for layer in layers:
            points = [row for row in rows if (row["target"], row["layer"]) == (target, layer)]
            color = colormaps["viridis"](0.92 * layer / max(1, layers[-1]))
            named = f"layer {layer}" if layer in (layers[0], layers[-1]) else None
            line(panel, points, "frequency", band=False, color=color, label=named)
        panel.set(xlabel="frequency (pi a patch)", title=_short(target))
        panel.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("log amplitude, relative to 0")
    figure.savefig(out, dpi=130)


def _matrix(rows: Rows, targets: list[str], out: Path) -> None:
    """CKA of every layer of every target with every other."""
    if not rows:
        return
    places = sorted({(targets.index(row["target"]), row["layer"]) for row in rows})
    where = {place: number for number, place in enumerate(places)}
    # NaN stays white: pairs that were not compared are not 0.
    matrix = np.full((len(places), len(places)), np.nan)
    for row in rows:
        a, b = where[targets.index(row["target"]), row["layer"]], where[targets.index(row["other"]), row["other_layer"]]
        matrix[a, b] = matrix[b, a] = np.nan if row["value"] is None else row["value"]
    side = max(3.6, 0.16 * len(places) + 1.6)
    named = 1.6 if len(targets) > 1 else 0  # inches for the names of several targets
    figure, (axes,) = panels(1, 1, side=(side + 0.8 + named, side + named / 2))
    drawn = axes.imshow(matrix, vmin=0, vmax=1, cmap="magma", origin="lower")
    starts = [
        where[place] for place in places if place[1] == min(layer for target, layer in places if target == place[0])
    ]
    ends = [*starts[1:], len(places)]
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="white", linewidth=1)
        axes.axvline(start - 0.5, color="white", linewidth=1)
    if len(targets) == 1:
        axes.set(xlabel="layer", ylabel="layer", title=_short(targets[0]))
        axes.locator_params(integer=True)
    else:
        middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
        names = [_short(targets[target], 24) for target in sorted({target for target, _ in places})]
        axes.set_xticks(middles, names, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(middles, names, fontsize=8)
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, label="linear CKA", shrink=0.8)
    figure.savefig(out, dpi=130)


def _film(rows: Rows, out: Path) -> None:
    """Gap and distance from the end over steps, one line a layer from early (dark) to late (light)."""
    names = [name for name in FILM if any(row["metric"] == name for row in rows)]
    if not names:
        return
    figure, axes = panels(len(names), 2, side=(4.2, 2.8), sharex=True)
    for panel, name in zip(axes, names, strict=True):
        points = [row for row in rows if row["metric"] == name]
        layers = sorted({row["layer"] for row in points})
        for layer in layers:
            color = colormaps["viridis"](0.92 * layer / max(1, layers[-1]))
            named = f"layer {layer}" if layer in (layers[0], layers[-1]) else None
            line(panel, [row for row in points if row["layer"] == layer], "step", color=color, label=named)
        panel.set(xlabel="step", ylabel=_labeled(name))
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=130)


def _labeled(name: str) -> str:
    unit = METRICS[name].unit
    return name.replace("_", " ") + (f" ({unit})" if unit else "")


def _short(target: str, most: int = 34) -> str:
    return target if len(target) <= most else f"...{target[3 - most :]}"


def _legend(figure: Figure, targets: list[str]) -> None:
    if len(targets) > 1:
        handles, labels = [], []
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles.append(handle)
                    labels.append(label)
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
