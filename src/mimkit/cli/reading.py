"""The flags of `Reading`: words enter, how files become pictures leaves; the same for every command that opens some."""

from dataclasses import dataclass, fields

from tyro.conf import Suppress

from mimkit.data.reading import Reading, window_range


@dataclass(frozen=True, kw_only=True)
class ReadingFlags(Reading):
    """`--images.*` as pretrain has them, for commands that open pictures without a recipe."""

    window: tuple[float, float] | None = None
    """Center and width of the values that are seen, as for CT; instead of value_range."""
    label_column: Suppress[str | None] = None  # a flag of its own

    def reading(self, label_column: str | None = None) -> Reading:
        """What the flags say, with a column of labels. Raises UserError."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(Reading)}
        settings["value_range"] = window_range(self.window, self.value_range)
        if self.channels is None and self.bands is not None:
            settings["channels"] = len(self.bands)
        return Reading(**settings | {"label_column": label_column})
