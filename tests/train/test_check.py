"""What `mimkit check` says of a run: a whole one is good, and each damage of it is named with its file."""

import json
import random
import shutil
from pathlib import Path

import pytest

from commandline import mimkit
from drills import tiny
from mimkit.core.errors import UserError
from mimkit.evaluate.target import open_target
from mimkit.train.check import check_run
from mimkit.train.checkpoint import checkpoints
from mimkit.train.pretrain import pretrain
from mimkit.weights.head import HEAD, WORDS
from transfers import settings, write


@pytest.fixture(scope="module")
def whole(forty, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    pretrain(tiny(forty), folder, recipe="tiny", log=lambda line: None)
    return folder


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def bad(folder: Path) -> dict[str, str]:
    return {file.file: file.about for file in check_run(folder) if not file.good}


def replace_in(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_whole_run_is_good(run):
    files = check_run(run)
    assert {"config.json", "metrics.jsonl", "result.json", "export"} < {file.file for file in files}
    assert sum(file.file.startswith("checkpoints/") for file in files) == len(checkpoints(run))
    assert not bad(run)


DAMAGES = {
    "a number of the settings": ("config.json", '"weight_decay": 0.05', '"weight_decay": 0.06', "checkpoints/"),
    "half a line": ("metrics.jsonl", "}\n", "\n", "metrics.jsonl"),
    "no number": ("result.json", '"seconds": ', '"seconds": NaN, "more": ', "result.json"),
    "a mean that is another": ("export/config.json", '"mean": [\n      0.', '"mean": [\n      1.', "export"),
    "an identity of no sums": ("export/identity.json", "sha256", "sha265", "export"),
}


@pytest.mark.parametrize(("file", "old", "new", "where"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(file, old, new, where, run):
    replace_in(run / file, old, new)
    assert any(name.startswith(where) for name in bad(run)), bad(run)


def test_no_flipped_bit_of_an_export_is_measured(run):
    """Each is refused where weights are opened, in either file."""
    chance = random.Random(0)
    for name in ("model.safetensors", "config.json"):
        file = run / "export" / name
        content = file.read_bytes()
        for _ in range(20):
            place = chance.randrange(len(content))
            flipped = bytes([content[place] ^ 1 << chance.randrange(8)])
            file.write_bytes(content[:place] + flipped + content[place + 1 :])
            with pytest.raises(UserError):
                open_target(str(run), size=None, channels=3)
        file.write_bytes(content)
    open_target(str(run), size=None, channels=3)


def test_a_damaged_export_is_written_anew_from_the_checkpoint(run, whole):
    file = run / "export/model.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"8 others")
    said = mimkit(f"export {run} --out {run / 'again'}")
    assert said.status == 0, said
    for name in ("model.safetensors", "config.json", "identity.json"):
        assert (run / "again" / name).read_bytes() == (whole / "export" / name).read_bytes()


def test_an_export_of_another_run_is_named(run):
    replace_in(run / "export/identity.json", json.loads((run / "export/identity.json").read_text())["settings"], "0")
    assert "belongs to another run" in bad(run)["export"]


def test_weights_of_zeros_and_of_no_numbers_are_refused(run):
    from safetensors.torch import load_file, save_file

    file = run / "export/model.safetensors"
    weights = load_file(file)
    (run / "export/identity.json").unlink()
    for factor, words in ((0.0, "are all zero"), (float("inf"), "are not all finite")):
        save_file({key: value * factor for key, value in weights.items()}, file)
        with pytest.raises(UserError, match=words):
            open_target(str(run), size=None, channels=3)
        assert words in bad(run)["export"]


@pytest.mark.parametrize(("key", "value"), [("mean", float("nan")), ("std", 0.0), ("std", -1.0)])
def test_statistics_that_cannot_be_are_refused(key, value, run):
    file = run / "export/config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"][key][0] = value
    file.write_text(json.dumps(config))
    (run / "export/identity.json").unlink()
    with pytest.raises(UserError, match=r"which cannot be|expected a number"):
        open_target(str(run), size=None, channels=3)


def test_features_that_overflow_are_not_measured(run):
    import torch

    extractor = open_target(str(run), size=None, channels=3)
    assert extractor.model is not None
    next(p for name, p in extractor.model.named_parameters() if name.endswith("norm1.weight")).data.fill_(torch.inf)
    with pytest.raises(UserError, match="are not finite"):
        extractor(torch.rand(2, extractor.channels, *extractor.size))


def test_no_flipped_byte_of_a_head_is_good(tmp_path):
    pretrain(settings("segment", write("segment", tmp_path / "data")), tmp_path / "run", log=lambda line: None)
    assert not bad(tmp_path / "run")
    for name in (HEAD, WORDS):
        file = tmp_path / "run" / "export" / name
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert name in bad(tmp_path / "run")["export"]
        file.write_bytes(content)
    (tmp_path / "run" / "export" / HEAD).unlink()
    assert HEAD in bad(tmp_path / "run")["export"]
