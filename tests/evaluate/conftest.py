"""For tests of evaluation: a cache and one thread for each."""

import pytest
import torch


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """Each test has its own cache, and one thread: the machine is shared."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
