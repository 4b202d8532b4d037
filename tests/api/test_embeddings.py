"""Embeddings: the vectors of evaluation, in memory and in files; neighbors, duplicates and maps of them."""

import csv
import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

import mimkit
from commandline import mimkit as command
from commandline import refused
from mimkit.api import embed as embed_module
from mimkit.api import embedding_files, embeddings
from mimkit.data.sources import open_pictures
from mimkit.evaluate.features import extract
from mimkit.evaluate.target import open_target


def synthetic(count: int = 30, width: int = 6, **settings: object) -> mimkit.Embeddings:
    vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    return mimkit.Embeddings(vectors, [f"/nowhere/{number}.png" for number in range(count)], **settings)


def test_vectors_are_those_of_evaluation(run, labeled):
    found = run.embed()
    pictures = open_pictures([str(labeled)], "all")
    extractor = open_target(run.target, size=(28, 28), channels=3)
    features = extract(extractor, pictures, device="cpu")
    np.testing.assert_array_equal(found.vectors, features.values["mean"].numpy())
    np.testing.assert_array_equal(found.labels, features.labels.numpy())
    assert found.classes == ("cat", "dog") and found.paths == [pictures.where(i) for i in range(40)]
    assert found.vectors.dtype == np.float32 and len(found) == 40
    both = run.embed(pool="both", limit=7)
    assert both.vectors.shape == (7, 32) and "both of" in repr(both)
    one = run.model().forward_features(run.preprocess()(found.paths[3])[None])[0, 1:].mean(dim=0)
    torch.testing.assert_close(torch.from_numpy(found.vectors[3]), one.detach(), rtol=1e-4, atol=1e-5)


def test_splits_and_bad_pictures(run, tmp_path):
    for number in range(10):
        Image.new("RGB", (30, 30), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "5.png").write_bytes(b"broken")
    parts = [set(run.embed(tmp_path, split=split).paths) for split in ("all", "train", "test")]
    assert len(parts[0]) == 9 and parts[0] == parts[1] | parts[2] and not parts[1] & parts[2]
    assert run.embed_to(tmp_path / "e.csv", tmp_path)["skipped"] == 1
    assert run.embed(tmp_path).labels is None and run.embed(tmp_path).label(0) == ""


@pytest.mark.parametrize("ending", [".parquet", ".npz", ".csv"])
@pytest.mark.parametrize("labels", [True, False])
def test_files_give_back_what_was_saved(ending, labels, run, labeled, tmp_path):
    data = labeled if labels else labeled / "cat"
    whole = run.embed(data)
    saved = whole.save(tmp_path / f"saved{ending}")
    result = run.embed_to(tmp_path / f"streamed{ending}", data, batch_size=256)
    assert (result["pictures"], result["rows"], result["width"]) == (len(whole), len(whole), 16)
    for file in (saved, tmp_path / f"streamed{ending}"):
        read = mimkit.Embeddings.load(file)
        np.testing.assert_array_equal(read.vectors, whole.vectors)
        assert read.paths == whole.paths and read.classes == whole.classes
        assert read.labels is None if not labels else (read.labels == whole.labels).all()
        assert ending == ".csv" or read.about == whole.about
    assert {path.name for path in tmp_path.iterdir()} == {f"saved{ending}", f"streamed{ending}"}


def test_a_file_is_written_in_pieces(run, labeled, tmp_path, monkeypatch):
    pieces = []
    for kind in (embedding_files.ParquetWriter, embedding_files.NpzWriter, embedding_files.CsvWriter):
        write = kind.write
        monkeypatch.setattr(
            kind, "write", lambda self, rows, write=write: (pieces.append(len(rows.vectors)), write(self, rows))[1]
        )
    monkeypatch.setattr(embedding_files, "GROUP", 16 * 4 * 16)
    monkeypatch.setattr(embedding_files, "CHUNK", 7)
    for ending in embedding_files.ENDINGS:
        run.embed_to(tmp_path / f"e{ending}", batch_size=8)
    assert pieces == [8] * 15
    assert parquet.ParquetFile(tmp_path / "e.parquet").num_row_groups > 1
    read = [mimkit.Embeddings.load(tmp_path / f"e{ending}") for ending in embedding_files.ENDINGS]
    assert all((one.vectors == read[0].vectors).all() and one.paths == read[0].paths for one in read)


def test_tokens_have_their_places(run, labeled, tmp_path):
    grid = run.encoder().grid
    picture = run.preprocess()(sorted(labeled.rglob("*.png"))[1])[None]
    with torch.inference_mode():
        expected = run.encoder()(picture).patches[0].numpy()
    count = grid[0] * grid[1]
    for ending in embedding_files.ENDINGS:
        result = run.embed_to(tmp_path / f"t{ending}", tokens=True, limit=40, batch_size=7)
        assert (result["pool"], result["rows"]) == ("tokens", 40 * count)
    table = parquet.read_table(tmp_path / "t.parquet").slice(count, count)
    vectors = np.array(table["vector"].to_pylist())
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    assert list(zip(table["row"].to_pylist(), table["column"].to_pylist(), strict=True)) == places
    assert set(table["path"].to_pylist()) == {str(sorted(labeled.rglob("*.png"))[1])}
    arrays = np.load(tmp_path / "t.npz")
    assert arrays["picture"].tolist() == np.arange(40).repeat(count).tolist()
    np.testing.assert_allclose(arrays["vectors"][count : 2 * count], expected, rtol=1e-4, atol=1e-5)
    assert len(arrays["paths"]) == len(arrays["labels"]) == 40 and arrays["row"][count + 1] == 0
    with open(tmp_path / "t.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert (lines[count + 1]["row"], lines[count + 1]["column"], lines[0]["class"]) == ("0", "1", "cat")
    with pytest.raises(mimkit.UserError, match="holds vectors of patches"):
        mimkit.Embeddings.load(tmp_path / "t.parquet")


def test_the_command_writes_the_same(run, labeled, tmp_path):
    said = command(f"embed {run.folder} --data {labeled} --out {tmp_path}/e.npz --workers 0 --json {tmp_path}/e.json")
    assert said.status == 0 and "wrote" in said.out and "40 pictures" in said.out, said
    np.testing.assert_array_equal(mimkit.Embeddings.load(tmp_path / "e.npz").vectors, run.embed().vectors)
    assert json.loads((tmp_path / "e.json").read_text())["rows"] == 40
    said = command(f"embed {run.folder} --data {labeled} --out {tmp_path}/t.parquet --tokens --workers 2")
    assert said.status == 0 and "patches" in said.out, said


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("embed --data photos --out e.npz", "wanted: mimkit embed TARGET"),
        ("embed pixels --out e.npz", "--data is missing"),
        ("embed pixels --data photos --out e.txt", "must end in one of .parquet, .npz, .csv"),
        ("embed pixels --data photos --out no/where/e.npz", "there is no folder no/where"),
        ("embed pixels --data photos --out e.npz --tokens", "'pixels' has no patch tokens"),
        ("embed pixels --data photos --out e.npz --tokens True --pool mean", "tokens are not pooled"),
        ("embed nonsense --data photos --out e.npz", "'nonsense'"),
        ("embed pixels --data photos --out e.npz --limit 0", "limit must be at least 1"),
        ("embed pixels --data photos --out e.npz --pool class", None),
    ],
)
def test_wrong_commands_are_answered_in_a_line(command, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if reason is None:
        from commandline import mimkit as say

        assert say(command).status == 0  # pixels have but themselves
        return
    assert reason in refused(command)
    assert not list(tmp_path.iterdir())


def test_a_set_that_does_not_fit_is_refused_before_it_fills_the_memory(run, monkeypatch):
    monkeypatch.setattr(embed_module, "memory_budget", lambda: 1000)
    with pytest.raises(mimkit.UserError, match="vectors of 40 pictures take"):
        run.embed()


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("at_once", [1 << 26, 4 * 30 * 7])
def test_neighbors_are_the_nearest_by_cosine(at_once, centered, monkeypatch):
    monkeypatch.setattr(embeddings, "AT_ONCE", at_once)
    ours = synthetic(labels=np.arange(30) % 3)
    ours.vectors += 3.0
    vectors = ours.vectors - ours.vectors.mean(axis=0) if centered else ours.vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    near = ours.neighbors(5) if centered else ours.neighbors(5, centered=False)
    np.testing.assert_array_equal(near.index, np.argsort(-cosine, axis=1)[:, :5])
    np.testing.assert_allclose(near.similarity, -np.sort(-cosine, axis=1)[:, :5], rtol=1e-5)
    assert near.paths(0) == [f"/nowhere/{number}.png" for number in near.index[0]]
    assert near.agreement() == (near.index % 3 == (np.arange(30) % 3)[:, None]).mean()
    for k in (0, 30):
        with pytest.raises(mimkit.UserError, match="below the 30 pictures"):
            ours.neighbors(k)


@pytest.mark.parametrize("at_once", [1 << 26, 4 * 30 * 7])
def test_duplicates_are_pairs_the_most_similar_first(at_once, run, monkeypatch):
    monkeypatch.setattr(embeddings, "AT_ONCE", at_once)
    ours = synthetic()
    ours.vectors[20] = 2 * ours.vectors[3]
    ours.vectors[25] = ours.vectors[3] + 0.01
    pairs = ours.duplicates(0.99, centered=False)
    assert {(pair["first"], pair["second"]) for pair in pairs} == {(3, 20), (3, 25), (20, 25)}
    assert (pairs[0]["first"], pairs[0]["second"]) == (3, 20) and pairs[0]["second_path"] == "/nowhere/20.png"
    assert pairs[0]["similarity"] == pytest.approx(1.0) and not synthetic().duplicates(1.0)
    ours.vectors += 100.0  # what all share makes all alike, unless it is taken away
    assert len(ours.duplicates(0.999, centered=False)) > 400
    assert {(pair["first"], pair["second"]) for pair in ours.duplicates(0.999)} == {(3, 25)}
    monkeypatch.setattr(embeddings, "MOST_PAIRS", 100)
    with pytest.raises(mimkit.UserError, match="raise the threshold"):
        ours.duplicates(-1.0)


def test_equal_pictures_are_found_by_a_model(run):
    pairs = run.embed().duplicates(1.0)
    assert {(pair["first_path"][-6:], pair["second_path"][-6:]) for pair in pairs} == {("39.png", "38.png")}


def test_a_map_puts_groups_apart():
    ours = synthetic(40, labels=np.arange(40) % 2, classes=("cat", "dog"))
    ours.vectors[::2] += 10 * np.eye(6, dtype=np.float32)[0]
    ours.vectors[1::2] += 10 * np.eye(6, dtype=np.float32)[1]
    layout = ours.map("tsne")
    assert layout.points.shape == (40, 2) and layout.points.dtype == np.float32
    centers = [layout.points[start::2].mean(axis=0) for start in (0, 1)]
    spread = max(layout.points[start::2].std() for start in (0, 1))
    assert np.linalg.norm(centers[0] - centers[1]) > spread
    assert layout._repr_html_().count("<circle") == 40 and "/nowhere/3.png dog" in layout._repr_html_()
    with pytest.raises(mimkit.UserError, match="pip install umap-learn"):
        ours.map("umap")
    with pytest.raises(mimkit.UserError, match="5 pictures or more"):
        synthetic(4).map()


def test_they_show_themselves_with_pictures(run, tmp_path):
    shown = run.embed()._repr_html_()
    assert shown.count("data:image/png;base64") == 5 * 7 and "cat" in shown
    run.embed().save(tmp_path / "e.npz")
    assert mimkit.Embeddings.load(tmp_path / "e.npz")._repr_html_().count("data:image/png;base64") == 5 * 7
    assert "/nowhere/0.png" in synthetic()._repr_html_()  # where there is no picture


def test_labels_without_a_class_have_no_name():
    ours = synthetic(3, labels=np.array([-1, 0, 1]), classes=("cat", "dog"))
    assert [ours.label(row) for row in range(3)] == ["", "cat", "dog"]


def test_what_is_no_file_of_embeddings_is_refused(tmp_path):
    for name in ("a.npz", "a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(b"hello")
        with pytest.raises(mimkit.UserError, match="cannot be read as embeddings"):
            mimkit.Embeddings.load(tmp_path / name)
    with pytest.raises(mimkit.UserError, match="must end in"):
        synthetic().save(tmp_path / "e.txt")
