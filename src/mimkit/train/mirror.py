"""Run folders in a store: a URL enters, a local folder leaves; what is saved there goes to the store behind training.

`mirror.json` in the store names every file of the run as it was at one checkpoint, with size and checksum. It is
written when all of them are there, so an upload that was cut changes nothing: the files that it names are not removed
before the next one is written, and those that were overwritten show by their checksums.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimkit.core.errors import UserError
from mimkit.core.schema import Count, fit_fields
from mimkit.core.urls import is_url, join, public
from mimkit.data.folders import cache_folder
from mimkit.data.pictures import digest
from mimkit.data.remote import Absent, filesystem, in_parallel, listing, persist
from mimkit.train.checkpoint import checkpoints

MARKER = "mirror.json"
WRITABLE = ("s3", "s3a", "gs", "gcs", "file", "memory")
_STATE = "store.json"  # beside the local folder: its URL, and the markers that this machine wrote or read
_GROWS = "metrics.jsonl"  # overwritten by a longer one; what it was is its beginning
_UNFINISHED = (".tmp", ".part", ".partial", ".bad", ".lock")


@dataclass(frozen=True)
class Marker:
    """What a store holds of a run."""

    step: Count = 0
    files: dict[str, tuple[Count, str]] = field(default_factory=dict)
    """By path in the run: size and SHA-256."""

    @property
    def name(self) -> str:
        """Tells markers apart."""
        return digest(self.step, sorted(self.files.items()))

    def to_json(self) -> bytes:
        return json.dumps({"step": self.step, "files": self.files}, indent=1).encode()


def local_run(place: str | os.PathLike[str], *, train: bool = False) -> Path:
    """The local folder of the run at a path or a URL.

    Args:
        train: the run is to be trained: its folder stays tied to the URL, which may hold nothing yet. Else what lies
            there is copied, to be read alone.

    Raises UserError where nothing is at the URL, or something else than a run.
    """
    text = os.fspath(place)
    if not is_url(text):
        return Path(text).expanduser()
    url = public(text).rstrip("/")
    if train and url.partition("://")[0] not in WRITABLE:
        raise UserError(f"a run cannot be written to {url}: give --run a path, or an s3:// or gs:// URL")
    home = cache_folder() / ("runs" if train else "pulled") / digest(url)
    folder = home / (url.rpartition("/")[2] or "run")
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home):  # of several processes one pulls
        if train:
            _begin(url, folder)
        else:
            _pull(url, folder, read_marker(url) or _whole_folder(url))
            _write_state(folder, url, [], copy=True)
    return folder


def _begin(url: str, folder: Path) -> None:
    """Bring the local folder of a run to where its URL is, or the URL to where the folder is."""
    marker, state = read_marker(url), _read_state(folder)
    if marker is None:
        if listing_or_nothing(url):
            raise UserError(f"{url} is not empty and holds no run that mimkit mirrors there: name another --run")
        if (folder / "config.json").exists():  # it was there: somebody removed it, or this is another store
            raise UserError(
                f"{url} holds nothing, and {folder} holds the run that was sent there: see that the URL and its store "
                "are the right ones, or move that folder away to begin anew"
            )
        marker = Marker()
        write_marker(url, marker)
    elif marker.files:
        behind = not (folder / "config.json").exists() or _step(folder) < marker.step
        if behind or marker.name not in state:
            _pull(url, folder, marker)
    _write_state(folder, url, [*state, marker.name])
    if (folder / "result.json").exists() and "result.json" not in marker.files:
        Mirror(folder, url).finish()  # killed between the end of the run and that of its upload


def listing_or_nothing(url: str) -> Mapping[str, Any]:
    """All files at a URL; none where it does not exist."""
    try:
        return listing(url)
    except Absent:
        return {}


def read_marker(url: str) -> Marker | None:
    """What a store says that it holds of a run; None where there is none. Raises UserError."""
    place = join(url, MARKER)
    try:
        data = persist(place, lambda: filesystem(place).cat_file(place))
    except Absent:
        return None
    try:
        marker = Marker(**fit_fields(Marker, json.loads(data)))
    except ValueError as error:
        raise UserError(f"{place} is damaged ({error}): remove it, and the run there begins anew") from None
    if bad := next((path for path in marker.files if not _is_inside(path)), None):
        raise UserError(f"{place} names {bad}, which is no file of a run")
    return marker


def write_marker(url: str, marker: Marker) -> None:
    """Name what a store holds. Raises UserError."""
    place = join(url, MARKER)
    persist(place, lambda: filesystem(place).pipe_file(place, marker.to_json()))


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def _whole_folder(url: str) -> Marker:
    """Of a folder that was copied there by hand: all that lies in it, without checksums."""
    files = listing_or_nothing(url)
    if "config.json" not in files:
        raise UserError(f"{url} holds no run of mimkit: give the URL that 'mimkit pretrain --run' had")
    return Marker(0, {path: (size, "") for path, (size, _) in files.items() if _is_inside(path)})


def _pull(url: str, folder: Path, marker: Marker) -> None:
    """Make a local folder what the store holds. Raises UserError where a checkpoint or the settings are damaged."""
    fresh = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()

    def fetch(path: str) -> bool:
        """Whether a file is what the marker says."""
        size, checksum = marker.files[path]
        here, old = fresh / path, folder / path
        here.parent.mkdir(parents=True, exist_ok=True)
        if checksum and old.is_file() and old.stat().st_size == size and sha256(old) == checksum:
            _link(old, here)
            return True
        place = join(url, path)
        try:
            persist(place, lambda: filesystem(place).get_file(place, str(here)))
        except Absent:
            return False
        if path == _GROWS and here.stat().st_size > size:
            os.truncate(here, size)
        return here.stat().st_size == size and checksum in ("", sha256(here))

    for path, good in zip(marker.files, in_parallel(fetch, marker.files), strict=True):
        if good:
            continue
        if path == "config.json" or path.startswith("checkpoints/"):
            raise UserError(f"{join(url, path)} is not what {MARKER} there says: bring it back, or name another --run")
        (fresh / path).unlink(missing_ok=True)
        if path.startswith("export/"):  # of two checkpoints: the next one writes it anew
            shutil.rmtree(fresh / "export", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


class Mirror:
    """Sends what a run saves to its URL, on a thread; of a folder that has none it does nothing.

    One upload is under way at a time; of checkpoints that come meanwhile the newest is sent next.
    """

    def __init__(self, folder: Path, url: str, log: Callable[[str], None] = print) -> None:
        self.folder, self.url, self.log = folder, url, log
        self._thread = ThreadPoolExecutor(1)
        self._newest: Future[None] | None = None
        self._count = 0

    @staticmethod
    def of(folder: Path, log: Callable[[str], None]) -> "Mirror":
        """That of a run folder, which `local_run` may have tied to a URL. Raises UserError for a copy to be read."""
        try:
            state = json.loads((folder.parent / _STATE).read_bytes())
            url, copy = str(state["url"]), state["copy"]
        except (OSError, ValueError, LookupError, TypeError):
            return Mirror(folder, "", log)
        if copy:
            raise UserError(f"{folder} is a copy of {url}, to be read alone: train with --run {url}")
        return Mirror(folder, url, log)

    def save(self, step: int) -> None:
        """Send the run as it is now, after so many steps. Does not wait."""
        if not self.url:
            return
        if self._newest is not None and self._newest.cancel():  # it waits still: this one is newer
            shutil.rmtree(self.folder.parent / f"upload-{self._count}", ignore_errors=True)
        self._count += 1
        count, copy = self._count, self.folder.parent / f"upload-{self._count}"
        shutil.rmtree(copy, ignore_errors=True)
        for path in contents(self.folder):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            # Checkpoints and exports are never changed in place: a second name keeps them while newer ones come.
            take = _link if path.startswith(("checkpoints/", "export/")) else shutil.copyfile
            with suppress(FileNotFoundError):
                take(self.folder / path, copy / path)
        self._newest = self._thread.submit(self._upload, count, copy, step)

    def finish(self) -> None:
        """Send the run as it is at its end, and wait. Raises UserError where that is not possible."""
        if not self.url:
            return
        self.save(_step(self.folder))
        assert self._newest is not None
        try:
            self._newest.result()
        except UserError as error:
            raise UserError(f"{error}; the run is complete in {self.folder}: run the same command again") from None

    def settle(self) -> None:
        """Wait for the upload that is under way; what fails was said already."""
        if self._newest is not None:
            with suppress(Exception, CancelledError):
                self._newest.result()

    def _upload(self, count: int, copy: Path, step: int) -> None:
        try:
            if count == self._count:  # no newer one is waiting
                self._send(copy)
        except Exception as error:
            if count == self._count:
                self.log(f"  warning    step {step} is not in the store yet: {error}")
            raise
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _send(self, copy: Path) -> None:
        """Checkpoints first, the marker last; then what it names no longer is removed."""
        state, before = _read_state(self.folder), read_marker(self.url) or Marker()
        if before.name not in state and before.files:
            raise UserError(f"another process writes to {self.url}: name another --run")
        paths = contents(copy)
        # A sharded checkpoint may still be written, and come with the next.
        marker = Marker(_step(copy), {path: ((copy / path).stat().st_size, sha256(copy / path)) for path in paths})
        changed = [path for path in paths if before.files.get(path) != marker.files[path]]

        def put(path: str) -> None:
            place = join(self.url, path)
            persist(place, lambda: filesystem(place).put_file(str(copy / path), place))

        # Both names, since an answer may be lost on its way.
        _write_state(self.folder, self.url, [*state, before.name, marker.name])
        in_parallel(put, [path for path in changed if path.startswith("checkpoints/")])
        in_parallel(put, [path for path in changed if not path.startswith("checkpoints/")])
        write_marker(self.url, marker)
        for path in before.files.keys() - marker.files.keys():
            with suppress(Exception):  # costs room alone
                filesystem(self.url).rm_file(join(self.url, path))


def contents(folder: Path) -> list[str]:
    """Paths of all files of a run that others read, complete checkpoints alone among them."""
    complete = {path.name for path in checkpoints(folder)}
    paths = []
    # Not by rglob: a checkpoint may be removed meanwhile.
    for path in [os.path.join(inner, name) for inner, _, names in os.walk(folder) for name in names]:
        parts = Path(path).relative_to(folder).parts
        unfinished = any(word.startswith(".") or word.endswith(_UNFINISHED) for word in parts)
        cut = parts[0] == "checkpoints" and (len(parts) < 2 or parts[1] not in complete)
        if os.path.isfile(path) and not unfinished and not cut:
            paths.append("/".join(parts))
    return sorted(paths)  # of a checkpoint in a folder state.json comes last, which says that it is complete


def _step(folder: Path) -> int:
    """Of the newest checkpoint."""
    saved = checkpoints(folder)
    return int(saved[-1].stem.removeprefix("step-")) if saved else 0


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk without links
        shutil.copyfile(source, target)


def _read_state(folder: Path) -> list[str]:
    """Names of the markers that this machine wrote or read, the latest last."""
    try:
        state = json.loads((folder.parent / _STATE).read_bytes())["markers"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [str(name) for name in state] if isinstance(state, list) else []


def _write_state(folder: Path, url: str, markers: list[str], *, copy: bool = False) -> None:
    path = folder.parent / _STATE
    beside = path.with_name(f"{_STATE}.tmp")
    beside.write_text(json.dumps({"url": url, "copy": copy, "markers": list(dict.fromkeys(reversed(markers)))[19::-1]}))
    os.replace(beside, path)


@contextmanager
def _locked(home: Path) -> Generator[None]:
    with open(home / ".lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield
