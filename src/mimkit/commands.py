"""The commands' bodies: arguments enter, each command's work and its words for people and programs leave."""

import json as json_module
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from mimkit.cli import parse, show
from mimkit.errors import UserError, unknown
from mimkit.recipes import check_recipe, find_recipe, recipes as all_recipes
from mimkit.train.prepare import Prepared, Pretrain


@dataclass(kw_only=True)
class Common:
    """What every command takes."""

    json: str | None = None
    """Write the result as JSON to this file, or to the standard output with `-`."""


def recipes(args: list[str]) -> int:
    """List the recipes."""
    chosen = parse(Common, args, "mimkit recipes")
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    result = []
    for name, (module, doc) in all_recipes().items():
        first = doc.splitlines()[0] if doc else ""
        table.add_row(name, escape(first))
        result.append({"name": name, "module": module, "summary": first, "description": doc})
    show(result, chosen.json, table)
    return 0


@dataclass(kw_only=True)
class PretrainArguments(Common):
    """Train on pictures without labels; on the folder of an unfinished run, go on with it."""

    run: Path | None = None
    """Folder of the run; by default runs/RECIPE-DATA."""
    max_steps: int | None = None
    """Stop after so many steps of the planned schedule; the same command goes on."""
    config: Annotated[Pretrain, tyro.conf.arg(name="")]


def pretrain(args: list[str]) -> int:
    """Train, go on, or say why not."""
    recipe = args.pop(0) if args and not args[0].startswith("-") else None
    prog = "mimkit pretrain [RECIPE]"
    from mimkit.train.run import RunFolder

    def read(default: Pretrain) -> PretrainArguments:
        return parse(PretrainArguments, args, prog, PretrainArguments(config=default))

    wants_help = "--help" in args or "-h" in args
    chosen = read(find_recipe(recipe) if recipe else Pretrain())
    why = ""
    if recipe is None and not wants_help:
        if chosen.run is not None and RunFolder(chosen.run).exists:
            saved = RunFolder(chosen.run).read_config()
            recipe, chosen = saved["recipe"], read(saved["config"])
        else:
            from mimkit.recipes.choose import choose_recipe

            ready = Prepared(chosen.config)
            recipe, epochs, why = choose_recipe(ready.pictures, chosen.config.machine.find_device())
            default = find_recipe(recipe)
            default.epochs = epochs
            chosen = read(default)
    if chosen.max_steps is not None and chosen.max_steps < 1:
        raise UserError(f"--max-steps must be at least 1, got {chosen.max_steps}")
    assert recipe is not None
    folder = chosen.run or free_folder(recipe, chosen.config)
    from mimkit.train.pretrain import pretrain as train

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if why:
        say(f"chose the recipe {recipe} since {why}; 'mimkit recipes' lists others")
    result = train(chosen.config, folder, recipe=recipe, max_steps=chosen.max_steps, say=say)
    data = " ".join(chosen.config.data)
    if result["signal"]:
        text = f"stopped and saved at step {result['steps']:,} of {result['of']:,}; the same command goes on:\n"
        text += f"  mimkit pretrain --run {folder}"
    elif not result["finished"]:
        text = f"{result['steps']:,} of {result['of']:,} steps done and saved; go on:\n  mimkit pretrain --run {folder}"
    else:
        text = (
            f"done: {result['steps']:,} steps in {result['seconds']:.0f} s\n"
            f"  what it sees   {folder / 'pictures' / 'reconstruction.png'}\n"
            f"  the model      timm.create_model('local-dir:{(folder / 'export').absolute()}', pretrained=True)\n"
            f"  measure it     mimkit evaluate knn {folder} --data {data}"
        )
    show(result, chosen.json, escape(text))
    return 128 + result["signal"] if result["signal"] else 0


def free_folder(recipe: str, config: Pretrain) -> Path:
    """runs/RECIPE-DATA, with a number when a finished or another run lives there."""
    from mimkit.train.run import RunFolder

    data = "-".join(Path(d).stem or "data" for d in config.data)[:40]
    base = Path("runs") / f"{recipe.replace(':', '.')}-{data}"
    for number in range(1, 10_000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        run = RunFolder(folder)
        if not folder.exists():
            return folder
        if run.exists and not run.finished:
            try:
                run.refuse_other(config)
                return folder
            except UserError:
                continue
    raise UserError(f"too many runs under {base}: name a folder with --run")


@dataclass(kw_only=True)
class EvaluateArguments(Common):
    """Measure a run folder, an export, a timm model, `pixels`, or `untrained:NAME`."""

    data: tuple[str, ...]
    """Pictures with labels: as for pretrain."""
    pool: Literal["mean", "class", "both", "all"] = "mean"
    """Features: mean of the patch tokens, class token, both side by side, or each of them."""
    k: int = 20
    """Neighbours (knn)."""
    temperature: float = 0.07
    """Of the neighbours' votes (knn)."""
    method: Literal["auto", "lars", "logistic"] = "auto"
    """MAE's linear probe, or logistic regression; `auto` takes the latter for 10,000 pictures or fewer (probe)."""
    limit_train: int | None = None
    """Use so many training pictures, spread over the set."""
    limit_test: int | None = None
    """Use so many test pictures, spread over the set."""
    device: str = "auto"
    """`cpu` or `cuda`."""
    workers: int = 2
    """Processes that read pictures."""


def evaluate(args: list[str]) -> int:
    """kNN or linear probe."""
    words = [args.pop(0) for _ in range(2) if args and not args[0].startswith("-")]
    chosen = parse(EvaluateArguments, args, f"mimkit evaluate {' '.join(words) or 'knn|probe TARGET'}")
    from mimkit.evaluate.run import evaluate as measure, table

    kind, target = words
    result = measure(
        kind,
        target,
        chosen.data,
        device=chosen.device,
        workers=chosen.workers,
        limit_train=chosen.limit_train,
        limit_test=chosen.limit_test,
        k=chosen.k,
        temperature=chosen.temperature,
        method=chosen.method,
        pools=None if chosen.pool == "all" else [chosen.pool],
    )
    show(result, chosen.json, table([result]))
    return 0


@dataclass(kw_only=True)
class ExportArguments(Common):
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
    from mimkit.train.run import RunFolder

    run = RunFolder(folder)
    if not run.exists:
        raise UserError(f"{folder} holds no run of mimkit: give the folder that 'mimkit pretrain' wrote")
    if chosen.to == "timm":
        if not (folder / "export" / "model.safetensors").exists():
            raise UserError(f"{folder} has no export yet: go on with 'mimkit pretrain --run {folder}'")
        if chosen.out.exists() and any(chosen.out.iterdir()):
            raise UserError(f"{chosen.out} is not empty: name another folder with --out")
        try:
            shutil.copytree(folder / "export", chosen.out, dirs_exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {chosen.out}: {error.strerror or error}") from error
        load = f"timm.create_model('local-dir:{chosen.out.absolute()}', pretrained=True)"
    else:
        from mimkit.export import export_huggingface, model_card
        from mimkit.train.checkpoint import checkpoints, load_checkpoint

        saved = run.read_config()
        config, known = saved["config"], saved["resolved"]
        saves = checkpoints(folder)
        if not saves:
            raise UserError(f"{folder} has no checkpoint yet: go on with 'mimkit pretrain --run {folder}'")
        ready = Prepared(config, known)
        ready.pictures = Shape(known["channels"])
        config.encoder.weights = None
        state = load_checkpoint(saves[-1])
        ready.task.load_state_dict(state["model"])
        card = model_card(
            architecture=config.encoder.name,
            recipe=saved["recipe"],
            data=known["data"],
            pictures=known["pictures"],
            steps=state["step"],
            epochs=state["step"] * config.batch_size / known["pictures"],
            size=ready.size,
            mean=known["mean"],
            std=known["std"],
            measured={},
            library="transformers",
        )
        export_huggingface(ready.task, chosen.out, mean=known["mean"], std=known["std"], card=card)
        load = f"transformers.ViTMAEForPreTraining.from_pretrained('{chosen.out}')"
    show({"out": str(chosen.out), "to": chosen.to}, chosen.json, escape(f"wrote {chosen.out}; load it with\n  {load}"))
    return 0


@dataclass(frozen=True)
class Shape:
    """Stands in for pictures where only their channels matter."""

    channels: int


def diff(args: list[str]) -> int:
    """What differs between two runs."""
    words = [args.pop(0) for _ in range(2) if args and not args[0].startswith("-")]
    chosen = parse(Common, args, "mimkit diff RUN RUN")
    if len(words) < 2:
        raise UserError("name two run folders: mimkit diff RUN RUN")
    from mimkit.config import flatten
    from mimkit.train.run import RunFolder, read_json

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
    from mimkit import masks as family

    maskers = family.maskers()
    if not args or args[0].startswith("-"):
        if "--help" not in args and "-h" not in args:
            raise UserError(f"say which masks: mimkit masks {'|'.join(maskers)}|RECIPE --data DATA")
        args = ["random", *args]
    name = args.pop(0)
    from mimkit.draw import MaskArguments, draw_masks

    if name in maskers:
        default = MaskArguments(masker=maskers[name](), data=("photos",))
    else:
        if ":" not in name and name not in all_recipes():
            raise unknown("masker or recipe", name, [*maskers, *all_recipes()], see="'mimkit recipes' lists recipes.")
        ready = find_recipe(name)
        default = MaskArguments(masker=ready.method.masker, data=("photos",), size=ready.images.size)
        default.patch = ready.encoder.patch or default.patch
    chosen = parse(MaskArguments, args, f"mimkit masks {name}", default)
    result, table = draw_masks(chosen)
    show(result, chosen.json, table)
    return 0


def doctor(args: list[str]) -> int:
    """Examine a folder before anything trains."""
    words = []
    while args and not args[0].startswith("-"):
        words.append(args.pop(0))
    from mimkit.doctor import DoctorArguments, examine

    chosen = parse(DoctorArguments, args, "mimkit doctor DATA [RECIPE]")
    recipe = None
    if len(words) > 1 and (":" in words[-1] or words[-1] in all_recipes() or not Path(words[-1]).exists()):
        recipe = words.pop()
        check_recipe(recipe)
    result, table = examine(words, recipe, chosen)
    show(result, chosen.json, table)
    return 0 if result["readable"] else 2
