"""Start runs: a recipe or a target, data and a folder enter; settings, then a trained run folder, leave."""

import copy
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mimkit.core import distributed
from mimkit.core.annotation import DENSE_TASKS
from mimkit.core.errors import UserError, at_least
from mimkit.core.urls import withhold_each
from mimkit.evaluate.finetune import known_of_set, measure, start_of, unfinished
from mimkit.evaluate.transfer import measure as measure_dense
from mimkit.recipes import find_recipe
from mimkit.recipes.choose import choose_recipe
from mimkit.recipes.finetune import choose_finetuning, fit_to_labels
from mimkit.train.cost import time_step
from mimkit.train.monitor import BANK, QUERIES
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.pretrain import pretrain
from mimkit.train.recorder import duration
from mimkit.train.run_folder import RunFolder

CUSTOM = "custom"
"""The name of a recipe that is handed over as a Pretrain and not by its name."""

Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""What `data` may be: a folder, a list, Parquet files or the name of a set, or several of these."""


class Resolved(NamedTuple):
    """A run that could start now."""

    name: str
    """Of its recipe."""
    config: Pretrain
    why: str = ""
    """The reason where the recipe was chosen and not named."""
    folder: Path | None = None
    """The unfinished run that goes on."""
    fits: bool = False
    """Of a fine-tuning: whether batch and epochs may follow from the number of labels, since nobody gave them."""


def places(data: Data) -> tuple[str, ...]:
    """`data` as a config holds it. Raises UserError for what is no place."""
    try:
        listed = [os.fspath(place) for place in ((data,) if isinstance(data, (str, os.PathLike)) else data)]
    except TypeError:
        raise UserError(f"data is a folder, a file, the name of a set, or a list of these; got {data!r:.60}") from None
    return tuple(withhold_each(listed))


def resolve(
    recipe: str | Pretrain | None,
    data: Data = (),
    run: Path | None = None,
    *,
    settings: Pretrain | None = None,
) -> Resolved:
    """The settings of a pre-training.

    Args:
        recipe: a name, `package.module:function`, or settings (copied). None: an unfinished run in `run` goes on with
            its own settings, else a recipe is chosen that fits data and machine, epochs included.
        data: see `open_pictures`; () for those that the recipe or the run has.
        run: folder of the run.
        settings: whose pictures and machine decide where a recipe has to be chosen; by default `data` on this machine.

    Raises:
        UserError: no such recipe, no pictures, or a damaged run.
    """
    if isinstance(recipe, Pretrain):
        name, config, why, folder = CUSTOM, copy.deepcopy(recipe), "", None
    elif recipe is not None:
        name, config, why, folder = recipe, find_recipe(recipe), "", None
    elif run is not None and RunFolder(run).exists:
        saved = RunFolder(run).read_config()
        name, config, why, folder = saved["recipe"], saved["config"], "", run
    else:
        name, config, why = _choose(settings or Pretrain(data=places(data)))
        folder = None
    if data:
        config.data = places(data)
    return Resolved(name, config, why, folder)


def _choose(settings: Pretrain) -> tuple[str, Pretrain, str]:
    """A recipe that fits pictures and machine of `settings`, with as many epochs as fit too, and the reason."""
    device = settings.machine.find_device()
    with distributed.processes(device):
        name, epochs, why = distributed.on_main(lambda: choose_recipe(Prepared(settings).pictures, device), device)
    config = find_recipe(name)
    # Far fewer epochs than the recipe's may be chosen: of these the warm-up is the share that it is of the recipe's.
    config.schedule, config.epochs = config.schedule.of(config.epochs), epochs
    return name, config, why


def train(
    config: Pretrain,
    name: str = CUSTOM,
    run: Path | None = None,
    *,
    minutes: float | None = None,
    max_steps: int | None = None,
    log: Callable[[str], None] = print,
    opened: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Train, or go on with the unfinished run in `run`; returns what its result.json holds or will hold.

    Args:
        config: the settings; `epochs` is lowered in place where `minutes` say so.
        name: of the recipe.
        run: the run's folder; by default a free one below runs/, see `free_folder`.
        minutes: plan fewer epochs where all would take longer on this machine, by timing a few steps.
        max_steps: stop after so many steps of the planned schedule.
        log: told in lines what happens; in the main process alone.
        opened: told the run's folder before it trains.

    Raises:
        UserError: anything a person can mend.
    """
    at_least(1, max_steps=max_steps)
    device = config.machine.find_device()
    with distributed.processes(device):
        if minutes is not None:
            plan_epochs(config, minutes, run, on_main_only(log))
        folder = run or distributed.on_main(lambda: free_folder(name, config), device)
        opened(folder)
        return pretrain(config, folder, recipe=name, max_steps=max_steps, log=on_main_only(log))


def plan_epochs(
    config: Pretrain, minutes: float, folder: Path | None, log: Callable[[str], None] = lambda line: None
) -> None:
    """Lower the epochs to what fits into the minutes, evaluations included; a run begun in `folder` keeps its own.

    Raises UserError when there is no time at all, or under torchrun, where one process alone cannot time a step.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes is a number above 0 and not without end, got {minutes:g}")
    if distributed.world() > 1:
        raise UserError("--minutes times steps in one process: under torchrun give --epochs instead")
    if folder is not None and RunFolder(folder).exists:
        config.epochs = RunFolder(folder).read_config()["config"].epochs
        return
    (seconds,) = time_step([config])
    count = len(Prepared(config).pictures)
    # An evaluation costs about what a step of its pictures does.
    evaluated = config.machine.evals * min(BANK + QUERIES, count)
    fits = max(1, int((60 * minutes / seconds - evaluated) / count))
    if fits < config.epochs:
        takes = duration(seconds * count)
        log(f"an epoch takes about {takes} here: {fits} of {config.epochs} epochs fit into {minutes:g} min")
        config.epochs = fits


def free_folder(recipe: str, config: Pretrain) -> Path:
    """runs/RECIPE-DATA, with a number when a finished run, or one with other settings, lives there."""
    data = "-".join(Path(place).resolve().stem for place in config.data)[:40]
    base = Path("runs") / f"{recipe.replace(':', '.')}-{data}"
    for number in range(1, 10_000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        run = RunFolder(folder)
        if run.vacant:
            return folder
        if run.exists and not run.finished:
            try:
                run.refuse_other(config)
                return folder
            except UserError:
                continue
    raise UserError(f"too many runs under {base}: name a folder with --run")


def start_finetuning(
    target: str, recipe: str | Pretrain | None = None, data: Data = (), *, kind: str | None = None
) -> Resolved:
    """The settings of a fine-tuning of `target`, whose encoder and images are put into the recipe.

    Args:
        target: see `start_of`. The folder of an unfinished fine-tuning goes on with its own settings instead.
        recipe: a name, `package.module:function`, or settings (copied); by default one that fits the target.
        data: see `open_pictures`, with labels; () for those that the recipe or the run has.
        kind: what is learned, `classes` or a DenseTask; by default what the recipe learns, without one classes.

    Raises:
        UserError: no such target or recipe, or a recipe that learns no labels.
    """
    place, why = Path(target).expanduser(), ""
    folder = place if unfinished(place) else None
    if folder is not None:
        saved = RunFolder(folder).read_config()
        name, config = saved["recipe"], saved["config"]
    else:
        start = start_of(target)
        if isinstance(recipe, Pretrain):
            name, config = CUSTOM, copy.deepcopy(recipe)
        else:
            name, why = (recipe, "") if recipe is not None else choose_finetuning(start, kind or "classes")
            config = find_recipe(name, finetuning=True)
        start.configure(config)
    if not config.method.supervised:
        raise UserError(f"the recipe {name} learns no labels: its method must be a FineTuneConfig")
    if kind not in (None, config.method.learns):
        raise UserError(f"the recipe {name} learns {config.method.learns}, not {kind}: 'mimkit recipes' lists them")
    if data:
        config.data = places(data)
    return Resolved(name, config, why, folder, fits=folder is None and not isinstance(recipe, Pretrain))


def train_finetuning(
    start: Resolved,
    target: str,
    run: Path | None = None,
    *,
    max_steps: int | None = None,
    log: Callable[[str], None] = print,
    opened: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Fine-tune and measure, or go on; returns what its result.json holds or will hold.

    Args:
        start: of `start_finetuning`; the number of classes is put into its config where it is not given, and batch and
            epochs are fitted to few labels where `fits` says so.
        target: what was named there, for the name of the folder.
        run: the run's folder; by default a free one below runs/. A run that goes on has its own.
        max_steps: stop after so many steps of the planned schedule.
        log: told in lines what happens; in the main process alone.
        opened: told the run's folder before it trains.

    Raises:
        UserError: anything a person can mend.
    """
    at_least(1, max_steps=max_steps)
    config: Any = start.config
    device, plan = config.machine.find_device(), ""
    with distributed.processes(device):
        folder = start.folder
        if folder is None:
            for name, value in distributed.on_main(lambda: known_of_set(config), device).items():
                setattr(config.method, name, value)
            if start.fits and config.method.learns == "classes":
                count = distributed.on_main(lambda: len(Prepared(config).pictures), device)
                plan = fit_to_labels(config, count)
            title = f"{start.name}-{Path(target.replace(':', '-')).resolve().name}"
            folder = run or distributed.on_main(lambda: free_folder(title, config), device)
        place = folder
        opened(place)
        if start.why:
            on_main_only(log)(f"chose the recipe {start.name} since {start.why}; 'mimkit recipes' lists others")
        # Trained, and still to be measured.
        if distributed.on_main(lambda: RunFolder(place).finished and unfinished(place), device):
            result: dict[str, Any] = {"finished": True, "run": str(place)}
        else:
            first = preceded(on_main_only(log), plan)
            result = pretrain(config, place, recipe=start.name, max_steps=max_steps, log=first)
        if result["finished"]:
            workers = config.machine.readers()
            scored = measure_dense if config.method.learns in DENSE_TASKS else measure
            result = distributed.on_main(lambda: scored(place, device=device, workers=workers), device)
    return result


def preceded(log: Callable[[str], None], line: str) -> Callable[[str], None]:
    """The same, with a line before the first one, unless it is empty: a run that is refused first says nothing else."""
    pending = [line] if line else []

    def say(text: str) -> None:
        while pending:
            log(pending.pop())
        log(text)

    return say


def on_main_only(log: Callable[[str], None]) -> Callable[[str], None]:
    """The same, silent in all processes but the main one."""
    return lambda line: log(line) if distributed.is_main() else None
