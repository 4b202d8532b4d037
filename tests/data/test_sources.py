"""Sources: every layout that --data takes, labels and splits, the index, and what a wrong one is answered."""

import gzip
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.data import folders, parquet
from mimkit.data.decode import BadPicture
from mimkit.data.photos import PHOTOGRAPHS, photograph, region_for_test
from mimkit.data.pictures import sample
from mimkit.data.sources import open_pictures

torch.set_num_threads(1)  # waiting threads cost more than they save on shared cores

SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)


def draw(path: Path, shade: int = 0, mode: str = "RGB", size=(16, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode == "L" else (shade, 0, 0)).save(path)
    return path


def shades(pictures) -> list[int]:
    return [int(pictures.read(i)[0, 0, 0]) for i in range(len(pictures))]


def test_flat_folder_in_sorted_order_with_odd_names(tmp_path):
    names = ["b.png", "a.PNG", "\u00fcber \u732b.png", "c d.Png"]
    for shade, name in enumerate(sorted(names, key=os.fsencode)):
        draw(tmp_path / name, shade)
    (tmp_path / "notes.txt").write_text("no picture")
    draw(tmp_path / ".hidden.png")
    draw(tmp_path / ".cache" / "x.png")
    pictures = open_pictures([str(tmp_path)], "all")
    assert shades(pictures) == [0, 1, 2, 3] and pictures.labels is None and pictures.classes is None
    assert pictures.channels == 3 and pictures.size(0) == (12, 16) and not pictures.has_test
    assert [Path(pictures.where(i)).name for i in range(4)] == sorted(names, key=os.fsencode)


def test_class_folders_nested_and_channels(tmp_path):
    for shade, name in enumerate(["cat/1.png", "cat/deep/2.png", "dog/3.png"]):
        draw(tmp_path / name, shade, "L")
    pictures = open_pictures([str(tmp_path)], "all")
    assert pictures.classes == ("cat", "dog") and pictures.labels.tolist() == [0, 0, 1]
    assert pictures.channels == 1 and pictures.read(0).shape == (1, 12, 16)
    assert open_pictures([str(tmp_path)], "all", channels=3).read(2).shape == (3, 12, 16)
    draw(tmp_path / "loose.png")
    assert open_pictures([str(tmp_path)], "all").labels is None


@pytest.mark.parametrize("train, test", [("train", "val"), ("training", "validation"), ("train2017", "val2017")])
def test_split_folders(tmp_path, train, test):
    for shade, name in enumerate([f"{train}/a/1.png", f"{train}/b/2.png", f"{test}/b/3.png", "other/4.png"]):
        draw(tmp_path / name, shade)
    for split, expected, labels in (("train", [0, 1], [0, 1]), ("all", [0, 1], [0, 1]), ("test", [2], [1])):
        pictures = open_pictures([str(tmp_path)], split)
        assert shades(pictures) == expected and pictures.labels.tolist() == labels
        assert pictures.has_test and pictures.classes == ("a", "b")


def test_split_by_address_is_disjoint_complete_and_stable(tmp_path):
    for shade in range(40):
        draw(tmp_path / "ab"[shade % 2] / f"{shade:02}.png", shade)
    splits = {split: open_pictures([str(tmp_path)], split) for split in ("train", "test", "all")}
    train, test = (set(shades(splits[split])) for split in ("train", "test"))
    assert len(train) == 32 and len(test) == 8 and train | test == set(range(40)) and len(splits["all"]) == 40
    assert splits["test"].labels.tolist() == [shade % 2 for shade in shades(splits["test"])]
    assert shades(open_pictures([str(tmp_path)], "test")) == shades(splits["test"])
    assert splits["test"].fingerprint != splits["train"].fingerprint


def test_several_folders_join_by_class_name(tmp_path):
    draw(tmp_path / "one" / "cat" / "1.png", 1)
    draw(tmp_path / "one" / "dog" / "2.png", 2)
    draw(tmp_path / "two" / "bird" / "3.png", 3)
    draw(tmp_path / "two" / "dog" / "4.png", 4)
    draw(tmp_path / "gray" / "5.png", 5, "L")
    pictures = open_pictures([str(tmp_path / "one"), str(tmp_path / "two")], "all")
    assert pictures.classes == ("bird", "cat", "dog") and shades(pictures) == [1, 2, 3, 4]
    assert pictures.labels.tolist() == [1, 2, 0, 2] and pictures.where(3).endswith("4.png")
    mixed = open_pictures([str(tmp_path / "one"), str(tmp_path / "gray")], "all")
    assert mixed.labels.tolist() == [0, 1, -1] and mixed.classes == ("cat", "dog") and mixed.unlabeled_count == 1
    assert mixed.channels == 3 and mixed.read(2).shape[0] == 3


def test_list_of_paths(tmp_path):
    for shade in range(3):
        draw(tmp_path / "pictures" / f"{shade}.png", shade)
    plain = tmp_path / "plain.txt"
    plain.write_text("pictures/2.png\n\npictures/0.png\n")
    assert shades(open_pictures([str(plain)], "all")) == [2, 0]
    labeled = tmp_path / "labeled.txt"
    labeled.write_text("pictures/2.png\t10\npictures/0.png\t9\npictures/1.png\t10\n")
    pictures = open_pictures([str(labeled)], "all")
    assert pictures.classes == ("9", "10") and pictures.labels.tolist() == [1, 0, 1]
    labeled.write_text("pictures/2.png\t10\npictures/0.png\n")
    pictures = open_pictures([str(labeled)], "all")
    assert pictures.classes == ("10",) and pictures.labels.tolist() == [0, -1] and not pictures.named
    plain.write_text("nowhere.png\n")
    with pytest.raises(UserError, match=r"line 1: there is no file nowhere\.png"):
        open_pictures([str(plain)])


def write_parquet(path: Path, shades_: list[int], labels: list | None, binary: bool = False) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = []
    for shade in shades_:
        data.append(draw(path.parent / "x.png", shade).read_bytes())
    (path.parent / "x.png").unlink()
    columns = {"image": data if binary else [{"bytes": one, "path": "x.png"} for one in data]}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("binary", [True, False])
def test_parquet(tmp_path, monkeypatch, in_memory, binary):
    if not in_memory:
        monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [1, 2, 3], [0, 1, 1], binary)
    second = write_parquet(tmp_path / "train-00001-of-00002.parquet", [4, 5], [0, 0], binary)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [6], [1], binary)
    write_parquet(tmp_path / "test_more.parquet", [7], [1], binary)
    train, test = open_pictures([str(tmp_path)], "all"), open_pictures([str(tmp_path)], "test")
    for pictures in (train, pickle.loads(pickle.dumps(train))):
        assert shades(pictures) == [1, 2, 3, 4, 5] and pictures.labels.tolist() == [0, 1, 1, 0, 0]
    assert shades(test) == [6] and test.has_test and train.size(4) == (12, 16)
    assert train.where(3) == f"{second} row 0"
    assert shades(open_pictures([str(second)], "all")) == [4, 5]
    assert train.fingerprint == open_pictures([str(tmp_path)], "all").fingerprint != test.fingerprint


def test_parquet_labels_that_are_words_and_wrong_columns(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    words = write_parquet(tmp_path / "words.parquet", [1, 2, 3], ["dog", "cat", "dog"])
    assert open_pictures([str(words)], "all").classes == ("cat", "dog")
    assert open_pictures([str(write_parquet(tmp_path / "n.parquet", [1], [None]))], "all").labels is None
    pq.write_table(pa.table({"picture": [1], "text": ["a"]}), tmp_path / "wrong.parquet")
    with pytest.raises(UserError, match="picture, text; the pictures must be in a column 'image'"):
        open_pictures([str(tmp_path / "wrong.parquet")])
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        open_pictures([str(tmp_path / "broken.parquet")])


def test_index_is_cached_and_notices_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SETTLED", 0)
    for name in ("a/1.png", "b/2.png", "b/c/3.png"):
        draw(tmp_path / name)

    def names() -> list[str]:
        return [os.fsdecode(path) for path in folders.index(tmp_path).pictures]

    assert names() == ["a/1.png", "b/2.png", "b/c/3.png"]
    first = open_pictures([str(tmp_path)], "all").fingerprint
    walk = folders.walk
    monkeypatch.setattr(folders, "walk", lambda root: pytest.fail("walked although nothing changed"))
    assert names() == ["a/1.png", "b/2.png", "b/c/3.png"]
    assert open_pictures([str(tmp_path)], "all").fingerprint == first
    monkeypatch.setattr(folders, "walk", walk)
    time.sleep(0.02)
    draw(tmp_path / "b" / "c" / "4.png")
    assert "b/c/4.png" in names()
    assert open_pictures([str(tmp_path)], "all").fingerprint != first
    (tmp_path / "a" / "1.png").unlink()
    assert names() == ["b/2.png", "b/c/3.png", "b/c/4.png"]
    (tmp_path / "b" / "c").rename(tmp_path / "b" / "d")
    assert names() == ["b/2.png", "b/d/3.png", "b/d/4.png"]
    for kept in (Path(os.environ["XDG_CACHE_HOME"]) / "mimkit" / "index").iterdir():
        kept.write_bytes(b"damaged")
    assert len(names()) == 3


def test_a_folder_changed_just_now_is_not_cached_and_an_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    draw(tmp_path / "1.png")
    folders.index(tmp_path)
    assert not (Path(os.environ["XDG_CACHE_HOME"]) / "mimkit").exists()
    monkeypatch.setattr(folders, "SETTLED", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "1.png"))  # a file: nothing can be made below it
    assert len(folders.index(tmp_path).pictures) == 1


def test_links_are_followed_and_loops_are_not(tmp_path):
    draw(tmp_path / "elsewhere" / "1.png", 1)
    draw(tmp_path / "data" / "2.png", 2)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "file.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone.png").symlink_to(tmp_path / "nothing.png")
    pictures = open_pictures([str(tmp_path / "data")], "all")
    assert [Path(pictures.where(i)).name for i in range(len(pictures))] == [
        "2.png",
        "file.png",
        "gone.png",
        "1.png",
    ]
    with pytest.raises(BadPicture, match="cannot be opened"):
        pictures.read(2)


def test_a_million_paths_pickle_as_two_arrays(tmp_path):
    paths = folders.Paths.pack([b"folder/%07d.jpg" % i for i in range(100_000)])
    assert len(pickle.dumps(paths)) < 100_000 * (18 + 8) + 2000
    assert paths[0] == b"folder/0000000.jpg" and paths[99_999] == b"folder/0099999.jpg"


@pytest.mark.parametrize(
    "name, says",
    [
        ("cifar11", "did you mean 'cifar10'"),
        ("./nowhere", "there is no file or folder"),
        ("EMPTY", "is empty"),
        ("WORDS", r"2 files, none of them pictures: \.txt.*readable endings: .*\.png"),
        ("FILE.bin", "cannot read"),
    ],
)
def test_wrong_sources_are_answered_in_one_line(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "WORDS").mkdir()
    (tmp_path / "WORDS" / "a.txt").write_text("a")
    (tmp_path / "WORDS" / "b.txt").write_text("b")
    (tmp_path / "FILE.bin").write_text("b")
    with pytest.raises(UserError, match=says) as caught:
        open_pictures([name])
    assert "\n" not in str(caught.value)


def test_photos_splits_share_no_pixel():
    pytest.importorskip("skimage")
    train, test = open_pictures(["photos"], "train"), open_pictures(["photos"], "test")
    assert train.tensor().shape == (504 * 17, 3, 48, 48) and test.tensor().shape == (102 * 17, 3, 48, 48)
    assert train.has_test and len(train.classes) == len(PHOTOGRAPHS) == 17
    assert train.labels.bincount().tolist() == [504] * 17 and test.labels.bincount().tolist() == [102] * 17
    flat = train.tensor().float().flatten(2).std(2).mean(1)
    assert (flat < 2).double().mean() < 0.02  # hardly any crop shows nothing
    for number in range(0, 17, 4):  # crops of the finest scale are found in their own region only
        picture = photograph(number)
        region = region_for_test(*picture.shape[1:])
        for pictures, count, inside in ((train, 504, False), (test, 102, True)):
            for crop in pictures.tensor()[number * count : number * count + 3]:
                rows, columns = find(picture, crop)
                assert len(rows) and all(
                    (region[r : r + 48, c : c + 48] == inside).all() for r, c in zip(rows, columns, strict=True)
                )


def find(picture: torch.Tensor, crop: torch.Tensor) -> tuple[list[int], list[int]]:
    """Where the crop stands in the picture, pixel for pixel; six pixels say where to look closely."""
    height, width = picture.shape[1] - 47, picture.shape[2] - 47
    fits = torch.ones(height, width, dtype=torch.bool)
    for y, x in ((0, 0), (0, 47), (47, 0), (47, 47), (20, 30), (30, 20)):
        fits &= (picture[:, y : y + height, x : x + width] == crop[:, y, x, None, None]).all(0)
    places = [(r, c) for r, c in fits.nonzero().tolist() if torch.equal(picture[:, r : r + 48, c : c + 48], crop)]
    return [r for r, _ in places], [c for _, c in places]


def test_fashion_mnist_from_local_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_DATA", str(tmp_path))
    values = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8)
    for part in ("train", "t10k"):
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(bytes(16) + values.tobytes())
        with gzip.open(tmp_path / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(bytes(8) + bytes([3, 1, 2]))
    pictures = open_pictures(["fashion-mnist"], "test")
    assert pictures.tensor().shape == (3, 1, 28, 28) and pictures.labels.tolist() == [3, 1, 2]
    assert np.array_equal(pictures.tensor().numpy().ravel(), values) and pictures.classes[0] == "T-shirt/top"
    assert open_pictures(["fashion-mnist"], "test", channels=3).read(0).shape == (3, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        open_pictures(["fashion-mnist"], "test")


def test_a_failed_download_says_where_to_put_the_files(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(*args, **how):
        raise RuntimeError("no network")

    monkeypatch.setenv("MIMKIT_DATA", str(tmp_path))
    monkeypatch.setattr(
        datasets, "CIFAR100", type("CIFAR100", (), {"base_folder": "cifar-100-python", "__new__": fail})
    )
    with pytest.raises(UserError, match=f"put cifar-100-python into {tmp_path}"):
        open_pictures(["cifar100"])


def test_samples_are_different_numbers_in_order():
    for n, size in ((5, 10), (100, 7), (1000, 999)):
        found = sample(n, size)
        assert len(set(found)) == min(n, size) and found == sorted(found)
        assert min(found) >= 0 and max(found) < n
    assert sample(1000, 9, seed=1) != sample(1000, 9, seed=2)


@pytest.mark.skipif(not (SHARED / "cifar10").exists(), reason="needs shared/data")
def test_shared_cifar10():
    train, test = (open_pictures([str(SHARED / "cifar10")], split) for split in ("train", "test"))
    assert (len(train), len(test), train.channels) == (50_000, 10_000, 3) and train.has_test
    assert train.labels.bincount().tolist() == [5000] * 10 and train.size(7) == (32, 32)
    assert train.classes is None or len(train.classes) == 10
    exact = open_pictures([str(SHARED / "cifar10" / "test_lossless_first1017.parquet")], "all")
    assert len(exact) == 1017
    difference = (exact.read(5).float() - test.read(5).float()).square().mean().sqrt()
    assert 0 < difference < 20
