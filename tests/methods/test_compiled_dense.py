"""Dense methods compile: those of maps as one graph, and detection with any number of objects as the same graphs.

Run as a program it compiles, since the compiler cannot trace the shape checks that tests switch on.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
def test_dense_methods_compile():
    command = [sys.executable, __file__]
    path = os.pathsep.join([str(TESTS / "support"), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["segment", "depth", "keypoints", "detect"]


def loss(method, batch) -> torch.Tensor:
    torch.manual_seed(0)
    return method(batch, 0.0).loss


def main() -> None:
    from encoders import batch_of, small
    from mimkit.methods.depth import DepthConfig
    from mimkit.methods.detect import DetectConfig
    from mimkit.methods.keypoints import KeypointsConfig
    from mimkit.methods.segment import SegmentConfig
    from mimkit.model.detection import MaskRCNNConfig

    torch.set_num_threads(1)
    size = (64, 64)
    maps = [
        SegmentConfig(classes=3, channels=16, auxiliary_channels=16, window=4),
        DepthConfig(channels=8, fine_channels=8, gradient=0.5),
        KeypointsConfig(joints=3, channels=8),
    ]
    for config in maps:
        method, batch = config.build(small(depth=2)).train(), batch_of(config.example(2, size, "cpu"))
        compiled = torch.compile(method, backend="eager", fullgraph=True)
        assert torch.equal(loss(compiled, batch), loss(method, batch)), config
        torch._dynamo.reset()
        print(config.learns)
    heads = MaskRCNNConfig(channels=16, box_width=32, box_convolutions=1, mask_convolutions=1, proposals=20, boxes=16)
    config = DetectConfig(classes=3, heads=heads)
    method, (two,) = config.build(small(depth=2)).train(), config.example(1, size, "cpu")
    compiled = torch.compile(method, backend="eager")
    crowd = replace(two, crowd=torch.tensor([True, False]))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for target in (two, two.at(torch.tensor([0])), crowd, two.at(torch.zeros(0, dtype=torch.int64))):
            batch = batch_of((target,))
            assert torch.equal(loss(compiled, batch), loss(method, batch))
    print(config.learns)


if __name__ == "__main__":
    main()
