"""The words before the first step: short plans, and batches and queues that hold more than the set."""

from dataclasses import replace

import pytest

from contrastive_ranks import CONFIGS
from drills import tiny
from mimkit.train.announce import plan_note, size_notes
from mimkit.train.pretrain import pretrain


def test_a_short_plan_says_what_it_can_show():
    assert plan_note(200, 3) == plan_note(9999, 800) == ""
    note = plan_note(7, 24)
    assert note == "7 steps: enough to see that it runs, too few to judge what it learns; --epochs 686 would be 200"
    assert 686 * 7 / 24 >= 200 > 685 * 7 / 24
    assert "1 steps" not in plan_note(1, 1)


def test_a_batch_and_a_queue_beyond_the_set_are_named():
    assert size_notes(40, 40, 40) == size_notes(40, 8) == []
    batch, queue = size_notes(40, 256, 4096)
    assert batch == "a batch of 256 holds each of the 40 pictures 6.4 times: a smaller --batch-size is enough"
    assert queue == "a queue of 4,096 holds each of the 40 pictures 102.4 times: a smaller --method.queue is enough"


@pytest.mark.parametrize(("kind", "batch", "notes"), [("mae", 8, 1), ("mae", 64, 2), ("moco", 8, 2), ("moco", 4, 1)])
def test_a_run_says_it_before_its_first_step(kind, batch, notes, forty, tmp_path):
    run, lines = tiny(forty, evals=0), []
    run.batch_size, run.epochs = batch, 1
    if kind == "moco":
        run.method = replace(CONFIGS["moco"], queue=48 if batch == 8 else 40)
        run.images = replace(run.images, other_views=(run.images.view,))
    pretrain(run, tmp_path / "run", log=lines.append, max_steps=1)
    found = [line for line in lines if line.startswith("  note  ")]
    assert len(found) == notes and "too few to judge" in found[0]
    assert ("holds each of the 40 pictures" in found[-1]) == (notes == 2)


def test_a_long_run_of_a_fitting_batch_has_nothing_to_note(forty, tmp_path):
    run, lines = tiny(forty, evals=0), []
    run.epochs = 40  # 200 steps
    pretrain(run, tmp_path / "run", log=lines.append, max_steps=1)
    assert not [line for line in lines if "note" in line]
