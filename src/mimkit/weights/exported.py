"""What an export says of itself: its config.json enters, the same leaves checked."""

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from mimkit.core.files import named, read_json
from mimkit.core.schema import Count, Range
from mimkit.data.reading import Reading
from mimkit.weights.folder import READING

Side = Annotated[int, Range(1, 1 << 20)]


class Released(TypedDict, total=False):
    """timm's `pretrained_cfg`, as far as it is used."""

    input_size: tuple[Side, Side, Side]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float | None


class Exported(TypedDict):
    """config.json of an export, and of any folder that timm loads."""

    architecture: str
    pretrained_cfg: NotRequired[Released]
    model_args: NotRequired[dict[str, Any] | None]
    num_classes: NotRequired[Count]
    num_features: NotRequired[Count]
    label_names: NotRequired[list[str]]
    reading: NotRequired[dict[str, Any]]


def read_export(folder: Path) -> dict[str, Any]:
    """config.json of an export folder. Raises UserError for one that is damaged."""
    file = folder / "config.json"
    about = read_json(file, Exported)
    with named(file):
        Reading.from_json(about.get(READING) or {}, READING)
    return about
