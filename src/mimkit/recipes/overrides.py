"""Overrides: a recipe and what one would type behind it enter, the settings of a run leave."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from mimkit.core.declaration import Takes
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, flag_value, parse, split_words
from mimkit.recipes import check_recipe, find_recipe, recipes
from mimkit.recipes.parts import exchange_masker, exchange_target
from mimkit.train.prepare import Pretrain

IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
ONE_WORD = ("--run", "--max-steps", "--minutes", "--masker", "--target", "--json", "--epochs", "--batch-size", "--seed")


@dataclass(kw_only=True)
class PretrainArguments(Arguments):
    """Train on pictures without labels; on the folder of an unfinished run, go on with it."""

    recipe: Positional[Annotated[str | None, tyro.conf.arg(metavar="[RECIPE]")]] = None
    """One that 'mimkit recipes' lists, or package.module:function of your own; by default one that fits the
    pictures."""
    run: Path | None = None
    """Folder of the run, or a URL of a store (s3://bucket/run); by default runs/RECIPE-DATA."""
    max_steps: int | None = None
    """Stop after so many steps of the planned schedule; the same command goes on."""
    minutes: float | None = None
    """Plan fewer epochs where all would take longer than this on this machine, by timing a few steps."""
    masker: str | None = None
    """Hide patches otherwise than the recipe does: with `salience` (SBAM), `self-guided`, ... (see 'mimkit masks'), or
    your own package.module:Class. Its settings follow as --method.masker.*."""
    target: str | None = None
    """Predict something else than the recipe does: pixels (MAE); raw-pixels, color-bins, color-clusters, token-ids,
    hog (SimMIM); or your own package.module:Class. Its settings follow as --method.target.*."""
    config: Annotated[Pretrain, tyro.conf.arg(name="")]


@dataclass(kw_only=True)
class FinetuneArguments(Arguments):
    """Train all weights of a target and a classifier on top with labels, then measure it on other pictures.

    On the folder of an unfinished fine-tuning, go on with it.
    """

    target: Positional[Annotated[str | None, tyro.conf.arg(metavar="TARGET")]] = None
    """A run folder, an export, a timm name, or `untrained:` and one of these."""
    recipe: Positional[Annotated[str | None, tyro.conf.arg(metavar="[RECIPE]")]] = None
    """One of those that 'mimkit recipes' lists last, or your own; by default one that fits the target."""
    run: Path | None = None
    """Folder of the run; by default runs/RECIPE-TARGET-DATA."""
    label_fraction: float | None = None
    """Learn from this fraction of the labels, 0.01 for 1 %; short for --method.label-fraction."""
    max_steps: int | None = None
    """Stop after so many steps of the planned schedule; the same command goes on."""
    config: Annotated[Pretrain, tyro.conf.arg(name="")]


def take_recipe(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe that words name, first of all or between flags, and the other words in their order.

    A word right behind a flag is its value. Behind `--data`, which takes several, a recipe is a further word that names
    one and no file or folder.

    Raises:
        UserError: there is no such recipe, or a second word stands where a recipe would.
    """
    names = recipes()
    kinds: dict[str, Takes] = {"--data": "words", **dict.fromkeys(ONE_WORD, "one")}

    def names_recipe(word: str) -> bool:
        return (word in names or bool(IMPORT_PATH.fullmatch(word))) and not Path(word).exists()

    words, flags = split_words(args, kinds, names_recipe)
    if not words:
        return None, flags
    check_recipe(words[0])
    if words[1:]:
        raise UserError(f"pictures go behind --data: mimkit pretrain {words[0]} --data {' '.join(words[1:])}")
    return words[0], flags


def configured(words: list[str], args: list[str]) -> Pretrain:
    """The run that a recipe and flags mean, without starting it; `args` may hold more flags than `words`.

    Raises:
        UserError: the words name no recipe, or a flag is wrong.
    """
    recipe, flags = take_recipe(args)
    if recipe is None:
        raise UserError(f"'{' '.join(words)}' names no recipe: 'mimkit recipes' lists them")
    return read_pretraining(recipe, flags, find_recipe(recipe)).config


def read_pretraining(recipe: str | None, flags: Sequence[str], default: Pretrain) -> PretrainArguments:
    """Flags of `mimkit pretrain` over a recipe, whose config `--masker` and `--target` change first."""
    for flag, exchange in (("--masker", exchange_masker), ("--target", exchange_target)):
        name = flag_value(flags, flag)
        if name is not None:
            exchange(default.method, name)
    words = [] if recipe is None else [recipe]
    explained_by = " ".join(["mimkit pretrain", *words])
    default_arguments = PretrainArguments(config=default)
    arguments = parse(PretrainArguments, [*words, *flags], "mimkit pretrain", default_arguments, explained_by)
    _refuse_stray(arguments.recipe if recipe is None else None)
    return arguments


def read_finetuning(args: list[str], prog: str, default: Pretrain) -> FinetuneArguments:
    """Flags of `mimkit evaluate finetune` over a recipe."""
    default_arguments = FinetuneArguments(config=default)
    explained_by = re.sub(r" [A-Z|\[].*", "", prog)
    arguments = parse(FinetuneArguments, args, "mimkit evaluate finetune", default_arguments, explained_by)
    _refuse_stray(arguments.target)
    method: Any = arguments.config.method  # a FineTuneConfig or a DenseConfig
    if arguments.label_fraction is not None:
        method.label_fraction = arguments.label_fraction
    return arguments


def _refuse_stray(word: str | None) -> None:
    """Refuse a word that the parser took for a positional, where none is left to give."""
    if word is not None:
        raise UserError(f"'{word}' belongs to no flag: the flag before it takes one value")
