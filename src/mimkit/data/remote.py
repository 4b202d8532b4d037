"""Files in object stores and on web servers: a URL enters, an object that reads parts of it leaves.

What is read is fetched in blocks, which lie on a local disk from then on (`data.blocks`). A store that answers with
errors is asked again for some seconds; then a UserError stops whoever reads: a picture is never replaced by another one
because of a network.
"""

import importlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from mimkit.core.errors import UserError, missing_extra
from mimkit.core.urls import public, whole, without_secrets
from mimkit.data.blocks import blocks
from mimkit.data.pictures import digest
from mimkit.data.stored import StoredFile

T = TypeVar("T")
BLOCK = 8 << 20  # bytes
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a store is asked again
AT_ONCE = 8  # requests of a process
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub", "http": "http", "https": "http"}
PROTOCOLS = (*EXTRAS, "file", "memory")
CREDENTIALS = {
    "s3": "AWS's own variables, ~/.aws or the machine's role give credentials, FSSPEC_S3_ANON=true does without",
    "gcs": "'gcloud auth application-default login', GOOGLE_APPLICATION_CREDENTIALS or the machine's account",
    "hub": "'hf auth login' or HF_TOKEN",
    "http": "~/.netrc, or a URL that is signed",
}
_VERSIONS = ("ETag", "etag", "blob_id", "generation", "md5Hash", "Content-MD5", "Last-Modified", "mtime", "created")
_filesystems: dict[tuple[int, str], Any] = {}


class Absent(UserError):
    """There is no such object."""


class RemoteFile(StoredFile):
    """A file at a URL. Nothing is open in it: each process has connections of its own.

    Args:
        url: may hold credentials, which `place` does not.
        size, version: as a listing of the store says; by default asked for.
    """

    def __init__(self, url: str, size: int | None = None, version: str | None = None) -> None:
        self.place, self._url = public(url), whole(url)
        if size is None or version is None:
            size, version = describe(self._url)
        self._size, self._version = size, version

    @property
    def size(self) -> int:
        return self._size

    @property
    def version(self) -> str:
        return self._version

    def read(self, offset: int, size: int) -> bytes:
        """See `StoredFile`; raises UserError where the store fails, or the file is another one by now."""
        return self.read_many([(offset, size)])[0]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of several (offset, size), fetched at the same time where they are not in the cache."""
        if any(offset < 0 or offset + size > self._size for offset, size in ranges):
            raise OSError(0, "the file ends before it")
        # Without a version nobody could tell blocks of a file from those of another one that was there before.
        if not self._version or not blocks().keeps(BLOCK):
            return in_parallel(lambda extent: self._fetch(*extent), ranges)
        cuts = [list(_cut(offset, size)) for offset, size in ranges]
        pieces = iter(in_parallel(lambda cut: self._piece(*cut), [cut for entry in cuts for cut in entry]))
        return [b"".join(next(pieces) for _ in entry) for entry in cuts]

    def _piece(self, number: int, start: int, stop: int) -> bytes:
        """From `start` to `stop` of a block."""
        size = min(BLOCK, self._size - number * BLOCK)
        shared, name = blocks(), digest(self.place, self._size, self._version, BLOCK, number)
        data = shared.read(name, size, start, stop)
        if data is not None:
            return data
        with shared.alone(name):
            data = shared.read(name, size, start, stop)  # another process was faster
            if data is not None:
                return data
            block = self._fetch(number * BLOCK, size)
            shared.write(name, block)
        return block[start:stop]

    def _fetch(self, offset: int, size: int) -> bytes:
        """Bytes from the store, of this version for sure."""
        if not size:
            return b""
        data = persist(self.place, lambda: self._request(offset, size))
        # Asked behind the bytes: they were of the version that is there now, or of an earlier one that is not ours.
        if describe(self._url) != (self._size, self._version):
            raise UserError(f"{self.place} changed while it was read: bring the earlier one back, or start anew")
        return data

    def _request(self, offset: int, size: int) -> bytes:
        data = filesystem(self._url).cat_file(self._url, start=offset, end=offset + size)
        if size < len(data) == self._size:  # a web server that knows no parts
            data = data[offset : offset + size]
        if len(data) != size:
            raise TimeoutError(f"the connection was cut: {len(data):,} of {size:,} bytes came")
        return data


def _cut(offset: int, size: int) -> Iterable[tuple[int, int, int]]:
    """The blocks that bytes lie in: number, and from where to where."""
    place, end = offset, offset + size
    while place < end:
        number = place // BLOCK
        stop = min(end - number * BLOCK, BLOCK)
        yield number, place - number * BLOCK, stop
        place = number * BLOCK + stop


def in_parallel(work: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Of each item, in order."""
    items = list(items)
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as threads:
        return list(threads.map(work, items))


def filesystem(url: str) -> Any:
    """fsspec's file system of a URL, of this process alone: a forked one's connections are its parent's.

    Raises UserError for a protocol that is not known, or whose extra is not installed.
    """
    protocol = url.partition("://")[0].lower()
    key = (os.getpid(), protocol)
    if key not in _filesystems:
        _filesystems[key] = _open_filesystem(protocol)
    return _filesystems[key]


def _open_filesystem(protocol: str) -> Any:
    if protocol not in PROTOCOLS:
        raise UserError(f"{protocol}:// is no place that mimkit reads: give a path, or {', '.join(PROTOCOLS)} URLs")
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        if EXTRAS.get(protocol) == "s3":
            # Whoever calls asks again: a library that did too would multiply the tries.
            usual = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options["config_kwargs"] = {"retries": {"total_max_attempts": 1}} | usual
        if EXTRAS.get(protocol) == "http":
            aiohttp = importlib.import_module("aiohttp")
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
            options["client_kwargs"] = {"trust_env": True, "timeout": timeout}  # ~/.netrc, and proxies
        if protocol == "file":
            options["auto_mkdir"] = True
        opened = fsspec.filesystem(protocol, **options)
    except ImportError:
        raise missing_extra(f"reading {protocol}:// URLs", EXTRAS[protocol]) from None
    if EXTRAS.get(protocol) == "s3":
        opened.retries = 1
    return opened


def persist(place: str, work: Callable[[], T]) -> T:
    """What `work` gives, tried again some times where a store or a network fails.

    Raises UserError with the place and what failed, and Absent where there is nothing.
    """
    for pause in (*PAUSES, None):
        try:
            return work()
        except UserError:
            raise
        except Exception as error:
            reason, lasting = _reason(error, place)
            if reason is None:
                raise Absent(f"there is no file or folder {public(place)}") from None
            if lasting or pause is None:
                times = "" if lasting else f", {len(PAUSES) + 1} times in a row; run the same command again to go on"
                raise UserError(f"{public(place)} cannot be reached: {reason}{times}") from None
            time.sleep(pause)
    raise AssertionError


def _reason(error: Exception, place: str) -> tuple[str | None, bool]:
    """What failed in words without credentials (None: there is nothing), and whether asking again is of no use."""
    status, cause = _status(error), error.__cause__
    if isinstance(error, FileNotFoundError) and status is None and isinstance(cause, Exception):
        return _reason(cause, place)  # fsspec says so of whatever fails on a web server
    extra = EXTRAS.get(place.partition("://")[0].lower(), "")
    if status in (401, 403) or isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return f"access is denied ({CREDENTIALS.get(extra, 'its permissions')})", True
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return None, True
    if status is not None:
        return f"the server answers {status}", status < 500 and status not in (408, 429)
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer came in time", False
    text = without_secrets(" ".join(str(error).split()))[:160]
    return f"{type(error).__name__} {text}".strip(), isinstance(error, (TypeError, ValueError, IsADirectoryError))


def _status(error: BaseException | None) -> int | None:
    """The answer of a web server behind an error of aiohttp, httpx or botocore."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        status = getattr(error, "status", None) or getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def describe(url: str) -> tuple[int, str]:
    """Size and version of a file at a URL. Raises UserError, Absent where there is none."""
    about = look(url)
    if about["type"] == "directory":
        raise UserError(f"{public(url)} is a folder, not a file")
    if about.get("size") is None:
        raise UserError(f"{public(url)}: the server does not say how large it is: copy it here first")
    return int(about["size"]), version_of(about)


def look(url: str) -> dict[str, Any]:
    """What a store says of a file or a folder. Raises UserError, Absent where there is neither."""
    target = whole(url)
    return persist(url, lambda: filesystem(target).info(target))


def version_of(about: dict[str, Any]) -> str:
    """What changes when an object does; empty where a server says nothing of the kind."""
    mark = next((about[key] for key in _VERSIONS if about.get(key)), "")
    return str(mark.timestamp() if isinstance(mark, datetime) else mark)


def listing(url: str) -> dict[str, tuple[int, str]]:
    """Path below a folder, size and version of every file in it, in order of their paths. Raises UserError."""
    target = whole(url)
    system = filesystem(target)
    entries = persist(url, lambda: system.find(target, detail=True))
    root = system._strip_protocol(target).rstrip("/") + "/"
    files = {
        path.removeprefix(root): (int(about["size"] or 0), version_of(about))
        for path, about in entries.items()
        if about["type"] == "file" and path.startswith(root) and not path.endswith("/")
    }
    return dict(sorted(files.items()))
