"""Agreement: what one process finds enters; where all go on from, or the line that says who differs, leaves."""

import hashlib
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mimkit
from mimkit.core import distributed
from mimkit.core.config import flatten, to_dict
from mimkit.core.errors import UserError
from mimkit.core.state_folder import STATE
from mimkit.train.checkpoint import checkpoints, set_bad_aside
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.run_folder import RunFolder, last_good

OF_A_HOST = ("config.machine.device", "config.machine.workers")  # settings that may differ
PATIENCE = 15.0  # seconds: a network's disk may show a new file that late
TAIL = 1 << 20  # bytes: the end of a checkpoint lists the checksums of all before it


@dataclass(frozen=True)
class Origin:
    """Where a run goes on from. The main process finds it, since folders look different from different hosts."""

    recipe: str
    """Its name, as the run has it."""
    resolved: Mapping[str, Any]
    """What an earlier part of the run found out, as JSON; empty for a new run."""
    checkpoint: Path | None
    """None: training begins at the first step."""
    set_aside: tuple[str, ...] = ()
    """What is wrong with newer checkpoints, which have another name now."""

    @staticmethod
    def of(run: RunFolder, config: Pretrain, recipe: str) -> "Origin":
        """That of a run as this process sees its folder. Raises UserError for a run with other settings."""
        if not run.exists:
            return Origin(recipe, {}, None)
        run.refuse_other(config)
        saved = run.read_config()
        bad = tuple(set_bad_aside(run.folder))
        return Origin(saved["recipe"], saved["resolved"], next(reversed(checkpoints(run.folder)), None), bad)


def agree(prepared: Prepared, origin: Origin) -> None:
    """Make sure that all processes compute one run; raises the same UserError in all where one of them differs."""
    distributed.refuse_differences(lambda: facts(prepared, origin))


def facts(prepared: Prepared, origin: Origin) -> dict[str, dict[str, Any]]:
    """What has to be equal in all processes, by name, below the words that say how to mend it."""
    pictures, (mean, std) = prepared.pictures, prepared.statistics
    settings = flatten(to_dict(prepared.config), "config.")
    checkpoint = {} if origin.checkpoint is None else {f"checkpoint {origin.checkpoint}": ending(origin.checkpoint)}
    return {
        "install one version on all hosts": {"mimkit": mimkit.__version__},
        "start all with the same words": {k: v for k, v in settings.items() if k not in OF_A_HOST},
        "all must see the same run folder": checkpoint,
        "all must read the same pictures, copied with the times of their files (cp -p, rsync -t)": {
            "the number of pictures": len(pictures),
            "the number of channels": pictures.channels,
            "the number of classes": len(pictures.classes or ()),
            "the size of images": prepared.size,
            "the mean of the pictures": [round(x, 3) for x in mean],  # processors differ in the last digits
            "the standard deviation of the pictures": [round(x, 3) for x in std],
            "the fingerprint of the pictures": pictures.fingerprint,
        },
    }


def ending(checkpoint: Path) -> str:
    """A few words that differ between two checkpoints, from their sizes and ends.

    Waits for a file that this host does not see yet. Raises UserError where it does not appear.
    """
    until = time.monotonic() + PATIENCE
    # state.json of a folder has the checksums of its other files.
    path = checkpoint if checkpoint.suffix else checkpoint / STATE
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.5)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            return f"{size} bytes, {hashlib.sha256(file.read()).hexdigest()[:12]}"
    except OSError as error:
        folder = checkpoint.parents[1]
        absent = f"the run folder {folder}" if not folder.exists() else f"the checkpoint {checkpoint}"
        raise UserError(
            f"{absent} cannot be read here ({error.strerror}): a run goes on where all processes see its folder, "
            "as on a disk that the hosts share"
        ) from error


@contextmanager
def lost_peers(run: RunFolder) -> Generator[None]:
    """A process that is gone stops the others with one line instead of the error of whatever waited for it."""
    try:
        yield
    except RuntimeError as error:
        if not distributed.peer_lost(error):
            raise
        raise UserError(
            f"another process of this run ended or cannot be reached ({' '.join(str(error).split())[-120:]}): run the "
            f"same command again; {last_good(run.folder)}"
        ) from error
