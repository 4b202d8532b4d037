"""Dense tasks of a comparison: what one would type behind `mimkit evaluate` enters; its command and scores leave."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimkit.compare.contender import flag_name
from mimkit.core.annotation import DENSE_TASKS
from mimkit.core.errors import UserError
from mimkit.core.files import named, read_json_of
from mimkit.core.flags import flag_value, without_flag
from mimkit.evaluate.saved import check_evaluation, is_evaluation
from mimkit.recipes import check_recipe

FROZEN = ("segment", "depth")
HEADLINES = {"segment": ("miou", "mIoU"), "depth": ("rmse", "RMSE"), "detect": ("ap", "AP"), "keypoints": ("ap", "AP")}
MEASURES = {"knn": "kNN", "linear": "linear"}
OURS = {"--run", "--json", "--seed", "--baselines"}


def is_dense(kind: str) -> bool:
    """Whether a measure is of a dense task."""
    return kind.partition(" ")[0] in DENSE_TASKS


def refuse_dense(kind: str) -> None:
    """Refuse words that `mimkit evaluate` would, or that belong to the comparison."""
    name, words = kind.partition(" ")[0], shlex.split(kind)[1:]
    for word in words:
        if flag_name(word) in OURS:
            raise UserError(f"'{kind}': leave {word} to the comparison")
    recipe = flag_value(words, "--train")
    if recipe is None and name not in FROZEN and len(words):
        raise UserError(f"'{kind}': frozen features are measured by segment and depth: add --train {name}_mini")
    if recipe not in (None, "auto"):
        check_recipe(recipe, finetuning=True)


def dense_words(kind: str, data: Sequence[str]) -> tuple[str, list[str]]:
    """The task, and the words behind its target: on the pictures of the comparison where no others are named.

    A task of which frozen features tell nothing is fine-tuned with its small recipe.
    """
    name, *words = shlex.split(kind)
    if flag_value(words, "--data") is None:
        words = [*words, "--data", *data]
    if name not in FROZEN and flag_value(words, "--train") is None:
        words = ["--train", f"{name}_mini", *words]
    return name, words


def is_trained(words: Sequence[str]) -> bool:
    """Whether the words fine-tune."""
    return flag_value(words, "--train") is not None


def trained_scores(kind: str, result: dict[str, Any]) -> dict[str, float]:
    """The headline of a fine-tuned task, by its name in the table; 0 where nothing was detected at all."""
    name = kind.partition(" ")[0]
    key, title = HEADLINES[name]
    return {f"{titled(kind)} {title}": float(result["scores"][key] or 0.0)}


def frozen_scores(kind: str, result: dict[str, Any]) -> dict[str, float]:
    """The headlines of frozen features, by their names in the table."""
    key, title = HEADLINES[kind.partition(" ")[0]]
    scores = result["results"]
    return {f"{titled(kind)} {MEASURES[name]} {title}": scores[name][key] for name in MEASURES if name in scores}


def titled(kind: str) -> str:
    """What a measure is called in the table: the task with what tells it from others, without where pictures lie."""
    name, *words = shlex.split(kind)
    places = flag_value(words, "--data")
    rest = without_flag(without_flag(words, "--data"), "--labels")
    return " ".join([name, *([places.rstrip("/").rpartition("/")[2]] if places else []), *rest])


def lower_is_better(measure: str) -> bool:
    """Whether a measure of the table is an error."""
    return measure.endswith(" RMSE")


def read_frozen(file: Path) -> dict[str, Any]:
    """The one result of a JSON that `mimkit evaluate segment` or `depth` wrote. Raises UserError for a damaged one."""
    content = read_json_of(file)
    if not is_evaluation(content):
        raise UserError(f"{file} is damaged: remove it, and the same command measures again")
    with named(file):
        check_evaluation(content)
    return content["results"][0]
