"""Frozen patches: maps and answers place by place, fits against scikit-learn, and whole measurements."""

import itertools
import json
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

import mimkit as library
from annotated import NAMES, InMemory, fields, slopes, write_pairs
from commandline import mimkit, refused
from mimkit.cli.dense import DENSE
from mimkit.core.annotation import VOID, DenseTask
from mimkit.core.errors import UserError
from mimkit.evaluate import dense_fit
from mimkit.evaluate.dense import evaluate_dense, measure, untrained, with_baselines
from mimkit.evaluate.dense_fit import class_map, depth_map, fit_classes, fit_depth, neighbors
from mimkit.evaluate.dense_maps import Bank, Places, Reader, answers_in, gather, nearest
from mimkit.evaluate.target import Extractor, open_target

SHARED = Path(os.environ.get("MIMKIT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def network(name: str = "vit_tiny_patch16_224", size: tuple[int, int] = (32, 24), **settings) -> Extractor:
    """A small network without weights, for images of this size."""
    if name.startswith("vit"):
        settings = {"img_size": size, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3} | settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0, **settings).eval()
    return Extractor(name=name, size=size, channels=3, mean=MEAN, std=STD, fingerprint="", model=model)


def pixels(size: tuple[int, int] = (32, 40)) -> Extractor:
    return Extractor(name="pixels", size=size, channels=3, mean=MEAN, std=STD, fingerprint="")


def bank_of(features: torch.Tensor, answers: torch.Tensor) -> Bank:
    return Bank(features, answers, Places(0), torch.ones(answers.shape[2], dtype=torch.bool), (1, features.shape[1]))


# Maps: what lies where


@pytest.mark.parametrize(
    ("extractor", "grid"),
    [
        (network(), (8, 6)),
        (network(class_token=False, global_pool="avg"), (8, 6)),
        (network(reg_tokens=3), (8, 6)),
        (network("swin_tiny_patch4_window7_224", (64, 96), img_size=(64, 96), window_size=2), (2, 3)),
        (network("resnet18", (64, 96)), (2, 3)),
    ],
    ids=["vit", "no class token", "registers", "swin", "resnet"],
)
def test_maps_are_the_tokens_where_they_lie(extractor, grid):
    images = torch.randn(3, 3, *extractor.size, generator=torch.Generator().manual_seed(1))
    maps = extractor.maps(images)
    assert maps.shape[2:] == grid and maps.dtype == torch.float32
    patches = maps.flatten(2).transpose(1, 2)
    if not hasattr(extractor.model, "fc_norm") or isinstance(extractor.model.fc_norm, torch.nn.Identity):
        assert torch.equal(patches, extractor.tokens(images)[:, -grid[0] * grid[1] :])
    else:
        assert torch.allclose(patches.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5), "each place has the norm of rows"


@pytest.mark.parametrize("extractor", [network(), pixels((32, 24))], ids=["vit", "pixels"])
def test_a_bright_patch_lights_its_cell(extractor):
    images = torch.zeros(1, 3, *extractor.size)
    dark, (rows, columns) = extractor.maps(images), extractor.maps(images).shape[2:]
    height, width = extractor.size[0] // rows, extractor.size[1] // columns
    for row, column in itertools.product(range(rows), range(columns)):
        bright = images.clone()
        bright[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width] = 3
        change = (extractor.maps(bright) - dark).square().sum(1)[0]
        assert divmod(int(change.argmax()), columns) == (row, column)


def test_what_has_no_map_is_refused():
    extractor = network("convnext_atto")
    with pytest.raises(UserError, match=r"'convnext_atto' has no map.*ViTs, Swins and ResNets"):
        extractor.maps(torch.zeros(1, 3, 32, 32))


# Answers: what each cell shows


@pytest.mark.parametrize(("size", "grid"), [((12, 8), (3, 2)), ((37, 53), (8, 6)), ((5, 9), (8, 6))])
def test_answers_count_the_pixels_whose_middles_lie_in_a_cell(size, grid):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(-1, 3, size, generator=generator).to(torch.int16)
    truth[: size[0] // 2, : size[1] // 2] = VOID
    depth = torch.rand(size, generator=generator).masked_fill(truth == VOID, torch.nan)
    # Pixels are divided where cells are smaller.
    fine = [-(-cells // side) for side, cells in zip(size, grid, strict=True)]
    sides = [side * factor for side, factor in zip(size, fine, strict=True)]
    counts, depths = np.zeros((*grid, 3)), np.zeros(grid)
    for row, column in itertools.product(*map(range, sides)):
        cell = int((row + 0.5) * grid[0] / sides[0]), int((column + 0.5) * grid[1] / sides[1])
        number = int(truth[row // fine[0], column // fine[1]])
        if number != VOID:
            counts[cell][number] += 1
            depths[cell] += depth[row // fine[0], column // fine[1]]
    with np.errstate(invalid="ignore"):
        shares, means = counts / counts.sum(-1, keepdims=True), depths / counts.sum(-1)
    assert np.isnan(means).any(), "some cells are unknown"
    np.testing.assert_allclose(answers_in(truth, grid, 3).view(*grid, 3), shares, atol=1e-6)
    np.testing.assert_allclose(answers_in(depth, grid, 0).view(grid), means, atol=1e-6)


def test_places_hold_the_commonest_class_and_the_mean_depth():
    pictures, depths = fields(9, void=0.4), slopes(9)
    pictures.maps[:, 5:9, :20] = VOID
    places = Places(3)
    shown = torch.stack([nearest(truth, (96, 96)).flatten() for truth in pictures.maps])
    places.add(shown[:4])
    places.add(shown[4:])
    counts = np.stack([(shown == number).sum(0) for number in range(3)])
    answer = places.answer().flatten().numpy()
    covered = counts.sum(0) > 0
    assert (answer[covered] == counts.argmax(0)[covered]).all() and not covered.all()
    assert places.constant() == counts.sum(1).argmax() and (answer[~covered] == places.constant()).all()
    places, shown = Places(0), torch.stack([nearest(truth, (96, 96)).flatten() for truth in depths.maps])
    places.add(shown)
    mean = float(shown.nanmean())
    assert places.constant() == pytest.approx(mean)
    assert torch.allclose(places.answer().flatten(), shown.nanmean(0).nan_to_num(mean), atol=1e-6)


# Fits


def test_neighbors_are_the_softmax_of_all_distances():
    generator = torch.Generator().manual_seed(0)
    features, answers = torch.randn(20, 9, 6, generator=generator), torch.rand(20, 9, 3, generator=generator)
    answers[3, 5:] = torch.nan  # of these nothing is known
    knn = neighbors(bank_of(features, answers), 1000, torch.device("cpu"))
    maps = torch.randn(2, 6, 4, 5, generator=generator)
    valid = ~answers[:, :, 0].isnan()
    memory, queries = F.normalize(features[valid].double(), dim=1), F.normalize(maps.double(), dim=1)
    similarity = torch.einsum("bdhw,md->bhwm", queries, memory)
    least = similarity.topk(30).values[..., -1:]
    weight = (similarity / 0.02).masked_fill(similarity < least, -torch.inf).softmax(-1)
    expected = torch.einsum("bhwm,mk->bkhw", weight, answers[valid].double())
    assert torch.allclose(knn(maps).double(), expected, atol=1e-5)
    assert knn.settings == {"memory": 176, "k": 30, "temperature": 0.02}
    one = neighbors(bank_of(features[:1, :1], answers[:1, :1]), 1000, torch.device("cpu"))
    assert torch.allclose(one(maps)[0, :, 2, 3], answers[0, 0], atol=1e-6)


def test_neighbors_in_pieces_are_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    knn = neighbors(
        bank_of(torch.randn(5, 9, 6, generator=generator), torch.rand(5, 9, 3, generator=generator)),
        1000,
        torch.device("cpu"),
    )
    maps = torch.randn(2, 6, 4, 5, generator=generator)
    at_once = knn(maps)
    monkeypatch.setattr(dense_fit, "_AT_ONCE", 45 * 7)
    assert torch.allclose(knn(maps), at_once, atol=1e-6)


def test_a_memory_has_the_same_number_of_patches_of_each_picture():
    features = torch.arange(40).view(10, 4, 1).float() + 1
    answers = torch.arange(40).view(10, 4, 1).float()
    sizes = {}
    for memory in (1000, 25, 10, 3):
        knn = neighbors(bank_of(features, answers), memory, torch.device("cpu"))
        counts = torch.bincount(knn.answers[:, 0].long() // 4, minlength=10)
        assert counts[counts > 0].unique().numel() == 1
        sizes[memory] = len(knn.answers)
    assert sizes == {1000: 40, 25: 20, 10: 10, 3: 3}


def test_linear_depth_is_scikit_learns_ridge():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 8, 5, generator=generator) * torch.tensor([1e-2, 1, 100, 1, 1]) + 3
    features[:, :, 4] = 7  # tells nothing
    answers = 2 + features[:, :, :2].sum(-1, keepdim=True) + torch.randn(30, 8, 1, generator=generator)
    answers[2], answers[5, 3:] = torch.nan, torch.nan
    linear = fit_depth(bank_of(features, answers), torch.device("cpu"))
    assert linear.penalty in dense_fit.PENALTIES
    valid = ~answers[:, :, 0].isnan()
    mean, std = features.flatten(0, 1).mean(0), features.flatten(0, 1).std(0, correction=0)
    standard = ((features - mean) / std.where(std > 0, 1.0)).double().numpy()
    oracle = Ridge(alpha=linear.penalty * int(valid.sum())).fit(standard[valid], answers[valid].double().numpy())
    expected = oracle.predict(standard.reshape(-1, 5)).clip(answers[valid].min(), answers[valid].max())
    predicted = linear(features.transpose(1, 2)[:, :, None])[:, 0, 0]
    np.testing.assert_allclose(predicted.flatten(), expected.flatten(), atol=1e-4)
    far = linear(1e6 * torch.randn(9, 5, 4, 4, generator=generator))
    assert float(far.min()) == float(answers[valid].min()) and float(far.max()) == float(answers[valid].max())
    with pytest.raises(UserError, match="one picture alone"):
        fit_depth(bank_of(features[1:3], answers[1:3]), torch.device("cpu"))


def test_the_penalty_is_chosen_on_pictures_that_were_held_out():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 4, 150, generator=generator)
    noise = torch.randn(40, 1, 1, generator=generator).expand(
        -1, 4, -1
    )  # of whole pictures: patches alone would hide it
    tells = features[:, :, :1] * 5
    few = fit_depth(bank_of(features, 10 + noise), torch.device("cpu"))
    much = fit_depth(bank_of(features, 50 + tells), torch.device("cpu"))
    assert few.penalty is not None and much.penalty is not None and few.penalty >= 1 > 0.01 >= much.penalty


def test_the_linear_classifier_learns_shares_and_tells_classes_apart():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (50, 16), generator=generator)
    features = torch.randn(50, 16, 8, generator=generator) * 40
    features[:, :, :3] += 200 * F.one_hot(labels, 3)
    answers = F.one_hot(labels, 3).float()
    answers[0, 3:] = torch.nan
    linear = fit_classes(bank_of(features, answers), torch.device("cpu"))
    right = linear(features.transpose(1, 2)[:, :, None]).argmax(1)[:, 0] == labels
    assert right.float().mean() > 0.99
    blind = fit_classes(
        bank_of(torch.zeros(9, 1, 2), torch.tensor([0.7, 0.2, 0.1]).expand(9, 1, 3)), torch.device("cpu")
    )
    assert torch.allclose(
        blind(torch.zeros(1, 2, 1, 1)).softmax(1)[0, :, 0, 0], torch.tensor([0.7, 0.2, 0.1]), atol=0.02
    )


@pytest.mark.parametrize("size", [(37, 53), (8, 6), (5, 4)])
def test_answers_are_enlarged_as_torch_does(size, monkeypatch):
    answers = torch.randn(7, 8, 6, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(answers[None], size, mode="bilinear", align_corners=False)[0]
    assert torch.equal(class_map(answers, size), large.argmax(0))
    assert torch.allclose(depth_map(answers[0], size), large[0], atol=1e-6)
    monkeypatch.setattr(dense_fit, "_AT_ONCE", 7 * size[1] * 2)
    assert torch.equal(class_map(answers, size), large.argmax(0)), "in bands of two rows"


# Whole measurements


def numpy_iou(truths: torch.Tensor, guesses: np.ndarray) -> float:
    """The mean IoU over the set, void left out."""
    valid = truths.numpy() != VOID
    t, p = truths.numpy()[valid], np.broadcast_to(guesses, truths.shape)[valid]
    return float(np.mean([((t == k) & (p == k)).sum() / ((t == k) | (p == k)).sum() for k in np.unique([*t, *p])]))


def test_classes_that_are_colors_are_told_apart_and_places_are_what_numpy_says():
    train, test = fields(24, void=0.1, seed=1), fields(9, void=0.1, seed=2)
    result = measure("segment", pixels((96, 96)), train, test)
    assert result["results"]["knn"]["miou"] > 0.85 and result["results"]["linear"]["miou"] > 0.85
    rows, columns = ((torch.arange(96) + 0.5) * 37 / 96).long(), ((torch.arange(96) + 0.5) * 53 / 96).long()
    shown = train.maps[:, rows][:, :, columns]
    counts = np.stack([(shown == number).sum(0) for number in range(3)])
    back = ((np.arange(37) + 0.5) * 96 / 37).astype(int), ((np.arange(53) + 0.5) * 96 / 53).astype(int)
    place = counts.argmax(0)[back[0]][:, back[1]]
    assert result["baselines"]["place"]["miou"] == pytest.approx(numpy_iou(test.maps, place))
    constant = counts.sum((1, 2)).argmax()
    assert result["baselines"]["constant"]["miou"] == pytest.approx(numpy_iou(test.maps, np.full((37, 53), constant)))
    assert result["baselines"]["place"]["miou"] < 0.7
    for scores in (*result["results"].values(), *result["baselines"].values()):
        assert sum(row["pixels"] for row in scores["per_class"].values()) == int((test.maps != VOID).sum())
        assert set(scores["per_class"]) == set(NAMES)
        assert scores["low"] < scores["miou"] < scores["high"]
    assert (result["train"], result["test"], result["skipped"], result["classes"]) == (24, 9, 0, 3)
    assert result["settings"]["grid"] == [12, 12] and result["settings"]["knn"]["memory"] == 24 * 144
    json.dumps(result)


def test_depth_of_gray_slopes():
    result = measure("depth", pixels((96, 96)), slopes(24, seed=1), slopes(9, seed=2))
    scores, mean = result["results"], result["baselines"]["constant"]
    assert scores["linear"]["rmse"] < 0.1 < mean["rmse"] and scores["linear"]["delta1"] > 0.99
    assert result["baselines"]["place"]["rmse"] < mean["rmse"]
    assert "penalty" in result["settings"]["linear"] and "classes" not in result
    json.dumps(result)


@pytest.mark.parametrize("kind", ["segment", "depth"])
def test_the_same_bits_whatever_the_workers(kind):
    make = fields if kind == "segment" else slopes
    train, test = make(40, seed=1), make(36, seed=2)
    first, again, workers = (
        measure(kind, network(), train, test, memory=500, workers=workers) for workers in (0, 0, 2)
    )
    assert first == again == workers


def test_limits_and_what_cannot_be_read():
    train, test = fields(40, seed=1), fields(36, seed=2)
    result = measure("segment", pixels(), train, test, limit_train=10, limit_test=5, measures=("knn",), memory=40)
    assert (result["train"], result["test"]) == (10, 5) and list(result["results"]) == ["knn"]
    assert result["settings"]["knn"]["memory"] == 40 and result["settings"]["patches"] == 20
    torn = InMemory(torch.stack([test.read(i) for i in range(36)]), test.maps, bad=(0, 3))
    result = measure("segment", pixels(), train, torn, measures=("knn",))
    assert (result["test"], result["skipped"], result["results"]["knn"]["pictures"]) == (34, 2, 34)
    with pytest.raises(UserError, match=r"hardly any picture.*torn"):
        measure("segment", pixels(), train, InMemory(torn.whole.tensor(), test.maps, bad=tuple(range(36))))


def test_patches_are_fewer_where_the_memory_is_full(monkeypatch):
    train = fields(10, seed=1)
    monkeypatch.setattr("mimkit.evaluate.dense_maps.memory_budget", lambda: 10 * 7 * 4 * (192 + 3))
    bank = gather(Reader(pixels(), torch.device("cpu")), train, None, {})
    assert bank.features.shape == (10, 7, 192) and bank.answers.shape == (10, 7, 3)
    monkeypatch.setattr("mimkit.evaluate.dense_maps.memory_budget", lambda: 9 * 4 * (192 + 3))
    with pytest.raises(UserError, match="--limit-train"):
        gather(Reader(pixels(), torch.device("cpu")), train, None, {})


def test_patches_of_which_something_is_known_come_first():
    pictures = slopes(6)
    pictures.maps[:, :30] = torch.nan
    bank = gather(Reader(pixels(), torch.device("cpu")), pictures, None, {})
    assert bank.valid.sum(1).tolist() == [5] * 6 and bank.valid[:, :5].all()
    assert bank.answers.shape == (6, 20, 1)


def test_classes_that_only_one_split_has_are_told():
    train, test = fields(8, seed=1), fields(4, seed=2)
    train.maps[train.maps == 2], test.maps[test.maps == 1] = 0, 0
    result = measure("segment", pixels(), train, test)
    assert result["unseen_classes"] == ["blue"] and result["untested_classes"] == ["green"]


def test_what_cannot_be_measured_is_refused():
    train, test = fields(8), fields(4)
    with pytest.raises(UserError, match="annotated for segment"):
        measure("depth", pixels(), train, test)
    with pytest.raises(UserError, match="annotated for depth"):
        measure("segment", pixels(), train, slopes(4))
    empty = fields(4)
    empty.maps[:] = VOID
    with pytest.raises(UserError, match="training pictures of painted has a class"):
        measure("segment", pixels(), empty, test)
    with pytest.raises(UserError, match="void"):
        measure("segment", pixels(), train, empty)
    damaged = network()
    assert damaged.model is not None
    next(damaged.model.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        measure("segment", damaged, train, test)
    with pytest.raises(UserError, match="did you mean 'segment'"):
        evaluate_dense("segments", "pixels", ["x"])
    with pytest.raises(UserError, match="measure of patches"):
        evaluate_dense("segment", "pixels", ["x"], measures=("probe",))
    with pytest.raises(UserError, match="memory must be at least 1"):
        evaluate_dense("segment", "pixels", ["x"], memory=0)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "kitchen_depth").is_dir(), reason="no kitchen_depth")
def test_the_floors_of_the_kitchen_are_those_of_its_readme():
    result = evaluate_dense("depth", "pixels", [str(SHARED / "kitchen_depth")], measures=("knn",))
    scores = result["results"] | result["baselines"]
    floors = {"knn": (0.51, 0.65), "place": (0.54, 0.53), "constant": (0.79, 0.25)}
    for name, (rmse, delta) in floors.items():
        assert scores[name]["rmse"] == pytest.approx(rmse, abs=0.01), name
        assert scores[name]["delta1"] == pytest.approx(delta, abs=0.01), name


# Targets and the command


def test_baselines_stand_behind_each_target_once():
    assert untrained("runs/a") == ["untrained:runs/a"] and untrained("vit_tiny_patch16_224")
    assert not any(untrained(name) for name in ("pixels", "untrained:runs/a", "hf-hub:timm/x", "weights/mae.pth"))
    targets = with_baselines(["runs/a", "pixels", "untrained:runs/a", "b"])
    assert targets == ["runs/a", "untrained:runs/a", "pixels", "b", "untrained:b"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Pairs of both kinds."""
    root = tmp_path_factory.mktemp("pairs")
    for kind, make in (("classes", fields), ("meters", slopes)):
        for seed, (split, count) in enumerate((("train", 12), ("val", 6))):
            write_pairs(root / kind, split, make(count, seed=seed))
    return root


def test_the_command_prints_a_table_and_writes_json(folders, tmp_path):
    file, name = tmp_path / "scores.json", "untrained:vit_tiny_patch16_224"
    words = f"evaluate segment {name} --data {folders / 'classes'} --limit-test 3 --workers 0 --json {file}"
    said = mimkit(words)
    assert said.status == 0, said
    lines = [line for line in said.out.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")][:2] for line in lines]
    assert rows == [
        [name, "kNN"],
        [name, "linear"],
        ["pixels", "kNN"],
        ["pixels", "linear"],
        ["place", ""],
        ["constant", ""],
    ]
    results = json.loads(file.read_text())["results"]
    assert [result["target"] for result in results] == [name, "pixels"] and results[0]["test"] == 3
    assert results[0]["baselines"] == results[1]["baselines"]
    assert f"{results[1]['results']['knn']['miou']:.1%}" in said.out and "12 pictures to learn from" in said.out


def test_depth_by_the_command_and_from_python_are_the_same(folders, tmp_path):
    file = tmp_path / "scores.json"
    words = f"evaluate depth pixels --data {folders / 'meters'} --measure linear --baselines False --json {file}"
    said = mimkit(words)
    assert said.status == 0 and "RMSE" in said.out, said
    (result,) = json.loads(file.read_text())["results"]
    data = str(folders / "meters")
    scores = library.load("pixels").evaluate("depth", data, measures=["linear"])
    assert json.loads(json.dumps(scores)) == result
    assert "RMSE" in scores._repr_html_() and "constant" in scores._repr_html_()


def test_what_the_command_refuses_in_one_line(folders, tmp_path):
    assert set(DENSE) == set(get_args(DenseTask))
    data = f"--data {folders / 'classes'}"
    assert "detect TARGET --train RECIPE" in refused(f"evaluate detect pixels {data}")
    assert "keypoints TARGET --train RECIPE" in refused(f"evaluate --workers 0 keypoints pixels {data}")
    assert "--data is missing" in refused("evaluate segment pixels")
    assert "wanted: mimkit evaluate segment TARGET ..." in refused(f"evaluate segment {data}")
    assert "workers" in refused(f"evaluate segment pixels {data} --workers -1")
    assert "no map" in refused(f"evaluate segment untrained:convnext_atto {data} --workers 0")
    assert refused(f"evaluate depth pixels {data}") and refused(f"evaluate segment pixels --data {tmp_path}")


def test_untrained_targets_of_a_timm_name_can_be_opened():
    (name,) = untrained("vit_tiny_patch16_224")
    assert open_target(name, size=(32, 32), channels=3, mean=MEAN, std=STD).maps(torch.zeros(1, 3, 32, 32)).shape[
        2:
    ] == (2, 2)
