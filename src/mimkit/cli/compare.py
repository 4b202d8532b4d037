"""`mimkit compare`: words enter, several recipes trained and measured under one budget leave, in one table."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class CompareArguments(Arguments):
    """Train and measure several recipes under one budget. Flags of a contender stand with it, between quotes."""

    baseline: Positional[Annotated[str, arg(metavar="RECIPE")]]
    """The first contender, by whose budget all are measured: a recipe, and its flags as for pretrain."""
    contenders: Positional[Annotated[tuple[str, ...], arg(metavar="RECIPE ...")]]
    """The other ones: "mae_mini_32 --masker self-guided"."""
    data: tuple[str, ...]
    """Pictures with labels: as for pretrain."""
    budget: Literal["steps", "compute", "time"] = "steps"
    """What all contenders get as much of as the first: steps of training, FLOPs, or seconds on this machine."""
    epochs: tuple[int, ...] = ()
    """Of the first contender, the baseline; by default its recipe's. With several, all run under each budget."""
    common: str = ""
    """Flags of `mimkit pretrain` for all contenders, unless they give them themselves: --common="--encoder.patch 8"."""
    seeds: int = 3
    """Each contender trains with each of the seeds 0 to N - 1."""
    out: Path = Path("comparison")
    """Folder of the runs and of the table. The same command goes on there; more contenders, epochs or seeds join."""
    measure: tuple[Literal["knn", "probe", "attentive", "finetune", "segment", "depth", "detect", "keypoints"], ...] = (
        "knn",
        "probe",
    )
    """What is measured of each run, on DATA; of dense tasks frozen features, or where there are no measures of these a
    fine-tuning with the small recipe."""
    finetune: tuple[str, ...] = ()
    """And fine-tunings, each as typed behind `mimkit evaluate finetune TARGET`: "finetune_mini_32 --label-fraction
    0.1"."""
    transfer: tuple[str, ...] = ()
    """And dense tasks on other pictures, each as typed behind `mimkit evaluate`, without a target: "segment --data pets
    --void 3", "detect --train detect_mini --data cars"."""
    untrained: bool = False
    """Measure the baseline's network before training too; fine-tuned, that is training from scratch."""
    limit_train: int | None = None
    """Measure frozen features with so many training pictures, spread over the set."""
    limit_test: int | None = None
    """Measure frozen features on so many test pictures, spread over the set."""
    jobs: int = 1
    """Runs at the same time; they share the threads."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return CompareArguments, None


def run(args: list[str]) -> int:
    """Several recipes under one budget, in one table; 128 + N when signal N stopped it."""
    arguments = parse(CompareArguments, args, "mimkit compare")
    from mimkit.compare.processes import Measurement, Stopped
    from mimkit.compare.run import compare
    from mimkit.compare.table import comparison_table

    kinds = (*arguments.measure, *(f"finetune {words}" for words in arguments.finetune), *arguments.transfer)
    try:
        result = compare(
            [arguments.baseline, *arguments.contenders],
            arguments.data,
            arguments.out,
            budget=arguments.budget,
            epochs=arguments.epochs,
            seeds=arguments.seeds,
            jobs=arguments.jobs,
            untrained=arguments.untrained,
            common=arguments.common,
            measurement=Measurement(kinds=kinds, limit_train=arguments.limit_train, limit_test=arguments.limit_test),
            log=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except Stopped as stopped:
        print(f"mimkit: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    show(result, arguments.json, comparison_table(result))
    return 0
