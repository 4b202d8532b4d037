"""The flags of `Reading`: words enter, how files become pictures leaves; the same for every command that opens some."""

from dataclasses import dataclass, fields

from tyro.conf import Suppress

from mimkit.core.errors import UserError
from mimkit.data.reading import Reading


@dataclass(frozen=True, kw_only=True)
class ReadingFlags(Reading):
    """`--images.*` as pretrain has them, for commands that open pictures without a recipe."""

    window: tuple[float, float] | None = None
    """Center and width of the values that are seen, as for CT; instead of value_range."""
    label_column: Suppress[str | None] = None  # a flag of its own

    def reading(self, label_column: str | None = None) -> Reading:
        """What the flags say, with a column of labels. Raises UserError."""
        if self.window is not None and (self.value_range is not None or not self.window[1] > 0):
            raise UserError("images.window is a center and a width above 0, and stands instead of images.value_range")
        settings = {entry.name: getattr(self, entry.name) for entry in fields(Reading)}
        if self.window is not None:
            center, width = self.window
            settings["value_range"] = (center - width / 2, center + width / 2)
        if self.bands is not None:
            settings["channels"] = len(self.bands)
        return Reading(**settings | {"label_column": label_column})
