"""Doctor: a folder and a recipe enter; what is wrong with it, and what training would cost, leave."""

import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from mimkit.core.errors import at_least
from mimkit.core.memory import free_memory
from mimkit.data.decode import BadPicture
from mimkit.data.pictures import Pictures, sample
from mimkit.recipes import find_recipe
from mimkit.recipes.choose import choose_recipe
from mimkit.train.machine import Engine
from mimkit.train.prepare import Images, Prepared, Pretrain
from mimkit.train.recorder import duration

BAD_FRACTION = Images().bad_fraction
SMALL = 2e7  # parameters; on a CPU, steps of larger models are timed with two pictures


def examine(
    data: list[str],
    recipe: str | None,
    *,
    limit: int = 20_000,
    batch_size: int | None = None,
    epochs: int | None = None,
    label_column: str | None = None,
) -> tuple[dict[str, Any], Table]:
    """The findings as JSON and as a table.

    Of the pictures at most `limit` are read, spread over the set. Without a recipe one is chosen that fits;
    `batch_size` and `epochs` replace those of the recipe.
    """
    at_least(1, limit=limit, batch_size=batch_size, epochs=epochs)
    config = find_recipe(recipe) if recipe else Pretrain()
    config.data, config.label_column = tuple(data), label_column
    pictures, device = Prepared(config).pictures, config.machine.find_device()
    result, sizes = _read(pictures, sample(len(pictures), limit))
    if not sizes:
        return result, _table(result)
    sides = sorted(min(size) for size in sizes.elements())
    result |= {
        "shorter_side": {"smallest": sides[0], "median": median(sides), "largest": sides[-1]},
        "sizes": len(sizes),
    }
    if recipe is None:
        recipe, fitting_epochs, _ = choose_recipe(pictures, device)
        config = find_recipe(recipe)
        config.data, config.epochs = tuple(data), fitting_epochs
    # What was given overrides the recipe after it is known which recipe that is.
    config.batch_size = batch_size or config.batch_size
    config.epochs = epochs or config.epochs
    # Opened once: a folder of millions need not be walked again.
    prepared = Prepared(config, pictures=pictures)
    smaller = sum(side < min(prepared.size) for side in sides)
    result |= {"recipe": recipe, "image_size": list(prepared.size), "smaller_than_image": smaller}
    result |= _cost(prepared, device)
    return result, _table(result)


def _read(pictures: Pictures, numbers: list[int]) -> tuple[dict[str, Any], Counter[tuple[int, int]]]:
    """What reading these pictures tells, and how often each size occurs among those that can be read."""
    bad: dict[str, str] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    start = last_line = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads do: decoders let go of the interpreter's lock
        for count, (number, size) in enumerate(pool.map(lambda number: (number, _size(pictures, number)), numbers)):
            if isinstance(size, str):
                bad[pictures.where(number)] = size
            else:
                sizes[size] += 1
            if time.perf_counter() - last_line > 10:
                last_line = time.perf_counter()
                print(f"read {count:,} of {len(numbers):,} pictures", file=sys.stderr, flush=True)
    speed = len(numbers) / max(1e-9, time.perf_counter() - start)
    result = {
        "data": pictures.name,
        "pictures": len(pictures),
        "read": len(numbers),
        "readable": len(numbers) - len(bad),
        "bad": bad,
        "channels": pictures.channels,
        "classes": len(pictures.classes) if pictures.classes else None,
        "has_test": pictures.has_test,
        "read_per_second": round(speed, 1),
    }
    return result, sizes


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


def _size(pictures: Pictures, number: int) -> tuple[int, int] | str:
    """Height and width of a picture that decodes, or why it does not."""
    try:
        height, width = pictures.read(number).shape[1:]
    except BadPicture as error:
        return str(error)
    return height, width


def _table(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    fraction = "" if result["read"] == result["pictures"] else f" ({result['read']:,} of them read)"
    table.add_row(
        "pictures",
        f"{result['pictures']:,}{fraction} from {escape(result['data'])}, {result['channels']} channels",
    )
    table.add_row("labels", f"{result['classes']} classes" if result["classes"] else "none (fine: they only measure)")
    bad = len(result["bad"])
    # The share of those read stands for all.
    stops = bad > BAD_FRACTION * result["read"]
    advice = "; a run stops at 1 %: mend or remove them, or allow more with --images.bad-fraction" if stops else ""
    table.add_row("bad", f"{bad} cannot be read{advice}" if bad else "none")
    for place, reason in list(result["bad"].items())[:10]:
        table.add_row("", escape(f"{place}: {reason}"))
    if len(result["bad"]) > 10:
        table.add_row("", f"... and {len(result['bad']) - 10} more; --json - lists all")
    if "recipe" not in result:
        return table
    side = result["shorter_side"]
    sizes = f"{result['sizes']} different; shorter side" if result["sizes"] > 1 else "one; shorter side"
    if side["smallest"] < side["largest"]:
        sizes += f" {side['smallest']} to {side['largest']}, half of them up to {side['median']:g}"
    else:
        sizes += f" {side['smallest']}"
    table.add_row("sizes", f"{sizes} px")
    height, width = result["image_size"]
    table.add_row(
        "recipe",
        f"{result['recipe']}: images of {height}x{width}, {result['parameters'] / 1e6:.1f} M parameters",
    )
    if result["smaller_than_image"]:
        table.add_row("", f"{result['smaller_than_image']} pictures are smaller than that and will be enlarged")
    table.add_row("steps", f"{result['steps']:,} ({result['epochs']} epochs, {result['batch_size']} pictures a step)")
    table.add_row(
        "memory",
        f"about {result['memory_bytes'] / 1e9:.1f} GB with {result['micro_batch']} pictures at once; "
        f"{result['free_bytes'] / 1e9:.0f} GB free",
    )
    table.add_row(
        "time",
        f"about {duration(result['seconds'])} here, if reading keeps up ({result['read_per_second']:,.0f}/s)",
    )
    return table
