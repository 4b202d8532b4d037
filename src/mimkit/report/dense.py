"""Dense tasks on a page: the folder of a fine-tuned run enters; its scores and its picture of predictions leave."""

from pathlib import Path
from typing import Any

from mimkit.core.annotation import DENSE_TASKS
from mimkit.core.errors import UserError
from mimkit.evaluate.transfer import score_rows, worst_rows
from mimkit.report.images import narrowed, opened, uri
from mimkit.train.run_folder import RunFolder

TITLES = {"segment": "Segmentation", "detect": "Detection", "depth": "Depth", "keypoints": "Keypoints"}
_WIDTH = 1000  # pixels of a sheet of predictions


def dense_task(folder: Path) -> dict[str, Any] | None:
    """What a finished dense task scores; None of another run, or one that is not measured yet.

    title, facts [[name, text]], pictures {file name: data URI} and classes: rows of the worst [[name, text]].
    """
    run = RunFolder(folder)
    result = run.result() if run.finished else {}
    kind, scores = str(result.get("kind")), result.get("scores")
    if kind not in DENSE_TASKS or not isinstance(scores, dict):
        return None
    try:
        facts = score_rows(kind, scores)
        classes = worst_rows(kind, scores.get("per_class") or {})[1:]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.result_path} does not say {error}: measure the run again") from error
    about = f"{result.get('train', '?')} pictures to learn from, {result.get('test', '?')} measured"
    pictures = {}
    for name in ("pictures/predictions.png", "confusion.png"):
        if (folder / name).is_file():
            pictures[Path(name).stem] = uri(narrowed(opened(folder / name), _WIDTH))
    return {
        "title": TITLES[kind],
        "facts": [[name, text] for name, text in [*facts, ("pictures", about)]],
        "classes": [[name.strip(), text] for name, text in classes],
        "pictures": pictures,
    }
