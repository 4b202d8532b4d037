"""A detector leaves for torchvision: without mimkit, the same boxes, classes, scores and masks of whole pictures."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from commandline import mimkit
from mimkit.evaluate.predict import predict
from mimkit.evaluate.trained import open_trained
from mimkit.methods.detect import DetectConfig
from mimkit.model.build import EncoderConfig
from mimkit.train.pretrain import pretrain
from scenes import scene
from transfers import HEADS, settings, write

ENCODERS = {
    "plain": (EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=4, heads=2), 32, None),
    "windows": (EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=8, heads=2), 32, 4),
    "registers": (
        EncoderConfig(name="vit_small_patch14_reg4_dinov2", patch=4, width=32, depth=2, heads=2, positions="learned"),
        48,
        None,
    ),
    "swin": (
        EncoderConfig(
            name="swin_tiny_patch4_window7_224",
            model_args=dict(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4),
        ),
        64,
        None,
    ),
    "resnet": (EncoderConfig(name="resnet18"), 48, None),
}
# In a process that cannot import mimkit.
READER = """
import sys
sys.modules["mimkit"] = None
import numpy as np, torch
from model import load
detector = load(".")
stored = np.load(sys.argv[1])
pictures = [torch.from_numpy(stored[name]) for name in stored]
objects = detector(pictures[:2]) + detector([pictures[2].float() / 255])
torch.save({"objects": objects, "categories": detector.categories}, sys.argv[2])
try:
    import mimkit
except ImportError:
    print("alone")
"""


def pictures() -> list[torch.Tensor]:
    """Scenes (3, H, W), wider, higher and smaller than the images of the detectors."""
    sizes = ((48, 64), (90, 50), (20, 24))
    return [torch.from_numpy(scene(i, size).picture).movedim(2, 0).contiguous() for i, size in enumerate(sizes)]


@pytest.mark.parametrize("name", ENCODERS)
def test_it_detects_the_same_without_mimkit(name, tmp_path):
    encoder, size, window = ENCODERS[name]
    config = settings("detect", write("detect", tmp_path / "data"))
    config.encoder, config.images.size = encoder, size
    config.method = DetectConfig(classes=2, heads=HEADS, drop_path=0.0, window=window, masks=name != "resnet")
    pretrain(config, tmp_path / "run", max_steps=2, log=lambda line: None)
    answer = mimkit(f"export {tmp_path / 'run'} --to torchvision --out {tmp_path / 'out'}")
    assert answer.status == 0 and "from model import load" in answer.out
    np.savez(tmp_path / "pictures.npz", *(picture.numpy() for picture in pictures()))
    command = [sys.executable, "-c", READER, tmp_path / "pictures.npz", tmp_path / "objects.pt"]
    told = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True)
    assert told.stdout == "alone\n", told.stderr
    loaded = torch.load(tmp_path / "objects.pt")
    trained = open_trained(str(tmp_path / "run"), torch.device("cpu"))
    assert loaded["categories"] == ("__background__", *trained.categories)
    for picture, objects in zip(pictures(), loaded["objects"], strict=True):
        expected = predict(trained, picture)
        assert len(expected.boxes) > 5
        assert torch.equal(objects["labels"], expected.labels + 1)
        torch.testing.assert_close(objects["boxes"], expected.boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(objects["scores"], expected.scores, rtol=0, atol=1e-5)
        if name == "resnet":
            assert "masks" not in objects
            continue
        assert objects["masks"].shape == (len(expected.boxes), 1, *picture.shape[1:])
        assert ((objects["masks"][:, 0] >= 0.5) != expected.masks).float().mean() < 1e-4
