"""Memory and cores: a device enters, what a process may still take of it leaves; the limits of a container count."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_UNKNOWN = 4 << 30  # bytes that are assumed to be free where the system does not say


def cores() -> int:
    """Cores that this process may use: those of its affinity, and no more than a container's quota of time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_words(group / "cpu.max") for group in _groups()]
    for group in _groups("cpu"):
        quotas.append(_words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us"))
    # Microseconds of a period; `max`, or -1 in the first version, is none.
    limits = [int(quota[0]) / int(quota[1]) for quota in quotas if len(quota) == 2 and quota[0].isdecimal()]
    return max(1, int(min([count, *limits])))


def memory_budget() -> int:
    """Bytes that data in memory may take by default: a quarter of the memory, shared by the ranks on this machine."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *(limit for limit, _ in _limits())]) // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; on the CPU no more than is left of the limits of a container or a job."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = _UNKNOWN
    return min([available, *(max(0, limit - used) for limit, used in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and use of each control group that has a limit. Files cached for it count as free: they give way."""
    names = {
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # of the first version
    }
    for controller, (limit_file, used_file, cached_name) in names.items():
        for group in _groups(controller):
            limit = _number(group / limit_file)
            if limit is None:
                continue
            words = _words(group / "memory.stat")
            counts = dict(zip(words[::2], words[1::2], strict=False))
            yield limit, (_number(group / used_file) or 0) - int(counts.get(cached_name, 0))


def _groups(controller: str = "") -> Iterator[Path]:
    """The control groups that this process lies in, from its own up to the root; each may set a limit.

    `controller`: of version 1, which has a tree for each; by default the one tree of version 2.
    """
    try:
        lines = [line.split(":", 2) for line in _OWN.read_text().splitlines()]
    except OSError:
        lines = []
    root = _CGROUPS / controller
    # In a container this is the root of what it sees, whose limit is the container's.
    inner = next((line[2] for line in lines if len(line) == 3 and controller in line[1].split(",")), "/")
    group = root / inner.lstrip("/")
    yield group
    while group != root and root in group.parents:
        group = group.parent
        yield group


def _words(file: Path) -> list[str]:
    """The words in a file of a control group; none where there is no file."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def _number(file: Path) -> int | None:
    """The number in a file of a control group; None where there is none, as in `max`."""
    words = _words(file)
    return int(words[0]) if words and words[0].isdecimal() else None
