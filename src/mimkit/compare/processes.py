"""Processes: contenders with seeds enter; each trains and is measured by commands of its own, accuracies leave."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimkit.compare.contender import OURS, Contender, flag_name, slug
from mimkit.compare.transfer import (
    dense_words,
    frozen_scores,
    is_dense,
    is_trained,
    read_frozen,
    refuse_dense,
    trained_scores,
)
from mimkit.core.errors import UserError
from mimkit.core.files import read_json
from mimkit.core.names import trusted
from mimkit.evaluate.finetune import unfinished
from mimkit.evaluate.saved import Evaluation
from mimkit.recipes import find_recipe
from mimkit.recipes.overrides import read_finetuning
from mimkit.train.run_folder import RunFolder


class Stopped(Exception):
    """The comparison was asked to stop, by the signal `number`; the same command goes on."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped: the same command goes on")
        self.number = number


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is done with every finished run."""

    kinds: tuple[str, ...] = ("knn", "probe")
    """`knn`, `probe`, `attentive`, `finetune` or a dense task, the last two with what one would type behind
    `mimkit evaluate KIND TARGET`."""
    limit_train: int | None = None
    limit_test: int | None = None

    @property
    def limits(self) -> list[str]:
        """Flags of `mimkit evaluate`, but of fine-tuning."""
        limits = (("train", self.limit_train), ("test", self.limit_test))
        return [word for name, value in limits if value for word in (f"--limit-{name}", str(value))]


def check_measure(kind: str) -> None:
    """Refuse words behind `finetune` or a dense task that `mimkit evaluate` would."""
    if is_dense(kind):
        refuse_dense(kind)
        return
    name, _, line = kind.partition(" ")
    if name != "finetune":
        return
    words = shlex.split(line)
    for word in words:
        if flag_name(word) in OURS and flag_name(word) != "--epochs":
            raise UserError(f"'{line}': leave {word} to the comparison")
    recipe = words.pop(0) if words and not words[0].startswith("-") else "finetune_mini_32"
    read_finetuning(words, f"mimkit evaluate finetune TARGET {recipe}", find_recipe(recipe, finetuning=True))


@contextmanager
def alone(out: Path) -> Generator[None]:
    """Hold the folder, or say that another process does; what was made for nothing is removed."""
    # Remembered, so that a refused comparison leaves no empty folders behind.
    created = [place for place in (out, *out.parents) if not place.exists()]
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another comparison runs in {out}: wait for it, or name another --out") from error
        try:
            yield
        finally:
            if [entry.name for entry in out.iterdir()] == [".lock"]:
                (out / ".lock").unlink()
                for place in created:
                    with suppress(OSError):
                        place.rmdir()


class Children:
    """Processes that are asked to stop, so that they save, when this one is or when one of them fails."""

    def __init__(self, log: Callable[[str], None], threads: int = 1) -> None:
        self.log, self.threads = log, threads
        self.running: set[subprocess.Popen] = set()
        self.why: Exception | None = None
        """Why no more are started."""

    def __enter__(self) -> "Children":
        self._before = {
            number: signal.signal(number, lambda number, _: self.stop(Stopped(number)))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, Exception):
            self.stop(error)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self, why: Exception) -> None:
        """Ask all to stop and start no more."""
        self.why = self.why or why
        for child in list(self.running):
            with suppress(OSError):
                child.send_signal(signal.SIGTERM)

    def run(self, words: Sequence[str], log: Path) -> None:
        """One `mimkit` command; what it says goes to a file.

        Raises UserError with its last line when it fails, and why no more are started where that is so.
        """
        # Each child keeps to its share of the cores; libgomp's spinning threads would eat those of the others.
        environment = dict(os.environ, OMP_NUM_THREADS=str(self.threads), GOMP_SPINCOUNT="1000")
        if self.why:
            raise self.why
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            # A session of its own: Ctrl-C goes to this process alone, which asks the children to save.
            trust = [f"--trust={package}" for package in trusted()]
            command = [sys.executable, "-P", "-m", "mimkit.cli", *words, *trust]  # -P: no code from the working folder
            child = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        self.running.add(child)
        if self.why:  # since the last look
            child.send_signal(signal.SIGTERM)
        status = child.wait()
        self.running.discard(child)
        if self.why:
            raise self.why
        if status:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing said"]
            reason = last[0].removeprefix("mimkit: ")
            if status < 0:  # by the kernel, as a rule
                reason = f"ended by {signal.Signals(-status).name}, as where memory is short"
            self.stop(UserError(f"'mimkit {shlex.join(words)}' failed ({reason}): see {log}"))
            raise self.why  # type: ignore[misc]


@dataclass(frozen=True)
class Work:
    """What is done with one contender and one seed."""

    children: Children
    data: Sequence[str]
    out: Path
    flags: str
    """Of `mimkit pretrain`, unless a contender gives them itself."""
    measurement: Measurement

    def one(self, contender: Contender, seed: int) -> None:
        """Train and measure, as far as that is not done; fill in what was found."""
        folder = contender.folder(self.out, seed)
        run = RunFolder(folder)
        target = str(folder)
        if contender.before is not None:
            target = f"untrained:{contender.before.folder(self.out, seed)}"
        elif not run.finished:
            own = ["--data", *self.data, "--epochs", str(contender.epochs), "--seed", str(seed), "--run", str(folder)]
            self._run(["pretrain", *contender.command(self.flags), *own], folder)
            self.children.log(f"trained   {contender.words}, seed {seed}: {contender.epochs} epochs")
        accuracies: dict[str, float] = {}
        column = contender.config.label_column
        data = ["--data", *self.data, *([] if column is None else ["--label-column", column])]
        for kind in self.measurement.kinds:
            if is_dense(kind):
                accuracies |= self._dense(kind, target, folder, seed)
                continue
            name, _, words = kind.partition(" ")
            tuned = name == "finetune"
            if tuned:
                result = self._fine_tuned(words, target, data, folder, seed)
            else:
                result = self._frozen(kind, target, data, folder)
            accuracies[kind] = (result if tuned else result["results"][result["headline"]])["accuracy"]
            contender.largest = contender.largest or result.get("largest_class")  # not of version 0.2
        contender.results[seed] = accuracies
        self.children.log(f"measured  {contender.words}, seed {seed}: {', '.join(accuracies)}")
        if contender.before is None:
            work = contender.config.batch_size * contender.cost
            contender.curves[seed] = [(r["step"] * work, r["knn"]) for r in run.metrics() if "knn" in r]

    def _run(self, words: list[str], folder: Path) -> None:
        self.children.run(words, folder.with_name(f"{folder.name}.log"))

    def _fine_tuned(self, line: str, target: str, data: list[str], folder: Path, seed: int) -> dict[str, Any]:
        """Scores after fine-tuning with labels, in a run beside that of the target."""
        tuned = folder.with_name("-".join(filter(None, [folder.name, "finetuned", slug(line)])))
        if not RunFolder(tuned).finished or unfinished(tuned):
            words = shlex.split(line)
            recipe = words[:1] if words and not words[0].startswith("-") else []
            ours = ["--seed", str(seed), "--run", str(tuned), "--machine.threads", str(self.children.threads)]
            own = [*ours, *words[len(recipe) :]]
            self._run(["evaluate", "finetune", target, *recipe, *data, *own], folder)
        return RunFolder(tuned).result()

    def _dense(self, kind: str, target: str, folder: Path, seed: int) -> dict[str, float]:
        """Scores of a dense task, frozen or fine-tuned, each kept beside the run."""
        task, words = dense_words(kind, self.data)
        if is_trained(words):
            tuned = folder.with_name(f"{folder.name}-{slug(kind)}")
            if not RunFolder(tuned).finished or unfinished(tuned):
                threads = str(self.children.threads)
                ours = ["--seed", str(seed), "--run", str(tuned), "--machine.threads", threads]
                self._run(["evaluate", task, target, *words, *ours], folder)
            return trained_scores(kind, RunFolder(tuned).result())
        file = folder / f"measured-{slug(kind)}.json"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            self._run(["evaluate", task, target, *words, "--baselines", "False", "--json", str(partial)], folder)
            os.replace(partial, file)
        return frozen_scores(kind, read_frozen(file))

    def _frozen(self, kind: str, target: str, data: list[str], folder: Path) -> dict[str, Any]:
        """Scores of kNN or a probe on frozen features; the result is kept beside the run."""
        limits = self.measurement.limits
        name = "-".join(["measured", kind, *(word.removeprefix("--limit-") for word in limits)])
        file = folder / f"{name}.json"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # A measurement that was killed half way leaves nothing that looks finished.
            partial = file.with_suffix(".partial")
            self._run(["evaluate", kind, target, *data, "--json", str(partial), *limits], folder)
            os.replace(partial, file)
        return read_json(file, Evaluation)["results"][0]
