"""`mimkit masks`: a masker's or recipe's name and pictures enter, a picture of the masks and their statistics leave."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mimkit.analysis.mask_drawing import MaskDrawing, draw_masks, masker_of
from mimkit.cli.console import show
from mimkit.cli.overview import wanted
from mimkit.cli.reading import ReadingFlags
from mimkit.core.declaration import Takes
from mimkit.core.errors import UserError, unknown
from mimkit.core.flags import HELP, Arguments, flag_kinds, parse, split_words
from mimkit.masks import Masker, RandomMasker, maskers
from mimkit.recipes import find_recipe, recipes
from mimkit.recipes.overrides import IMPORT_PATH
from mimkit.recipes.parts import find_masker, import_part
from mimkit.train.prepare import Pretrain


@dataclass(kw_only=True)
class MaskArguments(MaskDrawing, Arguments):
    """Draw a masker's masks on your pictures and count what they hide."""

    name: Positional[Annotated[str, arg(metavar="MASKER|RECIPE")]]
    """One of our maskers, a recipe that has one, or package.module:Class (or :function) of your own."""
    masker: Annotated[Masker, arg(name="")] = field(default_factory=RandomMasker)
    images: ReadingFlags = field(default_factory=ReadingFlags)  # type: ignore[bad-override-mutable-attribute]
    """How files become pictures; a run or an export reads them as it was trained, but for what is said here."""
    model: Annotated[str | None, arg(name="from")] = None
    """The model that the masker asks: a run folder, an export folder, or a timm model with released weights. By
    default the teacher of a recipe whose masker asks it, the recipe's encoder before any training, or a small ViT."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and an instance that gives the defaults: those of the random masker."""
    return MaskArguments, MaskArguments(name="random")


def run(args: list[str]) -> int:
    """Draw masks on pictures."""
    name, flags = take_name(args)
    if name is None and not HELP & set(args):
        raise wanted("masks")
    masker, recipe = find_masker_or_recipe(name or "random")
    words = [] if name is None else [name]
    default = MaskArguments(name=name or "random", masker=masker)
    arguments = parse(MaskArguments, [*words, *flags], "mimkit masks", default, " ".join(["mimkit masks", *words]))
    settings = {entry.name: getattr(arguments, entry.name) for entry in fields(MaskDrawing)}
    result, table = draw_masks(MaskDrawing(**settings | {"images": arguments.images.reading()}), recipe)
    show(result, arguments.json, table)
    return 0


def take_name(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """The masker or recipe that words name, first of all or between flags, and the other words in their order."""
    declared = flag_kinds(*declaration())
    of_masker = flag_kinds(RandomMasker)
    kinds: dict[str, Takes] = {flag: kind for flag, kind in declared.items() if flag not in of_masker}

    def is_name(word: str) -> bool:
        is_known = word in maskers() or word in recipes() or bool(IMPORT_PATH.fullmatch(word))
        return is_known and not Path(word).exists()

    words, flags = split_words(args, kinds, is_name)
    if words[1:]:
        raise UserError(f"pictures go behind --data: mimkit masks {words[0]} --data {' '.join(words[1:])}")
    return (words[0] if words else None), flags


def find_masker_or_recipe(name: str) -> tuple[Masker, Pretrain | None]:
    """A masker by itself, or that of a recipe with the recipe."""
    if name in maskers():
        return find_masker(name), None
    if ":" in name:
        masker_or_recipe = import_part(name, "masker or recipe") if IMPORT_PATH.fullmatch(name) else find_recipe(name)
        if isinstance(masker_or_recipe, Masker):
            return masker_or_recipe, None
        if not isinstance(masker_or_recipe, Pretrain):
            kind = type(masker_or_recipe).__name__
            raise UserError(f"'{name}' makes a {kind}: name a Masker, or a recipe that returns a Pretrain")
        return masker_of(name, masker_or_recipe), masker_or_recipe
    if name not in recipes():
        raise unknown("masker or recipe", name, [*maskers(), *recipes()], see="'mimkit recipes' lists recipes.")
    recipe = find_recipe(name)
    return masker_of(name, recipe), recipe
