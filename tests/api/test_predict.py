"""What a fine-tuned dense task says of a picture: the same from its run and from its export."""

import shutil

import numpy as np
import pytest
import torch

import mimkit
from mimkit.core.errors import UserError
from mimkit.train.pretrain import pretrain
from transfers import settings, write


def test_a_run_and_its_export_say_the_same(tmp_path):
    data = write("segment", tmp_path / "data")
    pretrain(settings("segment", data, epochs=1), tmp_path / "run", max_steps=1, log=lambda line: None)
    export = shutil.copytree(tmp_path / "run" / "export", tmp_path / "away")
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    of_run, of_export = (mimkit.load(target).predict(picture) for target in (tmp_path / "run", export))
    assert of_run.prediction.segments.shape == (40, 50) and of_run.categories == of_export.categories
    assert torch.equal(of_run.prediction.segments, of_export.prediction.segments)
    (export / "head.json").unlink()
    with pytest.raises(UserError, match="is of no dense task"):
        mimkit.load(export).predict(picture)
    with pytest.raises(UserError, match="no folder of a fine-tuned dense task"):
        mimkit.load("untrained:vit_tiny_patch16_224").predict(picture)
