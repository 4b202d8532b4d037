"""mimkit: learn visual representations from unlabeled pictures by masked image modeling.

The names below are the Python interface, see docs/python.md; nothing heavy is imported before one of them is used.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from mimkit.api.embeddings import Embeddings
    from mimkit.api.library import compare, load, maskers, recipes
    from mimkit.api.run import Run, finetune, pretrain
    from mimkit.api.target import Model
    from mimkit.core.errors import UserError
    from mimkit.core.names import trust
    from mimkit.data.reading import Reading
    from mimkit.recipes import find_recipe as recipe
    from mimkit.train.prepare import Pretrain

__all__ = [
    "Embeddings",
    "Model",
    "Pretrain",
    "Reading",
    "Run",
    "UserError",
    "compare",
    "finetune",
    "load",
    "maskers",
    "pretrain",
    "recipe",
    "recipes",
    "trust",
]

_PLACES = {
    "Embeddings": "mimkit.api.embeddings:Embeddings",
    "Model": "mimkit.api.target:Model",
    "Pretrain": "mimkit.train.prepare:Pretrain",
    "Reading": "mimkit.data.reading:Reading",
    "Run": "mimkit.api.run:Run",
    "UserError": "mimkit.core.errors:UserError",
    "finetune": "mimkit.api.run:finetune",
    "load": "mimkit.api.library:load",
    "maskers": "mimkit.api.library:maskers",
    "pretrain": "mimkit.api.run:pretrain",
    "recipe": "mimkit.recipes:find_recipe",
    "trust": "mimkit.core.names:trust",
}
_ROOMS = ("compare", "recipes")  # functions of the interface that share their names with rooms


class _CallableRoom(types.ModuleType):
    """`mimkit.recipes` and `mimkit.compare` are rooms of code; called, they are the functions of that name."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        library = importlib.import_module("mimkit.api.library")
        return getattr(library, self.__name__.rpartition(".")[2])(*args, **settings)


class _Interface(types.ModuleType):
    """This package: the import of a room that is a function too makes it callable, whoever imports it first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, types.ModuleType):
            value.__class__ = _CallableRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Interface


def __getattr__(name: str) -> Any:
    """What is used for the first time is imported then."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'mimkit' has no attribute '{name}'")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
