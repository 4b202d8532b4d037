"""`mimkit evaluate segment` and its kin: words enter, scores of pixels, boxes or joints leave."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.cli.reading import ReadingFlags
from mimkit.core.errors import UserError, at_least
from mimkit.core.flags import HELP, Arguments, flag_value, parse

DENSE = ("segment", "detect", "depth", "keypoints")
"""Kinds of evaluation on annotated pictures, as DenseTask has them, which would import torch."""
FROZEN = ("segment", "depth")
"""Kinds that frozen features are measured by."""


@dataclass(kw_only=True)
class DenseArguments(Arguments):
    """How well frozen patches tell the classes (`segment`) or the depths (`depth`) of the pixels of pictures."""

    target: Positional[Annotated[tuple[str, ...], arg(metavar="TARGET ...")]]
    """What is measured, one or several, in one table: as for the other kinds."""
    data: tuple[str, ...]
    """A folder of pictures with a mask or a depth map each, in one of the layouts of docs/annotations.md."""
    labels: str | None = None
    """The folder of masks or depth maps, where they do not lie in that of the pictures."""
    void: int | None = None
    """The number in masks that means no class, besides 255 (segment)."""
    depth_scale: float | None = None
    """Stored units of a meter (depth): 1000 of millimeters, which is the default for whole numbers."""
    train: str | None = None
    """Fine-tune with this recipe instead, or `auto` with one that fits, and measure that: any of the four tasks. It has
    flags of its own: 'mimkit evaluate segment TARGET --train RECIPE --help'."""
    measure: tuple[Literal["knn", "linear"], ...] = ("knn", "linear")
    """Nearest neighbors of patches; a linear classifier of patches, or ridge regression of their depth."""
    memory: int = 100_000
    """Patches among which neighbors are looked for, the same number of each picture; fewer take less time."""
    baselines: bool = True
    """Also measure `pixels`, and each target untrained where its network can be built without weights."""
    images: ReadingFlags = field(default_factory=ReadingFlags)
    """How files become pictures; a run or an export reads them as it was trained, but for what is said here."""
    limit_train: int | None = None
    """Use so many training pictures, spread over the set."""
    limit_test: int | None = None
    """Use so many test pictures, spread over the set."""
    device: str = "auto"
    """`cpu` or `cuda`."""
    workers: int = 2
    """Processes that read pictures."""


def run_dense(kind: str, words: list[str], flags: list[str]) -> int:
    """Measure frozen features, or fine-tune where `--train` names a recipe.

    `kind`: of DENSE; `words` are those behind it, `flags` with their values all others.
    """
    if flag_value(flags, "--train") is not None:
        return fine_tune(words, flags, kind)
    if kind not in FROZEN and not HELP & set(flags):
        raise UserError(
            f"frozen features are measured by {' and '.join(FROZEN)}; {kind} takes a model that is fine-tuned: "
            f"'mimkit evaluate {kind} TARGET --train RECIPE --data DATA'"
        )
    return _frozen(kind, words, flags)


def fine_tune(words: list[str], flags: list[str], kind: str | None = None) -> int:
    """Fine-tune with labels, or a dense task, and show how it scores; 128 + N when signal N stopped it."""
    from mimkit.cli.train import finetune
    from mimkit.evaluate import finetune as labels
    from mimkit.evaluate import transfer

    result, text, json_to = finetune(words, flags, kind)
    measured = {"accuracy", "scores"} & set(result)
    table = transfer.table if "scores" in result else labels.table
    show(result, json_to, table(result) if measured else escape(text))
    return 128 + result["signal"] if result["signal"] else 0


def _frozen(kind: str, words: list[str], flags: list[str]) -> int:
    arguments = parse(DenseArguments, [*words, *flags], f"mimkit evaluate {kind}")
    from mimkit.evaluate.dense import evaluate_dense, with_baselines
    from mimkit.evaluate.dense_table import table

    at_least(0, workers=arguments.workers)
    targets = with_baselines(arguments.target) if arguments.baselines else list(dict.fromkeys(arguments.target))
    results = [
        evaluate_dense(
            kind,
            target,
            arguments.data,
            labels=arguments.labels,
            void=arguments.void,
            depth_scale=arguments.depth_scale,
            measures=arguments.measure,
            memory=arguments.memory,
            device=arguments.device,
            workers=arguments.workers,
            limit_train=arguments.limit_train,
            limit_test=arguments.limit_test,
            reading=arguments.images.reading(),
        )
        for target in targets
    ]
    show({"results": results}, arguments.json, table(results))
    return 0
