"""Serve: a run folder enters; its page, and while it trains its newest numbers and pictures, leave to a browser."""

import ipaddress
import json
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6
from typing import Any
from urllib.parse import urlsplit

from mimkit.core.errors import UserError
from mimkit.report.images import MIME, encoded, film_frame
from mimkit.report.page import Depth, assemble, render, stamp
from mimkit.report.record import FRAMES, frame, frames, names, read_run


class Follower:
    """What a page of one run asks for. What takes long is made when asked, behind the page, one at a time.

    Raises:
        UserError: the folder holds no run.
    """

    def __init__(self, folder: Path, depth: Depth) -> None:
        self.folder, self.depth, self.problem = folder, depth, ""
        self._work: threading.Thread | None = None
        self._lock = threading.Lock()
        self._parts = depth.parts(folder, read_run(folder)["data"], _quiet, cached_only=True)

    @property
    def working(self) -> bool:
        """Whether a checkpoint is being looked at."""
        return self._work is not None and self._work.is_alive()

    def begin(self) -> None:
        """Look at the newest checkpoint, unless that is being done."""
        with self._lock:
            if not self.working:
                self._work = threading.Thread(target=self._make, daemon=True)
                self._work.start()

    def _make(self) -> None:
        self.problem = ""
        try:
            parts = self.depth.parts(self.folder, read_run(self.folder)["data"], _quiet)
            failed = [section["failed"] for section in parts.values() if "failed" in section]
            self.problem = failed[0] if failed else ""
            self._parts = parts
        except Exception as error:  # a page that follows a run survives whatever one look at it meets
            self.problem = f"{type(error).__name__}: {error}"

    def live(self) -> dict[str, Any]:
        """What changes while a run trains: numbers, steps of the film, and which checkpoint is looked at."""
        run = read_run(self.folder)
        return {key: run[key] for key in ("status", "step", "curves")} | {
            "film": frames(self.folder, FRAMES),
            "checkpoint": stamp(self.folder),
            "looked": self._parts["look"]["stamp"],
            "working": self.working,
            "problem": self.problem,
        }

    def page(self) -> str:
        """The whole page as it is now."""
        run = read_run(self.folder) | self._parts | {"name": names([self.folder])[0]}
        run["film"] = [{"step": step, "src": f"film/{step}"} for step in frames(self.folder, FRAMES)]
        return render(assemble([run], live=True) | {"looked": self._parts["look"]["stamp"]})


def _quiet(line: str) -> None:
    pass


class Handler(BaseHTTPRequestHandler):
    """GET of five addresses, from this host's own name, and nothing else."""

    server: "Server"  # type: ignore[bad-override-mutable-attribute]
    timeout = 20  # seconds until a silent browser is let go
    server_version, sys_version = "mimkit", ""

    def do_GET(self) -> None:
        path, follower = urlsplit(self.path).path, self.server.follower
        if not self.server.answers(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.FORBIDDEN, "this page answers to its own address only")
            return
        film = re.fullmatch(r"/film/([0-9]{1,12})", path)
        try:
            if path == "/":
                self._give(follower.page().encode(), "text/html; charset=utf-8")
            elif path == "/live.json":
                self._give(json.dumps(follower.live()).encode(), "application/json")
            elif path == "/look.json":
                # Another site's page cannot read answers, but could make this one work.
                if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
                    self.send_error(HTTPStatus.FORBIDDEN, "only the page itself may ask for this")
                    return
                follower.begin()
                self._give(b'{"working": true}', "application/json")
            elif film and (sheet := frame(follower.folder, int(film[1]))).is_file():
                self._give(encoded(film_frame(sheet)), MIME)
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except FileNotFoundError:
            self.send_error(HTTPStatus.NOT_FOUND)
        except (UserError, OSError) as error:
            if not isinstance(error, ConnectionError):
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the run cannot be read", str(error))

    def _give(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a poll every few seconds is no news."""


class Server(ThreadingHTTPServer):
    """One run's page.

    Args:
        host: an address of this machine; others than loopback let the network in.
        port: 0 for a free one.

    Raises:
        UserError: the address cannot be had.
    """

    daemon_threads = True
    allow_reuse_port = False  # or a port that is taken would be shared

    def __init__(self, follower: Follower, host: str, port: int) -> None:
        self.follower, self.host = follower, host or "0.0.0.0"  # no name is every address
        if not 0 <= port < 65536:
            raise UserError(f"--port is a number from 0, a free one, to 65535, got {port}")
        if ":" in host:
            self.address_family = AF_INET6
        try:
            super().__init__((self.host, port), Handler)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such name"
            raise UserError(
                f"cannot listen on port {port} of {host} ({reason}): leave --port away for a free one"
            ) from error

    @property
    def url(self) -> str:
        """What to open."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    @property
    def private(self) -> bool:
        """Whether this machine alone can reach it."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def answers(self, host: str) -> bool:
        """Whether a Host header is this server's: a name that somebody else points here (DNS rebinding) is not."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.server_address[1]:
            return False
        if name in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
