"""Report of an analysis: its result enters; tables for people, and a folder of JSON, Parquet and figures leave."""

import json
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mimkit.analysis.metrics import METRICS
from mimkit.core.errors import UserError

PARTS = ("rows", "cka", "spectrum")


def tables(result: dict[str, Any]) -> Group:
    """Layers as rows and metrics as columns for every target, of a film steps and the last layer; then refusals."""
    blocks: list[Any] = []
    film = "clusters" in result
    for target in dict.fromkeys(result["targets"]):
        for decoder in (False, True):
            rows = [
                row
                for row in result["rows"]
                if row["target"] == target
                and row["head"] is None
                and (METRICS[row["metric"]].group == "decoder") == decoder
            ]
            if film:
                last = max((row["layer"] for row in rows if row["layer"] is not None), default=None)
                rows = [row for row in rows if row["layer"] in (None, last)]
            cka = {} if film or decoder else _to_last(result, target)
            if rows or cka:
                title = escape(target) + (" (decoder)" if decoder else "") + (", last layer" if film else "")
                blocks.append(_table(rows, title, "step" if film else "layer", cka))
    for appearance in result.get("clusters", ()):
        step = appearance["step"]
        when = "no wider at the end than at first" if step is None else f"past half its way from step {step}"
        gap = f"gap {appearance['first']:.3f} to {appearance['last']:.3f}"
        blocks.append(f"clusters in layer {appearance['layer']}: {gap}, {when}")
    pairs = [r for r in result["cka"] if r["target"] != r["other"] and _is_last(result, r)]
    blocks += [f"CKA of the last layers of {escape(r['target'])} and {escape(r['other'])}: {_number(r)}" for r in pairs]
    blocks += [f"{escape(r['target'])}: no {r['metrics']}: {escape(r['reason'])}" for r in result["refused"]]
    return Group(*blocks)


def _table(rows: list[dict[str, Any]], title: str, key: str, cka: dict[int, dict[str, Any]]) -> Table:
    """One line for each layer or step."""
    names = [name for name in METRICS if any(row["metric"] == name for row in rows)]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(key, justify="right")
    for name in names:
        unit = METRICS[name].unit
        table.add_column(METRICS[name].heading + (f"\n{unit}" if unit in ("px", "nats") else ""), justify="right")
    if cka:
        table.add_column("CKA to\nlast", justify="right")
    by_place = {(row[key], row["metric"]): row for row in rows}
    for place in sorted({row[key] for row in rows} | cka.keys(), key=lambda value: (value is None, value)):
        cells = [_number(by_place.get((place, name))) for name in names]
        cells += [_number(cka.get(place))] if cka else []
        table.add_row("all" if place is None else str(place), *cells)
    return table


def _to_last(result: dict[str, Any], target: str) -> dict[int, dict[str, Any]]:
    """CKA of each layer of a model with its last."""
    own = [row for row in result["cka"] if row["target"] == row["other"] == target]
    last = max((row["layer"] for row in own), default=0)
    return {row["layer"]: row for row in own if row["other_layer"] == last}


def _is_last(result: dict[str, Any], pair: dict[str, Any]) -> bool:
    of = [r for r in result["cka"] if (r["target"], r["other"]) == (pair["target"], pair["other"])]
    return (pair["layer"], pair["other_layer"]) == max((r["layer"], r["other_layer"]) for r in of)


def _number(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return "-" if row["value"] is None else f"{row['value']:.3g}" if abs(row["value"]) < 100 else f"{row['value']:.1f}"


def write(result: dict[str, Any], out: Path) -> list[str]:
    """Write analysis.json, with pyarrow the tables as Parquet, with matplotlib figures; returns what was left out.

    Raises:
        UserError: the folder cannot be written.
    """
    missing = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "analysis.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq

            for table in PARTS:
                if result[table]:
                    pq.write_table(pa.Table.from_pylist(result[table]), out / f"{table}.parquet")
        except ImportError:
            missing.append("no Parquet: pip install 'mimkit[parquet]'")
        try:
            from mimkit.analysis.figures import draw
        except ImportError:
            missing.append("no figures: pip install 'mimkit[report]'")
        else:
            draw(result, out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror or error}): name another folder with --out") from error
    return missing
