"""What a picture keeps for the backward pass: its own tensors, and no weights however large they are."""

import pytest
import torch

from mimkit.data.pictures import Decoded
from mimkit.recipes import find_recipe
from mimkit.train.footprint import kept_bytes
from mimkit.train.prepare import Prepared


@pytest.mark.parametrize("recompute", [False, True])
def test_bytes_grow_with_pictures_alone(recompute):
    run = find_recipe("mae_mini_32")
    run.encoder.width, run.encoder.depth, run.encoder.heads = 256, 2, 4  # 6 MB of weights
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    case = Prepared(run, pictures=Decoded("noise", pixels))
    few, many = (kept_bytes(case.task, case.sample(count), recompute) / count for count in (2, 8))
    assert few == pytest.approx(many, rel=0.1)  # positions are kept once
    weights = sum(weight.numel() for weight in case.task.parameters()) * 4
    assert 2 * few < weights, "or the case shows nothing"
