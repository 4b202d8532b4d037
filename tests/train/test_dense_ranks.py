"""Dense tasks in two processes: all learn the same, also from images in which nothing is to be learned."""

from dataclasses import replace

import pytest
import torch

from drills import ranks
from mimkit.core.randomness import rng_keys
from mimkit.data.annotations.cut import cut_annotation
from mimkit.evaluate.trained import open_trained
from mimkit.train.prepare import Prepared
from mimkit.train.run_folder import RunFolder
from transfers import METHODS, settings, write

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def empty_images(config) -> int:
    """How many images of the first steps show no object."""
    pictures = Prepared(config).pictures
    count = 0
    for epoch in range(config.epochs):
        for number in range(len(pictures)):
            key = rng_keys("crop", config.seed, torch.tensor([epoch]), torch.tensor([number]))
            height, width = torch.tensor(pictures.size(number)).split(1)
            boxes, flip = config.images.view.boxes(key, height, width, config.images.shape())
            seen = cut_annotation(pictures.annotation(number), boxes[0], bool(flip[0]), config.images.shape())
            count += not len(seen.boxes)
    return count


@pytest.mark.parametrize("task", METHODS)
def test_two_processes_learn_one_model(task, tmp_path):
    config = settings(task, write(task, tmp_path / "data"), epochs=4, batch_size=2)
    if task == "detect":  # a small part of a picture is seen, which often shows no object
        config.images.view = replace(config.images.view, scale=(3.0, 5.0))
        assert empty_images(config) >= 4
    for status, said in ranks(tmp_path / "log", config, tmp_path / "run"):
        assert status == 0, said
    losses = [record["loss"] for record in RunFolder(tmp_path / "run").metrics()]
    assert len(losses) >= 8 and all(torch.tensor(losses).isfinite())
    trained = open_trained(str(tmp_path / "run"), torch.device("cpu"))
    assert all(value.isfinite().all() for value in trained.task.state_dict().values())
