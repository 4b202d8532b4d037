"""Choices that a machine makes for a run: what it times them by."""

import time
from types import SimpleNamespace

import torch
from torch import nn

from mimkit.core.batch import Batch
from mimkit.train.machine import Engine, Machine

CPU = torch.device("cpu")
BATCH = Batch(torch.zeros(1, 1, 8, 8), torch.arange(1), torch.arange(1))


class Busy(nn.Module):
    """A task that computes for so many seconds and waits for so many, by whether autocast is on and by threads."""

    def __init__(self, computes: dict[bool, float], waits: dict[tuple[bool, int], float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.computes, self.waits = computes, waits

    def forward(self, batch: object, progress: float) -> SimpleNamespace:
        half = torch.is_autocast_enabled("cpu")
        time.sleep(self.waits.get((half, torch.get_num_threads()), 0.0))
        end = time.thread_time() + self.computes[half]
        while time.thread_time() < end:
            pass
        return SimpleNamespace(loss=self.weight * 1.0)


def chosen(task: nn.Module, **given: object) -> Engine:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return Engine.choose(Machine(**given), CPU, task, lambda: BATCH, None)
    finally:
        torch.set_num_threads(before)


def test_precision_goes_by_cpu_time_not_by_who_else_was_running():
    waits = {(True, 2): 0.03}
    assert chosen(Busy({False: 0.02, True: 0.005}, waits), threads=2).precision == "bfloat16"
    assert chosen(Busy({False: 0.005, True: 0.02}, {(False, 2): 0.03}), threads=2).precision == "float32"


def test_threads_go_by_seconds():
    computes = {False: 0.02, True: 0.005}
    assert chosen(Busy(computes, {(True, 2): 0.03})).threads == 1
    assert chosen(Busy(computes, {(True, 1): 0.03})).threads == 2


def test_what_is_given_is_kept():
    engine = chosen(Busy({False: 0.02, True: 0.005}, {}), precision="float32", attention="plain", threads=1)
    assert (engine.precision, engine.attention, engine.threads) == ("float32", "plain", 1)
