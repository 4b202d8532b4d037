"""Doctor: a folder and a recipe enter; what is wrong with it, and what training would cost and could show, leave."""

import math
import time
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from mimkit.analysis.plan_text import rows as rows_of_plan
from mimkit.analysis.planned import Request, plan_recipe
from mimkit.analysis.survey import Survey, duplicates, mix, odd_ones, reasons, stacks, survey, used_range
from mimkit.core.errors import UserError, at_least
from mimkit.core.memory import free_memory
from mimkit.data.pictures import Pictures
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.values import DEPTHS
from mimkit.recipes import find_recipe
from mimkit.recipes.choose import MOST, PASSES, choose_recipe
from mimkit.train.announce import plan_note
from mimkit.train.machine import Engine
from mimkit.train.prepare import Images, Prepared, Pretrain
from mimkit.train.recorder import duration

BAD_FRACTION = Images().bad_fraction
SMALL = 2e7  # parameters; on a CPU, steps of larger models are timed with two pictures
EXAMPLES = 3  # of each kind of finding
NARROW = 64  # levels of 256: 8-bit pictures that use no more are dark, flat, or no pictures
CLASSES = 12  # up to so many classes are listed on the terminal


@dataclass(frozen=True)
class Examination:
    """What was found out."""

    result: dict[str, Any]
    """As JSON."""
    train: Survey
    """Of the pictures to learn from."""
    test: Survey | None
    """Of the test split, where it is one of its own."""

    @property
    def table(self) -> Table:
        """For people: a row for each thing that there is to say."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows(self.result):
            table.add_row(name, escape(text))
        return table


def examine(
    data: list[str],
    recipe: str | None,
    *,
    limit: int = 20_000,
    batch_size: int | None = None,
    epochs: int | None = None,
    reading: Reading = Reading(),
    request: Request | None = None,
) -> Examination:
    """Read pictures and plan a recipe on them.

    Of each split at most `limit` pictures are read, spread over it. Without a recipe one is chosen that fits;
    `batch_size` and `epochs` replace those of the recipe, and `reading` says how files become pictures. With a
    `request` the plan is one for its GPUs, by arithmetic; without, steps are timed here.
    """
    at_least(1, limit=limit, batch_size=batch_size, epochs=epochs)
    config = find_recipe(recipe) if recipe else Pretrain()
    config.data = tuple(data)
    _read_as(config, reading)
    pictures, device = Prepared(config).pictures, config.machine.find_device()
    train = survey(pictures, limit)
    test = None
    if pictures.has_test:
        test = survey(open_pictures(data, "test", pictures.resolved if train.facts else pictures.reading), limit)
    result = describe(train, test) | {"labels": class_table(data, pictures)}
    if not train.facts:
        return Examination(result, train, test)
    result |= about_values(train, test)
    why = None
    if recipe is None:
        recipe, fitting_epochs, why = choose_recipe(pictures, device)
        config = find_recipe(recipe)
        config.data, config.epochs = tuple(data), fitting_epochs
        _read_as(config, reading)
    # What was given overrides the recipe after it is known which recipe that is.
    config.batch_size, config.epochs = batch_size or config.batch_size, epochs or config.epochs
    # Opened once: a folder of millions need not be walked again.
    prepared = Prepared(config, pictures=pictures)
    smaller = sum(min(each.height, each.width) < min(prepared.size) for each in train.facts)
    result |= {"recipe": recipe, "why": why, "image_size": list(prepared.size), "smaller_than_image": smaller}
    if request is not None:
        result["plan"] = plan_recipe(prepared, request)
        return Examination(result, train, test)
    result |= _cost(prepared, device)
    note = plan_note(result["steps"], config.epochs)
    # More passes over a handful would not help either.
    result["note"] = note if len(pictures) * PASSES >= MOST else note.partition("; --epochs")[0]
    return Examination(result, train, test)


def _read_as(config: Pretrain, reading: Reading) -> None:
    """Read files as this says, where it says something; else as the recipe does."""
    config.images.follow(config.images.reading().changed_by(reading))
    config.label_column = reading.label_column
    config.images.check()


def describe(train: Survey, test: Survey | None) -> dict[str, Any]:
    """How many pictures there are, of which kinds, and which cannot be read."""
    pictures = train.pictures
    grouped = {reason: len(numbers) for reason, numbers in reasons(train.bad).items()}
    return {
        "data": pictures.name,
        "pictures": len(pictures),
        "read": train.count,
        "readable": len(train.facts),
        "bad": {pictures.where(number): reason for number, reason in train.bad.items()},
        "bad_reasons": grouped,
        "channels": pictures.channels,
        "mix": mix(train.headers),
        "stacks": stacks(train.headers),
        "plane": pictures.reading.plane,
        "classes": len(pictures.classes) if pictures.classes else None,
        "has_test": pictures.has_test,
        "test": None
        if test is None
        else {
            "pictures": len(test.pictures),
            "read": test.count,
            "bad": {test.pictures.where(number): reason for number, reason in test.bad.items()},
            "mix": mix(test.headers),
        },
        "notes": list(pictures.notes),
        "read_per_second": round(train.count / max(1e-9, train.seconds), 1),
    }


def about_values(train: Survey, test: Survey | None) -> dict[str, Any]:
    """What the values of the pictures mean and use, sizes, copies, and where the odd ones lie."""
    facts, values = train.facts, train.pictures.values
    sides = sorted(min(each.height, each.width) for each in facts)
    equal = duplicates(train, test)
    holed = [each for each in facts if each.empty > 0]
    surveys = {"train": train, "test": test}
    examples = [
        [f"{surveys[name].where(each)}" for name, each in group[:2]]  # type: ignore[union-attr]
        for group in equal["groups"][:EXAMPLES]
    ]
    return {
        "values": {
            "depth": DEPTHS[values.dtype],
            "plain": values.plain,
            "text": str(values),
            "low": list(values.low),
            "high": list(values.high),
            "nodata": values.nodata,
            **{key: [_number(value) for value in row] for key, row in used_range(facts).items()},
        },
        "nodata": {"share": sum(each.empty for each in facts) / len(facts), "pictures": len(holed)},
        "blank": sum(each.blank for each in facts),
        "duplicates": {key: equal[key] for key in ("in_train", "in_test", "across", "conflicts")}
        | {"examples": examples},
        "odd": {name: train.where(each) for name, each in odd_ones(facts).items()},
        "shorter_side": {"smallest": sides[0], "median": median(sides), "largest": sides[-1]},
        "sizes": len({(each.height, each.width) for each in facts}),
    }


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value


def class_table(data: list[str], pictures: Pictures) -> dict[str, Any]:
    """How many pictures each class has in each split, as training and evaluation take them.

    Returns:
        classes [{name, train, test}], unlabeled {train, test}, and `reason` where there are no labels; `split`: 'own'
        or, of 20 % by address, 'address'.
    """
    table: dict[str, Any] = {"classes": [], "unlabeled": {}, "reason": pictures.no_labels}
    table["split"] = "own" if pictures.has_test else "address"
    if not pictures.all_classes:
        return table
    counts: dict[str, Counter[str]] = {}
    for split in ("train", "test"):
        try:
            here = open_pictures(data, split, pictures.reading)
        except UserError:  # too few for a test
            continue
        names, labels = here.all_classes or (), here.labels
        table["unlabeled"][split] = len(here) if labels is None else here.unlabeled_count
        totals = [] if labels is None else labels[labels >= 0].bincount(minlength=len(names)).tolist()
        counts[split] = Counter(dict(zip(names, totals, strict=False)))
    table["classes"] = [
        {"name": name} | {split: counter[name] for split, counter in counts.items()} for name in pictures.all_classes
    ]
    return table


def _cost(prepared: Prepared, device: torch.device) -> dict[str, Any]:
    """Steps, memory and seconds of the whole training, by a few steps on noise."""
    config = prepared.config
    micro, each = prepared.micro_batch(device, 1), prepared.bytes_per_picture()  # before the task moves to the device
    parameters = sum(p.numel() for p in prepared.task.parameters())
    sampled = min(micro, 256 if device.type == "cuda" else 64 if parameters < SMALL else 2)
    engine = Engine.choose(config.machine, device, prepared.task, lambda: prepared.sample(sampled), None)
    task, batch = engine.wrap(prepared.task), prepared.sample(sampled, device)
    seconds = float("inf")
    for _ in range(3):  # the fastest of three: what compiles, warms up or is interrupted only ever adds
        begin = time.perf_counter()
        engine.step(task, batch, 0.0, True, 1.0)
        task.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = min(seconds, time.perf_counter() - begin)
    return {
        "steps": prepared.steps,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "micro_batch": micro,
        "parameters": parameters,
        "memory_bytes": 16 * parameters + micro * each,  # float32 weights, gradients and AdamW's two averages
        "free_bytes": free_memory(device),
        "seconds": prepared.steps * config.batch_size * seconds / sampled,
        "engine": engine.describe(),
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each thing that there is to say."""
    lines = [*_set_rows(result), *_label_rows(result["labels"], result["classes"]), *_bad_rows(result)]
    if "recipe" not in result:
        return lines
    lines += [*_value_rows(result), *_copy_rows(result)]
    return [*lines, *_recipe_rows(result), *(rows_of_plan(result["plan"]) if "plan" in result else _plan_rows(result))]


def _set_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    share = "" if result["read"] == result["pictures"] else f" ({result['read']:,} of them read)"
    lines = [("pictures", f"{result['pictures']:,}{share} from {result['data']}, {result['channels']} channels")]
    if test := result["test"]:
        share = "" if test["read"] == test["pictures"] else f" ({test['read']:,} of them read)"
        lines.append(("test split", f"{test['pictures']:,}{share}, measured and never learned from"))
        if bad := list(test["bad"].items()):
            lines.append(("", f"{len(bad)} cannot be read, as {bad[0][0]}: {bad[0][1]}"))
    lines += [("note", note) for note in result["notes"]]
    if len(result["mix"]) > 1:
        lines.append(("mixed", "; ".join(f"{count:,} {kind}" for kind, count in result["mix"].items())))
    for kind, count in result["stacks"].items():
        lines.append(("stacks", f"{count:,} of {kind}; plane {result['plane'] or 0} of each is read"))
    return lines


def _label_rows(labels: dict[str, Any], count: int | None) -> list[tuple[str, str]]:
    """Classes with their counts, and what measures with them cannot show."""
    classes = labels["classes"]
    if not classes:
        reason = f": {labels['reason']}" if labels["reason"] else ""
        return [("labels", f"none{reason} (fine: they only measure)")]
    splits = [split for split in ("train", "test") if split in classes[0]]
    totals = {split: [each[split] for each in classes] for split in splits}
    ranges = " and ".join(f"{_span(totals[split])} pictures each in {split}" for split in splits)
    own = "" if labels["split"] == "own" else " (20 % of each by address)"
    lines = [("labels", f"{count or len(classes)} classes, {ranges}{own}")]
    if len(classes) <= CLASSES:
        lines.append(("", ", ".join(f"{each['name']} {'/'.join(f'{each[s]:,}' for s in splits)}" for each in classes)))
    for split, lacking in (("train", "is measured and never learned"), ("test", "is never measured")):
        names = [each["name"] for each in classes if each.get(split) == 0]
        if names and len(splits) == 2:
            more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
            lines.append(("", f"no picture in {split} of {', '.join(names[:EXAMPLES])}{more}: it {lacking}"))
    if any(labels["unlabeled"].values()):
        unlabeled = " and ".join(f"{number:,} in {split}" for split, number in labels["unlabeled"].items() if number)
        lines.append(("", f"{unlabeled} have no label: they train, and are left out of every measure"))
    return lines


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _bad_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    bad = result["bad"]
    if not bad:
        return [("bad", "none")]
    # The share of those read stands for all.
    stops = len(bad) > BAD_FRACTION * result["read"]
    advice = "; a run stops at 1 %: mend or remove them, or allow more with --images.bad-fraction" if stops else ""
    lines = [("bad", f"{len(bad)} cannot be read{advice}")]
    if len(bad) <= 10:
        return [*lines, *(("", f"{place}: {reason}") for place, reason in bad.items())]
    example = {}
    for place, reason in bad.items():
        example.setdefault(reason, place)
    for reason, count in list(result["bad_reasons"].items())[:10]:
        lines.append(("", f"{count:,}: {reason}, as {example[reason]}"))
    return [*lines, ("", "--json - lists all")]


def _value_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Depth and range, where they are not those of usual 8-bit pictures; pixels without data."""
    values, lines = result["values"], []
    least = min((value for value in values["least"] if value is not None), default=0)
    most = max((value for value in values["most"] if value is not None), default=0)
    if not values["plain"]:
        lines.append(("values", f"{values['text']}; {least:,.6g} to {most:,.6g} occur"))
    elif most - least < NARROW:
        lines.append(("values", f"8-bit, of which only {least:g} to {most:g} occur: nearly one color to a model"))
    if nodata := result["nodata"]["share"]:
        many = result["nodata"]["pictures"]
        lines.append(("no data", f"{100 * nodata:.2g} % of all values, in {many:,} pictures: they count nowhere"))
    if result["blank"]:
        lines.append(("blank", f"{counted(result['blank'])} of one value everywhere"))
    return lines


def _copy_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Equal pictures, which flatter every measure where they lie in both splits."""
    copies, texts = result["duplicates"], []
    if copies["across"]:
        texts.append(f"{counted(copies['across'])} of the test split in train too: measures on them are flattered")
    if copies["in_train"]:
        parted = "" if result["has_test"] else "; a split by address may part them"
        texts.append(f"{counted(copies['in_train'])} the same as another one{parted}")
    if copies["in_test"]:
        texts.append(f"{counted(copies['in_test'])} of the test split the same as another one of it")
    if copies["conflicts"]:
        texts.append(f"{copies['conflicts']:,} times equal pictures have different classes")
    texts += [" = ".join(pair) for pair in copies["examples"]]
    return [("copies" if not number else "", text) for number, text in enumerate(texts)]


def counted(pictures: int) -> str:
    """So many pictures, with the verb."""
    return f"{pictures:,} picture{'s are' if pictures != 1 else ' is'}"


def _recipe_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Sizes of the pictures, and the recipe."""
    side = result["shorter_side"]
    sizes = f"{result['sizes']} different; shorter side" if result["sizes"] > 1 else "one; shorter side"
    if side["smallest"] < side["largest"]:
        sizes += f" {side['smallest']} to {side['largest']}, half of them up to {side['median']:g}"
    else:
        sizes += f" {side['smallest']}"
    height, width = result["image_size"]
    recipe = f"{result['recipe']}: images of {height}x{width}"
    if "parameters" in result:
        recipe += f", {result['parameters'] / 1e6:.1f} M parameters"
    lines = [("sizes", f"{sizes} px"), ("recipe", recipe)]
    if result["why"]:
        lines.append(("", f"because {result['why']}"))
    if result["smaller_than_image"]:
        lines.append(("", f"{counted(result['smaller_than_image'])} smaller than that and will be enlarged"))
    return lines


def _plan_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What training would take here and could show."""
    plan = f"{result['epochs']} epochs, {result['batch_size']} pictures a step"
    lines = [("steps", f"{result['steps']:,} ({plan})")]
    if result["note"]:
        lines.append(("", result["note"]))
    memory = f"about {result['memory_bytes'] / 1e9:.1f} GB with {result['micro_batch']} pictures at once"
    lines.append(("memory", f"{memory}; {result['free_bytes'] / 1e9:.0f} GB free"))
    speed = f"if reading keeps up (more than {result['read_per_second']:,.0f}/s)"
    lines.append(("time", f"about {duration(result['seconds'])} here, {speed}"))
    return lines
