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
from mimkit.core.config import differences, from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.core.names import FORMAT
from mimkit.train.checkpoint import checkpoints, remove_unfinished, replacing

MEASURED = ("knn", "effective_rank", "feature_spread")  # what an evaluation while training finds


def write_json(path: Path, data: Any) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside, flush to disk and rename; nothing is left beside when that fails."""
    with replacing(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """Read JSON; a broken file is a UserError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): restore it, or use another run folder") from error


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


class RunFolder:
    """One run's folder. It is the only interface between training, evaluation, analysis and reports."""

    def __init__(self, folder: Path) -> None:
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
            steps = read_json(self.result_path).get("steps")
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
        """config.json with `config` as the dataclass again."""
        data = read_json(self.config_path)
        if not isinstance(data, dict) or not {"config", "recipe", "resolved"} <= data.keys():
            raise UserError(
                f"{self.config_path} is no config of a run, or a damaged one: restore it, or name another folder"
            )
        if not isinstance(version := data.get("format", 1), int) or version > FORMAT:
            raise UserError(
                f"{self.config_path} has format {version}, of a later version of mimkit ({data.get('mimkit')}): "
                "upgrade mimkit to read it"
            )
        return data | {"config": from_dict(data["config"])}

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
        """All whole lines of metrics.jsonl: a kill can leave half a line at the end."""
        if not self.metrics_path.exists():
            return []
        records = []
        for line in self.metrics_path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records
