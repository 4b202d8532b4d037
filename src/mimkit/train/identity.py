"""Identity: the config.json of a run enters; what tells its checkpoints and exports from those of other runs leaves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimkit.core.files import read_regular
from mimkit.data.pictures import digest

FREE = ("machine", "data")  # settings that may change when a run goes on; pictures have a fingerprint
WORDS = {"seed": "its seed", "recipe": "its recipe", "settings": "its settings", "run": "its pictures"}


def identity(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Who a run is, of what config.json holds: equal for equal runs, so that what they leave is equal byte for byte.

    Returns:
        run: a digest of settings and pictures; recipe: its name; settings: a digest of them, but for those that may
        change on the way; seed.
    """
    settings = {key: value for key, value in saved["config"].items() if key not in FREE}
    images = settings.get("images")
    if isinstance(images, dict):
        settings["images"] = {key: value for key, value in images.items() if key != "bad_fraction"}
    settings_digest = digest(json.dumps(settings, sort_keys=True))
    return {
        "run": digest(settings_digest, saved["recipe"], saved["resolved"].get("fingerprint")),
        "recipe": saved["recipe"],
        "settings": settings_digest,
        "seed": settings.get("seed", 0),
    }


def identity_of(folder: Path) -> dict[str, Any]:
    """Who the run in a folder is; empty where no config.json says so."""
    try:
        return identity(json.loads(read_regular(folder / "config.json")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def difference(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> str:
    """In words what is of another run; empty where nothing is, or where an earlier version noted nothing."""
    for key, words in WORDS.items():
        if key in expected and key in actual and expected[key] != actual[key]:
            plain = key in ("seed", "recipe")
            return f"{words} is {actual[key]}, not {expected[key]}" if plain else f"{words} are others"
    return ""
