"""`mimkit predict`: a trained dense task and pictures enter, files of what it says of them leave."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.cli.reading import ReadingFlags
from mimkit.core.errors import at_least
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class PredictArguments(Arguments):
    """Write what a fine-tuned task says of pictures: maps of classes or depths as PNG, objects as COCO's json."""

    target: Positional[str]
    """A run of `mimkit evaluate segment|detect|depth|keypoints --train`, or its export."""
    data: tuple[str, ...]
    """Pictures, as for pretrain; nothing needs to be known of them."""
    images: ReadingFlags = field(default_factory=ReadingFlags)
    """How files become pictures; they are read as the task was trained, but for what is said here."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """A new or empty folder."""
    limit: int | None = None
    """So many pictures, spread over the set."""
    device: str = "auto"
    """`cpu` or `cuda`."""
    workers: int = 2
    """Processes that read pictures."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return PredictArguments, None


def run(args: list[str]) -> int:
    """Predictions of pictures as files."""
    options = parse(PredictArguments, args, "mimkit predict")
    at_least(0, workers=options.workers)
    at_least(1, limit=options.limit)
    from mimkit.api.predict import predict_to

    result = predict_to(
        options.target,
        options.data,
        options.out,
        limit=options.limit,
        device=options.device,
        workers=options.workers,
        reading=options.images.reading(None),
    )
    forms = {"segment": "class numbers (PNG, classes.json)", "depth": "millimeters (16-bit PNG)"}
    form = forms.get(result["kind"], "objects (predictions.json, in COCO's form)")
    lines = [f"wrote {result['out']}: {form} of {result['pictures']:,} pictures; predictions.png shows some"]
    if result["skipped"]:
        lines.append(f"  {result['skipped']:,} pictures cannot be read: see 'mimkit doctor'")
    show(result, options.json, escape("\n".join(lines)))
    return 0
