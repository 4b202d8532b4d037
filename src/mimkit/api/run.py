"""Runs: a recipe or a target with data, or a run folder, enters; a run to look at, to use and to resume leaves."""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import timm
from torch import nn

from mimkit.analysis.mask_drawing import MaskDrawing, draw_masks
from mimkit.api.pretrain import Data, Resolved, places, plan_epochs, resolve, start_finetuning, train, train_finetuning
from mimkit.api.results import FineTuning, Masks, Page, Rows, html_table, picture_tag
from mimkit.api.target import Target
from mimkit.core.errors import UserError, missing_extra, unknown
from mimkit.core.integrity import refuse_changed
from mimkit.data.reading import Reading
from mimkit.data.spawn import GUARD
from mimkit.evaluate.finetune import unfinished
from mimkit.evaluate.target import export_folder
from mimkit.masks import Masker, maskers
from mimkit.masks.informed import ModelMasker
from mimkit.methods.base import MaskedConfig
from mimkit.train.checkpoint import checkpoints
from mimkit.train.mirror import local_run
from mimkit.train.prepare import Pretrain
from mimkit.train.run_folder import RunFolder

Log = Callable[[str], None]


class Run(Target):
    """A run folder, finished or not: its settings, its numbers, its model, and training that goes on."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self._files = RunFolder(self.folder)
        if not self._files.exists:
            raise UserError(f"{self.folder} holds no run of mimkit: give the folder that pretraining wrote")
        self._saved = self._files.read_config()
        super().__init__(str(self.folder), self.config.data)
        self.reading = Reading(label_column=self.config.label_column)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def recipe(self) -> str:
        """The name of the recipe."""
        return self._saved["recipe"]

    @property
    def config(self) -> Pretrain:
        """The settings."""
        return self._saved["config"]

    @property
    def finished(self) -> bool:
        """Whether all steps are done; of a fine-tuning, whether it is measured too."""
        return self._files.finished and not unfinished(self.folder)

    @property
    def result(self) -> dict[str, Any]:
        """result.json of a finished run: steps, seconds and last measurements; of a fine-tuning its scores. Else {}."""
        return self._files.result() if self._files.finished else {}

    @property
    def steps(self) -> tuple[int, int]:
        """Steps that are done and saved, and steps of the whole schedule."""
        total = int(self._saved["resolved"]["steps"])
        saves = checkpoints(self.folder)
        done = total if self._files.finished else int(saves[-1].stem.removeprefix("step-")) if saves else 0
        return done, total

    def metrics(self, frame: bool | None = None) -> Any:
        """Every line of metrics.jsonl, in order: step, loss, rate, seconds and, at evaluations, knn and others.

        Args:
            frame: as a DataFrame of pandas (True) or as a list of dicts (False); by default a frame if pandas is there.
        """
        records = Rows(self._files.metrics())
        installed = find_spec("pandas") is not None
        if frame and not installed:
            raise UserError("a frame needs a package: pip install pandas, or take metrics(frame=False)")
        if frame is False or not installed:
            return records
        import pandas  # type: ignore[missing-import]

        return pandas.DataFrame.from_records(records)

    def model(self) -> nn.Module:
        """The timm model as it was exported last, in evaluation mode; of a fine-tuning with its classifier."""
        if self.config.method.learns != "classes":
            return super().model()
        folder = export_folder(self.target)
        assert folder is not None  # raises where a run has no export
        refuse_changed(folder)
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def masks(
        self,
        masker: str | Masker | None = None,
        data: Data = (),
        *,
        ratios: Sequence[float] = (),
        progress: float | None = None,
        show: int = 6,
        seeds: int = 4,
    ) -> Masks:
        """Masks as this model would get them: a picture of them, and what they hide in numbers.

        Args:
            masker: a name of `mimkit.maskers()` or a masker; by default the run's own.
            data: see `open_pictures`; by default the run's own.
            ratios: several shares of hidden patches to draw one below the other.
            progress: moment of training in [0, 1); by default just after the masker has started to look.
            show, seeds: pictures to draw, and masks on each.

        Raises:
            UserError: anything a person can mend.
        """
        masker_settings = self._masker(masker)
        guide = masker_settings.guide
        own_teacher = isinstance(guide, ModelMasker) and guide.scorer not in ("online", "ema")
        extractor = self.extractor
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "masks.png"
            result, _ = draw_masks(
                MaskDrawing(
                    data=self._data(data),
                    masker=masker_settings,
                    model=None if own_teacher else self.target,
                    size=extractor.size if own_teacher else None,
                    patch=self.encoder().patch[0] if own_teacher else None,
                    ratios=tuple(ratios),
                    progress=progress,
                    show=show,
                    seeds=seeds,
                    out=out,
                )
            )
            png = out.read_bytes()
        return Masks({key: value for key, value in result.items() if key != "out"}, png)

    def _masker(self, masker: str | Masker | None) -> Masker:
        if isinstance(masker, Masker):
            return masker
        if masker is not None:
            if masker not in maskers():
                raise unknown("masker", masker, maskers())
            return maskers()[masker]()
        if not isinstance(self.config.method, MaskedConfig):
            raise UserError(f"the run {self.folder} hides no patches: name a masker, mimkit.maskers() lists them")
        return self.config.method.masker

    def report(
        self,
        data: Data = (),
        *,
        beside: Sequence["Run"] = (),
        pictures: int = 8,
        metrics: Literal["none", "fast", "all"] = "fast",
        device: str = "auto",
        log: Log = print,
    ) -> Page:
        """One page of curves, pictures and metrics, which `save` writes and Jupyter shows in a frame.

        Args:
            data: see `open_pictures`; by default each run's own.
            beside: further runs on the same page.
            pictures: how many to show.
            metrics: of layers and heads: none, on 200 pictures, or all groups on 500.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            log: told what takes long.

        Raises:
            UserError: an extra is missing, or a number cannot be meant.
        """
        if find_spec("jinja2") is None:
            raise missing_extra("the report", "report")
        from mimkit.report.page import report

        folders = [self.folder, *(run.folder for run in beside)]
        settings: dict[str, Any] = dict(data=places(data), pictures=pictures, metrics=metrics, device=device, log=log)
        text, result = report(folders, **settings)
        return Page(result, text)

    def resume(self, *, max_steps: int | None = None, log: Log = print) -> "Run":
        """Train on from the last checkpoint with the same settings; a finished run stays as it is.

        Raises UserError, as when the pictures have changed or another process trains there.
        """
        if self.finished:
            log(f"{self.folder} is finished: {self.steps[1]:,} steps")
            return self
        _refuse_other_process_or_thread()
        if self.config.method.supervised:
            start = Resolved(self.recipe, self.config, folder=self.folder)
            result = train_finetuning(start, self.target, max_steps=max_steps, log=log)
        else:
            result = train(self.config, self.recipe, self.folder, max_steps=max_steps, log=log)
        return _after(result, log)

    def __repr__(self) -> str:
        done, total = self.steps
        state = f"{total:,} steps" if self.finished else f"{done:,} of {total:,} steps; run.resume() goes on"
        return f"Run({self.target!r}: {self.recipe}, {state})"

    def _repr_html_(self) -> str:
        """Settings, the last numbers, and the latest reconstruction, or of a fine-tuning its scores."""
        config = self.config
        last: dict[str, Any] = {}
        for record in self._files.metrics():
            last |= record
        rows: list[tuple[str, object]] = [("run", repr(self)), ("data", " ".join(config.data))]
        rows += [("encoder", config.encoder.name), ("method", type(config.method).__name__.removesuffix("Config"))]
        rows += [("epochs", config.epochs), ("batch", config.batch_size)]
        page = html_table(("", ""), [*rows, *last.items()])
        if {"accuracy", "scores"} & set(self.result):
            page += FineTuning(self.result)._repr_html_()
        for name in ("pictures/reconstruction.png", "pictures/predictions.png", "confusion.png"):
            if (self.folder / name).is_file():
                page += picture_tag((self.folder / name).read_bytes(), name)
        return page


def pretrain(
    recipe: str | Pretrain | None = None,
    data: Data = (),
    run: str | os.PathLike[str] | None = None,
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    max_steps: int | None = None,
    log: Log = print,
) -> Run:
    """Learn from pictures without labels; on the folder of an unfinished run, go on with it.

    The same call on a finished run gives that run. Ctrl-C saves and gives a run whose `resume` goes on.

    Args:
        recipe: a name of `mimkit.recipes()`, `package.module:function`, or settings, as `mimkit.recipe(name)` gives
            them to be changed. None: the unfinished run's own, else one that fits data and machine.
        data: folders, text files of paths, Parquet files, or names of sets; by default those of the settings.
        run: folder of the run, or its URL in a store; by default runs/RECIPE-DATA.
        epochs: how often each picture is seen; by default the recipe's.
        minutes: plan fewer epochs where all would take longer than this on this machine.
        max_steps: stop after so many steps of the planned schedule; the same call goes on.
        log: told in lines what happens; progress goes to the standard error.

    Raises:
        UserError: anything a person can mend, as a call outside the main thread, where no signal can be heard.
    """
    _refuse_other_process_or_thread()
    folder = None if run is None else local_run(run, train=True)
    resolved = resolve(recipe, data, folder)
    config = resolved.config
    if epochs is not None:
        config.epochs = epochs
    if resolved.why:
        log(f"chose the recipe {resolved.name} since {resolved.why}; mimkit.recipes() lists others")
    if folder is not None and RunFolder(folder).finished:
        if minutes is not None:
            plan_epochs(config, minutes, folder)
        return _finished_already(folder, config, log)
    return _after(train(config, resolved.name, folder, minutes=minutes, max_steps=max_steps, log=log), log)


def finetune(
    target: str | os.PathLike[str] | Target,
    data: Data = (),
    recipe: str | Pretrain | None = None,
    run: str | os.PathLike[str] | None = None,
    *,
    epochs: int | None = None,
    label_fraction: float | None = None,
    labels: str | os.PathLike[str] | None = None,
    max_steps: int | None = None,
    log: Log = print,
) -> Run:
    """Train all weights of a target and a head on top with labels, and measure it on other pictures.

    On the folder of an unfinished fine-tuning, go on with it. `run.result` has accuracy, its interval and confusions.

    Args:
        target: see `open_target`, or what `load` and `pretrain` give.
        data: pictures with labels, see `open_pictures`.
        recipe: of fine-tuning, see `pretrain`, as `segment_mini`; by default one of classes that fits the target.
        run: folder of the run; by default runs/RECIPE-TARGET-DATA.
        epochs: by default the recipe's, and more of them in smaller batches for few labels.
        label_fraction: 0.01 learns from 1 % of the labels.
        labels: where annotations of a dense task lie, if not beside the pictures: a folder or a file.
        max_steps, log: see `pretrain`.

    Raises:
        UserError: anything a person can mend.
    """
    _refuse_other_process_or_thread()
    name = target.target if isinstance(target, Target) else os.fspath(target)
    start = start_finetuning(name, recipe, data)
    config: Any = start.config
    if epochs is not None:
        config.epochs, start = epochs, start._replace(fits=False)
    if label_fraction is not None:
        config.method.label_fraction = label_fraction
    if labels is not None:
        config.method.labels = os.fspath(labels)
    folder = None if run is None else Path(run).expanduser()
    return _after(train_finetuning(start, name, folder, max_steps=max_steps, log=log), log)


def _finished_already(folder: Path, config: Pretrain, log: Log) -> Run:
    """The run that the same call made earlier. Raises UserError where its settings are others."""
    for key, (old, new) in RunFolder(folder).changes(config).items():
        raise UserError(f"{folder} holds a finished run with {key} = {old}, not {new}: name another folder with run=")
    log(f"{folder} is finished already")
    return Run(folder)


def _after(result: dict[str, Any], log: Log) -> Run:
    """The run that has been trained, or that was stopped; SIGTERM ends the process once it has saved."""
    if result.get("signal") == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    run = Run(result["run"])
    if result.get("signal"):
        log(f"stopped and saved at step {result['steps']:,} of {result['of']:,}: run.resume() goes on")
    return run


def _refuse_other_process_or_thread() -> None:
    """Training is for the main process and thread.

    A worker that imports the person's script, because it needs a class of it, would train again; and signals, at which
    training saves, are heard in the main thread alone.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # while a spawned process imports the script
        raise UserError(f"a worker is about to train again: {GUARD}")
    if threading.current_thread() is not threading.main_thread():
        raise UserError(
            "training hears Ctrl-C and SIGTERM in the main thread alone: call it there, or in a process of its own"
        )
