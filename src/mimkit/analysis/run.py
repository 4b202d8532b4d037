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

    Returns:
        JSON: targets, data, pictures, skipped, metrics {name: {group, unit, heading, says}}, refused [{target, metrics,
        reason}], and long tables: rows (target, step, metric, layer, head, value, stderr, n), cka (target, step, layer,
        other, other_layer, value, stderr, n) and spectrum (target, step, layer, frequency, value, stderr, n). Of a film
        also clusters [{layer, first, last, step}], see `appearance`.

    Raises:
        UserError: anything a person can mend.
    """
    for name in metrics:
        if name not in GROUPS:
            raise unknown("group of metrics", name, GROUPS)
    at_least(4, pictures=pictures)
    at_least(0, workers=workers)
    if film and len(targets) != 1:
        raise UserError(f"a film is of one run, got {len(targets)} targets: name one")
    where = Machine(device=device).find_device()
    asked = frozenset(metrics)
    result: dict[str, Any] = {"targets": list(targets), "rows": [], "cka": [], "spectrum": [], "refused": []}
    studies: list[tuple[str, Study]] = []
    reference: Relations | None = None
    for name, subject, shown in _subjects(targets, data, film, "decoder" in asked):
        network = Network(subject.extractor)
        network.model.to(where)
        refused = network.refusals | _without_decoder(subject)
        if subject.task is not None:
            subject.task.to(where)
        keep = film and reference is None
        setup = Study(network, asked.difference(refused), subject.task, keep=keep, reference=reference)
        skipped = _look(setup, subject, shown, pictures, where, workers)
        reference = setup.relations if setup.keep else reference
        result |= {"data": shown.name, "pictures": sum(map(len, setup.index)), "skipped": skipped}
        result["rows"] += setup.averages.rows(name, subject.step)
        result["spectrum"] += setup.spectrum(name, subject.step)
        if subject.step is None or setup.keep:  # a film tells of the same refusals at every step
            result["refused"] += [
                {"target": name, "metrics": group, "reason": reason}
                for group, reason in (refused | setup.left_out).items()
                if group in asked or group in setup.left_out
            ]
        for other, one in studies if "cka" in asked and not film else []:
            if [i.tolist() for i in one.index] != [i.tolist() for i in setup.index]:
                raise UserError(f"{name} and {other} could not read the same pictures: see 'mimkit doctor'")
            result["cka"] += _cka(name, setup, other, one, None)
        if "cka" in asked:
            result["cka"] += _cka(name, setup, name, setup, subject.step)
        if not film:
            studies.append((name, setup))
            setup.network.model.to("cpu")
        setup.task = None
    if film:
        for part in ("rows", "cka", "spectrum"):
            result[part].sort(key=lambda row: row["step"])  # the last came first
        result["clusters"] = appearance(result["rows"])
    used = {row["metric"] for row in result["rows"]}
    return result | {"metrics": {name: metric._asdict() for name, metric in METRICS.items() if name in used}}


def appearance(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """When clusters appear: for each layer the first step from which the gap stays past half its way.

    The way is that of `similarity_gap` from the first step to the last: `first`, `last` and `step` a layer. `step` is
    None where the gap ended lower than it began: then nothing appeared that random weights had not already.
    """
    gaps: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["metric"] == "similarity_gap" and row["value"] is not None:
            gaps.setdefault(row["layer"], {})[row["step"]] = row["value"]
    found = []
    for layer, gap in sorted(gaps.items()):
        steps = sorted(gap)
        first, last = gap[steps[0]], gap[steps[-1]]
        below = [step for step in steps if gap[step] < (first + last) / 2]
        after = [step for step in steps if step > (below[-1] if below else -1)]
        found.append({"layer": layer, "first": first, "last": last, "step": after[0] if last > first else None})
    return found


def _subjects(
    targets: Sequence[str], data: Sequence[str], film: bool, decoder: bool
) -> Iterator[tuple[str, Subject, Pictures]]:
    """Each target's models, one after the other, and the pictures as they want them."""
    for name in dict.fromkeys(targets):
        own = export_folder(name)
        shown = _pictures(data)
        mean, std = statistics(shown) if own is None else ((), ())
        extractor = open_target(name, size=usual_size(shown), channels=shown.channels, mean=mean, std=std)
        if (extractor.channels, extractor.value_range) != (shown.channels, shown.value_range):
            shown = _pictures(data, channels=extractor.channels, value_range=extractor.value_range)
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
    ready = Prepared(config, resolved, begun=True)
    vars(ready)["statistics"] = tuple(resolved["mean"]), tuple(resolved["std"])  # else checked against the pictures
    return ready.task.eval().requires_grad_(False), config.encoder.weights is None


def _without_decoder(subject: Subject) -> dict[str, str]:
    if subject.task is None:
        return {"decoder": "only a run folder has a decoder and masks"}
    reason = refusal(subject.task)
    return {} if reason is None else {"decoder": reason}


def _look(setup: Study, subject: Subject, shown: Pictures, count: int, where: torch.device, workers: int) -> int:
    """Show the pictures to a study; returns how many could not be read."""
    extractor = subject.extractor
    skipped: dict[int, str] = {}
    what = f"layers of {escape(extractor.name)}" + ("" if subject.step is None else f", step {subject.step}")
    settings: dict[str, Any] = dict(device=where, batch_size=BATCH, limit=count, shuffle=True, skipped=skipped)
    setup.batches(batches_for(extractor, shown, what, workers=workers, **settings), shown.labels)
    if not setup.index:
        raise all_bad(shown, skipped)
    return len(skipped)


def _cka(name: str, setup: Study, other: str, one: Study, step: int | None) -> list[dict[str, Any]]:
    """Every layer with every layer."""
    if not setup.grams:
        raise UserError("CKA compares at least 4 pictures at once: give more pictures, or leave cka out of --metrics")
    values, errors = linear_cka(setup.grams, one.grams)
    n = sum(each.shape[-1] for each in setup.grams)
    return [
        {"target": name, "step": step, "layer": a, "other": other, "other_layer": b}
        | {"value": known(values[a, b].item()), "stderr": known(errors[a, b].item()), "n": n}
        for a in range(values.shape[0])
        for b in range(values.shape[1])
    ]


def _pictures(data: Sequence[str], **how: Any) -> Pictures:
    """The test split where there is one of its own, else everything."""
    test = open_pictures(data, "test", **how)
    return test if test.has_test else open_pictures(data, "all", **how)
