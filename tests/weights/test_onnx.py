"""Dense tasks leave as ONNX: its runtime says what torch says, of any number of images."""

import json

import numpy as np
import pytest
import torch

from commandline import mimkit, refused
from mimkit.evaluate.trained import open_trained
from mimkit.train.pretrain import pretrain
from transfers import settings, write

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("task", ["segment", "depth"])
def test_the_runtime_says_what_torch_says(task, tmp_path):
    config = settings(task, write(task, tmp_path / "data"))
    pretrain(config, tmp_path / "run", max_steps=2, log=lambda line: None)
    answer = mimkit(f"export {tmp_path / 'run'} --to onnx --out {tmp_path / 'out'}")
    assert answer.status == 0, answer
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    trained = open_trained(str(tmp_path / "run"), torch.device("cpu"))
    assert about["categories"] == list(trained.categories) and about["mean"] == list(trained.mean)
    assert about["size"] == [32, 32] and about["task"] == task
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for count in (1, 3):
        images = torch.randn(count, 3, 32, 32)
        (output,) = session.run([about["output"]], {"images": images.numpy()})
        expected = trained.task.predict(images).numpy()
        assert output.shape == expected.shape and np.ptp(expected) > 1e-3
        assert np.abs(output - expected).max() < 1e-4
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"model.onnx", "config.json", "README.md", "identity.json"}
    assert "library_name: onnx" in (tmp_path / "out" / "README.md").read_text()
    assert "--to torchvision is for" in refused(f"export {tmp_path / 'run'} --to torchvision --out {tmp_path / 'no'}")
