"""Runs in a store: the words of a command enter; they leave with local folders where URLs named runs."""

from collections.abc import Sequence

from mimkit.core.errors import UserError
from mimkit.core.urls import is_url, public

READ_RUNS = frozenset({"analyze", "check", "diff", "embed", "evaluate", "export", "masks", "predict", "report", "view"})
"""Commands whose positionals are runs or targets."""
SOURCES = ("--data", "--sets")
WRITTEN = ("--out", "--json", "--html")


def with_local_runs(command: str, words: Sequence[str]) -> list[str]:
    """The words, where a URL behind --run of pretrain, or in the place of a target, is a local folder.

    Raises UserError for a URL that cannot be read, or where only a path can stand.
    """
    if command not in READ_RUNS | {"pretrain"} or not any("://" in word for word in words):
        return list(words)
    result, flag, values = [], "", 0
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            values = len(equals)
            result.append(f"{flag}={_local(command, flag, value)}" if is_url(value) else word)
            continue
        behind = flag if values == 0 or flag in SOURCES else ""  # a second word behind another flag is none of its own
        result.append(_local(command, behind, word) if is_url(word) else word)
        values += 1
    return result


def _local(command: str, flag: str, url: str) -> str:
    """What takes the place of a URL behind a flag, or behind none."""
    if flag in WRITTEN or (flag == "--run" and command != "pretrain"):
        raise UserError(f"{flag} takes a path on this machine, not {public(url)}: copy it there afterwards")
    if flag == "--run" or (flag == "" and command in READ_RUNS):
        from mimkit.train.mirror import local_run  # imports torch

        return str(local_run(url, train=flag == "--run"))
    return url
