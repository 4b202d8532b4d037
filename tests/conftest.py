"""For all tests: passive threads, a cache of their own, shapes checked at run time, and a few pictures."""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # several test processes share few cores
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mimkit-tests-")

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # drills.py, typechecker.py
# Every annotation of every function is checked when it is called; what is imported before this would not be.
jaxtyping.install_import_hook("mimkit", "typechecker.check")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from this machine")


def structured(number: int, side: int = 12) -> np.ndarray:
    """A small picture with something to learn: a coloured wave of its own direction and phase."""
    noise = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(6 * (noise.normal() * x + noise.normal() * y) + noise.normal()) for _ in range(3)]
    return (127 + 110 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture(scope="session")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty PNG pictures of 12 x 12 pixels."""
    folder = tmp_path_factory.mktemp("data") / "forty"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(structured(number)).save(folder / f"{number:02d}.png")
    return folder
