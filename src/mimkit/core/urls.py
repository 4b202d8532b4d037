"""URLs: a place as a person names it enters; whether it is a URL, and the URL without its credentials, leave."""

import json
import os
import re
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from mimkit.core.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WORD = re.compile(r"(--[\w.-]+=)?(.*)", re.DOTALL)
_WHOLE = "MIMKIT_URLS"  # an environment variable, so that workers, ranks and other children have it too
_SECRET = re.compile(r"(?<=://)[^/\s@]+@|(?<=\w)\?[^\s'\")]+")


def is_url(place: str) -> bool:
    """Whether a place is a URL and no path."""
    return bool(_URL.match(place))


def public(url: str) -> str:
    """The URL without user, password, query and fragment: signatures and tokens stand there."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):  # a key in a bucket may hold any character
        return f"{parts.scheme}://{url.partition('://')[2].rpartition('@')[2]}" if "@" in parts.netloc else url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def withhold(place: str) -> str:
    """The place without credentials, for settings, messages and files; `whole` gives them back in this process."""
    if not is_url(place) or (shown := public(place)) == place:
        return place
    os.environ[_WHOLE] = json.dumps(_withheld() | {shown: place})
    return shown


def withhold_each(places: Sequence[str]) -> list[str]:
    """`withhold` of several places. Raises UserError where two of them differ in what is withheld alone."""
    shown = [withhold(place) for place in places]
    seen: dict[str, str] = {}
    for place, name in zip(places, shown, strict=True):
        if seen.setdefault(name, place) != place:
            raise UserError(
                f"two URLs differ behind the '?' alone, which is kept secret as a signature is: {name}; give them "
                "paths of their own, or copy the files here"
            )
    return shown


def withhold_all(words: list[str]) -> list[str]:
    """The words of a command, each URL among them without credentials. Raises UserError, see `withhold_each`."""
    parts = [_WORD.fullmatch(word) for word in words]
    shown = withhold_each([match[2] if match else "" for match in parts])
    return [f"{match[1] or ''}{place}" if match else "" for match, place in zip(parts, shown, strict=True)]


def whole(url: str) -> str:
    """The URL with the credentials that were withheld from it."""
    return _withheld().get(url, url)


def without_secrets(text: str) -> str:
    """A text of another library, in which URLs may stand, without their credentials."""
    return _SECRET.sub("", text)


def _withheld() -> dict[str, str]:
    return json.loads(os.environ.get(_WHOLE, "{}"))


def join(folder: str, path: str) -> str:
    """The URL of a path below a folder; of a URL itself."""
    return path if is_url(path) else f"{folder.rstrip('/')}/{path}"
