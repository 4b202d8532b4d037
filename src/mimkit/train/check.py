"""Check a run: its folder enters; a word on each file that others read leaves, with what is wrong with it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from mimkit.core.errors import UserError
from mimkit.core.files import read_regular
from mimkit.core.integrity import IDENTITY, refuse_bad_statistics, refuse_bad_weights, refuse_changed
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.identity import difference, identity_of
from mimkit.train.run_folder import RunFolder, read_json


@dataclass(frozen=True)
class Checked:
    """A file of a run."""

    file: str
    """Its path within the run."""
    good: bool
    about: str
    """What it holds, or what is wrong with it."""


def check_run(folder: Path) -> list[Checked]:
    """Every file of a run that others read: config.json, metrics.jsonl, result.json, checkpoints and the export.

    Raises UserError when there is no run in the folder.
    """
    run = RunFolder(folder)
    if not run.exists:
        raise UserError(f"{folder} holds no run of mimkit: give the folder that 'mimkit pretrain' wrote")
    work: list[tuple[Path, Callable[[], str]]] = [(run.config_path, lambda: _config(run))]
    work += [(run.metrics_path, lambda: _metrics(run))] if run.metrics_path.exists() else []
    work += [(run.result_path, lambda: _result(run))] if run.finished else []
    work += [(path, lambda path=path: _checkpoint(path)) for path in checkpoints(folder)]
    work += [(folder / "export", lambda: _export(folder))] if (folder / "export").exists() else []
    return list(_checked(folder, work))


def _checked(folder: Path, work: list[tuple[Path, Callable[[], str]]]) -> Iterator[Checked]:
    for path, look in work:
        name = str(path.relative_to(folder))
        try:
            yield Checked(name, True, look())
        except UserError as error:
            yield Checked(name, False, str(error))


def _config(run: RunFolder) -> str:
    saved = run.read_config()
    return f"recipe {saved['recipe']}, seed {saved['config'].seed}, run {identity_of(run.folder).get('run', 'unknown')}"


def _metrics(run: RunFolder) -> str:
    lines = read_regular(run.metrics_path).splitlines()
    records = run.metrics()
    if len(records) < len(lines):
        raise UserError(f"line {len(records) + 1} of {len(lines)} cannot be read: going on with the run mends it")
    for number, record in enumerate(records, 1):
        if bad := next((key for key, value in record.items() if not _is_finite(value)), None):
            raise UserError(f"line {number}: {bad} is not finite")
    steps = [record.get("step", 0) for record in records]
    if steps != sorted(steps):
        raise UserError("steps do not rise from line to line")
    return f"{len(records)} lines, up to step {steps[-1] if steps else 0}"


def _result(run: RunFolder) -> str:
    result = read_json(run.result_path)
    if not isinstance(result, dict) or not isinstance(result.get("steps"), int):
        raise UserError("names no number of steps: restore it, or remove it and go on with the run")
    if bad := next((key for key, value in result.items() if not _is_finite(value)), None):
        raise UserError(f"{bad} is not finite")
    return f"finished after {result['steps']} steps"


def _checkpoint(path: Path) -> str:
    state = load_checkpoint(path)
    noted = "checksums agree" if state.get("identity") else "checksums agree, of a version that noted no run"
    return f"step {state['step']}, {noted}"


def _export(folder: Path) -> str:
    export = folder / "export"
    refuse_changed(export)
    about: Any = read_json(export / "config.json").get("pretrained_cfg", {})
    refuse_bad_statistics(about.get("mean", ()), about.get("std", ()), export)
    try:
        refuse_bad_weights(load(read_regular(export / "model.safetensors")), export)
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.safetensors cannot be read ({error}): export again") from error
    if not (export / IDENTITY).exists():
        return "readable; an earlier version wrote it without checksums"
    identity = read_json(export / IDENTITY)
    if missing := [name for name in identity["sha256"] if not (export / name).is_file()]:
        raise UserError(f"{missing[0]} is missing: export again with 'mimkit export {folder} --out DIR'")
    if other := difference(identity_of(folder), identity):
        raise UserError(f"it belongs to another run ({other}): export again with 'mimkit export {folder} --out DIR'")
    return f"step {identity.get('step')}, checksums agree"


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
