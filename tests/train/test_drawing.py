"""Pictures of runs on many channels with holes: training, masks and reports show the same colors and stripes."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commandline import mimkit
from mimkit.core.display import Display
from mimkit.core.grids import GAP, TITLE, colorize
from mimkit.data.sources import open_pictures
from mimkit.train.drawing import run_display
from mimkit.train.run_folder import RunFolder

tifffile = pytest.importorskip("tifffile")

SIDE, SCALE = 28, 4  # pixels of a picture, and how far a grid enlarges it
HOLE = (slice(0, 10), slice(14, 28))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run on pictures of five channels in float, each with a corner without data, that shows channels 4 3 2."""
    place, generator = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    (place / "data").mkdir()
    for number in range(16):
        waves = np.sin(np.mgrid[:SIDE, :SIDE][0] / (2 + np.arange(5))[:, None, None] + generator.random((5, 1, 1)) * 6)
        values = (1000 + 300 * waves * np.arange(1, 6)[:, None, None]).astype(np.float32)
        values[:, *HOLE] = np.nan
        tifffile.imwrite(
            place / "data" / f"{number:02d}.tif", values, photometric="minisblack", planarconfig="separate"
        )
    flags = "--images.shown 4 3 2 --machine.evals 1"
    said = mimkit(f"pretrain mae_mini_28 --data {place / 'data'} --run {place / 'run'} $TINY {flags}")
    assert said.status == 0, said.err
    return place / "run"


def stripes(cell: np.ndarray) -> np.ndarray:
    """Which pixels have a gray of the stripes."""
    return np.isin(cell, [round(0.45 * 255), round(0.75 * 255)]).all(axis=-1)


def test_the_grid_of_a_run(run):
    sheet = np.array(Image.open(run / "pictures" / "reconstruction.png"))
    side = SIDE * SCALE
    cells = [sheet[TITLE : TITLE + side : SCALE, GAP + i * (side + GAP) :][:, :side:SCALE] for i in range(3)]
    for cell in cells:
        assert stripes(cell[HOLE]).all() and stripes(cell).mean() == pytest.approx(140 / 784, abs=0.02)
    assert cells[0][20:].std(axis=-1).mean() > 10, "three channels are colors"


def test_each_channel_has_a_row(run):
    """Rows of the grid are the channels of the first picture, each stretched over all pictures that are shown."""
    sheet = np.array(Image.open(run / "pictures" / "channels.png"))
    side = SIDE * SCALE
    assert sheet.shape[0] == TITLE + 5 * (side + GAP)
    left = sheet.shape[1] - 3 * (side + GAP)
    pictures = open_pictures([str(run.parent / "data")], "all")
    shown = np.stack(
        [pictures.values.levels(pictures.read(i)).numpy() for i in torch.linspace(0, 15, 8).long().tolist()]
    )
    for channel in range(5):
        cell = sheet[TITLE + channel * (side + GAP) :, left:][:side:SCALE, :side:SCALE]
        assert stripes(cell[HOLE]).all()
        low, high = np.nanpercentile(shown[:, channel], (2, 98))
        place = np.clip((shown[0, channel] - low) / (high - low), 0, 1)
        expected = colorize(torch.from_numpy(place).float().nan_to_num(0)[None, None], (0, 1))[0].permute(1, 2, 0) * 255
        assert np.abs(cell[12:].astype(int) - expected[12:].round().int().numpy()).max() <= 2


def test_each_channel_has_a_loss(run):
    losses = {name: value for name, value in RunFolder(run).metrics()[-1].items() if name.startswith("loss_channel_")}
    assert set(losses) == {f"loss_channel_{channel}" for channel in range(1, 6)}


def test_a_run_shows_as_its_settings_say(run):
    pictures = open_pictures([str(run.parent / "data")], "all")
    mean, std = RunFolder(run).read_config()["resolved"]["mean"], RunFolder(run).read_config()["resolved"]["std"]
    display = run_display(run, pictures.values, mean, std)
    assert display == Display(mean=mean, std=std, shown=(4, 3, 2), stretch=True)
    assert run_display(run / "nowhere", pictures.values, mean, std).shown is None


def test_masks_and_reports_show_the_same_colors(run, tmp_path):
    from mimkit.report.sections import look

    data = str(run.parent / "data")
    command = f"masks random --from {run} --data {data} --show 16 --seeds 1 --out {tmp_path / 'm.png'}"
    assert mimkit(command).status == 0
    sheet = np.array(Image.open(tmp_path / "m.png"))[TITLE:, GAP:]
    cell = sheet[: SIDE * SCALE : SCALE, : SIDE * SCALE : SCALE]
    page = look(run, [data], 4, torch.device("cpu"))
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(page["pictures"][0]["src"].partition(",")[2]))))
    assert np.abs(picture.astype(int) - cell).max() <= 1, "both stretch over all sixteen pictures"
    assert stripes(cell[HOLE]).all() and "masks" in page
    assert mimkit(f"{command} --channels 1").status == 0
    gray = np.array(Image.open(tmp_path / "m.png"))[TITLE:, GAP:][: SIDE * SCALE, : SIDE * SCALE]
    assert (gray.std(axis=-1) == 0).all()
    assert mimkit(f"{command} --channels 1 --color-map True").status == 0
    colors = np.array(Image.open(tmp_path / "m.png"))[TITLE:, GAP:][: SIDE * SCALE, : SIDE * SCALE]
    assert colors.std(axis=-1).mean() > 10
    assert stripes(colors[::SCALE, ::SCALE][HOLE]).all()
