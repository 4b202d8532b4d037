"""`mimkit shards`: what it says, what it refuses, and that every command takes what it made."""

import json
import os
from pathlib import Path

import pytest

from commandline import mimkit, refused
from sets import png, put
from tars import contents, tar


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    put(tmp_path / "pictures", "train/ant/*20.png", "train/bee/*20.png", "val/ant/*8.png", "val/bee/*8.png")
    return tmp_path


def test_pack_then_check_then_train_and_measure(here):
    said = mimkit("shards pack pictures --out packed --shard-mb 0.02 --workers 0 --json packed.json")
    assert said.status == 0, said
    assert "wrote packed: 56 pictures (40 to train and 16 to test, 2 classes) in" in said.out
    assert "train-00000.tar: " in said.err and "--data packed takes them" in said.out
    result = json.loads(Path("packed.json").read_text())
    assert (result["pictures"], result["train"], result["test"], result["left_out"]) == (56, 40, 16, [])
    said = mimkit("shards check packed --workers 0 --json check.json")
    assert said.status == 0 and "56 of 56 pictures" in said.out, said
    assert json.loads(Path("check.json").read_text())["bad"] == []
    said = mimkit("pretrain mae_mini_28 --data packed --run run $TINY")
    assert said.status == 0, said
    assert json.loads(Path("run/config.json").read_text())["resolved"]["pictures"] == 40
    said = mimkit("evaluate knn run pixels --data packed --workers 0 --device cpu --json knn.json")
    assert said.status == 0, said
    there = mimkit("evaluate knn run pixels --data pictures --workers 0 --device cpu --json plain.json")
    assert there.status == 0, there
    rows = [json.loads(Path(file).read_text())["results"] for file in ("knn.json", "plain.json")]
    accuracies = [[scores["accuracy"] for row in one for scores in row["results"].values()] for one in rows]
    assert accuracies[0] == accuracies[1]
    assert mimkit("doctor packed").status == 0
    assert "shards.index.npz was written by 'mimkit shards pack'" in refused("shards index packed --workers 0")
    before = contents(here / "packed")
    said = mimkit("shards pack pictures --out packed --shard-mb 0.02 --workers 0")
    assert said.status == 0 and "packed is packed already" in said.err and contents(here / "packed") == before


def test_index_of_what_others_made(here):
    for shard in range(3):
        members = {}
        for i in range(shard * 4, shard * 4 + 4):
            members |= {f"{i:03}.png": png(i), f"{i:03}.cls": b"ant" if i % 2 else b"bee"}
        tar(here / "wds" / f"a-{shard:02}.tar", members)
    said = mimkit("shards index wds/a-{00..02}.tar --workers 0")
    assert said.status == 0, said
    assert f"wrote {here}/wds/shards.index.npz: 12 pictures (12 to train, 2 classes) in 3 shards" in said.out
    assert mimkit("shards check wds --workers 0").status == 0
    for words, out in (
        ("wds --out own.index.npz", "own.index.npz"),
        ("'wds/a-*.tar' --out b.index.npz", "b.index.npz"),
    ):
        assert mimkit(f"shards index {words} --workers 0").status == 0
        said = mimkit(f"doctor {out}")
        assert said.status == 0 and "12" in said.out, said
    os.truncate("wds/a-01.tar", 3000)
    assert "a-01.tar is truncated" in refused("shards index wds --workers 0")
    assert "a-01.tar is not the shard that was indexed: it has 3,000 bytes" in refused("doctor wds")
    line = mimkit("shards check wds --workers 0")
    assert line.status == 2 and "does not hold what it says" in line.err and "8 of 12 pictures" in line.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "wanted: mimkit shards pack|index|check DATA ..."),
        ("pack", "wanted: mimkit shards pack|index|check DATA ..."),
        ("unpack pictures", "'mimkit shards --help' lists the options"),
        ("pack pictures", "--out is missing: name a folder"),
        ("pack pictures --out s3://bucket/x", "--out is missing: name a folder on a disk of this machine"),
        ("pack nowhere/ --out x", "there is no file or folder nowhere/"),
        ("pack pictures --out pictures", "pictures holds other files already: name a folder that is new or empty"),
        ("pack pictures --out x --quality 200", "quality must be at most 100"),
        ("pack pictures --out x --bad-fraction 2", "bad-fraction must be at most 1"),
        ("pack pictures --out x --workers -1", "workers must be at least 0"),
        ("index pictures", "there is no tar file pictures"),
        ("index a-{00..02}.tar", "there is no tar file a-00.tar"),
        ("index wds --out x.npz", "--out is a file that ends in .index.npz"),
        ("index wds --shorter-side 64", "--shorter-side is for 'mimkit shards pack': leave it out"),
        ("index s3://bucket/a-{0..1}.tar", "--out is missing: an index of tar files in a store"),
        ("check pictures", "pictures holds no index: write one with 'mimkit shards index pictures'"),
        ("check wds pictures", "wanted: mimkit shards check DATA"),
        ("check wds --quality 9", "--quality is for 'mimkit shards pack'"),
    ],
)
def test_what_cannot_be_meant_is_refused(here, words, line):
    tar(here / "wds" / "a.tar", {"0.png": png(0)})
    assert line in refused(f"shards {words}")
    assert not (here / "x").exists()


def test_bad_pictures_are_named(here):
    (here / "pictures" / "train" / "ant" / "3.png").write_bytes(b"bad")
    said = mimkit("shards pack pictures --out x --workers 0")
    assert said.status == 2 and "mimkit: 1 of 40 pictures of pictures cannot be read, as " in said.err


def test_bad_pictures_may_be_left_out(here):
    (here / "pictures" / "train" / "ant" / "3.png").write_bytes(b"bad")
    said = mimkit("shards pack pictures --out x --workers 0 --bad-fraction 0.1")
    assert said.status == 0 and "left out, since they cannot be read: 1" in said.out and "ant/3.png: " in said.out
