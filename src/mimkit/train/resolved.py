"""Resolved: what followed from data and machine when a run began enters config.json and comes back from it."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypedDict

from mimkit.core.schema import Positive, Range, fit_fields, inside
from mimkit.data.reading import Reading

Side = Annotated[int, Range(1, 1 << 20)]  # pixels, or channels


class Choices(TypedDict, total=False):
    """What `train.machine.Engine` describes."""

    precision: Literal["float32", "bfloat16"]
    attention: Literal["fused", "plain"]
    compile: bool
    threads: Positive
    sharding: Literal["none", "full", "hybrid"]
    recompute: bool


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a run found out at its start, so that a later part of it computes with the same; None: not known yet."""

    data: str | None = None
    """What the pictures are called."""
    pictures: Positive | None = None
    """How many there are."""
    fingerprint: str | None = None
    """Of the pictures: it changes when they do."""
    size: tuple[Side, Side] | None = None
    """Height and width of the images in pixels."""
    channels: Side | None = None
    reading: dict[str, Any] = field(default_factory=dict)
    """How files became pictures (`data.reading.Reading`): black and white as the data have them, for one."""
    mean: tuple[float, ...] | None = None
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...] | None = None
    statistics_of: str | None = None
    """Whose mean and std these are, in words."""
    steps: Positive | None = None
    """Of the whole schedule."""
    micro_batch: Positive | None = None
    """Pictures that a process handles at once."""
    resident: bool | None = None
    """Whether the pictures live in memory."""
    by_class: bool | None = None
    """Whether pictures that are set apart for a test are so of each class; not so before version 0.3."""
    order: Literal[1, 2] | None = None
    """Version of the order of the pictures (`data.order`); 1 before version 0.3."""
    lanes: Positive | None = None
    """Parts of the pictures that a step takes equally many of."""
    engine: Choices = field(default_factory=Choices)
    """Precision, attention path, threads and compilation (`train.machine.Engine`)."""
    start: dict[str, float] = field(default_factory=dict)
    """What the online evaluation measured before the first step, with knn_start, knn_pixels and chance of labels."""

    def to_json(self) -> dict[str, Any]:
        """As config.json holds it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_json(data: Any, place: str = "") -> "Resolved":
        """Undo `to_json`; what is missing is not known, and entries of other versions are left out. Raises Misfit."""
        values = fit_fields(Resolved, data, place)
        Reading.from_json(values.get("reading") or {}, inside(place, "reading"))
        return Resolved(**values)
