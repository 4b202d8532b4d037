"""Edges: numbers, names and addresses that nobody means are answered in one line."""

import http.client
import threading

import numpy as np
import pytest
import torch

from commandline import mimkit, refused
from mimkit.cli import main as cli
from mimkit.core.errors import UserError
from mimkit.core.files import refuse_no_name
from mimkit.data.lists import open_list
from mimkit.data.reading import Reading
from mimkit.report.serve import Follower, Server

LONG = "x" * 300


class Nobody(Follower):
    """Follows no run."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--seed 9223372036854775808", "seed must be at most 9,223,372,036,854,775,807"),
        ("--seed -9223372036854775809", "seed must be at least"),
        ("--minutes inf", "--minutes is a number above 0 and not without end, got inf"),
        ("--minutes nan", "--minutes is a number above 0 and not without end, got nan"),
        ("--machine.threads 100000", "machine.threads must be at most 1,024, got 100000"),
        ("--machine.workers 100000", "machine.workers must be at most 1,024, got 100000"),
        ("--machine.save-minutes nan", "machine.save_minutes must be above 0, got nan"),
        ("--batch-size 1000000000000", "batch_size must be at most 16,777,216, got 1000000000000"),
        ("--epochs 1000000000000", "epochs must be at most"),
        (f"--run {LONG}", "is too long for a path (300 bytes)"),
        (f"--encoder.weights {LONG}", "too long for a"),
    ],
)
def test_numbers_and_names_that_nobody_means_are_answered(forty, tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(f"pretrain mae_mini_28 --data {forty} --run new $TINY {flags}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "command",
    [
        f"pretrain mae_mini_28 --data {LONG}",
        f"evaluate knn {LONG} --data photos",
        f"analyze {LONG} --data photos",
        f"report {LONG}",
        f"view {LONG}",
        f"diff {LONG} {LONG}",
        f"export {LONG} --out model",
        f"doctor {LONG}",
        f"recipes --json {LONG}",
        f"masks random --data {LONG}",
        f"compare mae_mini_28 mae_mini_32 --data {LONG}",
    ],
)
def test_a_name_that_is_too_long_is_answered_by_every_command(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert "Traceback" not in refused(command)


def test_a_nul_is_in_no_path(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a\0b.png\n")
    with pytest.raises(UserError, match="holds a NUL"):
        open_list(tmp_path / "list.txt", Reading())
    for command in ("doctor a\0b", "report a\0b", "evaluate knn a\0b --data photos", "pretrain --run a\0b"):
        assert "NUL" in refused(command), command
    refuse_no_name("a" * 255 + "/b")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), np.core._exceptions._ArrayMemoryError((1 << 50,), np.dtype(float)), OSError(12, "no memory")],
)
def test_memory_that_is_full_is_one_line_with_the_fix(monkeypatch, error):
    def fail(command, args):
        raise error

    monkeypatch.setattr(cli, "run", fail)
    assert "the memory is full: lower --machine.micro-batch" in refused("recipes")


def test_what_torch_says_of_full_memory_is_understood(monkeypatch):
    monkeypatch.setattr(cli, "run", lambda command, args: torch.empty(1 << 55))
    assert "the memory is full" in refused("recipes")


@pytest.fixture
def server(request):
    server = Server(Nobody(), getattr(request, "param", "127.0.0.1"), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("host", ["[", "[::1", "a:b:c", "]", "127.0.0.1:99999999999", "\u00e9"])
def test_no_host_header_breaks_the_server(server, host):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest("GET", "/", skip_host=True)
    connection.putheader("Host", host.encode("latin-1"))
    connection.endheaders()
    assert connection.getresponse().status == 403


@pytest.mark.parametrize("server", [""], indirect=True)
def test_no_host_is_every_address_and_said(server):
    assert server.url.startswith("http://0.0.0.0:") and not server.private


def test_who_listens_to_the_network_is_warned(tmp_path, monkeypatch):
    from mimkit.report import serve

    monkeypatch.setattr(serve, "Follower", lambda folder, depth: Nobody())
    monkeypatch.setattr(serve.Server, "serve_forever", lambda server: None)
    for flags, warned in (("--host ''", True), ("--host 0.0.0.0", True), ("", False), ("--host localhost", False)):
        answer = mimkit(f"view {tmp_path} {flags} --device cpu")
        assert answer.status == 0 and ("whoever reaches this machine" in answer.err) is warned, answer
