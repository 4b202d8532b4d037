"""Free memory: a control group's limit counts, of its own and of those above it, and cached files do not."""

from itertools import pairwise

import pytest
import torch

from mimkit.core import memory

CPU = torch.device("cpu")
MB = 1 << 20


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A tree of control groups: a job of 100 MB that used 60, 20 of them cached files, in a slice of 80 MB."""
    job = tmp_path / "slice" / "job"
    job.mkdir(parents=True)
    for folder, limit, used, cached in ((job, f"{100 * MB}", 60 * MB, 20 * MB), (job.parent, "max", 70 * MB, 0)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_groups", lambda controller="": [] if controller else [job, job.parent, tmp_path])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return job


def test_a_limit_bounds_what_is_free(groups):
    assert memory.free_memory(CPU) == 60 * MB
    (groups.parent / "memory.max").write_text(f"{80 * MB}\n")
    assert memory.free_memory(CPU) == 10 * MB  # the slice has 10 left
    (groups.parent / "memory.current").write_text(f"{90 * MB}\n")
    assert memory.free_memory(CPU) == 0


def test_a_budget_is_a_quarter_of_the_lowest_limit_for_all_ranks(groups, monkeypatch):
    assert memory.memory_budget() == 25 * MB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    assert memory.memory_budget() == 5 * MB


def test_without_limits_the_machine_counts(groups):
    (groups / "memory.max").write_text("max\n")
    assert memory.memory_budget() > 100 * MB and memory.free_memory(CPU) > 100 * MB


@pytest.mark.parametrize(
    ("quota", "count"), [("150000 100000", 1), ("400000 100000", 4), ("max 100000", 8), ("20000 100000", 1), ("", 8)]
)
def test_a_quota_of_time_bounds_the_cores(groups, monkeypatch, quota, count):
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    (groups / "cpu.max").write_text(quota)
    assert memory.cores() == count
    (groups.parent / "cpu.max").write_text("100000 100000")  # the lowest of all groups above
    assert memory.cores() == 1


def test_the_first_version_of_control_groups_counts_too(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/job\n")
    monkeypatch.setattr(memory, "_OWN", own)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for file, text in (
        ("cpu/job/cpu.cfs_quota_us", "250000"),
        ("cpu/job/cpu.cfs_period_us", "100000"),
        ("cpu/cpu.cfs_quota_us", "-1"),
        ("cpu/cpu.cfs_period_us", "100000"),
        ("memory/job/memory.limit_in_bytes", str(100 * MB)),
        ("memory/job/memory.usage_in_bytes", str(60 * MB)),
        ("memory/job/memory.stat", f"inactive_file 1\ntotal_inactive_file {20 * MB}\n"),
        ("memory/memory.limit_in_bytes", "9223372036854771712"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert memory.cores() == 2 and memory.memory_budget() == 25 * MB and memory.free_memory(CPU) == 60 * MB


def test_groups_go_from_the_process_up_to_the_root():
    groups = list(memory._groups())
    assert groups[-1] == memory._CGROUPS and all(below.parent == group for below, group in pairwise(groups))
