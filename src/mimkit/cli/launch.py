"""Launch a run: the words after `mimkit pretrain` enter; a trained run, and what to do next, leave."""

import shlex
import sys
from pathlib import Path
from typing import Any

from mimkit.cli import crash
from mimkit.core import distributed
from mimkit.core.config import to_dict
from mimkit.core.errors import UserError
from mimkit.evaluate.finetune import count_classes, measure, start_of, unfinished
from mimkit.recipes import find_recipe
from mimkit.recipes.choose import choose_recipe
from mimkit.recipes.finetune import choose_finetuning
from mimkit.recipes.overrides import PretrainArguments, read_finetuning, read_pretraining, take_recipe
from mimkit.train.cost import time_step
from mimkit.train.monitor import BANK, QUERIES
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.pretrain import pretrain
from mimkit.train.recorder import duration
from mimkit.train.run_folder import RunFolder


def launch(args: list[str]) -> tuple[dict[str, Any], str, str | None]:
    """Train, go on, or say why not; returns the result, the words about it, and where its JSON goes.

    Without a recipe an unfinished run goes on as it was, else one is chosen that fits data and machine.
    """
    recipe, flags = take_recipe(args)

    def read(default: Pretrain) -> PretrainArguments:
        return read_pretraining(recipe, flags, default)

    chosen = read(find_recipe(recipe) if recipe else Pretrain())
    if chosen.max_steps is not None and chosen.max_steps < 1:
        raise UserError(f"--max-steps must be at least 1, got {chosen.max_steps}")
    device = chosen.config.machine.find_device()
    with distributed.processes(device):
        if recipe is None and chosen.run is not None and RunFolder(chosen.run).exists:
            saved = RunFolder(chosen.run).read_config()
            recipe, chosen = saved["recipe"], read(saved["config"])
        elif recipe is None:
            recipe, epochs, why = distributed.on_main(
                lambda: choose_recipe(Prepared(chosen.config).pictures, device), device
            )
            default = find_recipe(recipe)
            default.epochs = epochs
            chosen = read(default)
            _log(f"chose the recipe {recipe} since {why}; 'mimkit recipes' lists others")
        if chosen.minutes is not None:
            plan_epochs(chosen.config, chosen.minutes, chosen.run)
        name = recipe
        folder = chosen.run or distributed.on_main(lambda: free_folder(name, chosen.config), device)
        crash.note_run(folder)
        result = pretrain(chosen.config, folder, recipe=name, max_steps=chosen.max_steps, log=_log)
    return result, _words(result, folder, chosen.config, "mimkit pretrain --run"), chosen.json


def plan_epochs(config: Pretrain, minutes: float, folder: Path | None) -> None:
    """Lower the epochs to what fits into the minutes, looks included; a run that has begun in `folder` keeps its own.

    Raises UserError when there is no time at all, or under torchrun, where one process alone cannot time a step.
    """
    if not minutes > 0:
        raise UserError(f"--minutes must be above 0, got {minutes:g}")
    if distributed.world() > 1:
        raise UserError("--minutes times steps in one process: under torchrun give --epochs instead")
    if folder is not None and RunFolder(folder).exists:
        config.epochs = RunFolder(folder).read_config()["config"].epochs
        return
    (seconds,) = time_step([config])
    count = len(Prepared(config).pictures)
    looked_at = config.machine.evals * min(BANK + QUERIES, count)  # a look costs about what a step of its pictures does
    fits = max(1, int((60 * minutes / seconds - looked_at) / count))
    if fits < config.epochs:
        takes = duration(seconds * count)
        _log(f"an epoch takes about {takes} here: {fits} of {config.epochs} epochs fit into {minutes:g} min")
        config.epochs = fits


def finetune(words: list[str], args: list[str]) -> tuple[dict[str, Any], str, str | None]:
    """Fine-tune and measure, or go on; returns the result, the words about it, and where its JSON goes."""
    target, recipe, *late = [*words, None, None][: max(2, len(words))]
    prog = f"mimkit evaluate finetune {target or 'TARGET'} {recipe or '[RECIPE]'}"
    if late:
        raise UserError(f"one target and one recipe at a time: {prog} --data DATA")
    folder, why = Path(target).expanduser() if target else None, ""
    goes_on = folder is not None and unfinished(folder)
    if folder is not None and goes_on:
        saved = RunFolder(folder).read_config()
        recipe, default = saved["recipe"], saved["config"]
    elif target:
        start = start_of(target)
        if recipe is None:
            recipe, why = choose_finetuning(start)
        default = find_recipe(recipe, finetuning=True)
        start.configure(default)
    else:  # for --help
        default = find_recipe("finetune_mini_32", finetuning=True)
    if not default.method.supervised:
        raise UserError(f"the recipe {recipe} learns no labels: its method must be a FineTuneConfig")
    chosen = read_finetuning(args, prog, default)
    config: Any = chosen.config
    if chosen.max_steps is not None and chosen.max_steps < 1:
        raise UserError(f"--max-steps must be at least 1, got {chosen.max_steps}")
    device = config.machine.find_device()
    with distributed.processes(device):
        if not goes_on:
            config.method.classes = config.method.classes or distributed.on_main(lambda: count_classes(config), device)
            name = f"{recipe}-{Path(str(target).replace(':', '-')).resolve().name}"
            folder = chosen.run or distributed.on_main(lambda: free_folder(name, config), device)
        assert folder is not None and recipe is not None
        place = folder
        crash.note_run(place)
        if why:
            _log(f"chose the recipe {recipe} since {why}; 'mimkit recipes' lists others")
        if RunFolder(place).finished and unfinished(place):
            result: dict[str, Any] = {"finished": True}
        else:
            result = pretrain(config, place, recipe=recipe, max_steps=chosen.max_steps, log=_log)
        if result["finished"]:
            result = distributed.on_main(
                lambda: measure(place, device=device, workers=config.machine.readers()), device
            )
    return result, _words(result, place, config, "mimkit evaluate finetune"), chosen.json


def _log(line: str) -> None:
    if distributed.is_main():
        print(line, file=sys.stderr, flush=True)


def _words(result: dict[str, Any], folder: Path, config: Pretrain, goes_on_with: str) -> str:
    """What became of a run, and what to do next; `goes_on_with` is the command that takes its folder."""
    place = shlex.quote(str(folder))
    if result["signal"] or not result["finished"]:
        steps = f"{result['steps']:,} of {result['of']:,}"
        state = f"stopped and saved at step {steps}" if result["signal"] else f"{steps} steps done and saved"
        trust = "".join(f" --trust {package}" for package in sorted(foreign_packages(to_dict(config))))
        return f"{state}; go on with\n  {goes_on_with} {place}{trust}"
    picture = folder / "pictures" / "reconstruction.png"
    lines = [f"done: {result['steps']:,} steps in {result['seconds']:.0f} s"]
    if picture.exists():
        lines.append(f"  what it sees   {picture}")
    load = f"timm.create_model('local-dir:{(folder / 'export').absolute()}', pretrained=True)"
    lines.append(f"  the model      {load}")
    lines.append(f"  measure it     mimkit evaluate knn {place} --data {shlex.join(config.data)}")
    return "\n".join(lines)


def foreign_packages(data: Any) -> set[str]:
    """Packages of the classes in a config as plain data that are not ours, which its run folder will name."""
    if isinstance(data, list):
        return set().union(*map(foreign_packages, data))
    if not isinstance(data, dict):
        return set()
    name = str(data.get("class", ""))
    packages = {name.partition(":")[0].partition(".")[0]} if ":" in name else set()
    return packages.union(*map(foreign_packages, data.values()))


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
