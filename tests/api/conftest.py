"""For tests of the Python interface: labeled pictures and a finished run."""

from pathlib import Path

import pytest
from PIL import Image

import mimkit
from api_settings import tiny
from builders import structured


@pytest.fixture(scope="session")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of 30 x 24 pixels in two class folders, the last two equal."""
    folder = tmp_path_factory.mktemp("data") / "labeled"
    for number in range(40):
        place = folder / ("cat" if number % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(structured(min(number, 38), 30)[:24]).save(place / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def run(labeled: Path, tmp_path_factory: pytest.TempPathFactory) -> mimkit.Run:
    """A finished run on them."""
    return mimkit.pretrain(tiny(), labeled, tmp_path_factory.mktemp("runs") / "mine", log=lambda line: None)
