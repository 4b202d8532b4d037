"""Parts of a recipe by name: a name, or the import path of a class or function outside, enters; a part leaves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_type_hints

from mimkit.core.errors import UserError, unknown
from mimkit.core.names import import_trusted, trust
from mimkit.masks import Masker, maskers
from mimkit.methods.base import MaskedConfig, MethodConfig
from mimkit.methods.targets import targets


def import_callable(path: str, kind: str) -> Callable[[], Any]:
    """The class or function that `package.module:name` means; the module may lie in the working folder.

    The person who names it trusts it, as with the import path of a recipe.

    Raises:
        UserError: it cannot be imported, or cannot be called; `kind` begins the message.
    """
    trust(path)
    try:
        imported = import_trusted(path, f"the {kind} is")
    except Exception as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}"
        raise UserError(f"{kind} '{path}' cannot be imported ({reason}): give package.module:Class") from error
    if not callable(imported) or isinstance(imported, Masker):
        raise UserError(f"{kind} '{path}' is a {type(imported).__name__}: name a class, or a function that returns one")
    return imported


def import_part(path: str, kind: str) -> Any:
    """An instance of the class, or what the function returns, that `package.module:name` means.

    Raises:
        UserError: it cannot be imported, or fails; `kind` begins the message.
    """
    make = import_callable(path, kind)
    try:
        return make()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{kind} '{path}' fails ({type(error).__name__}: {error}): --debug shows where") from error


def find_masker(name: str) -> Masker:
    """A masker by our name for it, or by the import path of a subclass of `Masker` or of a function that returns one.

    Raises:
        UserError: there is none, or what is named makes no masker.
    """
    if ":" not in name:
        if name not in maskers():
            see = "'mimkit masks NAME --data DATA' draws one, your own are package.module:Class."
            raise unknown("masker", name, maskers(), see=see)
        return maskers()[name]()
    masker = import_part(name, "masker")
    if not isinstance(masker, Masker):
        raise UserError(f"masker '{name}' makes a {type(masker).__name__}: let it make a mimkit.masks.Masker")
    return masker


def exchange_masker(method: MethodConfig, name: str) -> None:
    """Put another masker into a method that hides patches, with the ratio of the one before.

    A function outside that returns a masker decides about its ratio itself.
    """
    if not isinstance(method, MaskedConfig):
        raise UserError(f"{type(method).__name__.removesuffix('Config')} hides no patches: leave --masker out")
    masker, ratio = find_masker(name), method.masker.ratio
    by_class = ":" not in name or isinstance(import_callable(name, "masker"), type)
    if by_class and masker.ratio is not None and isinstance(ratio, float):
        masker = replace(masker, ratio=ratio)  # type: ignore[unexpected-keyword]
    method.masker = masker


def exchange_target(method: Any, name: str) -> None:
    """Put another target into a method (a `MethodConfig`) that predicts one.

    Raises:
        UserError: there is no such target, or it is not of the kind that the method predicts.
    """
    title = type(method).__name__.removesuffix("Config")
    kind = get_type_hints(type(method)).get("target")
    if kind is None:
        raise UserError(f"{title} predicts no target that could be exchanged: leave --target out")
    if ":" in name:
        target = import_part(name, "target")
    elif name in targets():
        target = targets()[name]()
    else:
        raise unknown(
            "target", name, targets(), see=f"Ours: {', '.join(targets())}; your own are package.module:Class."
        )
    if not isinstance(target, kind):
        fitting = ", ".join(key for key, cls in targets().items() if issubclass(cls, kind))
        raise UserError(
            f"{title} cannot predict '{name}', a {type(target).__name__}: use {fitting}, or your own {kind.__name__}"
        )
    method.target = target
