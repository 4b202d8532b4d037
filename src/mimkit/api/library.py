"""What is there: names enter; runs, models, recipes, maskers and comparisons leave."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimkit.api.pretrain import Data, places
from mimkit.api.results import Comparison, Maskers, Rows
from mimkit.api.run import Log, Run
from mimkit.api.target import Model
from mimkit.compare.contender import Budget
from mimkit.compare.processes import Measurement, Stopped
from mimkit.compare.run import compare as compare_all
from mimkit.core.errors import UserError
from mimkit.core.files import read_json
from mimkit.core.urls import is_url
from mimkit.masks import maskers as masker_classes
from mimkit.recipes import recipes as recipe_docs
from mimkit.train.mirror import local_run
from mimkit.train.run_folder import RunFolder


def load(target: str | os.PathLike[str], data: Data = ()) -> Run | Model:
    """A `Run` of a run folder, else a `Model`.

    Args:
        target: a run folder or its URL, an export folder, a timm name (with its released weights), `hf-hub:` and the
            name of a timm model on Hugging Face's hub, a file of weights as authors release them (.pth, .safetensors),
            `pixels`, or `untrained:` and a folder or a timm name.
        data: pictures whose size, channels and statistics a network without its own takes; of a run, the pictures that
            it looks at where none are named.

    Raises:
        UserError: there is no such target, or its weights cannot be loaded or fetched.
    """
    name = os.fspath(target)
    if is_url(name):
        name = str(local_run(name))
    folder = RunFolder(Path(name).expanduser())
    if folder.exists and "recipe" in read_json(folder.config_path):
        run = Run(folder.folder)
        run.data = places(data) or run.data
        return run
    model = Model(name, places(data))
    if name != "pixels" or data:
        _ = model.extractor  # a wrong name is refused here
    return model


def recipes(finetuning: bool | None = None) -> Rows:
    """All recipes as dicts: name, module, summary and description.

    Args:
        finetuning: those of fine-tuning (True) or of pre-training (False) alone.
    """
    kinds = (False, True) if finetuning is None else (finetuning,)
    return Rows(
        {"name": name, "module": module, "summary": (doc.splitlines() or [""])[0], "description": doc}
        for kind in kinds
        for name, (module, doc) in recipe_docs(kind).items()
    )


def maskers() -> Maskers:
    """The classes of maskers by name: `maskers()["block"](ratio=0.6)` is one."""
    return Maskers(masker_classes())


def compare(
    contenders: Sequence[str],
    data: Data,
    out: str | os.PathLike[str] = "comparison",
    *,
    budget: Budget = "steps",
    epochs: int | Sequence[int] = (),
    seeds: int = 3,
    jobs: int = 1,
    untrained: bool = False,
    common: str = "",
    measure: Sequence[str] = ("knn", "probe"),
    finetune: Sequence[str] = (),
    transfer: Sequence[str] = (),
    limit_train: int | None = None,
    limit_test: int | None = None,
    log: Log = print,
) -> Comparison:
    """Train and measure several recipes under one budget, each run in a process of its own.

    Args:
        contenders: each as typed behind `mimkit pretrain`, a recipe and flags; the first is the baseline.
        data, out, budget, epochs, seeds, jobs, untrained, common: see `mimkit.compare.run.compare`.
        measure: of knn, probe, attentive, finetune, segment, depth, detect and keypoints.
        finetune: fine-tunings, each as typed behind `mimkit evaluate finetune TARGET`.
        transfer: dense tasks on other pictures, each as typed behind `mimkit evaluate`, without a target.
        limit_train, limit_test: pictures to measure frozen features with, spread over the set.
        log: told in lines what happens.

    Raises:
        UserError: anything a person can mend, or that it was stopped by Ctrl-C: the same call goes on.
    """
    kinds = (*measure, *(f"finetune {words}" for words in finetune), *transfer)
    measurement = Measurement(kinds=kinds, limit_train=limit_train, limit_test=limit_test)
    numbers = (epochs,) if isinstance(epochs, int) else epochs
    settings: dict[str, Any] = dict(budget=budget, epochs=numbers, seeds=seeds, jobs=jobs, untrained=untrained)
    settings |= {"common": common, "measurement": measurement, "log": log}
    try:
        return Comparison(compare_all(contenders, places(data), Path(out), **settings))
    except Stopped as stopped:
        if stopped.number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise UserError("stopped, and all runs have saved: the same call goes on") from None
