"""Run folders of version 0.1: they go on, are measured, reported and exported as if nothing had been renamed."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from commandline import FAST, mimkit
from mimkit.core.config import to_dict
from mimkit.core.names import CLASSES, find_class
from mimkit.train.run_folder import RunFolder
from places import TESTS

NAMES = ("mae", "emae", "simmim", "moco_v3", "dino", "tokenizer", "finetune")


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """The working folder that version 0.1 left: runs in runs-0.1's `v0.1/`, forty pictures of two classes beside."""
    with tarfile.open(TESTS / "assets" / "runs-0.1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for n in range(40):  # by whole numbers alone, with the same sizes and times everywhere
        kind = tmp_path / "pictures" / ("stripes", "checks")[n % 2]
        kind.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[:12, :12]
        shades = [((x * (n % 7 + 1) + (y * (n % 5 + 1) if n % 2 else 0) + 13 * n + 40 * c) * 7) % 256 for c in range(3)]
        file = kind / f"{n:02d}.ppm"
        Image.fromarray(np.stack(shades, -1).astype(np.uint8)).save(file)
        os.utime(file, ns=(1_600_000_000 * 10**9,) * 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "v0.1"


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_goes_on_to_the_same_end(name, old):
    command = "evaluate finetune" if name == "finetune" else "pretrain --run"
    said = mimkit(f"{command} v0.1/{name} {'--data pictures' if name == 'finetune' else ''}")
    assert said.status == 0, said.err
    expected = json.loads((old / name / "expected.json").read_text())["loss"]
    losses = {str(record["step"]): record["loss"] for record in RunFolder(old / name).metrics()}
    assert losses == pytest.approx(expected, rel=1e-4)
    if name == "mae":  # bit for bit on the machine that wrote it, and nearly so on others
        found, wanted = (load_file(old / name / file) for file in ("export/model.safetensors", "expected.safetensors"))
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


def test_an_old_run_is_measured_reported_and_exported(old):
    for command in (
        "evaluate knn v0.1/mae v0.1/mae/export --data pictures",
        "report v0.1/mae --out page.html",
        "analyze v0.1/simmim --data pictures --pictures 8 --metrics rank",
        "export v0.1/mae --to huggingface --out hf",
        "export v0.1/dino --to timm --out timm",
        "masks self-guided --from v0.1/mae --data pictures --layer -1 --show 2 --seeds 1 --out masks.png",
        f"evaluate finetune v0.1/mae finetune_mini_32 --data pictures --epochs 1 --run tuned {FAST}",
    ):
        said = mimkit(command)
        assert said.status == 0, (command, said.err)
    said = mimkit("diff v0.1/mae v0.1/emae")
    assert said.status == 0 and "observer" not in said.out


def test_an_old_config_is_written_as_a_new_one(old):
    for name in NAMES:
        config = RunFolder(old / name).read_config()["config"]
        text = json.dumps(to_dict(config))
        assert "mimkit." not in text and "colour" not in text and "grey" not in text and "looks" not in text


def test_every_class_of_the_table_exists():
    for name in CLASSES:
        cls, short = find_class(name)
        assert cls.__name__ == short == name and cls.__module__ == CLASSES[name]
