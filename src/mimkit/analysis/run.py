"""Analyze: targets, data and names of metrics enter; tidy rows of every layer and head leave, also over training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from mimkit.analysis.collect import known
from mimkit.analysis.decoder import refusal
from mimkit.analysis.metrics import GROUPS, METRICS, USUAL
from mimkit.analysis.network import Network
from mimkit.analysis.similarity import linear_cka
from mimkit.analysis.study import Relations, Study
from mimkit.core.errors import UserError, at_least, unknown
from mimkit.data.loader import statistics
from mimkit.data.pictures import Pictures
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.stream import all_bad
from mimkit.evaluate.features import batches_for
from mimkit.evaluate.run import usual_size
from mimkit.evaluate.target import Extractor, export_folder, open_target
from mimkit.methods.base import Method
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.machine import Machine
from mimkit.train.prepare import Prepared
from mimkit.train.run_folder import RunFolder

BATCH = 50  # pictures of a batch: CKA sums its terms over them


@dataclass(frozen=True)
class Subject:
    """A model to be looked at, and the method that trained it where it is known."""

    extractor: Extractor
    step: int | None = None
    task: Method | None = None


def analyze(
    targets: Sequence[str],
    data: Sequence[str],
    *,
    metrics: Sequence[str] = USUAL,
    pictures: int = 500,
    film: bool = False,
    device: str = "auto",
    workers: int = 0,
    label_column: str | None = None,
) -> dict[str, Any]:
    """Measure what each layer and head of the targets does with pictures.

    Args:
        targets: see `open_target`; ViTs and Swins.
        data: see `open_pictures`. The test split of its own or 20 % of it if that is enough, else all of it.
        metrics: groups of `metrics.GROUPS`.
        pictures: how many, spread over the set.
        film: of one run, all checkpoints that it kept, and its weights before the first step.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that read pictures; 0 reads here.
        label_column: of labels in Parquet files, lists and metadata; by default the first with a usual name.

    Returns:
        JSON: targets, data, pictures, skipped, metrics {name: {group, unit, heading, says}}, refused [{target, metrics,
        reason}], and long tables: rows (target, step, metric, layer, head, value, stderr, n), cka (target, step, layer,
        other, other_layer, value, stderr, n) and spectrum (target, step, layer, frequency, value, stderr, n). Of a film
        also clusters [{layer, first, last, step}], see `appearance`. Raises UserError.
    """
    at_least(4, pictures=pictures)
    at_least(0, workers=workers)
    _refuse_unmeant(targets, metrics, film)
    where = Machine(device=device).find_device()
    groups = frozenset(metrics)
    result: dict[str, Any] = {"targets": list(targets), "rows": [], "cka": [], "spectrum": [], "refused": []}
    studies: list[tuple[str, Study]] = []
    reference: Relations | None = None
    for name, subject, shown in _subjects(targets, data, film, "decoder" in groups, label_column):
        study, refused = _begin(subject, groups, where, keep=film and reference is None, reference=reference)
        skipped = _look(study, subject, shown, pictures, where, workers)
        reference = study.relations if study.keep else reference
        result |= {"data": shown.name, "pictures": sum(map(len, study.index)), "skipped": skipped}
        result["rows"] += study.averages.rows(name, subject.step)
        result["spectrum"] += study.spectrum(name, subject.step)
        if subject.step is None or study.keep:  # a film tells of the same refusals at every step
            result["refused"] += _refusals(name, study, refused, groups)
        if "cka" in groups:
            result["cka"] += _all_cka(name, subject.step, study, studies)
        if not film:
            studies.append((name, study))
            study.network.model.to("cpu")  # its Gram matrices are compared with those of later models, not its weights
        study.task = None
    if film:
        for table in ("rows", "cka", "spectrum"):
            result[table].sort(key=lambda row: row["step"])  # the last came first
        result["clusters"] = appearance(result["rows"])
    used = {row["metric"] for row in result["rows"]}
    return result | {"metrics": {name: metric._asdict() for name, metric in METRICS.items() if name in used}}


def _refuse_unmeant(targets: Sequence[str], metrics: Sequence[str], film: bool) -> None:
    for name in metrics:
        if name not in GROUPS:
            raise unknown("group of metrics", name, GROUPS)
    if film and len(targets) != 1:
        raise UserError(f"a film is of one run, got {len(targets)} targets: name one")


def appearance(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """When clusters appear: for each layer the first step from which the gap stays past half its way.

    The way is that of `similarity_gap` from the first step to the last: `first`, `last` and `step` a layer. `step` is
    None where the gap ended lower than it began: then nothing appeared that random weights had not already.
    """
    gaps: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["metric"] == "similarity_gap" and row["value"] is not None:
            gaps.setdefault(row["layer"], {})[row["step"]] = row["value"]
    appearances = []
    for layer, gap in sorted(gaps.items()):
        steps = sorted(gap)
        first, last = gap[steps[0]], gap[steps[-1]]
        # The last step below half: a gap that crosses half its way and falls back has not appeared yet.
        below = [step for step in steps if gap[step] < (first + last) / 2]
        after = [step for step in steps if step > (below[-1] if below else -1)]
        appearances.append({"layer": layer, "first": first, "last": last, "step": after[0] if last > first else None})
    return appearances


def _subjects(
    targets: Sequence[str], data: Sequence[str], film: bool, decoder: bool, label_column: str | None
) -> Iterator[tuple[str, Subject, Pictures]]:
    """Each target's models, one after the other, and the pictures as they want them."""
    for name in dict.fromkeys(targets):
        own = export_folder(name)
        shown = shown_pictures(data, Reading(label_column=label_column))
        mean, std = statistics(shown) if own is None else ((), ())
        extractor = open_target(name, size=usual_size(shown), channels=shown.channels, mean=mean, std=std)
        if not shown.read_as(extractor.reading):
            shown = shown_pictures(data, replace(extractor.reading, label_column=label_column))
        run = RunFolder(Path(name).expanduser())
        saves = checkpoints(run.folder) if run.exists else []
        if film:
            for subject in _frames(name, run, saves, extractor):
                yield name, subject, shown
            continue
        task = None
        if decoder and saves:
            task, _ = open_task(run)
            task.load_state_dict(load_checkpoint(saves[-1])["model"])
        yield name, Subject(extractor, None, task), shown


def _frames(name: str, run: RunFolder, saves: list[Path], extractor: Extractor) -> Iterator[Subject]:
    """The last checkpoint, which the others are compared with; the weights before the first step; the others."""
    if not saves:
        raise UserError(f"'{name}' is no run with checkpoints: a film needs one made with --machine.keep 100")
    if len(saves) == 1:
        raise UserError(f"{name} kept one checkpoint: train with --machine.keep 100 for a film")
    task, fresh = open_task(run)
    # Cloned before the first load overwrites them: one model is loaded again and again.
    begin = {key: value.clone() for key, value in task.state_dict().items()}
    for save in (saves[-1], None, *saves[:-1]):
        if save is None and not fresh:
            continue
        state: dict[str, Any] = {} if save is None else load_checkpoint(save)
        task.load_state_dict(state.get("model", begin))
        yield Subject(replace(extractor, model=task.encoder.timm), state.get("step", 0), task)


def open_task(run: RunFolder) -> tuple[Method, bool]:
    """The method of a run with the weights that it began with, and whether that is so: not if they were released ones.

    The run's own pictures need not be there any more.
    """
    saved = run.read_config()
    config, resolved = saved["config"], saved["resolved"]
    prepared = Prepared(config, resolved, begun=True)
    return prepared.task.eval().requires_grad_(False), config.encoder.weights is None


def _begin(
    subject: Subject, groups: frozenset[str], where: torch.device, *, keep: bool, reference: Relations | None
) -> tuple[Study, dict[str, str]]:
    """A study of the groups that this model can have, and why it cannot have others."""
    network = Network(subject.extractor)
    network.model.to(where)
    refused = network.refusals | _without_decoder(subject)
    if subject.task is not None:
        subject.task.to(where)
    return Study(network, groups.difference(refused), subject.task, keep=keep, reference=reference), refused


def _refusals(name: str, study: Study, refused: dict[str, str], groups: frozenset[str]) -> list[dict[str, str]]:
    """The metrics that were asked for and are not there, each with the reason."""
    return [
        {"target": name, "metrics": group, "reason": reason}
        for group, reason in (refused | study.left_out).items()
        if group in groups or group in study.left_out
    ]


def _without_decoder(subject: Subject) -> dict[str, str]:
    if subject.task is None:
        return {"decoder": "only a run folder has a decoder and masks"}
    reason = refusal(subject.task)
    return {} if reason is None else {"decoder": reason}


def _look(study: Study, subject: Subject, shown: Pictures, count: int, where: torch.device, workers: int) -> int:
    """Show the pictures to a study; returns how many could not be read."""
    extractor = subject.extractor
    skipped: dict[int, str] = {}
    title = f"layers of {escape(extractor.name)}" + ("" if subject.step is None else f", step {subject.step}")
    settings: dict[str, Any] = dict(device=where, batch_size=BATCH, limit=count, shuffle=True, skipped=skipped)
    study.batches(batches_for(extractor, shown, title, workers=workers, **settings), shown.labels)
    if not study.index:
        raise all_bad(shown, skipped)
    return len(skipped)


def _all_cka(name: str, step: int | None, study: Study, studies: list[tuple[str, Study]]) -> list[dict[str, Any]]:
    """Every layer of a model with every layer of the models before it, and with its own."""
    rows = []
    for earlier_name, earlier in studies:
        if [i.tolist() for i in earlier.index] != [i.tolist() for i in study.index]:
            raise UserError(f"{name} and {earlier_name} could not read the same pictures: see 'mimkit doctor'")
        rows += _cka(name, study, earlier_name, earlier, None)
    return rows + _cka(name, study, name, study, step)


def _cka(name: str, study: Study, other_name: str, other_study: Study, step: int | None) -> list[dict[str, Any]]:
    """Every layer with every layer."""
    if not study.grams:
        raise UserError("CKA compares at least 4 pictures at once: give more pictures, or leave cka out of --metrics")
    values, errors = linear_cka(study.grams, other_study.grams)
    n = sum(each.shape[-1] for each in study.grams)
    return [
        {"target": name, "step": step, "layer": a, "other": other_name, "other_layer": b}
        | {"value": known(values[a, b].item()), "stderr": known(errors[a, b].item()), "n": n}
        for a in range(values.shape[0])
        for b in range(values.shape[1])
    ]


def shown_pictures(data: Sequence[str], reading: Reading = Reading()) -> Pictures:
    """The test split where there is one of its own, else everything."""
    try:
        test = open_pictures(data, "test", reading)
        return test if test.has_test else open_pictures(data, "all", reading)
    except UserError:  # too few to set some apart, as one of each class
        return open_pictures(data, "all", reading)
