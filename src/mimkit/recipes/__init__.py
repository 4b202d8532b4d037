"""Recipes: a name, or the import path of a function outside, enters; a Pretrain leaves."""

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mimkit.core.errors import UserError, unknown
from mimkit.core.names import trust, working_folder_on_path

if TYPE_CHECKING:
    from mimkit.train.prepare import Pretrain

METHODS = (
    "mae",
    "simmim",
    "maskfeat",
    "crossmae",
    "beit",
    "emae",
    "bootmae",
    "cae",
    "maskalign",
    "capi",
    "simclr",
    "moco",
    "dino",
    "ibot",
    "cmae",
    "msn",
    "data2vec",
    "data2vec2",
    "ijepa",
    "mst",
)  # in this order stand their recipes
LABELED = ("finetune_", "segment_", "detect_", "depth_", "keypoints_")


def recipes(finetuning: bool = False) -> dict[str, tuple[str, str]]:
    """Names of all recipes with their module and docstring, from the source: nothing heavy is imported.

    Those of pre-training, or those that learn with labels, whose names begin with what they are for.
    """
    listing = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            takes_nothing = not (node.args.args or node.args.kwonlyargs)
            if takes_nothing and isinstance(node.returns, ast.Name) and node.returns.id == "Pretrain":
                if node.name.startswith(LABELED) != finetuning:
                    continue
                listing[node.name] = (f"{__name__}.{path.stem}", ast.get_docstring(node) or "")
    families = [*METHODS, *sorted({name.split("_")[0] for name in listing} - set(METHODS))]
    return dict(sorted(listing.items(), key=lambda recipe: families.index(recipe[0].split("_")[0])))


def check_recipe(name: str, finetuning: bool = False) -> None:
    """Refuse an unknown name at once; import paths are checked when they are imported."""
    if ":" not in name and name not in recipes(finetuning):
        if name in recipes(not finetuning):
            kind = name.partition("_")[0]
            with_labels = f"mimkit evaluate {kind} TARGET" + (" --train" if kind != "finetune" else "")
            use = "mimkit pretrain" if finetuning else with_labels
            raise UserError(f"recipe '{name}' is for {use} {name} --data DATA")
        see = "'mimkit recipes' lists them, your own are package.module:function; pictures go behind --data."
        raise unknown("recipe", name, recipes(finetuning), see=see)


def find_recipe(name: str, finetuning: bool = False) -> "Pretrain":
    """The run that a recipe describes: one of ours by name, or `package.module:function` from outside.

    The module may lie in the working folder.
    """
    check_recipe(name, finetuning)
    if ":" not in name:
        return getattr(importlib.import_module(recipes(finetuning)[name][0]), name)()
    trust(name)  # by the person who named it: a run folder of it may name its classes
    module, _, function = name.partition(":")
    try:
        with working_folder_on_path():
            recipe = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"recipe '{name}' cannot be imported ({reason}): give package.module:function") from error
    from mimkit.train.prepare import Pretrain

    try:
        run = recipe()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"recipe '{name}' fails ({type(error).__name__}: {error}): --debug shows where") from error
    if not isinstance(run, Pretrain):
        raise UserError(
            f"recipe '{name}' returns a {type(run).__name__}: let it return a mimkit.train.prepare.Pretrain"
        )
    return run
