"""Packing: labels and splits are kept, bad pictures are named, and a kill changes no byte of what comes out."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.data.pictures import Decoded
from mimkit.data.reading import Reading
from mimkit.data.shards.encode import ending_of
from mimkit.data.shards.pack import Packing, pack, splits_of
from mimkit.data.sources import open_pictures
from sets import packed, parquet, png, put
from tars import contents

SOURCE = Path(__file__).parents[3] / "src"
SMALL = Packing(shard_mb=0.02)


def packing(data, out: Path, settings: Packing = SMALL, **more) -> dict:
    sources = [str(place) for place in (data if isinstance(data, list) else [data])]
    return pack(splits_of(lambda split: open_pictures(sources, split)), out, settings, **more)


def shades(pictures) -> list[int]:
    return [int(pictures.read(i)[0, 0, 0]) for i in range(len(pictures))]


def labeled(pictures) -> list[tuple[int, str]]:
    return sorted(
        (shade, pictures.classes[int(label)]) for shade, label in zip(shades(pictures), pictures.labels, strict=True)
    )


@pytest.fixture
def plain(tmp_path) -> Path:
    names = ("train/ant/*40.png", "train/ü b/*40.png", "val/ant/*20.png", "val/ü b/*20.png")
    return put(tmp_path / "plain", *names)


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet", "list", "joined"])
def test_labels_and_splits_are_kept_whatever_is_packed(kind, plain, tmp_path):
    data = plain
    if kind == "zip":
        data = packed(plain, tmp_path / "x.zip")
    elif kind == "parquet":
        parquet(tmp_path / "table" / "train-0.parquet", [i % 2 for i in range(80)], names=["ant", "ü b"])
        data = parquet(tmp_path / "table" / "test-0.parquet", [1, 0] * 20, names=["ant", "ü b"]).parent
    elif kind == "list":
        data = tmp_path / "list.txt"
        data.write_text(
            "".join(f"plain/{path.relative_to(plain)}\t{path.parent.name}\n" for path in plain.rglob("*.png"))
        )
    elif kind == "joined":
        data = [
            plain,
            put(tmp_path / "more", "train/ü b/*5.png", "train/cow/*5.png", "val/cow/*2.png", "val/ant/a.png"),
        ]
    result = packing(data, tmp_path / "out")
    sources = [str(place) for place in (data if isinstance(data, list) else [data])]
    # Without a test split of its own, a set is split by the order of its pictures, which is another one now.
    for split in ("all",) if kind == "list" else ("train", "test"):
        there, here = open_pictures(sources, split), open_pictures([str(tmp_path / "out")], split)
        assert labeled(here) == labeled(there) and here.classes == there.classes and here.named == there.named
        assert here.has_test == there.has_test and result["left_out"] == []
    assert result["shards"] > 3 and shades(here) != shades(there)  # shuffled
    (tmp_path / "out" / "shards.index.npz").unlink()  # names alone say the same to others
    assert labeled(open_pictures([str(tmp_path / "out")], "all")) == labeled(open_pictures(sources, "all"))


def test_files_are_kept_byte_by_byte_unless_they_are_shrunk(tmp_path):
    (tmp_path / "set").mkdir()
    for number, size in enumerate(((90, 60), (60, 120), (40, 40), (300, 64))):
        pixels = torch.nn.functional.interpolate(
            torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(number)), size, mode="bilinear"
        )
        image = Image.fromarray((pixels[0].permute(1, 2, 0) * 255).byte().numpy())
        image.save(tmp_path / "set" / f"{number}.{'png' if number % 2 else 'jpg'}", quality=90)
    files = contents(tmp_path / "set")
    packing(tmp_path / "set", tmp_path / "same", Packing())
    with tarfile.open(tmp_path / "same" / "train-00000.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    assert {f"{int(name[:9])}{name[9:]}": data for name, data in members.items()} == files
    packing(tmp_path / "set", tmp_path / "small", Packing(shorter_side=50, quality=97))
    with tarfile.open(tmp_path / "small" / "train-00000.tar") as archive:
        members = {int(member.name[:9]): archive.extractfile(member).read() for member in archive}
    sizes = {number: Image.open(io.BytesIO(data)).size for number, data in members.items()}
    assert sizes == {0: (50, 75), 1: (100, 50), 2: (40, 40), 3: (50, 234)} and members[2] == files["2.jpg"]
    before = np.asarray(Image.open(tmp_path / "set" / "1.png").resize((100, 50), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(np.asarray(Image.open(io.BytesIO(members[1])), np.float32) - before).mean() < 3
    packing(tmp_path / "set", tmp_path / "poor", Packing(quality=5))
    assert (tmp_path / "poor" / "train-00000.tar").stat().st_size < (
        tmp_path / "same" / "train-00000.tar"
    ).stat().st_size
    poor = open_pictures([str(tmp_path / "poor")], "all")
    assert sorted(poor.size(i) for i in range(4)) == sorted([(90, 60), (60, 120), (40, 40), (300, 64)])


def test_pictures_in_memory_become_png_without_loss(tmp_path):
    pixels = torch.randint(0, 256, (20, 1, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = Decoded("some", pixels, torch.arange(20) % 2, ("a", "b"))
    pack({"train": source}, tmp_path / "out", Packing())
    here = open_pictures([str(tmp_path / "out")], "all")
    numbers = [int(os.path.basename(here.where(i))[:9]) for i in range(20)]
    assert here.channels == 1 and sorted(numbers) == list(range(20)) and numbers != sorted(numbers)
    assert all(torch.equal(here.read(i), pixels[number]) for i, number in enumerate(numbers))
    assert here.labels.tolist() == [number % 2 for number in numbers] and here.classes == ("a", "b")


def test_workers_change_no_byte(plain, tmp_path):
    for workers in (0, 2):
        packing(plain, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_bad_pictures_are_left_out_and_named(plain, tmp_path):
    (plain / "train" / "ant" / "7.png").write_bytes(png(7)[:50])
    with pytest.raises(
        UserError,
        match=r"1 of 80 pictures of .*plain cannot be read, as .*7\.png: .*: mend them, or --bad-fraction 0\.02",
    ):
        packing(plain, tmp_path / "out")
    result = packing(plain, tmp_path / "out", bad_fraction=0.02)
    assert len(result["left_out"]) == 1 and f"{plain}/train/ant/7.png: " in result["left_out"][0]
    assert (result["train"], result["test"]) == (79, 40)
    pictures = open_pictures([str(tmp_path / "out")], "train")
    assert 7 not in shades(pictures) and "left out when it was packed: 1 pictures" in pictures.notes[0]
    for path in plain.rglob("*.png"):
        path.write_bytes(b"bad")
    with pytest.raises(UserError, match=r"80 of 80 pictures .* or give other pictures"):
        packing(plain, tmp_path / "none", bad_fraction=1)


RUN = """
import sys
from pathlib import Path
from mimkit.data.shards.pack import Packing, pack, splits_of
from mimkit.data.sources import open_pictures
def announce(line):
    print(line, flush=True)
pack(splits_of(lambda split: open_pictures([sys.argv[1]], split)), Path(sys.argv[2]), Packing(shard_mb=0.006),
     bad_fraction=0.1, announce=announce)
"""


def test_a_kill_anywhere_changes_no_byte(plain, tmp_path):
    for number in (3, 30):
        (plain / "train" / "ant" / f"{number}.png").write_bytes(b"bad")
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    settings = Packing(shard_mb=0.006)
    packing(plain, tmp_path / "whole", settings, bad_fraction=0.1)
    out, kills = tmp_path / "out", 0
    for lines in (1, 4, 3, 5):  # so many shards are awaited before the kill
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(plain), str(out)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills >= 3 and (out / ".packing").exists() and not (out / "shards.index.npz").exists()
    present = len(list(out.glob("*.tar")))
    lines: list[str] = []
    packing(plain, out, settings, bad_fraction=0.1, announce=lines.append)
    assert f"{present} shards of train are there already" in lines[0] or "of test are there" in "".join(lines)
    assert contents(out) == contents(tmp_path / "whole")  # nothing else is there either
    lines.clear()
    before = time.time()
    packing(plain, out, settings, bad_fraction=0.1, announce=lines.append)
    assert lines == [f"{out} is packed already"]
    assert all(path.stat().st_mtime < before for path in out.iterdir())


def test_a_kill_between_the_index_and_the_end(plain, tmp_path, monkeypatch):
    packing(plain, tmp_path / "out")
    expected = contents(tmp_path / "out")
    (tmp_path / "out" / ".packing").mkdir()
    (tmp_path / "out" / ".packing" / "settings.json").write_text("{}")
    packing(plain, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_what_would_mix_is_refused(plain, tmp_path):
    packing(plain, tmp_path / "out")
    other = Packing(shard_mb=0.02, quality=90)
    with pytest.raises(UserError, match="out holds shards of other pictures or settings: name another folder"):
        packing(plain, tmp_path / "out", other)
    (tmp_path / "out" / "shards.index.npz").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="out holds other files already"):
        packing(plain, tmp_path / "out")
    work = tmp_path / "begun" / ".packing"
    work.mkdir(parents=True)
    (work / "settings.json").write_text("{}")
    with pytest.raises(UserError, match=r"begun .*was begun with other settings: name another folder"):
        packing(plain, tmp_path / "begun")
    with pytest.raises(UserError, match=r"plain has a test split and .*more has none: pack them into folders"):
        packing([plain, put(tmp_path / "more", "*9.png")], tmp_path / "mixed")
    for wrong, says in (
        (Packing(quality=0), "quality must be at least 1"),
        (Packing(quality=101), "quality must be at most 100"),
        (Packing(shorter_side=4), "shorter-side must be at least 8"),
        (Packing(shard_mb=0), "shard-mb must be above 0"),
    ):
        with pytest.raises(UserError, match=says):
            packing(plain, tmp_path / "wrong", wrong)
    assert not (tmp_path / "wrong").exists() and not (tmp_path / "mixed").exists()


def test_two_at_once_do_not_meet(plain, tmp_path):
    refusals: list[str] = []

    def second(line: str) -> None:
        try:
            packing(plain, tmp_path / "out")
        except UserError as error:
            refusals.append(str(error))

    packing(plain, tmp_path / "out", announce=second)
    assert refusals and "another process packs into" in refusals[0]


def test_others_read_what_we_pack(plain, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    packing(plain, tmp_path / "out")
    for split, folder, count in (("train", "train", 80), ("test", "val", 40)):
        shards = sorted(map(str, (tmp_path / "out").glob(f"{split}-*.tar")))
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
        keys = {sample["__key__"] for sample in samples}
        assert len(keys) == count and {key.rpartition("/")[0] for key in keys} == {"ant", "ü b"}
        files = (plain / folder).rglob("*.png")
        assert sorted(sample["png"] for sample in samples) == sorted(path.read_bytes() for path in files)


def test_deep_pictures_are_packed_as_they_are(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(6):
        values = np.full((12, 16), 1000 * number, np.uint16)
        Image.fromarray(values).save(tmp_path / "set" / f"{number}.png")
    with pytest.raises(UserError, match=r"not gray or color of 8 bits.*: leave out --shorter-side and --quality"):
        packing(tmp_path / "set", tmp_path / "small", Packing(shorter_side=8))
    packing(tmp_path / "set", tmp_path / "out")
    here = open_pictures([str(tmp_path / "out")], "all", Reading(value_range=(0, 5000)))
    assert sorted(shades(here)) == [0, 1000, 2000, 3000, 4000, 5000]


def test_endings_follow_from_the_bytes():
    def picture(form: str) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (16, 16)).save(data, form)
        return data.getvalue()

    forms = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "JPEG2000": "jp2"}
    assert {form: ending_of(picture(form), "row 3") for form in forms} == forms
    assert ending_of(b"P6 1 1", "a.ppm") == "ppm" and ending_of(bytes(128) + b"DICM", "7") == "dcm"
