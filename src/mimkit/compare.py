"""Compare recipes under one budget: command lines of runs enter; trained runs and one table with spread leave.

Every contender is what one would type behind `mimkit pretrain`; each runs with each seed in a process of its own, in a
folder of its own, so that a comparison that was stopped goes on where it was.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.markup import escape
from rich.table import Table
from scipy.stats import ttest_rel

from mimkit.errors import UserError, at_least
from mimkit.evaluate.finetune import unfinished
from mimkit.evaluate.run import labelled
from mimkit.launch import configured, read_finetuning
from mimkit.recipes import find_recipe
from mimkit.train.machine import Engine, cores
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.run import RunFolder, read_json, write_json
from mimkit.train.work import clock, weigh

Budget = Literal["steps", "compute", "time"]
SIGNIFICANT = 0.05
LIKE_ALL = "--machine.looks 8 --machine.tensorboard False"  # unless `common` or a contender says otherwise
OURS = ("--data", "--run", "--seed", "--epochs", "--minutes", "--max-steps", "--json")  # which the comparison gives


class Stopped(Exception):
    """The comparison was asked to stop, by the signal `number`; the same command goes on."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped: the same command goes on")
        self.number = number


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
    cost: float = 0.0
    """Of a step for one picture: FLOPs, or seconds for a budget of time."""
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
            return out / f"{slug(self.before.words)}-untrained" / f"seed-{seed}"
        return out / f"{slug(self.words)}-{self.epochs}-epochs" / f"seed-{seed}"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is done with every finished run."""

    kinds: tuple[str, ...] = ("knn", "probe")
    """`knn`, `probe`, `attentive`, `finetune`, or `finetune` and what one would type behind `mimkit evaluate finetune
    TARGET`."""
    limit_train: int | None = None
    limit_test: int | None = None

    @property
    def limits(self) -> list[str]:
        """Flags of `mimkit evaluate`, but of fine-tuning."""
        limits = (("train", self.limit_train), ("test", self.limit_test))
        return [word for name, value in limits if value for word in (f"--limit-{name}", str(value))]


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
    """Train and measure every contender with every seed under the budget of the first, the baseline, or under several.

    Args:
        lines: contenders as typed behind `mimkit pretrain`: a recipe and flags, but those in `OURS`.
        data: as for pretrain; labels measure.
        out: folder of all runs, `comparison.json`, `comparison.md` and `curves.png`. What is there already is not done
            again, be it of another comparison, so that contenders, epochs and seeds can be added; data and `common`
            stay the same.
        budget: what all get as much of as the baseline's `epochs` take: `steps` (with equal batches: epochs), `compute`
            (FLOPs, counted over a step of each at several moments of training) or `time` (seconds, timed in turn on
            this machine, with what becomes of the pictures before).
        epochs: of the baseline; its recipe's by default. With several numbers all contenders run for each.
        seeds: 0 to seeds - 1, the same for all.
        jobs: runs at the same time, each with its share of the cores.
        untrained: measure the baseline's network before training too, each seed's own; fine-tuned, that is training
            from scratch.
        common: flags of `mimkit pretrain` for all contenders, unless they give them themselves.

    Returns:
        JSON: budget, contenders with their epochs, relative work, results by seed, and for each measure mean, standard
        deviation, difference to the baseline with the same budget and the p-value of a paired t-test over seeds (None
        for one seed, and where the difference is the same for all).

    Raises:
        UserError: anything a person can mend.
        Stopped: by SIGINT, SIGTERM or SIGHUP; runs have saved.
    """
    at_least(1, seeds=seeds, jobs=jobs, epochs=min(epochs, default=None))
    at_least(1, limit_train=measurement.limit_train, limit_test=measurement.limit_test)
    if not lines:
        raise UserError("name two recipes or more: mimkit compare A B --data DATA")
    if len(set(lines)) < len(lines):
        raise UserError("a contender is named twice: they differ in their settings, or one is enough")
    share = max(1, cores() // jobs)
    flags = f"--machine.threads {share} --machine.workers {share} {LIKE_ALL}"
    configs = [_config(line, data, common, flags) for line in lines]
    for kind in measurement.kinds:
        _check_fine_tuning(kind)
    for split in ("train", "test"):
        labelled(list(data), split)
    with _alone(out):
        groups = []
        for number in sorted(set(epochs)) or [configs[0].epochs]:
            group = [Contender(line, config, common) for line, config in zip(lines, configs, strict=True)]
            share_out(group, budget, number, out, say)
            groups.append(group)
        trained = [contender for group in groups for contender in group]
        for folder, count in Counter(contender.folder(out, 0).parent for contender in trained).items():
            if count > 1:
                raise UserError(f"{count} of these budgets buy the same run, {folder}: give --epochs further apart")
        flags += f" --machine.precision {_precision(trained[0], out)}"
        for contender in trained:
            for seed in range(seeds):
                _refuse_other(contender, out, seed)
        first = trained[0]
        before = [Contender(f"untrained {first.words}", first.config, common, before=first)] if untrained else []
        groups[-1] += before
        with ThreadPoolExecutor(jobs) as pool, Children(say, share) as children:
            work = Work(children, data, out, flags, measurement)
            for row in (trained, before):  # what is untrained has the shape of a trained one
                tasks = [pool.submit(work.one, contender, seed) for seed in range(seeds) for contender in row]
                for task in as_completed(tasks):
                    task.result()
        result = summary(groups, budget, seeds)
        write_json(out / "comparison.json", result)
        (out / "comparison.md").write_text(markdown(result) + "\n", encoding="utf-8")
        if importlib.util.find_spec("matplotlib"):
            draw_curves(trained, out / "curves.png", budget)
        else:
            say("curves.png is left out, it needs an extra: pip install 'mimkit[report]'")
    return result


def slug(words: str) -> str:
    """A folder's name for words; where others could have the same, or file systems would refuse it, with their hash."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", words.replace("--", "")).strip("-")
    if len(name) > 80 or not re.fullmatch(r"[\w. =-]*", words) or re.search(r"[ =]-\d", words):
        name = f"{name[:70]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    return name


def _name(word: str) -> str:
    return word.split("=")[0].replace("_", "-")


def _refuse_ours(text: str) -> None:
    for word in shlex.split(text):
        if _name(word) in OURS:
            raise UserError(f"'{text}': leave {word} to the comparison, which gives all contenders the same")


def _config(line: str, data: Sequence[str], common: str, flags: str) -> Pretrain:
    if common and not common.strip().startswith("--"):
        raise UserError(f"common flags begin with a flag, as in --common='--encoder.patch 8', got '{common}'")
    _refuse_ours(line)
    _refuse_ours(common)
    words = Contender(line, Pretrain(), common).command(flags)
    return configured(words, [*words, "--data", *data])


def _check_fine_tuning(kind: str) -> None:
    """Refuse words behind `finetune` that `mimkit evaluate finetune` would."""
    how, _, line = kind.partition(" ")
    if how != "finetune":
        return
    words = shlex.split(line)
    for word in words:
        if _name(word) in OURS and _name(word) != "--epochs":
            raise UserError(f"'{line}': leave {word} to the comparison")
    recipe = words.pop(0) if words and not words[0].startswith("-") else "finetune_mini_32"
    read_finetuning(words, f"mimkit evaluate finetune TARGET {recipe}", find_recipe(recipe, finetuning=True))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder, or say that another process does; what was made for nothing is removed."""
    made = [place for place in (out, *out.parents) if not place.exists()]
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another comparison runs in {out}: wait for it, or name another --out") from error
        try:
            yield
        finally:
            if [entry.name for entry in out.iterdir()] == [".lock"]:
                (out / ".lock").unlink()
                for place in made:
                    with suppress(OSError):
                        place.rmdir()


def share_out(contenders: list[Contender], budget: Budget, epochs: int, out: Path, say: Callable[[str], None]) -> None:
    """Give every contender the epochs that the baseline's budget buys; costs once found are kept in `out`."""
    first, plan = contenders[0], out / "plan.json"
    asked: dict[str, Any] = {"data": list(first.config.data), "common": first.common}
    known = read_json(plan) if plan.exists() else {}
    for name, value in asked.items():
        if known.get(name, value) != value:
            was = shlex.join(known[name]) if name == "data" else known[name]
            raise UserError(f"{out} holds runs with --{name} '{was}': give another --out, or the same as then")
    unit = "seconds" if budget == "time" else "FLOP"
    costs = known.setdefault(unit, {})
    if new := [contender for contender in contenders if contender.words not in costs]:
        say(f"weighing a step of {len(new)} contenders")
        again = [contender for contender in contenders if contender.words in costs][: unit == "seconds"]
        found = (clock if unit == "seconds" else weigh)([contender.config for contender in (*again, *new)])
        scale = costs[again[0].words] / found[0] if again else 1.0  # the machine may be faster than it was then
        costs |= {one.words: scale * cost for one, cost in zip(new, found[len(again) :], strict=True)}
        out.mkdir(parents=True, exist_ok=True)
        write_json(plan, asked | known)
    for contender in contenders:
        contender.cost = costs[contender.words]
        ratio = contender.config.batch_size / first.config.batch_size
        contender.epochs = max(1, round(epochs * (ratio if budget == "steps" else first.cost / contender.cost)))


def _precision(first: Contender, out: Path) -> str:
    """The arithmetic of all runs, which the baseline chooses once."""
    known = read_json(out / "plan.json")
    if "precision" not in known:
        ready, machine = Prepared(first.config), first.config.machine
        device = machine.find_device()
        count = ready.timed(ready.micro_batch(device, 1))
        known["precision"] = Engine.choose(machine, device, ready.task, lambda: ready.sample(count), None).precision
        write_json(out / "plan.json", known)
    return known["precision"]


def _refuse_other(contender: Contender, out: Path, seed: int) -> None:
    """Refuse a run in this place with other settings, as of a recipe that was changed since."""
    run = RunFolder(contender.folder(out, seed))
    changed = run.changes(replace(contender.config, epochs=contender.epochs, seed=seed)) if run.exists else {}
    for key, (old, new) in changed.items():
        raise UserError(f"{run.folder} holds a run with {key} = {old}, not {new}: give another --out")


class Children:
    """Processes that are asked to stop, so that they save, when this one is or when one of them fails."""

    def __init__(self, say: Callable[[str], None], threads: int = 1) -> None:
        self.say, self.threads = say, threads
        self.running: set[subprocess.Popen] = set()
        self.why: Exception | None = None
        """Why no more are started."""

    def __enter__(self) -> "Children":
        self._before = {
            number: signal.signal(number, lambda number, _: self.stop(Stopped(number)))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, Exception):
            self.stop(error)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self, why: Exception) -> None:
        """Ask all to stop and start no more."""
        self.why = self.why or why
        for child in list(self.running):
            with suppress(OSError):
                child.send_signal(signal.SIGTERM)

    def run(self, words: Sequence[str], log: Path) -> None:
        """One `mimkit` command; what it says goes to a file.

        Raises UserError with its last line when it fails, and why no more are started where that is so.
        """
        environment = dict(os.environ, OMP_NUM_THREADS=str(self.threads), GOMP_SPINCOUNT="1000")
        if self.why:
            raise self.why
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            command = [sys.executable, "-m", "mimkit.cli", *words]
            child = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        self.running.add(child)
        if self.why:  # since the last look
            child.send_signal(signal.SIGTERM)
        status = child.wait()
        self.running.discard(child)
        if self.why:
            raise self.why
        if status:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing said"]
            said = last[0].removeprefix("mimkit: ")
            if status < 0:  # by the kernel, as a rule
                said = f"ended by {signal.Signals(-status).name}, as where memory is short"
            self.stop(UserError(f"'mimkit {shlex.join(words)}' failed ({said}): see {log}"))
            raise self.why  # type: ignore[misc]


@dataclass(frozen=True)
class Work:
    """What is done with one contender and one seed."""

    children: Children
    data: Sequence[str]
    out: Path
    flags: str
    """Of `mimkit pretrain`, unless a contender gives them itself."""
    measurement: Measurement

    def one(self, contender: Contender, seed: int) -> None:
        """Train and measure, as far as that is not done; fill in what was found."""
        folder = contender.folder(self.out, seed)
        run = RunFolder(folder)
        target = str(folder)
        if contender.before is not None:
            target = f"untrained:{contender.before.folder(self.out, seed)}"
        elif not run.finished:
            own = ["--data", *self.data, "--epochs", str(contender.epochs), "--seed", str(seed), "--run", str(folder)]
            self._run(["pretrain", *contender.command(self.flags), *own], folder)
            self.children.say(f"trained   {contender.words}, seed {seed}: {contender.epochs} epochs")
        found: dict[str, float] = {}
        for kind in self.measurement.kinds:
            how, _, words = kind.partition(" ")
            found[kind] = (
                self._fine_tuned(words, target, folder, seed)
                if how == "finetune"
                else self._frozen(kind, target, folder)
            )
        contender.results[seed] = found
        self.children.say(f"measured  {contender.words}, seed {seed}: {', '.join(found)}")
        if contender.before is None:
            work = contender.config.batch_size * contender.cost
            contender.curves[seed] = [(r["step"] * work, r["knn"]) for r in run.metrics() if "knn" in r]

    def _run(self, words: list[str], folder: Path) -> None:
        self.children.run(words, folder.with_name(f"{folder.name}.log"))

    def _fine_tuned(self, line: str, target: str, folder: Path, seed: int) -> float:
        """Accuracy after fine-tuning with labels, in a run beside that of the target."""
        tuned = folder.with_name("-".join(filter(None, [folder.name, "finetuned", slug(line)])))
        if not RunFolder(tuned).finished or unfinished(tuned):
            words = shlex.split(line)
            recipe = words[:1] if words and not words[0].startswith("-") else []
            ours = ["--seed", str(seed), "--run", str(tuned), "--machine.threads", str(self.children.threads)]
            own = [*ours, *words[len(recipe) :]]
            self._run(["evaluate", "finetune", target, *recipe, "--data", *self.data, *own], folder)
        return read_json(RunFolder(tuned).result_path)["accuracy"]

    def _frozen(self, kind: str, target: str, folder: Path) -> float:
        """Accuracy of kNN or a probe on frozen features; the result is kept beside the run."""
        limits = self.measurement.limits
        name = "-".join(["measured", kind, *(word.removeprefix("--limit-") for word in limits)])
        file = folder / f"{name}.json"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            self._run(["evaluate", kind, target, "--data", *self.data, "--json", str(partial), *limits], folder)
            os.replace(partial, file)
        (result,) = read_json(file)["results"]
        return result["results"][result["headline"]]["accuracy"]


def summary(groups: list[list[Contender]], budget: Budget, seeds: int) -> dict[str, Any]:
    """Means, spreads and differences to the baseline, the first with the same budget, as JSON."""
    rows = []
    for first, contender in ((group[0], contender) for group in groups for contender in group):
        row: dict[str, Any] = {
            "contender": contender.words,
            "epochs": contender.epochs,
            "budget": first.epochs,
            "work": round(contender.epochs * contender.cost / (first.epochs * first.cost), 3),
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
    """Two-sided p-value of a paired t-test over seeds; None for fewer than two, or where all differ by the same."""
    differences = [a - b for a, b in zip(mine, base, strict=True)]
    if len(differences) < 2 or max(differences) - min(differences) < 1e-9:
        return None
    return float(ttest_rel(mine, base).pvalue)


def verdict(measure: dict[str, Any]) -> str:
    """What a difference to the baseline means, in a few words, with the points that it is."""
    points = f"{100 * measure['difference']:+.1f}"
    if measure["p"] is None:
        return points if measure["difference"] else ""
    seen = "better" if measure["difference"] > 0 else "worse"
    words = seen if measure["p"] < SIGNIFICANT else "within noise"
    return f"{points}, {words} (p {told_p(measure['p'])})"


def told_p(p: float) -> str:
    """A p-value to read: 0.051 and 0.049 lie on two sides."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def comparison_rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's cells, the heads first: one row for each contender, accuracies in percent with their spread."""
    kinds = list(result["contenders"][0]["measures"])
    rows = [["contender", "epochs", "compute" if result["budget"] != "time" else "time"]]
    for kind in kinds:
        rows[0] += [kind.replace("knn", "kNN").replace("finetune", "fine-tuned", 1), "to baseline"]
    for row in result["contenders"]:
        rows.append([row["contender"], str(row["epochs"]), f"{row['work']:.2f}"])
        for kind in kinds:
            one = row["measures"][kind]
            spread = f" ± {100 * one['deviation']:.1f}" if one["deviation"] is not None else ""
            rows[-1] += [f"{100 * one['mean']:.1f}{spread}", verdict(one)]
    return rows


def comparison_table(result: dict[str, Any]) -> Table:
    """`comparison_rows` for a terminal."""
    seeds = f"mean and deviation of {result['seeds']} seeds" if result["seeds"] > 1 else "one seed"
    made = Table(title=f"equal {result['budget']}, {seeds}", title_justify="left")
    heads, *rows = comparison_rows(result)
    for number, head in enumerate(heads):
        made.add_column(head, overflow="fold", justify="right" if number in (1, 2) else "left")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def markdown(result: dict[str, Any]) -> str:
    """`comparison_rows` for a notebook."""
    heads, *rows = comparison_rows(result)
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["-"] * len(heads), *rows))


def draw_curves(contenders: list[Contender], file: Path, budget: Budget) -> None:
    """Online kNN while training, over the work done: a line for each contender, a band for its seeds' range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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
