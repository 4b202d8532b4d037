"""For all tests: passive threads, a cache of their own, shapes checked at run time, and a few pictures."""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # several test processes share few cores
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mimkit-tests-")

import jaxtyping
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "support"))
# Every annotation of every function is checked when it is called; what is imported before this would not be.
jaxtyping.install_import_hook("mimkit", "typechecker.check")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from this machine")


@pytest.fixture(scope="session")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty PNG pictures of 12 x 12 pixels."""
    from builders import structured  # lies in support/, which this file has put on the path

    folder = tmp_path_factory.mktemp("data") / "forty"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(structured(number)).save(folder / f"{number:02d}.png")
    return folder
