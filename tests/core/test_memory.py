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
    monkeypatch.setattr(memory, "_groups", lambda: [job, job.parent, tmp_path])
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


def test_groups_go_from_the_process_up_to_the_root():
    groups = list(memory._groups())
    assert groups[-1] == memory._CGROUPS and all(below.parent == group for below, group in pairwise(groups))
