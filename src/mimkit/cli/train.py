"""Train: the words after `mimkit pretrain` or `mimkit evaluate finetune` enter; a trained run, and what next, leave."""

import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from mimkit.api.pretrain import resolve, start_finetuning, train, train_finetuning
from mimkit.cli import crash
from mimkit.core import distributed
from mimkit.core.config import to_dict
from mimkit.core.errors import UserError
from mimkit.core.flags import flag_value, without_flag
from mimkit.recipes import find_recipe
from mimkit.recipes.overrides import PretrainArguments, read_finetuning, read_pretraining, take_recipe
from mimkit.train.machine import Machine
from mimkit.train.mirror import Mirror
from mimkit.train.prepare import Pretrain
from mimkit.train.run_folder import RunFolder

DENSE_FLAGS = {
    "--labels": "--method.labels",
    "--void": "--method.void",
    "--depth-scale": "--method.depth-scale",
    "--depth_scale": "--method.depth-scale",
}
"""Flags of frozen evaluation on annotated pictures, and what they are called where a method learns from these."""


def pretrain(args: list[str]) -> tuple[dict[str, Any], str, str | None]:
    """Train, go on, or say why not; returns the result, the words about it, and where its JSON goes.

    Without a recipe an unfinished run goes on as it was, else one is chosen that fits data and machine.
    """
    recipe, flags = take_recipe(args)

    def read(default: Pretrain) -> PretrainArguments:
        return read_pretraining(recipe, flags, default)

    options = read(find_recipe(recipe) if recipe else Pretrain())
    if options.max_steps is not None and options.max_steps < 1:
        raise UserError(f"--max-steps must be at least 1, got {options.max_steps}")
    device = options.config.machine.find_device()
    with distributed.processes(device):
        name = recipe
        if name is None:
            # One process looks: to another host the folder of an unfinished run may not be there.
            resolved = distributed.on_main(lambda: resolve(None, run=options.run, settings=options.config), device)
            name, options = resolved.name, read(resolved.config)
            if resolved.why:
                _log(f"chose the recipe {name} since {resolved.why}; 'mimkit recipes' lists others")
        result = train(
            options.config,
            name,
            options.run,
            minutes=options.minutes,
            max_steps=options.max_steps,
            log=_log,
            opened=crash.note_run,
        )
    return result, _words(result, options.config, "mimkit pretrain --run"), options.json


def finetune(words: list[str], args: list[str], kind: str | None = None) -> tuple[dict[str, Any], str, str | None]:
    """Fine-tune and measure, or go on; returns the result, the words about it, and where its JSON goes.

    `kind` is the dense task that is learned, whose recipe stands behind `--train`; None: labels, and the recipe is the
    second word.
    """
    if kind is not None:
        named = flag_value(args, "--train")
        words = [*words, *([named] if named not in (None, "auto") else [])]
        args = [DENSE_FLAGS.get(word, word) for word in without_flag(args, "--train")]
    target, recipe, *late = [*words, None, None][: max(2, len(words))]
    command = f"mimkit evaluate {kind or 'finetune'}"
    prog = f"{command} {target or 'TARGET'} {'--train ' if kind else ''}{recipe or '[RECIPE]'}"
    if late:
        raise UserError(f"one target and one recipe at a time: {prog} --data DATA")
    if not target:  # for --help
        read_finetuning(args, prog, find_recipe(f"{kind}_mini" if kind else "finetune_mini_32", finetuning=True))
        raise UserError(f"name a target: {prog} --data DATA")
    device = read_device(args)
    with distributed.processes(device):
        start = distributed.on_main(lambda: start_finetuning(target, recipe, kind=kind), device)
        options = read_finetuning(args, prog, start.config)
        plan = {word.partition("=")[0].replace("_", "-") for word in args} & {"--epochs", "--batch-size"}
        start = start._replace(config=options.config, fits=start.fits and not plan)
        if options.max_steps is not None and options.max_steps < 1:
            raise UserError(f"--max-steps must be at least 1, got {options.max_steps}")
        result = train_finetuning(
            start, target, options.run, max_steps=options.max_steps, log=_log, opened=crash.note_run
        )
    goes_on_with = f"{command} --train auto" if kind else command
    return result, _words(result, options.config, goes_on_with), options.json


def read_device(args: list[str]) -> torch.device:
    """The device that words name, before anything else is read: the processes meet by it."""
    return Machine(device=flag_value(args, "--machine.device") or "auto").find_device()


def _log(line: str) -> None:
    if distributed.is_main():
        print(line, file=sys.stderr, flush=True)


def _words(result: dict[str, Any], config: Pretrain, goes_on_with: str) -> str:
    """What became of a run, and what to do next; `goes_on_with` is the command that takes its folder."""
    folder = Path(result["run"])
    url = Mirror.of(folder, _log).url
    place = shlex.quote(url or str(folder))
    if result["signal"] or not result["finished"]:
        steps = f"{result['steps']:,} of {result['of']:,}"
        state = f"stopped and saved at step {steps}" if result["signal"] else f"{steps} steps done and saved"
        trust = "".join(f" --trust {package}" for package in sorted(foreign_packages(to_dict(config))))
        return f"{state}; go on with\n  {goes_on_with} {place}{trust}"
    picture = folder / "pictures" / "reconstruction.png"
    lines = [f"done: {result['steps']:,} steps in {result['seconds']:.0f} s"]
    if picture.exists():
        lines.append(f"  what it sees   {picture}")
    if "knn" in result:
        lines.append(f"  online kNN     {_compared(result['knn'], RunFolder(folder))}")
    if url:
        lines.append(f"  in the store   {url}")
    load = f"timm.create_model('local-dir:{(folder / 'export').absolute()}', pretrained=True)"
    lines.append(f"  the model      {load}")
    column = "" if config.label_column is None else f" --label-column {shlex.quote(config.label_column)}"
    lines.append(f"  measure it     mimkit evaluate knn {place} --data {shlex.join(config.data)}{column}")
    return "\n".join(lines)


def _compared(accuracy: float, run: RunFolder) -> str:
    """The online kNN beside what it was before the first step, of the pixels, and by chance, as far as known."""
    start = run.read_config()["resolved"].get("start") or {}
    names = {"knn_start": "before training", "knn_pixels": "pixels", "chance": "largest class"}
    levels = [f"{name} {start[key]:.1%}" for key, name in names.items() if key in start]
    return f"{accuracy:.1%}" + (f" ({', '.join(levels)})" if levels else "")


def foreign_packages(data: Any) -> set[str]:
    """Packages of the classes in a config as plain data that are not ours, which its run folder will name."""
    if isinstance(data, list):
        return set().union(*map(foreign_packages, data))
    if not isinstance(data, dict):
        return set()
    name = str(data.get("class", ""))
    packages = {name.partition(":")[0].partition(".")[0]} if ":" in name else set()
    return packages.union(*map(foreign_packages, data.values()))
