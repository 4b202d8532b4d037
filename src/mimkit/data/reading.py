"""Reading: what a person says of files that do not say it enters; one value that all who read share leaves.

It travels from `images.*` through training into exports, so that a model sees later pictures as it saw its own.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mimkit.core.errors import UserError, at_least
from mimkit.core.schema import Misfit, fit_fields
from mimkit.data.header import SMALLEST

Transform = Literal["none", "log", "sqrt"]
"""What happens to values between their black and white before they are normalized."""


def window_range(window: tuple[float, float] | None, value_range: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Black and white of a window, center and width, or else the range itself. Raises UserError for both at once."""
    if window is None:
        return value_range
    center, width = window
    if value_range is not None or not width > 0:
        raise UserError("images.window is a center and a width above 0, and stands instead of images.value_range")
    return (center - width / 2, center + width / 2)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files become pictures. None: as the files say, or as most of them are."""

    channels: int | None = None
    """1 gray, 3 color, N bands."""
    value_range: tuple[float, ...] | None = None
    """Raw values that are black and white in 16-bit and float pictures: a pair, or a pair for each channel in turn."""
    value_transform: Transform = "none"
    """Of values between black and white: none, log, or sqrt."""
    nodata: float | None = None
    """The raw value of pixels where nothing was measured, besides NaN."""
    bands: tuple[int, ...] | None = None
    """Which bands of a file become the channels, in this order, counted from 1."""
    axes: str | None = None
    """Letters of a TIFF's axes where its own notes are wrong or missing, as ZCYX."""
    plane: int | None = None
    """Which plane of a stack is the picture, counted from 0."""
    tile: int | None = None
    """Side in pixels of the tiles that large pictures are cut into; None: pictures are whole."""
    label_column: str | None = None
    """The column of labels in a table of pictures; None: the first with a usual name. It stays with the data."""

    def check(self) -> None:
        """Refuse what cannot be meant, whichever command says it. Raises UserError."""
        at_least(0, **{"images.plane": self.plane})
        at_least(SMALLEST, **{"images.tile": self.tile})
        pairs = self.value_range or (0.0, 1.0)
        if len(pairs) % 2 or not all(low < high for low, high in zip(pairs[::2], pairs[1::2], strict=True)):
            raise UserError(f"images.value_range must be pairs of rising numbers, got {self.value_range}")
        if self.bands is not None and min(self.bands, default=0) < 1:
            raise UserError(f"images.bands are counted from 1, got {self.bands}")
        if self.bands is not None and self.channels not in (None, len(self.bands)):
            raise UserError(f"{len(self.bands)} images.bands are as many channels: leave images.channels away")
        axes = self.axes or "YX"
        if not (axes.isalpha() and {"Y", "X"} <= set(axes) and len(set(axes)) == len(axes)):
            raise UserError(f"images.axes are different letters, Y and X among them, as ZCYX; got {self.axes}")

    def __str__(self) -> str:
        """In words, for people who have to prepare pictures themselves; empty for plain 8-bit pictures."""
        words = []
        if self.value_range is not None:
            pairs = zip(self.value_range[::2], self.value_range[1::2], strict=True)
            words.append("values " + ", ".join(f"{low:,.6g} to {high:,.6g}" for low, high in pairs) + " become 0 to 1")
        words += [f"then {self.value_transform}"] if self.value_transform != "none" else []
        words += [f"{self.nodata:g} and NaN are no data"] if self.nodata is not None else []
        words += [f"bands {', '.join(map(str, self.bands))}"] if self.bands else []
        words += [f"axes {self.axes}"] if self.axes else []
        words += [f"plane {self.plane}"] if self.plane is not None else []
        words += [f"tiles of {self.tile} pixels"] if self.tile else []
        return "; ".join(words)

    def changed_by(self, later: "Reading") -> "Reading":
        """This reading, but for what a later one says."""
        settings = {key: value for key, value in asdict(later).items() if value not in (None, "none")}
        return replace(self, **settings)

    def to_json(self) -> dict[str, Any]:
        """The settings, without those that say nothing."""
        settings = {key: value for key, value in asdict(self).items() if value not in (None, "none")}
        settings.pop("label_column", None)  # of these data, not of the pictures that an export will see
        return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}

    @staticmethod
    def from_json(data: Any, place: str = "") -> "Reading":
        """Undo `to_json`; entries of other versions are left out. Raises Misfit for what cannot be meant."""
        reading = Reading(**fit_fields(Reading, data, place))
        try:
            reading.check()
        except UserError as error:
            raise Misfit(f"{place}: {error}") from error
        return reading
