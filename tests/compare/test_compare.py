"""Comparing recipes under one budget: what each gets, that it goes on where it was, and what the table says."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from commandline import TINY, mimkit, refused
from mimkit.compare import processes
from mimkit.compare import run as comparing
from mimkit.compare.contender import Contender, allocate_epochs, slug
from mimkit.compare.table import paired_p, verdict
from mimkit.core.errors import UserError
from mimkit.data.augment import RandAugment
from mimkit.recipes.overrides import configured
from mimkit.train.cost import count_flops, time_step
from mimkit.train.prepare import Pretrain
from mimkit.train.run_folder import RunFolder, read_json

torch.set_num_threads(1)
SETTINGS = TINY.replace("--epochs 1 ", "")
LINE = f"mae_mini_28 {SETTINGS}"


@pytest.fixture(scope="module")
def shades(tmp_path_factory) -> Path:
    """Forty pictures of two classes that their brightness tells, almost."""
    folder = tmp_path_factory.mktemp("shades")
    noise = np.random.default_rng(0)
    for number in range(40):
        place = folder / ("dark", "light")[number % 2]
        place.mkdir(exist_ok=True)
        values = noise.normal(100 + 40 * (number % 2), 40, (28, 28)).clip(0, 255)
        Image.fromarray(values.astype(np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture
def here(monkeypatch):
    """Runs happen in this process; returns the commands that ran."""
    ran: list[list[str]] = []

    def run(self, words, log):
        ran.append(list(words))
        said = mimkit(shlex.join(words))
        assert said.status == 0, said

    class Serial(nullcontext):
        def __enter__(self):
            return self

        def submit(self, work, *rest):
            done = Future()
            done.set_result(work(*rest))
            return done

    monkeypatch.setattr(processes.Children, "run", run)
    monkeypatch.setattr(comparing, "ThreadPoolExecutor", lambda jobs: Serial())
    return ran


def contender(line: str, data: str = "photos") -> Contender:
    words = line.split()
    return Contender(line, configured(words, [*words, "--data", data]))


def config(line: str) -> Pretrain:
    return contender(line).config


def test_work_is_the_matrix_products_of_a_step():
    # Forward and backward of a linear layer: three products, but two where its input needs no gradient.
    def block(tokens: int, width: int) -> float:
        return 24 * tokens * width**2 + 4 * tokens**2 * width

    measured = count_flops([config("mae_mini_32 --encoder.depth 3"), config("mae_mini_32 --encoder.depth 1")])
    assert measured[0] - measured[1] == pytest.approx(3 * 2 * block(16 + 1, 128), rel=1e-3)


@pytest.mark.parametrize("start", [0.0, 0.2])
def test_maps_that_are_kept_count_once_in_so_many_steps(start):
    often, seldom, never = count_flops(
        [
            config(f"mae_mini_32 --masker self-guided --method.masker.start {start}"),
            config(f"mae_mini_32 --masker self-guided --method.masker.start {start} --method.masker.refresh 10"),
            config("mae_mini_32"),
        ]
    )
    assert often > 1.2 * never
    assert seldom - never == pytest.approx((often - never) / 10, rel=1e-3)


def test_a_budget_of_compute_buys_fewer_epochs_of_what_costs_more(tmp_path):
    lines = ["mae_mini_32", "emae_mini_32", "mae_mini_32 --method.masker.ratio 0.5"]
    contenders = [contender(line) for line in lines]
    allocate_epochs(contenders, "compute", 24, tmp_path, print)
    mae, emae, half = contenders
    assert mae.epochs == 24 and emae.epochs == round(24 * mae.cost / emae.cost) and half.epochs < 24
    assert 3 < emae.cost / mae.cost <= 4  # four parts, of which the patches are cut once
    equal = [contender(line) for line in lines]
    allocate_epochs(equal, "steps", 24, tmp_path / "steps", print)
    assert [c.epochs for c in equal] == [24, 24, 24]
    uneven = [contender("mae_mini_32"), contender("mae_mini_32 --batch-size 256")]
    allocate_epochs(uneven, "steps", 24, tmp_path / "uneven", print)
    assert [c.epochs for c in uneven] == [24, 48]  # as many steps of twice as many pictures


def test_a_budget_of_time_is_timed_in_turn(tmp_path):
    flags = "--machine.precision float32 --machine.attention fused --machine.threads 1 --machine.device cpu"
    contenders = [contender(f"mae_mini_32 {flags}"), contender(f"mae_mini_32 --encoder.depth 24 {flags}")]
    allocate_epochs(contenders, "time", 24, tmp_path, print)
    assert contenders[0].epochs == 24 and contenders[1].epochs <= 16
    plan = read_json(tmp_path / "plan.json")
    plan["seconds"] = {contenders[0].words: 1000 * contenders[0].cost}  # as on a slower machine
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    joined = [contender(one.words) for one in contenders]
    allocate_epochs(joined, "time", 24, tmp_path, print)
    assert joined[0].cost == 1000 * contenders[0].cost
    assert joined[1].cost / joined[0].cost > 1.5  # timed beside the first once more


def test_what_becomes_of_pictures_before_the_step_takes_time_too():
    flags = f"{SETTINGS} --batch-size 64"
    plain, altered = config(f"mae_mini_28 {flags}"), config(f"mae_mini_28 {flags} --seed 1")
    altered.images.view = replace(altered.images.view, augment=RandAugment())
    times = time_step([plain, altered])
    assert times[1] > 1.5 * times[0]


def test_runs_measures_and_goes_on_where_it_was(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    other = f"{LINE} --optimizer.base-lr 1e-4"
    command = f"compare '{LINE}' '{other}' --data {shades} --epochs 2 --seeds 2 --measure knn --out out --json out.json"
    assert mimkit(command).status == 0
    kinds = [words[0] for words in here]
    assert kinds.count("pretrain") == 4 and kinds.count("evaluate") == 4
    result = json.loads(Path("out.json").read_text())
    first, second = result["contenders"]
    assert first["epochs"] == second["epochs"] == 2 and second["work"] == 1.0
    assert len(second["measures"]["knn"]["seeds"]) == 2
    assert first["measures"]["knn"]["difference"] == 0 and first["measures"]["knn"]["p"] is None
    found = sorted(Path("out").glob("*/seed-*/measured-knn*.json"))
    rows = [one["seeds"] for one in (first["measures"]["knn"], second["measures"]["knn"])]
    said = [read_json(file)["results"][0]["results"]["mean"]["accuracy"] for file in found]
    assert sorted(said) == sorted([*rows[0], *rows[1]])
    assert Path("out/curves.png").stat().st_size > 5000
    assert Path("out/comparison.md").read_text().count("\n|") == 3  # rule, two contenders
    assert result["largest_class"]["share"] >= 0.5
    assert f"scores {100 * result['largest_class']['share']:.1f}" in Path("out/comparison.md").read_text()
    here.clear()
    found[0].unlink()
    assert mimkit(command).status == 0
    assert [words[0] for words in here] == ["evaluate"]  # what is there is not done again
    refusal = refused(command.replace(str(shades), "photos"))
    assert f"out holds runs with --data '{shades}'" in refusal and "give another --out" in refusal


def test_contenders_epochs_and_seeds_join_a_comparison(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    slow, emae = f"{LINE} --optimizer.base-lr 1e-4", f"emae_mini_32 --images.size 28 --encoder.patch 7 {SETTINGS}"
    rest = f"--data {shades} --measure knn --out out --json out.json"
    assert mimkit(f"compare '{LINE}' '{slow}' --epochs 2 --seeds 1 {rest}").status == 0
    before = json.loads(Path("out.json").read_text())["contenders"]
    here.clear()
    assert mimkit(f"compare '{LINE}' '{emae}' --epochs 3 2 --seeds 2 --untrained True {rest}").status == 0
    trained = Counter(Path(words[words.index("--run") + 1]).parent.name for words in here if words[0] == "pretrain")
    mae, again = (contender(line, str(shades)) for line in (LINE, emae))
    runs = {}
    for one, epochs, count in ((mae, 2, 1), (again, 2, 2), (mae, 3, 2), (again, 3, 2)):
        one.epochs = epochs
        runs[one.folder(Path(), 0).parent.name] = count
    assert trained == runs  # seed 0 of MAE with 2 epochs was there
    result = json.loads(Path("out.json").read_text())
    rows = result["contenders"]
    assert [(row["contender"], row["epochs"], row["budget"]) for row in rows] == [
        *((line, epochs, epochs) for epochs in (2, 3) for line in (LINE, emae)),
        (f"untrained {LINE}", 0, 3),
    ]
    found = [row["measures"]["knn"] for row in rows]
    assert found[0]["seeds"][0] == before[0]["measures"]["knn"]["mean"]
    for first, other in ((0, 1), (2, 3), (2, 4)):  # each against the first with the same budget
        assert found[other]["difference"] == found[other]["mean"] - found[first]["mean"]
    assert rows[1]["work"] == rows[3]["work"] > 2 and rows[4]["work"] == 0
    assert len(result["curves"]) == 5
    assert found[0]["p"] is None and found[2]["p"] is None
    assert Path("out/comparison.md").read_text().count("\n|") == 6


def test_each_baseline_has_its_own_untrained_network(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    wide = LINE.replace("--encoder.width 16", "--encoder.width 32")
    rest = f"--data {shades} --epochs 1 --seeds 1 --measure knn --untrained True --out out --json out.json"
    said = []
    for first, other in ((LINE, wide), (wide, LINE)):
        assert mimkit(f"compare '{first}' '{other}' {rest}").status == 0
        said.append(json.loads(Path("out.json").read_text())["contenders"][-1])
    assert [row["contender"] for row in said] == [f"untrained {LINE}", f"untrained {wide}"]
    asked = [words[2] for words in here if words[:2] == ["evaluate", "knn"] and words[2].startswith("untrained:")]
    assert len(set(asked)) == 2


def test_a_run_with_other_settings_is_not_taken_for_this_one(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    command = f"compare '{LINE}' '{LINE} --optimizer.base-lr 1e-4' --data {shades} --epochs 1 --seeds 1 --measure knn"
    assert mimkit(command).status == 0
    places = [*Path("comparison").glob("*/seed-0/config.json")]
    (place,) = (place for place in places if '"base_lr": 0.0001' in place.read_text())
    text = place.read_text()
    place.write_text(text.replace('"base_lr": 0.0001', '"base_lr": 0.0002'))  # as of a recipe changed since
    assert "optimizer.base_lr = 0.0002, not 0.0001: give another --out" in refused(command)


def test_what_fails_for_all_fails_before_training(forty, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    assert "needs labels" in refused(f"compare mae_mini_28 mae_mini_32 --data {forty}") and not here
    assert not Path("comparison").exists()


def test_folders_of_words_that_differ_differ():
    lines = ["a --x 1", "a --x -1", "a --w runs/a_b", "a --w runs/a/b", "a_b --x 1 " + "long" * 60]
    assert len({slug(line) for line in lines}) == 5 and max(len(slug(line)) for line in lines) <= 80
    assert slug("mae_mini_32 --encoder.patch 8") == "mae-mini-32-encoder.patch-8"


def test_without_matplotlib_the_table_is_there(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparing.importlib.util, "find_spec", lambda name: None)
    said = mimkit(f"compare '{LINE}' '{LINE} --optimizer.base-lr 1e-4' --data {shades} --epochs 1 --seeds 1")
    assert said.status == 0 and "mimkit[report]" in said.err
    assert Path("comparison/comparison.md").exists() and not Path("comparison/curves.png").exists()


def test_one_comparison_at_a_time_in_a_folder(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    Path("comparison").mkdir()
    hold = "import fcntl; f = open('comparison/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdin and other.stdout.readline()
        command = f"compare '{LINE}' '{LINE} --optimizer.base-lr 1e-4' --data {shades}"
        assert "another comparison runs in comparison" in refused(command) and not here
        other.stdin.close()


def test_budgets_that_buy_the_same_run_are_refused(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    costly = f"emae_mini_32 --images.size 28 --encoder.patch 7 {SETTINGS}"
    command = f"compare '{LINE}' '{costly}' --data {shades} --budget compute --epochs 1 2"
    said = mimkit(command)
    assert said.status == 2 and "2 of these budgets buy the same run, comparison/emae-mini-32" in said.err and not here
    assert "epochs must be at least 1" in refused(command.replace("--epochs 1 2", "--epochs 0 2"))


def test_fine_tunings_are_measured_in_runs_beside_and_from_scratch(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    lines = f"'{LINE}' '{LINE} --optimizer.base-lr 1e-4'"
    command = f"compare {lines} --data {shades} --epochs 1 --seeds 1 --measure knn finetune --untrained True"
    command += " --finetune 'finetune_mini_32 --label-fraction 0.5 --epochs 2' --out out --json out.json"
    assert mimkit(command).status == 0
    first, second, untrained = json.loads(Path("out.json").read_text())["contenders"]
    assert untrained["epochs"] == untrained["work"] == 0 and untrained["contender"] == f"untrained {LINE}"
    few = "finetune finetune_mini_32 --label-fraction 0.5 --epochs 2"
    assert list(first["measures"]) == ["knn", "finetune", few]
    for pattern, kind in (("seed-0-finetuned", "finetune"), ("seed-0-finetuned-finetune-mini-32-label-fraction*", few)):
        found = {file.parent.parent.name: read_json(file) for file in Path("out").glob(f"*/{pattern}/result.json")}
        assert len(found) == 3
        rows = [one["measures"][kind]["mean"] for one in (first, second, untrained)]
        assert sorted(one["accuracy"] for one in found.values()) == sorted(rows)
        scratch = found[next(name for name in found if name.endswith("-untrained"))]
        assert scratch["weights"] is None and scratch["accuracy"] == untrained["measures"][kind]["mean"]
        assert scratch["train"] == (16 if kind == few else 32)  # of 40 pictures 80 % are to learn from
        assert scratch["epochs"] == (2 if kind == few else 75)  # 300 steps of 8
    (kept,) = Path("out").glob("*-untrained/seed-0/measured-knn.json")
    assert read_json(kept)["results"][0]["target"].startswith("untrained:out/mae-mini-28")
    here.clear()
    assert mimkit(command).status == 0 and not here


def test_contenders_leave_to_the_comparison_what_is_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "leave --epochs" in refused("compare mae_mini_28 'mae_mini_32 --epochs 3' --data photos")
    assert "leave --minutes" in refused("compare mae_mini_28 'mae_mini_32 --minutes 3' --data photos")
    tuned = "compare mae_mini_28 mae_mini_32 --data photos --finetune"
    assert "leave --run" in refused(f"{tuned} 'finetune_mini_32 --run here'")
    assert "label-fraction" in refused(f"{tuned} 'finetune_mini_32 --label-fractions 0.1'")
    assert "'finetune_mini_23'" in refused(f"{tuned} finetune_mini_23")
    assert "--finetune is given twice" in refused(f"{tuned} finetune_mini_32 --finetune finetune_mini_32")
    assert "limit_train must be at least 1" in refused(f"{tuned} finetune_mini_32 --limit-train 0")
    assert "leave --max_steps" in refused("compare mae_mini_28 'mae_mini_32 --max_steps 3' --data photos")
    assert "twice" in refused("compare mae_mini_28 mae_mini_28 --data photos")
    assert "did you mean" in refused("compare mae_mini_28 mae_mini_33 --data photos")
    assert not Path("comparison").exists()


def test_common_flags_are_given_to_all_that_do_not_give_them(shades, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    words = ["mae_mini_28", "mae_mini_28 --encoder.patch=14 --machine.evals 1"]
    common = f"{SETTINGS} --encoder.patch 7 --machine.evals 2 --images.view.flip 0"
    command = f"compare {shlex.join(words)} --data {shades} --epochs 3 --seeds 1 --measure knn --json out.json"
    assert mimkit(f"{command} --common='{common}' --out out").status == 0
    result = json.loads(Path("out.json").read_text())
    assert result["common"] == common and [row["contender"] for row in result["contenders"]] == words
    names = ("mae-mini-28-3-epochs", "mae-mini-28-encoder.patch-14-machine.evals-1-3-epochs")
    first, second = (RunFolder(Path("out", name, "seed-0")).read_config()["config"] for name in names)
    assert (first.encoder.patch, first.machine.evals, first.images.view.flip) == (7, 2, 0)
    assert (second.encoder.patch, second.machine.evals, second.images.view.flip) == (14, 1, 0)
    assert first.machine.tensorboard is False
    assert result["contenders"][1]["work"] < 0.9  # larger patches are fewer: weighed as they run
    assert f"out holds runs with --common '{common}'" in refused(f"{command} --common='{common}.5' --out out")
    assert "leave --epochs" in refused(f"{command} --common='--epochs 3'")
    assert "begin with a flag" in refused(f"{command} --common='patch 3'")


def test_a_run_that_fails_is_named_with_its_log(forty, tmp_path, monkeypatch):
    children = processes.Children(print)
    with pytest.raises(UserError, match="no recipe 'nothing'"), children:
        children.run(["pretrain", "nothing", "--data", str(forty)], tmp_path / "log")


def test_after_a_failure_no_more_begin(tmp_path):
    with processes.Children(print) as children:
        for _ in range(2):
            with pytest.raises(UserError, match="no recipe 'nothing'"):
                children.run(["pretrain", "nothing", "--data", str(tmp_path)], tmp_path / "log")
    assert (tmp_path / "log").read_text().count("no recipe") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_what_runs(number, tmp_path):
    with processes.Children(print) as children:
        monkey = threading.Timer(1.0, os.kill, (os.getpid(), number))
        monkey.start()
        with pytest.raises(processes.Stopped) as stopped:
            children.run(["view", str(tmp_path)], tmp_path / "log")
            children.run(["recipes"], tmp_path / "second")
    assert stopped.value.number == number and not (tmp_path / "second").exists()


def test_an_error_asks_the_other_runs_to_save_and_starts_no_more(forty, tmp_path):
    children = processes.Children(print)
    with pytest.raises(UserError, match="broken"), children:
        raise UserError("broken")
    with pytest.raises(UserError, match="broken"):
        children.run(["recipes"], tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_difference_is_judged_by_a_paired_test_over_seeds():
    mine, base = [0.50, 0.52, 0.51], [0.49, 0.505, 0.502]
    differences = torch.tensor(mine, dtype=torch.float64) - torch.tensor(base, dtype=torch.float64)
    t = differences.mean() / (differences.std() / 3**0.5)
    assert paired_p(mine, base) == pytest.approx(2 * stats.t.sf(t.item(), df=2))
    assert paired_p(mine[:1], base[:1]) is None
    assert paired_p([0.5, 0.6, 0.7], [0.4, 0.5, 0.6]) is None  # without spread there is no test
    assert verdict({"difference": 0.02, "p": 0.0499}) == "+2.0, better (p 0.050)"
    assert verdict({"difference": -0.02, "p": 1e-5}) == "-2.0, worse (p < 0.001)"
    assert verdict({"difference": 0.02, "p": 0.2}) == "+2.0, within noise (p 0.200)"
    assert verdict({"difference": 0.02, "p": None}) == "+2.0"
