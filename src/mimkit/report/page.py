"""Page: run folders enter, their records, looks and metrics leave as one self-contained HTML text."""

import base64
import hashlib
import json
import math
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, TypedDict

import jinja2
import timm
import torch
from markupsafe import Markup

import mimkit
from mimkit.analysis.metrics import GROUPS, METRICS, USUAL
from mimkit.analysis.run import analyze
from mimkit.core.errors import UserError, at_least, unknown
from mimkit.core.files import read_json
from mimkit.data.folders import cache_folder
from mimkit.data.pictures import digest
from mimkit.report.images import film_frame, uri
from mimkit.report.record import FRAMES, differing, frame, frames, names, read_run
from mimkit.report.sections import look
from mimkit.report.words import CKA, reading
from mimkit.train.machine import Machine
from mimkit.train.run_folder import write_json

LIMIT = 9_500_000  # bytes of a page
METRICS_OF = {"none": (0, ()), "fast": (200, USUAL), "all": (500, tuple(GROUPS))}  # pictures, and groups of metrics
_WORDS = {"look": "looking at pictures", "metrics": "measuring layers and heads"}
_VERSION = 2  # of what is cached; raise it when looks or metrics change


def report(
    folders: Sequence[Path],
    *,
    data: Sequence[str] = (),
    pictures: int = 8,
    metrics: str = "fast",
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
) -> tuple[str, dict[str, Any]]:
    """The page of one run or several side by side, and what it was made from.

    Args:
        folders: of runs.
        data: see `open_pictures`; by default each run's own.
        pictures: how many to show.
        metrics: `none`, `fast` (200 pictures) or `all` (500, and the slow groups).
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        log: is given a line when something takes long.

    Raises:
        UserError: a folder holds no run, or a number cannot be meant.
    """
    depth = Depth(data=tuple(data), pictures=pictures, metrics=metrics, device=device)
    runs = [read_run(folder) for folder in folders]
    for folder, run, name in zip(folders, runs, names(folders), strict=True):
        run["name"] = name
        run |= depth.parts(folder, run["data"], log)
        # A page has so many frames in all, whether of one run or of several.
        most = max(2, FRAMES // len(folders))
        run["film"] = [{"step": step, "src": uri(film_frame(frame(folder, step)))} for step in frames(folder, most)]
    text = fit(assemble(runs))
    missing = {run["name"]: {**run["look"].get("left", {}), **failures(run)} for run in runs}
    return text, {"runs": [str(folder) for folder in folders], "bytes": len(text.encode()), "left_out": missing}


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How closely runs are looked at."""

    data: tuple[str, ...] = ()
    pictures: int = 8
    metrics: str = "fast"
    device: str = "auto"

    def __post_init__(self) -> None:
        at_least(2, pictures=self.pictures)
        if self.metrics not in METRICS_OF:
            raise unknown("depth of metrics", self.metrics, METRICS_OF)

    def parts(
        self, folder: Path, data: list[str], log: Callable[[str], None], *, cached_only: bool = False
    ) -> dict[str, Any]:
        """What takes long of a run: `look`, and `metrics` where they are wanted, each with the `stamp` it was made of.

        One that cannot be made has `failed`, the reason. With `cached_only` nothing is made, and what was made of an
        earlier checkpoint serves.
        """
        where, sources = Machine(device=self.device).find_device(), list(self.data) or data
        results: dict[str, Any] = {}
        jobs: list[tuple[str, Any, Callable[[], dict[str, Any]]]] = [
            ("look", self.pictures, lambda: look(folder, sources, self.pictures, where))
        ]
        if self.metrics != "none":
            count, groups = METRICS_OF[self.metrics]
            measuring: dict[str, Any] = dict(metrics=groups, pictures=count, device=str(where))
            jobs.append(("metrics", self.metrics, lambda: compact(analyze([str(folder)], sources, **measuring))))
        for name, detail, make in jobs:
            file = cache_folder() / "report" / f"{digest(str(folder.resolve()), name, sources, detail)}.json"
            results[name] = cached(file, stamp(folder), None if cached_only else make, f"{folder}: {_WORDS[name]}", log)
        return results


def failures(run: dict[str, Any]) -> dict[str, str]:
    """Why a whole part of a run is missing."""
    return {name: run[name]["failed"] for name in ("look", "metrics") if "failed" in run.get(name, {})}


class Cached(TypedDict):
    """A part of a page that was made before."""

    code: int
    stamp: str
    digest: str
    """Of the rest, so that no damaged one is shown."""


def cached(
    file: Path, version: str, make: Callable[[], dict[str, Any]] | None, line: str, log: Callable[[str], None]
) -> dict[str, Any]:
    """What `make` gives, kept in a file as long as `version` stays; with None for `make`, of any version."""
    # A cache that is damaged or of another version is none.
    with suppress(UserError):
        stored = read_json(file, Cached)
        if (
            stored.pop("digest") == digest(json.dumps(stored))
            and stored["code"] == _VERSION
            and (make is None or stored["stamp"] == version)
        ):
            return stored
    if make is None:
        return {"failed": "not looked at yet", "left": {}, "stamp": ""}
    log(line)
    try:
        value = make() | {"stamp": version, "code": _VERSION}
    except UserError as error:
        return {"failed": str(error), "left": {}, "stamp": version}
    with suppress(OSError):  # the cache is only a convenience
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, value | {"digest": digest(json.dumps(value))})
    return value


def stamp(folder: Path) -> str:
    """Changes when the run's weights do."""
    try:
        about = (folder / "export" / "model.safetensors").stat()
    except OSError:
        return ""
    return f"{about.st_size}-{about.st_mtime_ns}"


def compact(result: dict[str, Any]) -> dict[str, Any]:
    """Rows of an analysis by metric: layers, values, errors and heads; and the CKA of all pairs of layers."""
    metrics: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        columns = metrics.setdefault(row["metric"], {"layer": [], "value": [], "stderr": [], "heads": []})
        value = None if row["value"] is None else float(f"{row['value']:.4g}")
        if row["head"] is not None:
            columns["heads"].append([row["layer"], row["head"], value])
            continue
        columns["layer"].append(row["layer"])
        columns["value"].append(value)
        columns["stderr"].append(None if row["stderr"] is None else float(f"{row['stderr']:.3g}"))
    # A square table, which the page draws cell by cell.
    depth = 1 + max((row["layer"] for row in result["cka"]), default=-1)
    cka: list[list[float | None]] = [[None] * depth for _ in range(depth)]
    for row in result["cka"]:
        cka[row["layer"]][row["other_layer"]] = None if row["value"] is None else round(row["value"], 3)
    refused = [[refusal["metrics"], refusal["reason"]] for refusal in result["refused"]]
    return {"metrics": metrics, "cka": cka, "refused": refused, "pictures": result["pictures"]}


def assemble(runs: list[dict[str, Any]], *, live: bool = False) -> dict[str, Any]:
    """Everything the template wants to know."""
    names = [run["name"] for run in runs]
    for number, run in enumerate(runs):
        # Runs of the same folder name get a number, for legends.
        if names.count(run["name"]) > 1:
            run["name"] += f" ({names[: number + 1].count(run['name'])})"
    used = dict.fromkeys(name for run in runs for name in run.get("metrics", {}).get("metrics", {}))
    order = [name for name in METRICS if name in used]
    return {
        "title": " and ".join(run["name"] for run in runs) if len(runs) < 3 else f"{len(runs)} runs",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "live": live,
        "runs": runs,
        "differing": differing(runs),
        "metrics": [{"key": name, **METRICS[name]._asdict(), **reading(name)._asdict()} for name in order],
        "cka": CKA._asdict(),
        "environment": [
            ["mimkit", mimkit.__version__],
            ["python", platform.python_version()],
            ["torch", torch.__version__],
            ["timm", timm.__version__],
            ["machine", f"{platform.system()} {platform.machine()}"],
            ["GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"],
        ],
    }


def fit(page: dict[str, Any]) -> str:
    """The page's text; while it is too large, films get thinner and then fewer pictures keep their attention."""
    text = render(page)
    while len(text.encode()) > LIMIT:
        # Films first: between two of their frames little is lost.
        longest = max(page["runs"], key=lambda run: len(run["film"]))
        maps = [run["look"]["attention"]["src"] for run in page["runs"] if "attention" in run["look"]]
        if len(longest["film"]) > 2:
            longest["film"] = [*longest["film"][:-1][::2], longest["film"][-1]]
        elif any(len(sprites) > 1 for sprites in maps):
            most: list[Any] = max(maps, key=len)
            del most[len(most) // 2 :]
        else:
            raise UserError(f"the page of {len(page['runs'])} runs is over {LIMIT // 1_000_000} MB: name fewer runs")
        text = render(page)
    return text


def render(page: dict[str, Any]) -> str:
    """The template with the page's data; the browser may load nothing and run nothing but the page's own script."""
    source = files("mimkit.report")
    style = (source / "page.css").read_text(encoding="utf-8")
    script = (source / "page.js").read_text(encoding="utf-8")
    # Style and script lie in the page and are named by their hashes: nothing that data could smuggle in is run.
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    # Only a served page may ask its own server for news; a saved one loads nothing at all.
    self = " 'self'" if page["live"] else ""
    policy = (
        f"default-src 'none'; img-src data:{self}; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        f"connect-src {self.strip() or chr(39) + 'none' + chr(39)}; base-uri 'none'; form-action 'none'"
    )
    # Names of folders and classes come from people: all that enters is escaped, and a forgotten value raises.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["json"] = json.dumps  # a plain text, which autoescape treats as one
    template = environment.from_string((source / "page.html").read_text(encoding="utf-8"))
    text = template.render(
        page=page, data=embedded(page), style=Markup(style), script=Markup(script), policy=Markup(policy)
    )
    return text.encode("utf-8", "replace").decode()


def embedded(value: Any) -> Markup:
    """JSON that no HTML parser can leave: `<`, `>` and `&` are escaped, and what is not finite is null."""
    text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def finite(value: Any) -> Any:
    """The same data without NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
