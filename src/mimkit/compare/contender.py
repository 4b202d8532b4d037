"""Contenders: words of runs enter; settings, folders, and the epochs that one budget buys each leave."""

import hashlib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from mimkit.core.errors import UserError
from mimkit.core.files import read_json
from mimkit.recipes.overrides import configured
from mimkit.train.cost import count_flops, time_step
from mimkit.train.machine import Engine
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.run_folder import RunFolder, write_json

Budget = Literal["steps", "compute", "time"]
OURS = ("--data", "--run", "--seed", "--epochs", "--minutes", "--max-steps", "--json")  # which the comparison gives


@dataclass
class Contender:
    """One line of the table."""

    words: str
    """As typed behind `mimkit pretrain`."""
    config: Pretrain
    common: str = ""
    """Flags that all contenders get, unless they give them themselves."""
    epochs: int = 0
    """That its budget buys, at least 1."""
    cost: float = 0.0
    """Of a step for one picture: FLOPs, or seconds for a budget of time."""
    results: dict[int, dict[str, float]] = field(default_factory=dict)
    """Accuracies by seed."""
    largest: dict[str, Any] | None = None
    """Name and share of the largest class of the tested pictures, where a measurement says it."""
    curves: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """By seed, (work in units of the budget, online kNN) while it trained."""
    before: "Contender | None" = None
    """Whose network this is before training; None for one that trains."""

    def command(self, flags: str = "") -> list[str]:
        """Its own words, then of `common` and of `flags` what is not given before."""
        words = shlex.split(self.words)
        for text in (self.common, flags):
            # A flag is followed by its values up to the next flag: they go or stay together.
            named, taken_over = {flag_name(word) for word in words}, False
            for word in shlex.split(text):
                if word.startswith("--"):
                    taken_over = flag_name(word) not in named
                words += [word] * taken_over
        return words

    def folder(self, out: Path, seed: int) -> Path:
        """Where the run with this seed lives, or what is measured of an untrained one."""
        if self.before is not None:
            return out / f"{slug(self.before.words)}-untrained" / f"seed-{seed}"
        return out / f"{slug(self.words)}-{self.epochs}-epochs" / f"seed-{seed}"


def slug(words: str) -> str:
    """A folder's name for words; where others could have the same, or file systems would refuse it, with their hash."""
    # Readable as a folder; what that merges (8-1 and 8 -1) the hash tells apart.
    name = re.sub(r"[^A-Za-z0-9.]+", "-", words.replace("--", "")).strip("-")
    if len(name) > 80 or not re.fullmatch(r"[\w. =-]*", words) or re.search(r"[ =]-\d", words):
        name = f"{name[:70]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    return name


def flag_name(word: str) -> str:
    """`--a-b` of `--a_b=1`: the flag that a word gives, one way to write it."""
    return word.split("=")[0].replace("_", "-")


def _refuse_ours(text: str) -> None:
    for word in shlex.split(text):
        if flag_name(word) in OURS:
            raise UserError(f"'{text}': leave {word} to the comparison, which gives all contenders the same")


def configure(line: str, data: Sequence[str], common: str, flags: str) -> Pretrain:
    """The run that a line means, with what `common` and `flags` add. Raises UserError for what is no such line."""
    if common and not common.strip().startswith("--"):
        raise UserError(f"common flags begin with a flag, as in --common='--encoder.patch 8', got '{common}'")
    _refuse_ours(line)
    _refuse_ours(common)
    words = Contender(line, Pretrain(), common).command(flags)
    return configured(words, [*words, "--data", *data])


class Plan(TypedDict, total=False):
    """plan.json of a comparison."""

    data: list[str]
    common: str
    FLOP: dict[str, float]
    seconds: dict[str, float]
    precision: Literal["float32", "bfloat16"]


def allocate_epochs(
    contenders: list[Contender], budget: Budget, epochs: int, out: Path, log: Callable[[str], None]
) -> None:
    """Give every contender the epochs that the baseline's budget buys; costs once found are kept in `out`."""
    first, file = contenders[0], out / "plan.json"
    # What runs of one folder must have in common to stand in one table.
    identity: dict[str, Any] = {"data": list(first.config.data), "common": first.common}
    plan = read_json(file, Plan) if file.exists() else {}
    for name, value in identity.items():
        if plan.get(name, value) != value:
            was = shlex.join(plan[name]) if name == "data" else plan[name]
            raise UserError(f"{out} holds runs with --{name} '{was}': give another --out, or the same as then")
    unit = "seconds" if budget == "time" else "FLOP"
    costs = plan.setdefault(unit, {})
    new = [contender for contender in contenders if contender.words not in costs]
    if new:
        log(f"weighing a step of {len(new)} contenders")
        # Seconds compare only with seconds of now: one that was timed before is timed again beside the new ones, and
        # the rest follows in proportion. FLOPs stay.
        again = [contender for contender in contenders if contender.words in costs][: unit == "seconds"]
        measure = time_step if unit == "seconds" else count_flops
        measured = measure([contender.config for contender in (*again, *new)])
        scale = costs[again[0].words] / measured[0] if again else 1.0  # the machine may be faster than it was then
        for contender, cost in zip(new, measured[len(again) :], strict=True):
            costs[contender.words] = scale * cost
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, identity | plan)
    for contender in contenders:
        contender.cost = costs[contender.words]
        ratio = contender.config.batch_size / first.config.batch_size
        contender.epochs = max(1, round(epochs * (ratio if budget == "steps" else first.cost / contender.cost)))


def shared_precision(first: Contender, out: Path) -> str:
    """The arithmetic of all runs, which the baseline chooses once."""
    plan = read_json(out / "plan.json", Plan)
    if "precision" not in plan:
        prepared, machine = Prepared(first.config), first.config.machine
        device = machine.find_device()
        # Chosen once: two runs that chose bfloat16 and float32 by a hair's breadth would not be equals.
        count = prepared.timing_count(prepared.micro_batch(device, 1))
        plan["precision"] = Engine.choose(
            machine, device, prepared.task, lambda: prepared.sample(count), None
        ).precision
        write_json(out / "plan.json", plan)
    return plan["precision"]


def refuse_other(contender: Contender, out: Path, seed: int) -> None:
    """Refuse a run in this place with other settings, as of a recipe that was changed since."""
    run = RunFolder(contender.folder(out, seed))
    changed = run.changes(replace(contender.config, epochs=contender.epochs, seed=seed)) if run.exists else {}
    for key, (old, new) in changed.items():
        raise UserError(f"{run.folder} holds a run with {key} = {old}, not {new}: give another --out")
