"""What a person got wrong, in one line with the fix: a message enters, the command line prints it."""

import difflib
from collections.abc import Iterable
from numbers import Real


class UserError(ValueError):
    """Something the user can cause and mend. The message is one line that says what to do."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show instead of a traceback."""
        return [f"mimkit: {self}"]


def unknown(kind: str, name: str, valid: Iterable[str], *, see: str = "") -> UserError:
    """The error for a name that does not exist, with the nearest one that does.

    `kind` is what the name stands for ("recipe"); `see` says where the valid names are listed.
    """
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    more = f" {see}" if see else (f" Valid: {', '.join(valid)}." if len(valid) <= 12 else "")
    return UserError(f"there is no {kind} '{name}'{hint}{more}")


def at_least(least: float, **values: float | None) -> None:
    """Refuse numbers below `least`, and those that are no numbers; None stands for a default and passes."""
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, Real):
            raise UserError(f"{name} is a number, at least {least:g}; got {value!r}")
        if not value >= least:
            raise UserError(f"{name} must be at least {least:g}, got {value:g}")


def within(least: float, most: float, **values: float | None) -> None:
    """Refuse numbers outside of these bounds, both included; None stands for a default and passes."""
    at_least(least, **values)
    for name, value in values.items():
        if value is not None and value > most:
            raise UserError(f"{name} must be at most {most:,}, got {value}")


def missing_extra(purpose: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed; names the extra to install."""
    return UserError(f"{purpose} needs an extra: pip install 'mimkit[{extra}]'")
