"""Compare recipes under one budget: command lines of runs enter; trained runs and one table with spread leave.

Every contender is what one would type behind `mimkit pretrain`; each runs with each seed in a process of its own, in a
folder of its own, so that a comparison that was stopped goes on where it was.
"""

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mimkit.compare.contender import Budget, Contender, allocate_epochs, configure, refuse_other, shared_precision
from mimkit.compare.processes import Children, Measurement, Work, alone, check_measure
from mimkit.compare.table import draw_curves, markdown, summary
from mimkit.compare.transfer import is_dense
from mimkit.core.errors import UserError, at_least
from mimkit.data.reading import Reading
from mimkit.data.sources import open_measured
from mimkit.train.machine import cores
from mimkit.train.prepare import Pretrain
from mimkit.train.run_folder import write_json

LIKE_ALL = "--machine.evals 8 --machine.tensorboard False"  # unless `common` or a contender says otherwise


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
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train and measure every contender with every seed under the budget of the first, the baseline, or under several.

    Args:
        lines: contenders as typed behind `mimkit pretrain`: a recipe and flags, but those in `OURS`.
        data: as for pretrain; labels measure.
        out: folder of all runs, `comparison.json`, `comparison.md` and `curves.png`. What another comparison left there
            is not done again, so contenders, epochs and seeds can be added; data and `common` stay the same.
        budget: what all get as much of as the baseline's `epochs` take: `steps` (with equal batches: epochs), `compute`
            (FLOPs, counted over a step of each at several moments of training) or `time` (seconds, timed in turn on
            this machine, with what becomes of the pictures before).
        epochs: of the baseline; its recipe's by default. With several numbers all contenders run for each.
        seeds: 0 to seeds - 1, the same for all.
        jobs: runs at the same time, each with its share of the cores.
        untrained: measure each seed's network of the baseline before training too; fine-tuned, that is from scratch.
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
    _refuse(lines, measurement)
    threads = max(1, cores() // jobs)
    flags = f"--machine.threads {threads} --machine.workers {min(16, threads)} {LIKE_ALL}"
    configs = [configure(line, data, common, flags) for line in lines]
    _refuse_measurement(measurement, configs[0])
    with alone(out):
        groups = []
        for number in sorted(set(epochs)) or [configs[0].epochs]:
            groups.append([Contender(line, config, common) for line, config in zip(lines, configs, strict=True)])
            allocate_epochs(groups[-1], budget, number, out, log)
        trained = [contender for group in groups for contender in group]
        _refuse_places(trained, out, seeds)
        flags += f" --machine.precision {shared_precision(trained[0], out)}"
        before = [_untrained(trained[0])] if untrained else []
        groups[-1] += before
        with ThreadPoolExecutor(jobs) as pool, Children(log, threads) as children:
            work = Work(children, data, out, flags, measurement)
            _run_all(pool.submit, work, trained, seeds)
            _run_all(pool.submit, work, before, seeds)  # after the trained ones, whose shape they have
        return _write(groups, budget, seeds, out, log)


def _refuse(lines: Sequence[str], measurement: Measurement) -> None:
    at_least(1, limit_train=measurement.limit_train, limit_test=measurement.limit_test)
    if not lines:
        raise UserError("name two recipes or more: mimkit compare A B --data DATA")
    if len(set(lines)) < len(lines):
        raise UserError("a contender is named twice: they differ in their settings, or one is enough")


def _refuse_measurement(measurement: Measurement, config: Pretrain) -> None:
    """Refuse what the last step of each contender would refuse, before the first one takes hours."""
    for kind in measurement.kinds:
        check_measure(kind)
    if not all(map(is_dense, measurement.kinds)):
        open_measured(config.data, Reading(label_column=config.label_column))


def _refuse_places(trained: Sequence[Contender], out: Path, seeds: int) -> None:
    """Refuse two contenders of one folder, and folders that hold runs with other settings."""
    for folder, count in Counter(contender.folder(out, 0).parent for contender in trained).items():
        if count > 1:
            raise UserError(f"{count} of these budgets buy the same run, {folder}: give --epochs further apart")
    for contender in trained:
        for seed in range(seeds):
            refuse_other(contender, out, seed)


def _run_all(submit: Callable[..., Future], work: Work, contenders: Sequence[Contender], seeds: int) -> None:
    """Train and measure; a seed of all before the next seed of any: what is stopped early has compared something."""
    pairs = [(contender, seed) for seed in range(seeds) for contender in contenders]
    tasks = [submit(work.one, contender, seed) for contender, seed in pairs]
    for task in as_completed(tasks):
        task.result()


def _untrained(first: Contender) -> Contender:
    """What measures the network of a contender before its training."""
    return Contender(f"untrained {first.words}", first.config, first.common, before=first)


def _write(
    groups: list[list[Contender]], budget: Budget, seeds: int, out: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """The result, written as JSON, as a table for a notebook, and with matplotlib as curves."""
    result = summary(groups, budget, seeds)
    write_json(out / "comparison.json", result)
    (out / "comparison.md").write_text(markdown(result) + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        draw_curves([contender for group in groups for contender in group], out / "curves.png", budget)
    else:
        log("curves.png is left out, it needs an extra: pip install 'mimkit[report]'")
    return result
