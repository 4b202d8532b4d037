"""Overrides: a recipe and what one would type behind it enter, the settings of a run leave."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from mimkit.core.errors import UserError, unknown
from mimkit.core.flags import Arguments, parse
from mimkit.masks import maskers
from mimkit.methods.base import MaskedConfig
from mimkit.recipes import find_recipe
from mimkit.train.prepare import Pretrain


@dataclass(kw_only=True)
class PretrainArguments(Arguments):
    """Train on pictures without labels; on the folder of an unfinished run, go on with it."""

    run: Path | None = None
    """Folder of the run; by default runs/RECIPE-DATA."""
    max_steps: int | None = None
    """Stop after so many steps of the planned schedule; the same command goes on."""
    minutes: float | None = None
    """Plan fewer epochs where all would take longer than this on this machine, by timing a few steps."""
    masker: str | None = None
    """Hide patches otherwise than the recipe does: with `salience` (SBAM), `self-guided`, ...; see 'mimkit masks'."""
    config: Annotated[Pretrain, tyro.conf.arg(name="")]


@dataclass(kw_only=True)
class FinetuneArguments(Arguments):
    """Train all weights of a target and a classifier on top with labels, then measure it on other pictures.

    TARGET: a run folder, an export, a timm name, or `untrained:` and one of these; RECIPE: one of those that 'mimkit
    recipes' lists last, by default one that fits the target. On the folder of an unfinished fine-tuning, go on with it.
    `--label-fraction 0.01` learns from 1 % of the labels.
    """

    run: Path | None = None
    """Folder of the run; by default runs/RECIPE-TARGET-DATA."""
    max_steps: int | None = None
    """Stop after so many steps of the planned schedule; the same command goes on."""
    config: Annotated[Pretrain, tyro.conf.arg(name="")]


def configured(words: list[str], args: list[str]) -> Pretrain:
    """The run that a recipe and flags mean, without starting it; `args` may hold more flags than `words`."""
    if not words or words[0].startswith("-"):
        raise UserError(f"'{' '.join(words)}' begins with no recipe: 'mimkit recipes' lists them")
    config, flags = find_recipe(words[0]), list(args[1:])
    exchange_masker(config, flags)
    return parse(PretrainArguments, flags, f"mimkit pretrain {words[0]}", PretrainArguments(config=config)).config


def read_finetuning(args: list[str], prog: str, default: Pretrain) -> FinetuneArguments:
    """Flags of `mimkit evaluate finetune` over a recipe."""
    args = [re.sub(r"^--label-fraction(?==|$)", "--method.label-fraction", arg) for arg in args]
    return parse(FinetuneArguments, args, prog, FinetuneArguments(config=default))


def exchange_masker(config: Pretrain, args: list[str]) -> None:
    """Put the masker that `--masker` names into the config, with the recipe's ratio; its settings follow as flags."""
    words = " ".join(args).replace("--masker=", "--masker ").split(" ")
    if "--masker" not in words[:-1]:
        return
    name = words[words.index("--masker") + 1]
    if name not in maskers():
        raise unknown("masker", name, maskers(), see="'mimkit masks NAME --data DATA' draws one.")
    if not isinstance(config.method, MaskedConfig):
        raise UserError(f"{type(config.method).__name__.removesuffix('Config')} hides no patches: leave --masker out")
    chosen, ratio = maskers()[name](), config.method.masker.ratio
    if chosen.ratio is not None and isinstance(ratio, float):
        chosen = replace(chosen, ratio=ratio)  # type: ignore[unexpected-keyword]
    config.method.masker = chosen
