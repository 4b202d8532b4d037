"""Sinkhorn: the published loop in NumPy, its invariances, and processes that equal one."""

import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightly.loss.msn_loss import sinkhorn as msn_sinkhorn

from drills import processes
from mimkit.methods.assignment import sinkhorn

torch.set_num_threads(1)


def scores(pictures=12, places=3, clusters=5):
    return 4 * torch.randn(pictures, places, clusters, generator=torch.Generator().manual_seed(0))


def published(numbers: np.ndarray, iterations: int) -> np.ndarray:
    """CAPI's loop, place by place."""
    columns = []
    for place in range(numbers.shape[1]):
        x = np.exp(numbers[:, place] - numbers[:, place].max(axis=0))
        for _ in range(iterations):
            x = x / x.sum(axis=0, keepdims=True)
            x = x / x.sum(axis=1, keepdims=True)
        columns.append(x)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_each_place_is_balanced_by_itself_as_in_the_released_loop(iterations):
    shares = sinkhorn(scores(), iterations)
    np.testing.assert_allclose(shares, published(scores().double().numpy(), iterations), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shares[:, 1], sinkhorn(scores()[:, 1], iterations), rtol=1e-4, atol=1e-6)
    joint = sinkhorn(scores().flatten(0, 1), iterations).view_as(shares)
    assert (joint - shares).abs().max() > 0.1


def test_of_probabilities_it_is_lightly_s_of_msn():
    chances = (scores()[:, 0]).softmax(dim=1)
    torch.testing.assert_close(sinkhorn(chances.log(), 3), msn_sinkhorn(chances, 3))


def test_rows_sum_to_one_columns_to_alike_and_constants_of_clusters_vanish():
    torch.testing.assert_close(sinkhorn(scores()).sum(dim=2), torch.ones(12, 3))
    torch.testing.assert_close(sinkhorn(scores(), 500).sum(dim=0), torch.full((3, 5), 12 / 5), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        sinkhorn(scores() + torch.tensor([0.0, 90, -70, 3, 1])), sinkhorn(scores()), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(sinkhorn(scores(), 0), scores().softmax(dim=2))
    assert sinkhorn(300 * scores()).isfinite().all() and not sinkhorn(scores().requires_grad_()).requires_grad


def test_low_precision_around_it_changes_nothing():
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(scores()), sinkhorn(scores())) and sinkhorn(scores().bfloat16()).dtype.itemsize == 4


def _part(rank: int, port: int, file: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(sinkhorn(scores()[6 * rank : 6 * rank + 6]), f"{file}{rank}")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [processes.Process(target=_part, args=(rank, port, str(tmp_path / "part"))) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    joined = torch.cat([torch.load(tmp_path / f"part{rank}") for rank in range(2)])
    torch.testing.assert_close(joined, sinkhorn(scores()))
