"""The board of all processes: a place among them enters; who came, and who may say why they end, leaves.

It is torch's store, which needs no collective: a process that fails can leave word there and go.
"""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from mimkit.core.announced import Place, announced
from mimkit.core.errors import UserError

MEETING = timedelta(minutes=10)
"""How long processes wait for each other at the start: hosts may come up minutes apart."""
SPEAKING = timedelta(seconds=10)
"""How long a process that ends waits for the one that says why."""
FAILED = "failed"

_boards: list[dist.Store] = []  # the one of this process, opened once: the first process may be its host
_joined: list[Place] = []  # once for each group
_first: list[bool] = []  # whether this process was the first that asked to speak


def board(timeout: timedelta) -> dist.Store:
    """The store that all processes see. Raises RuntimeError where it cannot be reached."""
    if not _boards:
        store, *_ = next(dist.rendezvous("env://", timeout=timeout))
        # Under torchrun it may outlive the processes that a restart replaces.
        _boards.append(dist.PrefixStore(f"mimkit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store))
    return _boards[0]


def arrive(place: Place) -> dist.Store:
    """Wait until every process is here; returns a store for their group.

    Raises UserError where one does not come, or failed before.
    """
    store = board(MEETING)
    keys = [f"arrived/{rank}" for rank in range(place.world)]
    store.set(keys[place.rank], "")
    try:
        store.wait(keys, MEETING)
    except RuntimeError as error:
        absent = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        minutes = MEETING.total_seconds() / 60
        raise UserError(
            f"rank {', '.join(absent)} of {place.world} did not come within {minutes:g} min: see what it said, and "
            "start all processes again"
        ) from error
    if FAILED.encode() in store.multi_get(keys):
        raise UserError("another process failed before this one began: see what it said, and start all processes again")
    _joined.append(place)
    return dist.PrefixStore(f"group/{len(_joined)}", store)


def ask_to_speak(place: Place) -> bool:
    """Whether this process may say why the processes end: of several, the first that asks."""
    if not _first:
        try:
            store = board(SPEAKING)
            store.set(f"arrived/{place.rank}", FAILED)  # for those that would wait for this one
            _first.append(store.add("speakers", 1) == 1)
        except RuntimeError:  # the board went with the first process: the one behind it speaks
            _first.append(place.rank <= 1)
    return _first[0]


@contextmanager
def speaking() -> Generator[bool]:
    """Whether this process may say why the processes end; those that may not go when it was said."""
    place = announced()
    assert place is not None
    first = ask_to_speak(place)
    yield first
    hosts_board = place.rank == 0 and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
    try:
        store = board(SPEAKING)
        if first:
            store.set("spoken", "")
        else:
            store.wait(["spoken"], SPEAKING)
        until = time.monotonic() + SPEAKING.total_seconds() / 2
        # The board must not go before the others have asked, and they wake up when a collective fails.
        while hosts_board and store.add("speakers", 0) < place.world and time.monotonic() < until:
            time.sleep(0.05)
    except RuntimeError:
        return
