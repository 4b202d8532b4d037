"""What a line of metrics says: means over its window, against sums by hand."""

import math

import pytest
import torch
from torch import nn

from drills import ranks, tiny
from mimkit.core.batch import Batch, Step
from mimkit.train.recorder import Window
from mimkit.train.run_folder import RunFolder
from mimkit.train.training import LogSteps, StepOutputs


def outputs(*micro_batches: tuple[float, dict[str, float]]) -> StepOutputs:
    """A step of micro batches, each with its loss and its logs."""
    step = StepOutputs()
    number = torch.arange(2)
    for loss, logs in micro_batches:
        batch = Batch(torch.zeros(2, 3, 4, 4), number, number)
        step.add(batch, Step(torch.tensor(loss), {name: torch.tensor(value) for name, value in logs.items()}))
    return step


def test_logs_are_means_over_steps_and_micro_batches_as_the_loss():
    window = Window()
    window.outputs = [
        (0, outputs((1.0, {"a": 1.0}), (2.0, {"a": 2.0}))),
        (1, outputs((3.0, {"a": 6.0}), (4.0, {"a": 7.0}))),
    ]
    assert window.losses().mean(0).sum().item() / 2 == pytest.approx(2.5)
    assert window.logs() == {"a": pytest.approx(4.0)}


def test_a_number_that_only_some_steps_give_is_a_mean_over_these():
    window = Window()
    window.outputs = [(0, outputs((1.0, {"a": 1.0}))), (1, outputs((1.0, {"a": 3.0, "b": 5.0})))]
    assert window.logs() == {"a": pytest.approx(2.0), "b": pytest.approx(5.0)}
    window.outputs = [(0, outputs((1.0, {})))]
    assert window.logs() == {}


def test_what_is_kept_of_a_step_holds_neither_images_nor_graph():
    weight = nn.Parameter(torch.ones(()))
    step = StepOutputs()
    number = torch.arange(2)
    step.add(Batch(torch.zeros(2, 3, 4, 4), number, number), Step(weight * 2, {"a": weight * 3}))
    assert not step.losses[0].requires_grad and not step.logs[0]["a"].requires_grad
    assert not any(isinstance(value, Batch) for value in vars(step).values())


@pytest.mark.parametrize(("micro_batch", "world"), [(8, 1), (2, 1), (4, 2), (2, 2)])
def test_micro_batches_and_processes_change_no_log(micro_batch, world, forty, tmp_path):
    """`hidden` is the same for all; the loss and what MAE logs are means over pictures however they are divided."""
    results = ranks(tmp_path / "log", tiny(forty, micro_batch=micro_batch), tmp_path / "run", world=world)
    assert all(status == 0 for status, _ in results), results
    records = RunFolder(tmp_path / "run").metrics()
    assert records[-1]["step"] == 20
    assert all(record["hidden"] == pytest.approx(7 / 9) for record in records)
    assert all(math.isfinite(record["loss"]) for record in records)


def test_evaluations_lie_at_equal_distances():
    steps = LogSteps.spread(20, every=6, evals=3)
    assert steps.evals == {7, 13, 20}
    assert [step + 1 for step in range(20) if steps.logs(step)] == [6, 7, 12, 13, 18, 20]
    assert LogSteps.spread(20, every=50, evals=0).evals == frozenset()
