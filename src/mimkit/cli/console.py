"""Answers: results enter, text for people and JSON for programs leave."""

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from mimkit.core.errors import UserError


def show(result: Any, json_to: str | None, text: Any) -> None:
    """Print for people and, with --json, write the same for programs; `-` keeps the standard output for JSON.

    Of several processes the first one speaks.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    console = Console(stderr=json_to == "-", highlight=False)
    if not console.is_terminal:  # a log or a pipe has no width
        console.width = 160
    console.print(text, soft_wrap=isinstance(text, str))
    if json_to == "-":
        print(json.dumps(result, indent=2))
    elif json_to:
        try:
            Path(json_to).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {json_to} ({error.strerror}): name another file with --json") from error
