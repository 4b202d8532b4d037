"""The commands' bodies: arguments enter, each command's work and its words for people and programs leave."""

import json as json_module
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mimkit.cli.console import show
from mimkit.core.errors import UserError, at_least, unknown
from mimkit.core.flags import Arguments, parse, refuse_unwritable
from mimkit.recipes import check_recipe, find_recipe
from mimkit.recipes import recipes as all_recipes


@dataclass(kw_only=True)
class RecipesArguments(Arguments):
    """List the recipes with the first line of what they say about themselves."""


def recipes(args: list[str]) -> int:
    """List the recipes."""
    chosen = parse(RecipesArguments, args, "mimkit recipes")
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    result = []
    for finetuning in (False, True):
        if finetuning:
            table.add_row("", "")
            table.add_row("[bold]with labels[/]", "[bold]mimkit evaluate finetune TARGET RECIPE --data DATA[/]")
        for name, (module, doc) in all_recipes(finetuning).items():
            first = doc.splitlines()[0] if doc else ""
            table.add_row(name, escape(first))
            result.append({"name": name, "module": module, "summary": first, "description": doc})
    show(result, chosen.json, table)
    return 0


def pretrain(args: list[str]) -> int:
    """Train, go on, or say why not."""
    from mimkit.cli.launch import launch

    result, text, json_to = launch(args)
    show(result, json_to, escape(text))
    return 128 + result["signal"] if result["signal"] else 0


@dataclass(kw_only=True)
class EvaluateArguments(Arguments):
    """Measure a run folder, an export, a timm model, `pixels`, or `untrained:NAME`."""

    data: tuple[str, ...]
    """Pictures with labels: as for pretrain."""
    pool: Literal["auto", "mean", "class", "both", "grid", "blocks", "all"] = "auto"
    """Features (knn, probe): mean of the patch tokens, class token, both side by side, means of 2 x 2 cells, class
    token and mean of each of the last 4 blocks, or all of these; `auto`: what was trained, class token or mean."""
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


def evaluate(args: list[str]) -> int:
    """kNN, linear probe, attentive probe or `all`, of one target or several, in one table."""
    words = []
    while args and not args[0].startswith("-"):
        words.append(args.pop(0))
    if words[:1] == ["finetune"]:
        return _finetune(words[1:], args)
    chosen = parse(
        EvaluateArguments, args, f"mimkit evaluate {' '.join(words) or 'knn|probe|attentive|all TARGET ...'}"
    )
    from mimkit.evaluate.run import evaluate as measure
    from mimkit.evaluate.run import table

    at_least(0, workers=chosen.workers)
    kind, *targets = words
    if chosen.attentive and kind != "all":
        raise UserError("--attentive goes with 'mimkit evaluate all'; alone it is 'mimkit evaluate attentive'")
    kinds = ("knn", "probe", *(("attentive",) if chosen.attentive else ())) if kind == "all" else (kind,)
    results = [
        measure(
            one,
            target,
            chosen.data,
            device=chosen.device,
            workers=chosen.workers,
            limit_train=chosen.limit_train,
            limit_test=chosen.limit_test,
            k=chosen.k,
            temperature=chosen.temperature,
            method=chosen.method,
            pools=[chosen.pool],
        )
        for target in targets
        for one in kinds
        if (kind, one, target) != ("all", "attentive", "pixels")  # which have no tokens
    ]
    show({"results": results}, chosen.json, table(results))
    return 0


def _finetune(words: list[str], args: list[str]) -> int:
    from mimkit.cli.launch import finetune
    from mimkit.evaluate.finetune import table

    result, text, json_to = finetune(words, args)
    show(result, json_to, table(result) if "accuracy" in result else escape(text))
    return 128 + result["signal"] if result["signal"] else 0


@dataclass(kw_only=True)
class CompareArguments(Arguments):
    """Train and measure several recipes under one budget. Flags of a contender stand with it, between quotes."""

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
    measure: tuple[Literal["knn", "probe", "attentive", "finetune"], ...] = ("knn", "probe")
    """What is measured of each run."""
    finetune: tuple[str, ...] = ()
    """And fine-tunings, each as typed behind `mimkit evaluate finetune TARGET`: "finetune_mini_32 --label-fraction 0.1"."""
    untrained: bool = False
    """Measure the baseline's network before training too; fine-tuned, that is training from scratch."""
    limit_train: int | None = None
    """Measure frozen features with so many training pictures, spread over the set."""
    limit_test: int | None = None
    """Measure frozen features on so many test pictures, spread over the set."""
    jobs: int = 1
    """Runs at the same time; they share the threads."""


def compare(args: list[str]) -> int:
    """Several recipes under one budget, in one table."""
    words = []
    while args and not args[0].startswith("-"):
        words.append(args.pop(0))
    chosen = parse(CompareArguments, args, "mimkit compare RECIPE RECIPE ...")
    from mimkit.compare.processes import Measurement, Stopped
    from mimkit.compare.run import compare as run_all
    from mimkit.compare.table import comparison_table

    kinds = (*chosen.measure, *(f"finetune {one}" for one in chosen.finetune))
    try:
        result = run_all(
            words,
            chosen.data,
            chosen.out,
            budget=chosen.budget,
            epochs=chosen.epochs,
            seeds=chosen.seeds,
            jobs=chosen.jobs,
            untrained=chosen.untrained,
            common=chosen.common,
            measurement=Measurement(kinds=kinds, limit_train=chosen.limit_train, limit_test=chosen.limit_test),
            log=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except Stopped as stopped:
        print(f"mimkit: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    show(result, chosen.json, comparison_table(result))
    return 0


@dataclass(kw_only=True)
class AnalyzeArguments(Arguments):
    """What each layer and head does: attention, similarity of layers, frequencies, clusters, and more."""

    data: tuple[str, ...]
    """Pictures, as for pretrain; of those with a test split, that."""
    metrics: tuple[str, ...] = ()
    """Some of attention, cka, fourier, variance, clusters, rank, drop, decoder and swap; by default all but swap."""
    pictures: int = 500
    """How many, spread over the set."""
    film: bool = False
    """Of one run: all checkpoints that it kept (train with --machine.keep 100), and when clusters appear."""
    out: Path | None = None
    """Folder to write JSON, Parquet and figures into."""
    device: str = "auto"
    """`cpu` or `cuda`."""
    workers: int = 2
    """Processes that read pictures."""


def analyze(args: list[str]) -> int:
    """Metrics of every layer and head of one target or several."""
    words = []
    while args and not args[0].startswith("-"):
        words.append(args.pop(0))
    chosen = parse(AnalyzeArguments, args, f"mimkit analyze {' '.join(words) or 'TARGET ...'}")
    if chosen.out is not None:
        refuse_unwritable(chosen.out / "analysis.json" if chosen.out.exists() else chosen.out)
    from mimkit.analysis.metrics import USUAL
    from mimkit.analysis.report import tables, write
    from mimkit.analysis.run import analyze as measure

    result = measure(
        words,
        chosen.data,
        metrics=chosen.metrics or USUAL,
        pictures=chosen.pictures,
        film=chosen.film,
        device=chosen.device,
        workers=chosen.workers,
    )
    left = [] if chosen.out is None else write(result, chosen.out)
    said = tables(result)
    show(result, chosen.json, Group(said, *left, *([] if chosen.out is None else [f"wrote {escape(str(chosen.out))}"])))
    return 0


def embed(args: list[str]) -> int:
    """Write a vector of each picture."""
    from mimkit.cli.embed import embed as write

    return write(args)


def report(args: list[str]) -> int:
    """Write a page about one run or several."""
    from mimkit.cli.report import report as write

    return write(args)


def view(args: list[str]) -> int:
    """Serve the page of a run and follow it."""
    from mimkit.cli.report import view as serve

    return serve(args)


@dataclass(kw_only=True)
class ExportArguments(Arguments):
    """Write the model of a run for timm or for Hugging Face's ViTMAE."""

    to: Literal["timm", "huggingface"] = "timm"
    """Who loads it."""
    out: Path
    """Folder to write."""


def export(args: list[str]) -> int:
    """Leave with the model."""
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        raise UserError("say which run: mimkit export RUN --to timm|huggingface --out DIR")
    folder = Path(args.pop(0)) if not args[0].startswith("-") else Path()
    chosen = parse(ExportArguments, args, "mimkit export RUN")
    from mimkit.train.run_folder import MEASURED, RunFolder

    run = RunFolder(folder)
    if not run.exists:
        raise UserError(f"{folder} holds no run of mimkit: give the folder that 'mimkit pretrain' wrote")
    if chosen.to == "timm":
        if not (folder / "export" / "model.safetensors").exists():
            raise UserError(f"{folder} has no export yet: go on with 'mimkit pretrain --run {folder}'")
        from mimkit.weights.folder import replaced

        with replaced(chosen.out) as partial:
            shutil.copytree(folder / "export", partial, dirs_exist_ok=True)
        load = f"timm.create_model('local-dir:{chosen.out.absolute()}', pretrained=True)"
    else:
        from mimkit.train.checkpoint import checkpoints, load_checkpoint
        from mimkit.train.export import export_encoder
        from mimkit.train.prepare import Prepared

        saved = run.read_config()
        saves = checkpoints(folder)
        if not saves:
            raise UserError(f"{folder} has no checkpoint yet: go on with 'mimkit pretrain --run {folder}'")
        ready = Prepared(saved["config"], saved["resolved"], begun=True)
        state = load_checkpoint(saves[-1])
        ready.task.load_state_dict(state["model"])
        measured = {k: v for record in run.metrics() for k, v in record.items() if k in MEASURED}
        export_encoder(
            ready, chosen.out, recipe=saved["recipe"], step=state["step"], measured=measured, to="huggingface"
        )
        load = f"transformers.ViTMAEForPreTraining.from_pretrained('{chosen.out}')"
    show(
        {"out": str(chosen.out), "to": chosen.to},
        chosen.json,
        escape(f"wrote {chosen.out}; load it with\n  {load}"),
    )
    return 0


@dataclass(kw_only=True)
class DiffArguments(Arguments):
    """Settings and last numbers that differ between two runs."""


def diff(args: list[str]) -> int:
    """What differs between two runs."""
    words = [args.pop(0) for _ in range(2) if args and not args[0].startswith("-")]
    chosen = parse(DiffArguments, args, "mimkit diff RUN RUN")
    if len(words) < 2:
        raise UserError("name two run folders: mimkit diff RUN RUN")
    from mimkit.core.config import flatten
    from mimkit.train.run_folder import RunFolder, read_json

    sides: list[dict[str, Any]] = []
    for word in words:
        run = RunFolder(Path(word))
        if not run.exists:
            raise UserError(f"{word} holds no run of mimkit: give two folders that 'mimkit pretrain' wrote")
        last: dict[str, Any] = {}
        for record in run.metrics():
            last |= record
        settings = {k: v for k, v in read_json(run.config_path).items() if k != "started"}
        sides.append(flatten(settings | {"last": last}))
    table = Table(box=None, pad_edge=False)
    for title in ("", *words):
        table.add_column(escape(title), overflow="fold")
    result = {}
    for key in sorted(sides[0].keys() | sides[1].keys()):
        a, b = sides[0].get(key), sides[1].get(key)
        if a != b:
            result[key] = [a, b]
            table.add_row(key, *(escape(json_module.dumps(value)) for value in (a, b)))
    show(result, chosen.json, table if result else "no difference")
    return 0


def masks(args: list[str]) -> int:
    """Draw masks on pictures."""
    from mimkit.analysis.mask_drawing import MaskArguments, draw_masks, masker_of
    from mimkit.masks import maskers

    name = args.pop(0) if args and not args[0].startswith("-") else "random"
    recipe = None
    if name in maskers():
        masker = maskers()[name]()
    elif ":" in name or name in all_recipes():
        recipe = find_recipe(name)
        masker = masker_of(name, recipe)
    else:
        raise unknown("masker or recipe", name, [*maskers(), *all_recipes()], see="'mimkit recipes' lists recipes.")
    chosen = parse(MaskArguments, args, f"mimkit masks {name}", MaskArguments(masker=masker, data=("photos",)))
    result, table = draw_masks(chosen, recipe)
    show(result, chosen.json, table)
    return 0


def doctor(args: list[str]) -> int:
    """Examine a folder before anything trains."""
    words = []
    while args and not args[0].startswith("-"):
        words.append(args.pop(0))
    from mimkit.analysis.doctor import DoctorArguments, examine
    from mimkit.data.named import NAMES

    chosen = parse(DoctorArguments, args, "mimkit doctor DATA [RECIPE]")
    recipe = None
    if len(words) > 1 and words[-1] not in NAMES and not Path(words[-1]).exists():
        recipe = words.pop()
        check_recipe(recipe)
    result, table = examine(words, recipe, chosen)
    show(result, chosen.json, table)
    if not result["readable"]:
        raise UserError(f"no picture of {result['data']} can be read, for the reasons above: give another folder")
    return 0
