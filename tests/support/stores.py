"""An S3 server for tests that fails when it is told to: pictures enter a bucket, requests and injected faults leave."""

import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Fault = Callable[[Any], None]
KEYS = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "hush-hush", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Faults:
    """What goes wrong, for the next requests of a method: each number counts down."""

    errors: dict[str, int] = field(default_factory=dict)
    """Answers of status 500."""
    cuts: dict[str, int] = field(default_factory=dict)
    """Answers that end in the middle."""
    denied: bool = False
    pause: float = 0.0
    """Seconds before each answer."""

    def use(self, counts: dict[str, int], method: str) -> bool:
        if counts.get(method, 0) <= 0:
            return False
        counts[method] -= 1
        return True


class Store:
    """A server on a thread. `requests` are method, path and range of all that came."""

    def __init__(self) -> None:
        server = pytest.importorskip("moto.server")
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *args: Any) -> None:
                pass

        self.faults, self.requests = Faults(), list[tuple[str, str, str]]()
        self.application = server.DomainDispatcherApplication(server.create_backend_app)
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        urllib.request.urlopen(f"{self.url}/moto-api/reset", b"").close()  # all servers of a process have one content
        self.client().create_bucket(Bucket="bucket")
        self.requests.clear()

    def answer(self, environ: dict[str, Any], start: Callable) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        self.requests.append((method, environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        time.sleep(self.faults.pause)
        if self.faults.denied:
            start("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        if self.faults.use(self.faults.errors, method):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        body = self.application(environ, start)
        return half(body) if self.faults.use(self.faults.cuts, method) else body

    def gets(self, word: str = "") -> list[tuple[str, str]]:
        """Path and range of every request for bytes of an object whose path holds the word."""
        return [(path, extent) for method, path, extent in self.requests if method == "GET" and word in path and extent]

    def client(self) -> Any:
        import boto3

        names = {"aws_access_key_id": "anyone", "aws_secret_access_key": "hush-hush", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **names)

    def put(self, key: str, data: bytes | Path) -> str:
        """An object in the bucket `bucket`; its URL."""
        body = data.read_bytes() if isinstance(data, Path) else data
        self.client().put_object(Bucket="bucket", Key=key, Body=body)
        return f"s3://bucket/{key}"

    def put_folder(self, key: str, folder: Path) -> str:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{key}/{path.relative_to(folder).as_posix()}", path)
        return f"s3://bucket/{key}"

    def names(self) -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket="bucket")
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def half(body: Iterable[bytes]) -> Iterable[bytes]:
    """Half of an answer, and then the connection ends."""
    data = b"".join(body)
    yield data[: len(data) // 2]
    raise ConnectionResetError


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterable[Store]:
    """A server, the variables that lead to it, and a cache of the test's own."""
    pytest.importorskip("s3fs")
    store = Store()
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": store.url}).items():
        monkeypatch.setenv(name, value)
    for name in ("MIMKIT_URLS", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from mimkit.data import remote

    monkeypatch.setattr(remote, "PAUSES", (0.01,) * 4)
    remote._filesystems.clear()  # they know the server of another test
    yield store
    store.server.shutdown()
    store.client().close()
