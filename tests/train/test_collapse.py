"""Collapse is noticed: a method that pulls everything together is warned of once, and no other is."""

import json
import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from commandline import mimkit, refused
from drills import ranks, tiny
from mimkit.methods.losses import feature_spread
from mimkit.methods.mae import MAEConfig
from mimkit.recipes import find_recipe, recipes
from mimkit.report.record import read_run
from mimkit.train.collapse import collapse
from mimkit.train.monitor import Monitor
from mimkit.train.online import OnlineEvaluation
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder
from mimkit.train.sharding import Whole

FAST = (
    "--machine.device cpu --machine.precision float32 --machine.attention fused --machine.threads 1 "
    "--machine.workers 0 --machine.evals 6 --machine.log-every 5 --machine.tensorboard False"
)
BROKEN = "--method.broken True"
OUTSIDE = str(Path(__file__).parents[1] / "outside")


@pytest.fixture(autouse=True)
def laboratory(monkeypatch, tmp_path):
    """The outside package with the method, and a folder of its own."""
    monkeypatch.syspath_prepend(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("my_lab")]:
        monkeypatch.delitem(sys.modules, name)


def train(data: Path, run: str, flags: str = "") -> tuple[list[str], RunFolder]:
    """Train twins; returns the warnings that were printed, and the run."""
    said = mimkit(f"pretrain my_lab.twins:twins --data {data} --run {run} {FAST} {flags}")
    assert said.status == 0, said.err
    return warnings(said.err), RunFolder(Path(run))


def warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if "warning: features" in line]


def recorded(run: RunFolder) -> list[dict[str, Any]]:
    return [record for record in run.metrics() if "warning" in record]


@pytest.fixture(scope="module")
def broken(forty, tmp_path_factory) -> tuple[list[str], RunFolder]:
    """Twins that are pulled together, with gradients on both sides and no negatives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(OUTSIDE)
        return train(forty, str(tmp_path_factory.mktemp("broken") / "run"), BROKEN)


def test_a_run_without_stopped_gradient_is_warned_of_once_and_goes_on(broken):
    (warning,), run = broken
    (record,) = recorded(run)
    start, last = run.read_config()["resolved"]["start"], run.metrics()[-1]
    assert record["warning"] == warning and run.finished and last["step"] == 30 > record["step"]
    assert json.loads(run.result_path.read_text())["warning"] == warning
    now, then = ((one["feature_spread"], one["effective_rank"]) for one in (record, start))
    assert f"at step {record['step']}: spread {now[0]:.2g} ({then[0]:.2g} at the start), " in warning
    assert f"effective rank {now[1]:.1f} of at most 32 ({then[1]:.1f} at the start)" in warning
    assert "a lower --optimizer.base-lr or a longer --schedule.warmup" in warning
    assert "--method." not in warning, "twins have no setting against it"
    assert last["feature_spread"] < 0.35 and last["effective_rank"] < 0.5 * start["effective_rank"]
    page = read_run(run.folder)
    assert ["warning", warning] in page["facts"]
    assert any(curve["key"] == "feature_spread" for curve in page["curves"])
    assert "spread of features" in {row["what"] for row in page["results"]}
    assert f"feature\\_spread | {last['feature_spread']:.4g} |" in (run.folder / "export" / "README.md").read_text()


def test_the_same_run_intact_is_not_warned_of(forty):
    found, run = train(forty, "run")
    assert not found and not recorded(run) and "warning" not in json.loads(run.result_path.read_text())
    assert run.metrics()[-1]["feature_spread"] > 0.4


@pytest.mark.parametrize("steps", [28, 7])
def test_a_resumed_run_neither_repeats_nor_loses_the_warning(broken, forty, steps):
    """Stopped after the warning, and before it: what the start was is still known then."""
    (whole,), _ = broken
    first, _ = train(forty, "parts", f"{BROKEN} --max-steps {steps}")
    then, run = train(forty, "parts", f"{BROKEN} --machine.tensorboard {steps == 7}")  # which takes numbers alone
    assert first + then == [whole] and [record["warning"] for record in recorded(run)] == [whole]
    assert (steps == 28) == (first == [whole])
    assert json.loads(run.result_path.read_text())["warning"] == whole


def test_the_first_process_alone_warns(forty, tmp_path):
    from my_lab.twins import twins

    config = twins()
    config.data, config.method.broken, config.machine = (str(forty),), True, tiny(log_every=5, evals=6).machine
    (first, said), (second, quiet) = ranks(tmp_path / "log", config, tmp_path / "two")
    assert (first, second) == (0, 0), said + quiet
    assert len(warnings(said)) == 1 and not warnings(quiet)
    assert len(recorded(RunFolder(tmp_path / "two"))) == 1


def test_mae_has_a_spread_and_no_warning(forty, tmp_path, capsys):
    result = pretrain(tiny(forty), tmp_path / "run", log=print)
    assert "step 20/20" in (said := capsys.readouterr().err) and not warnings(said)
    assert "warning" not in result and 0 < result["feature_spread"] < 1.5
    start = RunFolder(tmp_path / "run").read_config()["resolved"]["start"]
    assert start.keys() == {"effective_rank", "feature_spread"} and start != result


def test_temperature_0_is_refused_in_one_line(forty):
    for recipe in ("simclr_mini_32", "moco_v2_mini_32", "moco_v3_mini_32"):
        assert "method.temperature" in refused(f"pretrain {recipe} --data {forty} --method.temperature 0")


def test_the_spread_of_a_look_is_that_of_its_features(forty, tmp_path, monkeypatch):
    seen, real = [], Monitor.features
    monkeypatch.setattr(Monitor, "features", lambda *a: seen.append(real(*a)) or seen[-1])
    result = pretrain(tiny(forty, evals=1), tmp_path / "run", log=lambda line: None)
    assert len(seen) == 2, "one look at the start, one at the end"
    assert result["feature_spread"] == pytest.approx(feature_spread(seen[1]).item())
    assert seen[1].is_inference() is False, "a first step must be able to use what the look before it kept"


@pytest.mark.parametrize(
    ("spread", "rank", "warns"),
    [
        (0.15, 4.7, True),  # broken twins
        (0.0, 1.0, True),
        (0.75, 27.0, False),  # as it began
        (0.64, 11.0, False),  # MAE early in training
        (0.5, 2.0, False),  # few directions far apart: two classes
        (0.15, 20.0, False),  # a large mean in common, and much besides
        (0.36, 4.7, False),
        (math.nan, math.nan, False),
    ],
)
def test_both_spread_and_rank_must_have_fallen(spread, rank, warns):
    record = {"step": 1200, "feature_spread": spread, "effective_rank": rank}
    said = collapse(record, {"feature_spread": 0.75, "effective_rank": 27.0}, 192)
    assert (said is not None) == warns
    assert said is None or re.match(r"warning: .* at step 1,200: spread \S+ \(0\.75 at the start\)", said)


FALLEN = {"feature_spread": 0.15, "effective_rank": 4.7}
START = {"feature_spread": 0.75, "effective_rank": 27.0}


@pytest.mark.parametrize("recipe", recipes())
def test_the_advice_names_settings_that_the_method_has(recipe):
    method = find_recipe(recipe).method
    line = collapse({"step": 9} | FALLEN, START, 192, method.against_collapse)
    flags = re.findall(r"--method\.([\w.-]+)", line)
    assert [flag.replace("-", "_") for flag in flags] == list(method.against_collapse)
    for name in method.against_collapse:
        part, parts = method, name.split(".")
        for part_name in parts:
            assert part_name in {field.name for field in fields(part)}
            part = getattr(part, part_name)
    assert "target" not in line and ("temperature" in line) == hasattr(method, "temperature")


class Measured(Monitor):
    """A monitor without pictures."""

    def __init__(self):
        pass

    def largest_rank(self, encoder):
        return 32


def warned(spreads: list[float], *, warmup: float = 0.0) -> list[bool]:
    """Whether evaluations at steps 1, 2, ... of the whole schedule, with these spreads, are warned of."""
    task = MAEConfig().build(tiny().encoder.build((12, 12), 3))
    run, whole = RunFolder(Path("nowhere")), Whole(task, "none", torch.device("cpu"))
    online = OnlineEvaluation(
        Measured(), whole, run, torch.device("cpu"), warmup=warmup, total=len(spreads), settings=()
    )
    online.start = START
    records = [{"step": i + 1, "feature_spread": s, "effective_rank": 27 * s} for i, s in enumerate(spreads)]
    answers = []
    for record in records:
        answers.append(online.warning(record) is not None)
        assert online.warning({"step": record["step"], "loss": 1.0}) is None  # a line without an evaluation
    return answers


def test_a_collapse_is_one_that_lasts_and_lies_behind_the_warm_up():
    assert warned([0.1, 0.1, 0.1, 0.1]) == [False, True, True, True]
    assert warned([0.7, 0.1, 0.7, 0.1, 0.7]) == [False] * 5, "one bad evaluation is none"
    assert warned([0.7, 0.7, 0.1]) == [False, False, True], "nothing comes after the last"
    assert warned([0.1, 0.1, 0.1, 0.1, 0.7], warmup=3) == [False, False, False, True, False]
    assert warned([0.1, 0.1, 0.7, 0.7], warmup=3) == [False] * 4


def test_what_began_narrow_or_unseen_is_no_collapse():
    record = {"step": 1, "feature_spread": 0.06, "effective_rank": 2.0}
    assert collapse(record, {"feature_spread": 0.1, "effective_rank": 5.0}, 64) is None
    assert collapse(record, {}, 64) is None and collapse({"step": 1, "loss": 0.0}, record, 64) is None
    alike = {"feature_spread": 0.0, "effective_rank": 1.0}  # the pictures are one picture
    assert collapse({"step": 1} | alike, alike, 64) is None
    torch.testing.assert_close(feature_spread(torch.ones(5, 4)).item(), 0.0, atol=1e-6, rtol=0)
