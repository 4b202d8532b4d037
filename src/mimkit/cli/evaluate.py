"""`mimkit evaluate`: words enter, accuracies of frozen features or of a fine-tuned model leave."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.cli.dense import DENSE, DenseArguments, fine_tune, run_dense
from mimkit.cli.overview import wanted
from mimkit.cli.reading import ReadingFlags
from mimkit.core.errors import UserError, at_least, unknown
from mimkit.core.flags import HELP, Arguments, flag_kinds, parse, split_words

Kind = Literal["knn", "probe", "attentive", "all", "finetune", "segment", "depth", "detect", "keypoints"]


@dataclass(kw_only=True)
class EvaluateArguments(Arguments):
    """Measure a run folder, an export, a timm model, `pixels`, or `untrained:NAME`."""

    kind: Positional[Kind]
    """k nearest neighbors, a linear or an attentive probe, or `all` of them, on frozen features; or one that has flags
    of its own: `finetune`, and for pictures that are annotated place by place `segment` and `depth`
    ('mimkit evaluate segment --help')."""
    target: Positional[Annotated[tuple[str, ...], arg(metavar="TARGET ...")]]
    """What is measured, one or several, in one table."""
    data: tuple[str, ...] = ()
    """Pictures with labels: as for pretrain."""
    sets: tuple[str, ...] = ()
    """Several such sets instead, each measured by itself, in one table: folders, or names of sets."""
    label_column: str | None = None
    """The column of labels in Parquet files, lists and metadata; by default label, labels, fine_label, class, ..."""
    images: ReadingFlags = field(default_factory=ReadingFlags)
    """How files become pictures; a run or an export reads them as it was trained, but for what is said here."""
    pool: Literal["auto", "mean", "class", "both", "grid", "blocks", "all"] = "auto"
    """Features (knn, probe): mean of the patch tokens, class token, both side by side, means of 2 x 2 cells, class
    token and mean of each of the last 4 blocks, or all of these; `auto`: what was trained, class token or mean; of the
    probes lars and maskalign the class token as in their papers, and that beside it."""
    k: int = 20
    """Neighbors (knn)."""
    temperature: float = 0.07
    """Of the neighbors' votes (knn)."""
    method: Literal["auto", "logistic", "lars", "maskalign", "moco", "moco_v3", "simclr", "dino"] = "auto"
    """Of the probe: logistic regression, or a paper's linear one (`lars`: MAE's); `auto`: logistic regression up to
    10,000 pictures, then MAE's."""
    attentive: bool = False
    """With `all`: the attentive probe too, which takes longer."""
    limit_train: int | None = None
    """Use so many training pictures, spread over the set."""
    limit_test: int | None = None
    """Use so many test pictures, spread over the set."""
    device: str = "auto"
    """`cpu` or `cuda`."""
    workers: int = 2
    """Processes that read pictures."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return EvaluateArguments, None


def dense_declaration() -> tuple[type[Arguments], Arguments | None]:
    """The same of `mimkit evaluate segment`, and of depth."""
    return DenseArguments, None


def finetune_declaration() -> tuple[type[Arguments], Arguments | None]:
    """The same of `mimkit evaluate finetune`, with the defaults of its smallest recipe."""
    from mimkit.recipes import find_recipe
    from mimkit.recipes.overrides import FinetuneArguments

    return FinetuneArguments, FinetuneArguments(config=find_recipe("finetune_mini_32", finetuning=True))


def run(args: list[str]) -> int:
    """Measure one target or several in one table, or fine-tune one; 128 + N when signal N stopped a fine-tuning."""
    words, flags = split_words(args, flag_kinds(DenseArguments) | flag_kinds(EvaluateArguments))
    if words and words[0] not in get_args(Kind):
        raise unknown("kind of evaluation", words[0], get_args(Kind))
    if words[:1] == ["finetune"]:
        return _finetune(words[1:], flags)
    if words and words[0] in DENSE:
        return run_dense(words[0], words[1:], flags)
    arguments = parse(EvaluateArguments, args, "mimkit evaluate")
    from mimkit.evaluate.run import evaluate, table

    at_least(0, workers=arguments.workers)
    if arguments.attentive and arguments.kind != "all":
        raise UserError("--attentive goes with 'mimkit evaluate all'; alone it is 'mimkit evaluate attentive'")
    if not arguments.data and not arguments.sets:
        raise UserError("--data is missing; 'mimkit evaluate --help' explains it, and --sets for several sets")
    if arguments.data and arguments.sets:
        raise UserError("--data is one set, --sets are several, each measured by itself: give one of the two")
    sets = [[place] for place in arguments.sets] or [list(arguments.data)]
    several = ("knn", "probe", "attentive") if arguments.attentive else ("knn", "probe")
    kinds = several if arguments.kind == "all" else (arguments.kind,)
    results = [
        evaluate(
            kind,
            target,
            data,
            device=arguments.device,
            workers=arguments.workers,
            limit_train=arguments.limit_train,
            limit_test=arguments.limit_test,
            k=arguments.k,
            temperature=arguments.temperature,
            method=arguments.method,
            pools=[arguments.pool],
            reading=arguments.images.reading(arguments.label_column),
        )
        for target in arguments.target
        for data in sets
        for kind in kinds
        if (arguments.kind, kind, target) != ("all", "attentive", "pixels")  # which have no tokens
    ]
    show({"results": results}, arguments.json, table(results))
    return 0


def _finetune(words: list[str], flags: list[str]) -> int:
    if not words and not HELP & set(flags):
        raise wanted("evaluate")
    return fine_tune(words, flags)
