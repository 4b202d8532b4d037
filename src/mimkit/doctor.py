"""Doctor: a folder and a recipe enter; what is wrong with it, and what training would cost, leave."""

import time
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.markup import escape
from rich.table import Table

from mimkit.data.decode import BadPicture
from mimkit.data.pictures import sample
from mimkit.errors import UserError
from mimkit.recipes import find_recipe
from mimkit.recipes.choose import choose_recipe
from mimkit.train.machine import Engine
from mimkit.train.prepare import Prepared, Pretrain, free_memory
from mimkit.train.progress import duration


@dataclass(kw_only=True)
class DoctorArguments:
    """Read pictures, name the bad ones, and estimate memory, steps and time of a recipe."""

    limit: int = 20_000
    """Read at most so many pictures, spread over the set."""
    batch_size: int | None = None
    """Pictures in a step, if other than the recipe's."""
    epochs: int | None = None
    """Passes over the pictures, if other than the recipe's."""
    json: str | None = None
    """Write the result as JSON to this file, or to the standard output with `-`."""


def examine(data: list[str], recipe: str | None, arguments: DoctorArguments) -> tuple[dict[str, Any], Table]:
    """The findings as JSON and as a table."""
    if not data:
        raise UserError("say which pictures: mimkit doctor DATA [RECIPE]")
    config = find_recipe(recipe) if recipe else Pretrain()
    config.data = tuple(data)
    ready = Prepared(config)
    pictures, device = ready.pictures, config.machine.find_device()
    bad: dict[str, str] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    read = sample(len(pictures), arguments.limit)
    start = time.perf_counter()
    for number in read:
        try:
            sizes[tuple(pictures.read(number).shape[1:])] += 1
        except BadPicture as error:
            bad[pictures.where(number)] = str(error)
    speed = len(read) / max(1e-9, time.perf_counter() - start)
    result: dict[str, Any] = {
        "data": pictures.name,
        "pictures": len(pictures),
        "read": len(read),
        "readable": len(read) - len(bad),
        "bad": bad,
        "channels": pictures.channels,
        "classes": len(pictures.classes) if pictures.classes else None,
        "has_test": pictures.has_test,
        "read_per_second": round(speed, 1),
    }
    if not sizes:
        return result, _table(result)
    sides = sorted(min(size) for size in sizes.elements())
    result |= {"shorter_side": {"smallest": sides[0], "median": median(sides), "largest": sides[-1]}, "sizes": len(sizes)}
    if recipe is None:
        recipe, epochs, _ = choose_recipe(pictures, device)
        config = find_recipe(recipe)
        config.data, config.epochs = tuple(data), epochs
    config.batch_size = arguments.batch_size or config.batch_size
    config.epochs = arguments.epochs or config.epochs
    chosen = Prepared(config)
    chosen.pictures = pictures
    smaller = sum(side < min(chosen.size) for side in sides)
    micro = chosen.micro_batch(device, 1)
    sampled = min(micro, 16 if device.type == "cpu" else 256)
    engine = Engine.choose(config.machine, device, chosen.task, lambda: chosen.sample(sampled), None)
    task, batch = engine.wrap(chosen.task), chosen.sample(sampled)
    seconds = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        engine.step(task, batch, 0.0, True, 1.0)
        task.zero_grad()
        seconds = min(seconds, time.perf_counter() - begin)
    parameters = sum(p.numel() for p in chosen.task.parameters())
    result |= {
        "recipe": recipe,
        "image_size": list(chosen.size),
        "smaller_than_image": smaller,
        "steps": chosen.steps,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "micro_batch": micro,
        "parameters": parameters,
        "memory_bytes": 16 * parameters + micro * chosen.bytes_per_picture(),
        "free_bytes": free_memory(device),
        "seconds": chosen.steps * config.batch_size * seconds / sampled,
        "engine": engine.describe(),
    }
    return result, _table(result)


def _table(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    share = "" if result["read"] == result["pictures"] else f" ({result['read']:,} of them read)"
    table.add_row("pictures", f"{result['pictures']:,}{share} from {escape(result['data'])}, {result['channels']} channels")
    table.add_row("labels", f"{result['classes']} classes" if result["classes"] else "none (fine: they only measure)")
    table.add_row("bad", f"{len(result['bad'])} cannot be read" if result["bad"] else "none")
    for place, reason in list(result["bad"].items())[:10]:
        table.add_row("", escape(f"{place}: {reason}"))
    if len(result["bad"]) > 10:
        table.add_row("", f"... and {len(result['bad']) - 10} more; --json - lists all")
    if "recipe" not in result:
        return table
    side = result["shorter_side"]
    table.add_row(
        "sizes", f"{result['sizes']} different; shorter side {side['smallest']} to {side['largest']}, half up to {side['median']:g}"
    )
    height, width = result["image_size"]
    table.add_row("recipe", f"{result['recipe']}: images of {height}x{width}, {result['parameters'] / 1e6:.1f} M parameters")
    if result["smaller_than_image"]:
        table.add_row("", f"{result['smaller_than_image']} pictures are smaller than that and will be enlarged")
    table.add_row("steps", f"{result['steps']:,} ({result['epochs']} epochs, {result['batch_size']} pictures a step)")
    table.add_row(
        "memory",
        f"about {result['memory_bytes'] / 1e9:.1f} GB with {result['micro_batch']} pictures at once; "
        f"{result['free_bytes'] / 1e9:.0f} GB free",
    )
    table.add_row("time", f"about {duration(result['seconds'])} here, if reading keeps up ({result['read_per_second']:,.0f} pictures/s)")
    return table



