"""A detector leaves for torchvision: without mimkit, the same boxes, classes, scores and masks of whole pictures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from commandline import mimkit, refused
from mimkit.data.values import Values
from mimkit.evaluate.predict import predict
from mimkit.evaluate.trained import open_trained
from mimkit.methods.detect import DetectConfig
from mimkit.model.build import EncoderConfig
from mimkit.train.pretrain import pretrain
from mimkit.weights.torchvision_model import load
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
from pathlib import Path
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for task in ("detect", "depth"):
        config = settings(task, write(task, folder / f"{task}-data"))
        pretrain(config, folder / task, max_steps=1, log=lambda line: None)
    return folder


def test_pictures_of_a_range_are_shares_of_it(runs, tmp_path):
    run = Path(shutil.copytree(runs / "detect", tmp_path / "run"))
    (run / "export" / "identity.json").unlink()
    about = json.loads((run / "export" / "config.json").read_text())
    (run / "export" / "config.json").write_text(json.dumps(about | {"reading": {"value_range": [0, 4000]}}))
    assert mimkit(f"export {run} --to torchvision --out {tmp_path / 'out'}").status == 0
    values = Values(dtype=torch.float32, low=(0.0,), high=(4000.0,))
    picture = pictures()[0].float() * 15
    expected = predict(open_trained(str(run), torch.device("cpu")), picture, values)
    (objects,) = load(tmp_path / "out")([picture / 4000])
    torch.testing.assert_close(objects["boxes"], expected.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(objects["scores"], expected.scores, rtol=0, atol=1e-5)


def test_it_is_signed_replaced_and_of_detectors_alone(runs, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):  # the second takes the place of the first
        assert mimkit(f"export {runs / 'detect'} --to torchvision --out {out}").status == 0
    files = {"README.md", "config.json", "identity.json", "model.py", "model.safetensors"}
    assert {file.name for file in out.iterdir()} == files
    assert set(json.loads((out / "identity.json").read_text())["sha256"]) == files - {"README.md", "identity.json"}
    card = (out / "README.md").read_text()
    assert "library_name: torchvision" in card and "pipeline_tag: object-detection" in card
    assert (
        "from model import load" in card
        and "mimkit predict" not in card
        and "| 1 | ball |" in card
        and "| 2 | box |" in card
    )
    assert "mimkit evaluate detect" in refused(f"export {runs / 'depth'} --to torchvision --out {tmp_path / 'depth'}")
    assert "an MAE can: use --to timm" in refused(f"export {runs / 'depth'} --to huggingface --out {tmp_path / 'hf'}")
    # A timm export goes beside a person's model.py, one with a model.py does not.
    assert mimkit(f"export {runs / 'detect'} --out {out}").status == 0 and not (out / "model.py").exists()
    (out / "model.py").write_text("mine")
    assert "model.py' is of no export" in refused(f"export {runs / 'detect'} --to torchvision --out {out}")
    assert mimkit(f"export {runs / 'detect'} --out {out}").status == 0 and (out / "model.py").read_text() == "mine"


def test_all_of_a_dense_task_leaves_for_timm(runs, tmp_path):
    assert mimkit(f"export {runs / 'depth'} --to timm --out {tmp_path / 'out'}").status == 0
    for name in ("head.json", "head.safetensors", "model.safetensors", "config.json", "identity.json"):
        assert (tmp_path / "out" / name).read_bytes() == (runs / "depth" / "export" / name).read_bytes()
    whole, copy = (open_trained(str(f), torch.device("cpu")) for f in (runs / "depth", tmp_path / "out"))
    assert torch.equal(predict(whole, pictures()[0]).depth, predict(copy, pictures()[0]).depth)
    # Damaged, it is written anew from the checkpoint, with its head.
    run = Path(shutil.copytree(runs / "depth", tmp_path / "run"))
    (run / "export" / "head.safetensors").write_bytes(b"1")
    assert mimkit(f"export {run} --out {tmp_path / 'again'}").status == 0
    again = open_trained(str(tmp_path / "again"), torch.device("cpu"))
    assert torch.equal(predict(whole, pictures()[0]).depth, predict(again, pictures()[0]).depth)
