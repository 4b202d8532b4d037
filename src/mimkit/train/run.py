"""The run folder: a path and a config enter; config.json, metrics.jsonl and the word on what may happen here leave."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mimkit
from mimkit.config import differences, from_dict, to_dict
from mimkit.errors import UserError
from mimkit.train.checkpoint import checkpoints


def write_json(path: Path, data: Any) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_json(path: Path) -> Any:
    """Read JSON; a broken file is a UserError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): restore it, or use another run folder") from error


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full or unwritable disk stops the run with one clear line; what was saved before stays."""
    try:
        yield
    except OSError as error:
        saved = checkpoints(folder)
        left = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved yet"
        raise UserError(
            f"cannot write to {folder} ({error.strerror or error}): free some space or mend its permissions, then run "
            f"the same command again; {left}"
        ) from error


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
        return self.config_path.exists()

    @property
    def finished(self) -> bool:
        """Whether that run came to its end."""
        return self.result_path.exists()

    def start(self) -> None:
        """Take the folder for this process, or say why not."""
        if self.finished:
            steps = read_json(self.result_path).get("steps")
            raise UserError(
                f"{self.folder} holds a finished run ({steps} steps): name another --run, or measure this one with "
                f"'mimkit evaluate knn {self.folder} --data DATA'"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file: name a folder with --run")
        if not self.exists and self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty and holds no run of mimkit: name another folder with --run")
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115  held until the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training in {self.folder}: wait for it, or name another --run") from error

    def write_config(self, config: Any, recipe: str, resolved: dict[str, Any]) -> None:
        """Write config.json: what was asked for, what follows from the data, and the environment."""
        data = {
            "mimkit": mimkit.__version__,
            "recipe": recipe,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": to_dict(config),
            "resolved": resolved,
            "environment": {"python": platform.python_version(), "torch": torch.__version__, "system": platform.system()},
        }
        with disk_errors(self.folder):
            write_json(self.config_path, data)

    def read_config(self) -> dict[str, Any]:
        """config.json with `config` as the dataclass again."""
        data = read_json(self.config_path)
        if not isinstance(data, dict) or "config" not in data:
            raise UserError(f"{self.config_path} is no config of a run: name the folder of a run")
        return data | {"config": from_dict(data["config"])}

    def refuse_other(self, config: Any) -> None:
        """Refuse to go on with an unfinished run under other settings; `machine` may differ."""
        changed = {
            key: values
            for key, values in differences(self.read_config()["config"], config).items()
            if not key.startswith("machine.")
        }
        if changed:
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
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break  # a kill can leave half a line at the end
        self.metrics_path.write_text("".join(kept), encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        with disk_errors(self.folder), open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        if not self.metrics_path.exists():
            return []
        return [json.loads(line) for line in self.metrics_path.read_text(encoding="utf-8").splitlines()]
