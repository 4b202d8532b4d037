"""Compare recipes under one budget: command lines of runs enter; trained runs and one table with spread leave.

Every contender is what one would type behind `mimkit pretrain`; each runs with each seed in a process of its own, in a
folder of its own, so that a comparison that was stopped goes on where it was.
"""

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mimkit.compare.contender import Budget, Contender, allocate_epochs, configure, refuse_other, shared_precision
from mimkit.compare.processes import Children, Measurement, Work, alone, check_fine_tuning
from mimkit.compare.table import draw_curves, markdown, summary
from mimkit.core.errors import UserError, at_least
from mimkit.evaluate.run import labeled
from mimkit.train.machine import cores
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
    fraction = max(1, cores() // jobs)
    flags = f"--machine.threads {fraction} --machine.workers {min(16, fraction)} {LIKE_ALL}"
    configs = [configure(line, data, common, flags) for line in lines]
    for kind in measurement.kinds:
        check_fine_tuning(kind)
    for split in ("train", "test"):
        labeled(list(data), split)
    with alone(out):
        groups = []
        for number in sorted(set(epochs)) or [configs[0].epochs]:
            group = [Contender(line, config, common) for line, config in zip(lines, configs, strict=True)]
            allocate_epochs(group, budget, number, out, log)
            groups.append(group)
        trained = [contender for group in groups for contender in group]
        for folder, count in Counter(contender.folder(out, 0).parent for contender in trained).items():
            if count > 1:
                raise UserError(f"{count} of these budgets buy the same run, {folder}: give --epochs further apart")
        flags += f" --machine.precision {shared_precision(trained[0], out)}"
        for contender in trained:
            for seed in range(seeds):
                refuse_other(contender, out, seed)
        first = trained[0]
        before = [Contender(f"untrained {first.words}", first.config, common, before=first)] if untrained else []
        groups[-1] += before
        with ThreadPoolExecutor(jobs) as pool, Children(log, fraction) as children:
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
            log("curves.png is left out, it needs an extra: pip install 'mimkit[report]'")
    return result
