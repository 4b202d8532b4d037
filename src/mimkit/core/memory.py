"""Memory: a device enters, the bytes that a process may still take there leave; a container's limits count."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")
_UNKNOWN = 4 << 30  # bytes that are assumed to be free where the system does not say


def memory_budget() -> int:
    """Bytes that data in memory may take by default: a quarter of the memory, shared by the ranks on this machine."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for group in _groups() if (limit := _number(group / "memory.max")) is not None]
    return min([total, *limits]) // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; on the CPU no more than is left of the limits of a container or a job."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = _UNKNOWN
    return min([available, *(_left_of(group) for group in _groups() if _number(group / "memory.max") is not None)])


def _left_of(group: Path) -> int:
    """What a control group with a limit may still take. Files cached for it count as free: they give way."""
    used = _number(group / "memory.current") or 0
    try:
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        counts = {}
    return max(0, (_number(group / "memory.max") or 0) - used + int(counts.get("inactive_file", 0)))


def _groups() -> Iterator[Path]:
    """The control groups (v2) that this process lies in, from its own up to the root; each may set a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    # In a container this is the root of what it sees, whose limit is the container's.
    inner = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    group = _CGROUPS / inner
    yield group
    while group != _CGROUPS and _CGROUPS in group.parents:
        group = group.parent
        yield group


def _number(file: Path) -> int | None:
    """The number in a file of a control group; None where there is none, as in `max`."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
