"""Labels as they come, through whole commands: they never stop pre-training, and only known ones are measured."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from commandline import FAST, SMALL, mimkit, refused
from mimkit.api.embeddings import Embeddings, Neighbors
from mimkit.api.library import load
from mimkit.core.errors import UserError
from mimkit.core.metrics import knn
from mimkit.data.pictures import Decoded
from mimkit.data.sources import open_measured
from mimkit.evaluate.run import splits_by_class
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.run_folder import RunFolder

NAMES = ("ant", "bee", "cow", "dog")
TRAINED = f"--batch-size 16 --epochs 1 {SMALL} {FAST.replace('--machine.evals 0', '--machine.evals 1')}"


def drawn(kind: int, number: int) -> bytes:
    """A picture of noise whose mean color tells the kind."""
    values = np.random.default_rng(100 * kind + number).integers(0, 90, (28, 28, 3))
    data = io.BytesIO()
    Image.fromarray((values + 40 * kind).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def table(file: Path, kinds, label, count: int = 8, first: int = 0, **columns) -> None:
    """A Parquet file; `label(kind, number)` gives the label."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [(kind, number) for kind in kinds for number in range(count)]
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"image": [{"bytes": drawn(kind, first + number), "path": None} for kind, number in rows]}
    content |= {name: [give(*row) for row in rows] for name, give in columns.items()}
    pq.write_table(pa.table(content | {"label": [label(*row) for row in rows]}), file)


def by_name(kind: int, number: int) -> str:
    return NAMES[kind]


SETS = {  # of each: what fills train and test, unlabeled pictures, classes, and pictures tested
    "test lacks a class": ((range(4), by_name), (range(1, 4), by_name), 0, 4, 24),
    "test has another class": ((range(3), by_name), (range(1, 4), by_name), 0, 4, 24),
    "half hidden": ((range(4), lambda k, i: k if i % 2 else -1), (range(4), lambda k, i: k), 16, 4, 32),
    "half null": ((range(4), lambda k, i: NAMES[k] if i % 2 else None), (range(4), by_name), 16, 4, 32),
    "some of test blank": ((range(4), by_name), (range(4), lambda k, i: NAMES[k] if i else " "), 4, 4, 28),
    "NaN": ((range(4), lambda k, i: float(k) if i else float("nan")), (range(4), lambda k, i: float(k)), 4, 4, 32),
    "test hidden": ((range(4), lambda k, i: k), (range(4), lambda k, i: -1), 32, 4, 8),
    "booleans": ((range(2), lambda k, i: k == 1), (range(2), lambda k, i: k == 1), 0, 2, 16),
    "huge ids": ((range(2), lambda k, i: (10**12, 7)[k]), (range(2), lambda k, i: (10**12, 7)[k]), 0, 2, 16),
}


@pytest.mark.parametrize("name", SETS)
def test_any_labels_train_and_are_measured_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, test, unlabeled, classes, tested = SETS[name]
    table(Path("set/train.parquet"), *train)
    table(Path("set/test.parquet"), *test, first=50)
    said = mimkit(f"pretrain mae_mini_28 --data set --run run {TRAINED}")
    assert said.status == 0, said.err
    assert f"labels of {classes} classes, used to measure only" in said.err
    records = RunFolder(Path("run")).metrics()
    assert 0 <= records[-1]["knn"] <= 1
    said = mimkit("evaluate knn pixels --data set --json -")
    assert said.status == 0, said.err
    result = json.loads(said.out)["results"][0]
    assert (result["unlabeled"], result["classes"], result["test"]) == (unlabeled, classes, tested)
    # By an independent implementation, on labels as they are written.
    train, test, _ = open_measured(["set"])
    x, y = ([part.read(i).flatten().numpy() / 255 for i in range(len(part))] for part in (train, test))
    names = [[part.classes[n] for n in part.labels.tolist()] for part in (train, test)]
    mean, std = np.mean([v.reshape(3, -1) for v in x], axis=(0, 2)), np.std([v.reshape(3, -1) for v in x], axis=(0, 2))
    x, y = (((np.array(v).reshape(-1, 3, 784) - mean[:, None]) / std[:, None]).reshape(-1, 2352) for v in (x, y))
    near = KNeighborsClassifier(min(20, len(x)), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(
        x, names[0]
    )
    accuracy = (near.predict(y) == np.array(names[1])).mean()
    assert result["results"]["pixels"]["accuracy"] == pytest.approx(accuracy, abs=1.01 / tested)
    drawn_table = mimkit("evaluate knn pixels --data set").out.replace("\n", " ")
    assert (f"{unlabeled:,} pictures of set have no label" in " ".join(drawn_table.split())) == bool(unlabeled)


@pytest.mark.parametrize("name", ["test lacks a class", "test has another class", "half hidden", "test hidden"])
def test_any_labels_are_fine_tuned(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, test, _, classes, tested = SETS[name]
    table(Path("set/train.parquet"), *train)
    table(Path("set/test.parquet"), *test, first=50)
    settings = f"{FAST} --epochs 1 --batch-size 8"
    made = mimkit(f"pretrain mae_mini_28 --data set --run run {TRAINED}")
    assert made.status == 0, made.err
    said = mimkit(f"evaluate finetune run finetune_mini_32 --data set --run tuned {settings} --json -")
    assert said.status == 0, said.err
    result = json.loads(said.out)
    assert result["test"] == tested and len(result["confusion"]) == classes
    known = sum(train[1](k, i) not in (-1, None) for k in train[0] for i in range(8))
    assert result["train"] == (known if name != "test hidden" else known - tested)


def test_labels_that_cannot_be_matched_train_with_a_word_and_are_not_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in (0, 1):
        for number in range(8):
            file = Path("insects") / NAMES[kind] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(drawn(kind, number))
    table(Path("more.parquet"), (0, 1), lambda k, i: 1 - k, first=20)
    table(Path("words.parquet"), (0, 1), by_name, first=20)
    said = mimkit(f"pretrain mae_mini_28 --data insects more.parquet --run run {TRAINED}")
    assert said.status == 0 and "knn" not in RunFolder(Path("run")).metrics()[-1]
    notes = [line for line in said.err.splitlines() if "note " in line]
    notes = [line for line in notes if "enough to see that it runs" not in line]
    assert len(notes) == 1 and "labels are not used: the classes of more.parquet are bare numbers" in notes[0]
    for kind in ("knn", "finetune"):
        line = refused(f"evaluate {kind} {'pixels' if kind == 'knn' else 'run'} --data insects more.parquet")
        assert "needs labels" in line and "name them (class folders, or words in the column 'label')" in line
    said = mimkit("evaluate knn pixels --data insects words.parquet --json -")
    result = json.loads(said.out)["results"][0]
    assert result["classes"] == 2 and result["results"]["pixels"]["accuracy"] > 0.8


def test_a_column_of_labels_can_be_named_for_every_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(Path("x.parquet"), range(4), lambda k, i: "all alike", breed=by_name)
    assert "one label" in refused("evaluate knn pixels --data x.parquet")
    for flag in ("--label-column", "--data.label-column"):
        said = mimkit(f"evaluate knn pixels --data x.parquet {flag} breed --json -")
        assert said.status == 0 and json.loads(said.out)["results"][0]["classes"] == 4, said.err
    assert "no column 'kind' for --label-column: it has image, breed, label" in refused(
        "evaluate knn pixels --data x.parquet --label-column kind"
    )
    said = mimkit(f"pretrain mae_mini_28 --data x.parquet --data.label-column breed --run run {TRAINED}")
    assert said.status == 0 and "labels of 4 classes" in said.err and "knn" in RunFolder(Path("run")).metrics()[-1]
    for command in (
        "evaluate probe run --data x.parquet --label-column breed",
        f"evaluate finetune run finetune_mini_32 --data x.parquet --label-column breed --run tuned --epochs 1 {FAST}",
        "embed run --data x.parquet --label-column breed --out v.npz",
        "analyze run --data x.parquet --label-column breed --pictures 32 --metrics drop",
        "doctor x.parquet mae_mini_28 --label-column breed",
    ):
        said = mimkit(command)
        assert said.status == 0, (command, said.err)
    assert set(np.load("v.npz")["classes"]) == set(NAMES)
    assert load("run").evaluate("knn")["classes"] == 4  # the run knows the column of its own pictures


def test_unlabeled_neighbors_neither_agree_nor_disagree():
    labels = np.array([0, 0, 1, -1])
    rows = Embeddings(np.eye(4, dtype=np.float32), list("abcd"), labels)
    index = np.array([[1, 3], [0, 2], [0, 3], [0, 1]])
    # Pairs with labels: 0-1 same, 1-0 same, 1-2 not, 2-0 not.
    assert Neighbors(index, np.zeros((4, 2), np.float32), rows).agreement() == 0.5
    bare = Embeddings(np.eye(4, dtype=np.float32), list("abcd"), np.full(4, -1))
    with pytest.raises(UserError, match="no labels to compare"):
        Neighbors(index, np.zeros((4, 2), np.float32), bare).agreement()


def test_a_run_of_before_goes_on_with_its_split_and_a_new_one_has_the_stratified(tmp_path):
    for kind, count in ((0, 95), (1, 5)):
        for number in range(count):
            file = tmp_path / "set" / NAMES[kind] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(drawn(kind, number))
    config = Pretrain(data=(str(tmp_path / "set"),))
    config.images.size = 28
    new, old = Prepared(config), Prepared(config, {"pictures": 100})
    assert new.by_class and not old.by_class and Prepared(config, {"pictures": 100, "by_class": True}).by_class
    tested = [prepared.labeled[1].labels.bincount(minlength=2).tolist() for prepared in (new, old)]
    assert tested[0] == [19, 1] and sum(tested[1]) == 20 and tested[1] != tested[0]


def test_a_fine_tuning_of_before_is_measured_on_what_it_has_not_learned(tmp_path):
    for method, by_class, expected in (
        ("FineTuneConfig", None, False),
        ("FineTuneConfig", True, True),
        ("MAEConfig", None, True),
    ):
        resolved = {"pictures": 100} | ({} if by_class is None else {"by_class": by_class})
        config = {"class": "Pretrain", "method": {"class": method}}
        (tmp_path / "config.json").write_text(json.dumps({"recipe": "x", "config": config, "resolved": resolved}))
        assert splits_by_class(tmp_path / "export") is expected
    assert splits_by_class(None) and splits_by_class(tmp_path / "elsewhere" / "export")


def test_kNN_of_huge_ids_takes_the_room_of_their_number():
    pixels = torch.randint(0, 255, (400, 1, 8, 8), dtype=torch.uint8)
    pictures = Decoded("x", pixels, torch.arange(400) % 2 * 3_000_684)
    features = pixels.flatten(1).float()
    predicted = knn(features, pictures.labels, features, classes=len(pictures.classes), k=1)
    assert torch.equal(predicted, pictures.labels) and pictures.classes == ("0", "3000684")
