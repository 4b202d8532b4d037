"""The run folder: a path and a config enter; config.json, metrics.jsonl and the word on what may happen here leave."""

import fcntl
import json
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mimkit
from mimkit.core.config import check_dict, differences, from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.core.files import named, read_json, read_regular, refuse_no_name
from mimkit.core.names import FORMAT
from mimkit.core.schema import fit, plain
from mimkit.train.checkpoint import checkpoints, remove_unfinished, replacing
from mimkit.train.resolved import Resolved
from mimkit.train.saved import Config, Result, record

MEASURED = ("knn", "effective_rank", "feature_spread")  # what an evaluation while training finds


def write_json(path: Path, data: Any) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside, flush to disk and rename; nothing is left beside when that fails."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """A full or unwritable disk stops the run with one clear line; what was saved before stays."""
    try:
        yield
    except (OSError, UserError) as error:  # a UserError: what the export could not write
        reason = f"cannot write to {folder} ({error.strerror or error})" if isinstance(error, OSError) else error
        raise UserError(
            f"{reason}: free some space or mend its permissions, then run the same command again; {last_good(folder)}"
        ) from error


def last_good(folder: Path) -> str:
    """The word on what a stopped run can go on from."""
    saved = checkpoints(folder)
    return f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved yet"


def run_beside(export: Path) -> dict[str, Any]:
    """config.json of the run that an export lies in; empty where it lies elsewhere. Raises UserError for a bad one."""
    run = RunFolder(export.parent)
    if not run.config_path.is_file() or not {"config", "recipe", "resolved"} <= read_json(run.config_path).keys():
        return {}
    return run.read_plain_config()


class RunFolder:
    """One run's folder. It is the only interface between training, evaluation, analysis and reports."""

    def __init__(self, folder: Path) -> None:
        refuse_no_name(folder)
        self.folder = folder
        self.config_path = folder / "config.json"
        self.metrics_path = folder / "metrics.jsonl"
        self.result_path = folder / "result.json"

    @property
    def exists(self) -> bool:
        """Whether a run lives here."""
        return os.path.exists(self.config_path)

    @property
    def finished(self) -> bool:
        """Whether that run came to its end."""
        return os.path.exists(self.result_path)

    @property
    def vacant(self) -> bool:
        """Whether a new run may start here: no folder yet, or nothing in it but what a start killed early left."""
        if not os.path.lexists(self.folder):
            return True
        with disk_errors(self.folder):
            return os.path.isdir(self.folder) and {".lock", "config.json.tmp"}.issuperset(os.listdir(self.folder))

    def start(self) -> None:
        """Take the folder for this process, or say why not."""
        if self.finished:
            steps = self.result().get("steps")
            raise UserError(
                f"{self.folder} holds a finished run ({steps} steps): name another --run, or measure this one with "
                f"'mimkit evaluate knn {self.folder} --data DATA'"
            )
        if os.path.isfile(self.folder):
            raise UserError(f"{self.folder} is a file: name a folder with --run")
        if not self.exists and not self.vacant:
            raise UserError(f"{self.folder} is not empty and holds no run of mimkit: name another folder with --run")
        self._made = [place for place in (self.folder, *self.folder.parents) if not os.path.exists(place)]
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115  held until the process ends
        try:
            # Not flock: workers would inherit it and outlive a killed run by seconds.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process is training in {self.folder}: wait for it, or name another --run"
            ) from error
        with disk_errors(self.folder):
            remove_unfinished(self.folder)

    def abandon(self) -> None:
        """Leave nothing behind of a run that failed before it began."""
        if self.exists:
            return
        (self.folder / ".lock").unlink(missing_ok=True)
        with suppress(OSError):  # what holds something else stays
            for place in self._made:
                place.rmdir()

    def write_config(self, config: Any, recipe: str, resolved: dict[str, Any]) -> None:
        """Write config.json: what was asked for, what follows from the data, and the environment."""
        data = {
            "format": FORMAT,
            "mimkit": mimkit.__version__,
            "recipe": recipe,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": to_dict(config),
            "resolved": resolved,
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "system": platform.system(),
            },
        }
        with disk_errors(self.folder):
            write_json(self.config_path, data)

    def read_config(self) -> dict[str, Any]:
        """config.json with `config` as the dataclass again. Raises UserError, also for a value of a wrong type."""
        data = self._config_file()
        with named(self.config_path):
            return data | {"config": from_dict(data["config"])}

    def read_plain_config(self) -> dict[str, Any]:
        """config.json as it is, checked: the classes that it names need not be importable. Raises UserError."""
        data = self._config_file()
        with named(self.config_path):
            return data | {"config": check_dict(data["config"])}

    def _config_file(self) -> dict[str, Any]:
        data = read_json(self.config_path)
        if not {"config", "recipe", "resolved"} <= data.keys():
            raise UserError(
                f"{self.config_path} is no config of a run, or a damaged one: restore it, or name another folder"
            )
        if isinstance(version := data.get("format", 1), int) and version > FORMAT:
            raise UserError(
                f"{self.config_path} has format {version}, of a later version of mimkit ({data.get('mimkit')}): "
                "upgrade mimkit to read it"
            )
        with named(self.config_path):
            Resolved.from_json(data["resolved"], "resolved")
            return fit(data, Config)

    def result(self) -> dict[str, Any]:
        """result.json of a finished run. Raises UserError."""
        return read_json(self.result_path, Result)

    def changes(self, config: Any) -> dict[str, tuple[Any, Any]]:
        """By name the settings that are others than the run's, with both values; not `machine`."""
        return {
            key: values
            for key, values in differences(self.read_config()["config"], config).items()
            if not key.startswith("machine.") and key != "images.bad_fraction"
        }

    def refuse_other(self, config: Any) -> None:
        """Refuse to go on with an unfinished run under other settings; `machine` may differ."""
        if changed := self.changes(config):
            key, (old, new) = next(iter(changed.items()))
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UserError(
                f"{self.folder} holds an unfinished run with {key} = {old}, not {new}{more}: name another --run, or go "
                f"on with 'mimkit pretrain --run {self.folder}'"
            )

    def rewind(self, step: int) -> None:
        """Drop metrics after `step`: the steps behind it will be done again."""
        if not self.metrics_path.exists():
            return
        lines = [json.dumps(record) + "\n" for record in self.metrics() if record["step"] <= step]
        with disk_errors(self.folder):
            write_text(self.metrics_path, "".join(lines))

    def append(self, record: dict[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        with disk_errors(self.folder), open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl: a kill can leave half a line at the end.

        Raises:
            UserError: the file cannot be read, or a line before the last is broken or none of metrics.
        """
        if not os.path.lexists(self.metrics_path):
            return []
        try:
            lines = read_regular(self.metrics_path).splitlines()
        except OSError as error:
            raise UserError(f"{self.metrics_path} cannot be read ({error.strerror}): restore it") from error
        records = []
        for number, line in enumerate(lines, 1):
            try:
                data = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break
                raise UserError(
                    f"{self.metrics_path}: line {number} is no JSON ({error}): restore the file, or delete that line"
                ) from error
            with named(self.metrics_path):
                records.append(record(plain(data), f"line {number}"))
        return records
