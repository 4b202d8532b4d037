"""Compare recipes under one budget: command lines of runs enter; trained runs and one table with spread leave.

Every contender is what one would type behind `mimkit pretrain`; each runs with each seed in a process of its own, in a
folder of its own, so that a comparison that was stopped goes on where it was.
"""

import hashlib
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.markup import escape
from rich.table import Table
from scipy.stats import ttest_rel

from mimkit.errors import UserError, at_least, missing_extra
from mimkit.evaluate.finetune import unfinished
from mimkit.launch import configured
from mimkit.train.prepare import Pretrain
from mimkit.train.run import RunFolder, read_json, write_json
from mimkit.train.work import clock, weigh

Budget = Literal["steps", "compute", "time"]
SIGNIFICANT = 0.05
LIKE_ALL = "--machine.looks 8 --machine.tensorboard False"  # unless `common` or a contender says otherwise


@dataclass
class Contender:
    """One line of the table."""

    words: str
    """As typed behind `mimkit pretrain`."""
    config: Pretrain
    common: str = ""
    """Flags that all contenders get, unless they give them themselves."""
    epochs: int = 0
    """That its budget buys, at least 1."""
    step: float = 0.0
    """Work of a step for one picture: FLOPs, or seconds for a budget of time."""
    results: dict[int, dict[str, float]] = field(default_factory=dict)
    """Accuracies by seed."""
    curves: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """By seed, (work in units of the budget, online kNN) while it trained."""
    before: "Contender | None" = None
    """Whose network this is before training; None for one that trains."""

    def command(self, flags: str = "") -> list[str]:
        """Its own words, then of `common` and of `flags` what is not given before."""
        words = shlex.split(self.words)
        for text in (self.common, flags):
            given, wanted = {_name(word) for word in words}, False
            for word in shlex.split(text):
                if word.startswith("--"):
                    wanted = _name(word) not in given
                words += [word] * wanted
        return words

    def folder(self, out: Path, seed: int) -> Path:
        """Where the run with this seed lives, or what is measured of an untrained one."""
        if self.before is not None:
            return out / "untrained" / f"seed-{seed}"
        name = re.sub(r"[^A-Za-z0-9.]+", "-", self.words.replace("--", "")).strip("-")
        if len(name) > 80:  # file systems end at 255
            name = f"{name[:70]}-{hashlib.sha256(self.words.encode()).hexdigest()[:8]}"
        return out / f"{name}-{self.epochs}-epochs" / f"seed-{seed}"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is done with every finished run."""

    kinds: tuple[str, ...] = ("knn", "probe")
    """`knn`, `probe`, `attentive`, `finetune`, or `finetune` and what one would type behind `mimkit evaluate finetune
    TARGET`."""
    limit_train: int | None = None
    limit_test: int | None = None


def compare(
    lines: Sequence[str],
    data: Sequence[str],
    out: Path,
    *,
    budget: Budget = "steps",
    epochs: Sequence[int] = (),
    seeds: int = 3,
    jobs: int = 1,
    measurement: Measurement = Measurement(),
    untrained: bool = False,
    common: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train and measure every contender with every seed under the budget of the first, or under several.

    Args:
        lines: contenders as typed behind `mimkit pretrain`: a recipe and flags, but --data, --run, --seed and --epochs.
        data: as for pretrain; labels measure.
        out: folder of all runs, `comparison.json` and `curves.png`. What is there already is not done again, be it of
            another comparison, so that contenders, epochs and seeds can be added; data and `common` stay the same.
        budget: what all get as much of as the first contender's `epochs` take: `steps` (with equal batches: epochs),
            `compute` (FLOPs, counted over a step of each at several moments of training) or `time` (seconds, timed in
            turn on this machine, with what becomes of the pictures before).
        epochs: of the first contender; its recipe's by default. With several numbers all contenders run for each.
        seeds: 0 to seeds - 1, the same for all.
        jobs: runs at the same time, each with its share of the threads.
        untrained: measure the first contender's network before training too, each seed's own; fine-tuned, that is
            training from scratch.
        common: flags of `mimkit pretrain` for all contenders, unless they give them themselves.

    Returns:
        JSON: budget, contenders with their epochs, relative work, results by seed, and for each measure mean, standard
        deviation, difference to the first contender with the same budget and the p-value of a paired t-test over seeds
        (None for one seed).

    Raises:
        UserError: anything a person can mend.
    """
    at_least(1, seeds=seeds, jobs=jobs, epochs=min(epochs, default=None))
    if not lines:
        raise UserError("name two recipes or more: mimkit compare A B --data DATA")
    if len(set(lines)) < len(lines):
        raise UserError("a contender is named twice: they differ in their settings, or one is enough")
    configs = [_config(line, data, common) for line in lines]
    groups = []
    for number in sorted(set(epochs)) or [configs[0].epochs]:
        group = [Contender(line, config, common) for line, config in zip(lines, configs, strict=True)]
        share_out(group, budget, number, out, say)
        groups.append(group)
    trained = [contender for group in groups for contender in group]
    for folder, count in Counter(contender.folder(out, 0).parent.name for contender in trained).items():
        if count > 1:
            raise UserError(f"{count} of these budgets buy the same run, {folder}: give --epochs further apart")
    first = trained[0]
    before = [Contender(f"untrained {first.words}", first.config, common, before=first)] if untrained else []
    groups[-1] += before
    with ThreadPoolExecutor(jobs) as pool, Children(say) as children:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        for row in (trained, before):  # what is untrained has the shape of a trained one
            work = [(contender, seed) for seed in range(seeds) for contender in row]
            tasks = [pool.submit(_one, children, c, seed, data, out, threads, measurement) for c, seed in work]
            for task in as_completed(tasks):
                task.result()
    result = summary(groups, budget, seeds)
    write_json(out / "comparison.json", result)
    draw_curves(trained, out / "curves.png", budget)
    return result


def _name(word: str) -> str:
    return word.split("=")[0].replace("_", "-")


def _config(line: str, data: Sequence[str], common: str) -> Pretrain:
    if common and not common.strip().startswith("--"):
        raise UserError(f"common flags begin with a flag, as in --common='--encoder.patch 8', got '{common}'")
    for text in (line, common):
        for word in shlex.split(text):
            if _name(word) in ("--data", "--run", "--seed", "--epochs", "--max-steps", "--json"):
                raise UserError(f"'{text}': leave {word} to the comparison, which gives all contenders the same")
    words = Contender(line, Pretrain(), common).command()
    return configured(words, [*words, "--data", *data])


def share_out(contenders: list[Contender], budget: Budget, epochs: int, out: Path, say: Callable[[str], None]) -> None:
    """Give every contender the epochs that the first one's budget buys; what was weighed before is kept in `out`."""
    first, plan = contenders[0], out / "plan.json"
    asked: dict[str, Any] = {"data": list(first.config.data), "common": first.common}
    known = read_json(plan) if plan.exists() else {}
    for name, value in asked.items():
        if known.get(name, value) != value:
            was = shlex.join(known[name]) if name == "data" else known[name]
            raise UserError(f"{out} holds runs with --{name} '{was}': give another --out, or the same as then")
    unit = "seconds" if budget == "time" else "FLOP"
    steps = known.setdefault(unit, {})
    if new := [contender for contender in contenders if contender.words not in steps]:
        say(f"weighing a step of {len(new)} contenders")
        again = [contender for contender in contenders if contender.words in steps][: unit == "seconds"]
        found = (clock if unit == "seconds" else weigh)([contender.config for contender in (*again, *new)])
        scale = steps[again[0].words] / found[0] if again else 1.0  # the machine may be faster than it was then
        steps |= {one.words: scale * step for one, step in zip(new, found[len(again) :], strict=True)}
        out.mkdir(parents=True, exist_ok=True)
        write_json(plan, asked | known)
    for contender in contenders:
        contender.step = steps[contender.words]
        ratio = contender.config.batch_size / first.config.batch_size
        contender.epochs = max(1, round(epochs * (ratio if budget == "steps" else first.step / contender.step)))


class Children:
    """Processes that are asked to stop, so that they save, when this one is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.running, self.lock, self.stopped = say, set[subprocess.Popen](), threading.Lock(), False

    def __enter__(self) -> "Children":
        self._before = signal.signal(signal.SIGTERM, self._stop), signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self._stop()
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), self._before, strict=True):
            signal.signal(number, handler)

    def _stop(self, *signalled: object) -> None:
        self.stopped = True
        for child in list(self.running):
            with suppress(OSError):
                child.send_signal(signal.SIGTERM)

    def run(self, words: Sequence[str], log: Path, threads: int) -> None:
        """One `mimkit` command; what it says goes to a file. Raises UserError with its last line when it fails."""
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), GOMP_SPINCOUNT="1000")
        command = [sys.executable, "-m", "mimkit.cli", *words]
        with self.lock:
            if self.stopped:
                raise UserError("stopped: the same command goes on")
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file:
                child = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
            self.running.add(child)
        status = child.wait()
        self.running.discard(child)
        if self.stopped:
            raise UserError("stopped: the same command goes on")
        if status:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing said"]
            raise UserError(f"'mimkit {shlex.join(words)}' failed ({last[0].removeprefix('mimkit: ')}): see {log}")


def _one(
    children: Children, contender: Contender, seed: int, data: Sequence[str], out: Path, threads: int, how: Measurement
) -> None:
    """Train and measure one contender with one seed, as far as that is not done; fill in what was found."""
    folder = contender.folder(out, seed)
    run = RunFolder(folder)
    target = str(folder)
    if contender.before is not None:
        target = f"untrained:{contender.before.folder(out, seed)}"
    elif not run.finished:
        flags = ["--data", *data, "--epochs", str(contender.epochs), "--seed", str(seed), "--run", str(folder)]
        words = contender.command(f"--machine.threads {threads} {LIKE_ALL}")
        children.run(["pretrain", *words, *flags], _log(folder), threads)
        children.say(f"trained   {contender.words}, seed {seed}: {contender.epochs} epochs")
    found: dict[str, float] = {}
    for kind in how.kinds:
        tuning = kind.startswith("finetune")
        measure = _fine_tuned if tuning else _frozen
        found[kind] = measure(children, kind, target, folder, seed, data, threads, how)
    contender.results[seed] = found
    children.say(f"measured  {contender.words}, seed {seed}: {', '.join(found)}")
    if contender.before is None:
        work = contender.config.batch_size * contender.step
        contender.curves[seed] = [(r["step"] * work, r["knn"]) for r in run.metrics() if "knn" in r]


def _log(folder: Path) -> Path:
    """Where the processes of a run write."""
    return folder.with_name(f"{folder.name}.log")


def _fine_tuned(
    children: Children, kind: str, target: str, folder: Path, seed: int, data: Sequence[str], threads: int, _: Any
) -> float:
    """Accuracy after fine-tuning with labels, in a run beside that of the target."""
    words = shlex.split(kind)[1:]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words).replace("--", ""))
    tuned = folder.with_name("-".join(filter(None, [folder.name, "finetuned", name])))
    if not RunFolder(tuned).finished or unfinished(tuned):
        recipe = words[:1] if words and not words[0].startswith("-") else []
        flags = ["--seed", str(seed), "--run", str(tuned), "--machine.threads", str(threads), *words[len(recipe) :]]
        children.run(["evaluate", "finetune", target, *recipe, "--data", *data, *flags], _log(folder), threads)
    return read_json(RunFolder(tuned).result_path)["accuracy"]


def _frozen(
    children: Children,
    kind: str,
    target: str,
    folder: Path,
    seed: int,
    data: Sequence[str],
    threads: int,
    how: Measurement,
) -> float:
    """Accuracy of kNN or a probe on frozen features; the result is kept beside the run."""
    limits = {name: str(value) for name, value in (("train", how.limit_train), ("test", how.limit_test)) if value}
    file = folder / f"{'-'.join(['measured', kind, *(word for limit in limits.items() for word in limit)])}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        flags = [word for name, value in limits.items() for word in (f"--limit-{name}", value)]
        partial = file.with_suffix(".partial")
        words = ["evaluate", kind, target, "--data", *data, "--json", str(partial), *flags]
        children.run(words, _log(folder), threads)
        os.replace(partial, file)
    (result,) = read_json(file)["results"]
    return result["results"][result["headline"]]["accuracy"]


def summary(groups: list[list[Contender]], budget: Budget, seeds: int) -> dict[str, Any]:
    """Means, spreads and differences to the first contender with the same budget, as JSON."""
    rows = []
    for first, contender in ((group[0], contender) for group in groups for contender in group):
        row: dict[str, Any] = {
            "contender": contender.words,
            "epochs": contender.epochs,
            "budget": first.epochs,
            "work": round(contender.epochs * contender.step / (first.epochs * first.step), 3),
            "measures": {},
        }
        for kind in first.results[0]:
            mine, base = ([c.results[seed][kind] for seed in range(seeds)] for c in (contender, first))
            row["measures"][kind] = {
                "mean": statistics.mean(mine),
                "deviation": statistics.stdev(mine) if seeds > 1 else None,
                "seeds": mine,
                "difference": statistics.mean(mine) - statistics.mean(base),
                "p": paired_p(mine, base) if contender is not first else None,
            }
        rows.append(row)
    told = {"budget": budget, "seeds": seeds, "common": groups[0][0].common}
    return {**told, "contenders": rows, "curves": [contender.curves for group in groups for contender in group]}


def paired_p(mine: Sequence[float], base: Sequence[float]) -> float | None:
    """Two-sided p-value of a paired t-test over seeds; None when there are fewer than two or no spread at all."""
    if len(mine) < 2:
        return None
    value = float(ttest_rel(mine, base).pvalue)
    return None if math.isnan(value) else value


def verdict(measure: dict[str, Any]) -> str:
    """What a difference to the first contender means, in a few words."""
    if measure["p"] is None:
        return f"{measure['difference']:+.1%}" if measure["difference"] else ""
    seen = "better" if measure["difference"] > 0 else "worse"
    words = seen if measure["p"] < SIGNIFICANT else "within noise"
    return f"{measure['difference']:+.1%}, {words} (p {measure['p']:.2f})"


def comparison_table(result: dict[str, Any]) -> Table:
    """One row for each contender: accuracies in percent with their spread over seeds, and what the difference means."""
    kinds = list(result["contenders"][0]["measures"])
    names = {kind: kind.replace("knn", "kNN").replace("finetune", "fine-tuned", 1) for kind in kinds}
    seeds = f"mean and deviation of {result['seeds']} seeds" if result["seeds"] > 1 else "one seed"
    made = Table(title=f"equal {result['budget']}, {seeds}", title_justify="left")
    made.add_column("contender", overflow="fold")
    made.add_column("epochs", justify="right")
    made.add_column("compute" if result["budget"] != "time" else "time", justify="right")
    for kind in kinds:
        made.add_column(names[kind])
        made.add_column("against the first")
    for row in result["contenders"]:
        cells = [escape(row["contender"]), str(row["epochs"]), f"{row['work']:.2f}"]
        for kind in kinds:
            one = row["measures"][kind]
            spread = f" ± {100 * one['deviation']:.1f}" if one["deviation"] is not None else ""
            cells += [f"{100 * one['mean']:.1f}{spread}", verdict(one)]
        made.add_row(*cells)
    return made


def markdown(result: dict[str, Any]) -> str:
    """The table for a notebook."""
    table = comparison_table(result)
    columns = [list(column.cells) for column in table.columns]
    lines = [[str(column.header) for column in table.columns], ["-"] * len(columns)]
    lines += [[str(column[row]) for column in columns] for row in range(table.row_count)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw_curves(contenders: list[Contender], file: Path, budget: Budget) -> None:
    """Online kNN while training, over the work done: a line for each contender, a band for its seeds' range."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise missing_extra("the picture of a comparison", "report") from error
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    most = max((x for one in contenders for curve in one.curves.values() for x, _ in curve), default=0.0)
    unit, name = (60.0, "minutes") if budget == "time" else (1e15, "PFLOP") if most >= 1e14 else (1e12, "TFLOP")
    for contender in contenders:
        curves = [curve for curve in contender.curves.values() if curve]
        if not curves or len({len(curve) for curve in curves}) > 1:
            continue
        values = torch.tensor([[y for _, y in curve] for curve in curves])
        work = [x / unit for x, _ in curves[0]]
        label = f"{contender.words}, {contender.epochs} epochs"
        (line,) = axes.plot(work, values.mean(dim=0).tolist(), marker=".", label=label)
        low, high = values.min(dim=0).values.tolist(), values.max(dim=0).values.tolist()
        axes.fill_between(work, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xlabel(name)
    axes.set_ylabel("online kNN accuracy")
    if axes.has_data():
        figure.legend(fontsize="small", loc="outside lower center", frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
