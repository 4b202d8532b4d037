"""Export as ONNX: a trained dense task and its export enter; a folder that any runtime of ONNX loads leaves."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimkit import __version__
from mimkit.core.annotation import DenseTask
from mimkit.core.errors import missing_extra
from mimkit.core.files import read_json
from mimkit.core.integrity import IDENTITY
from mimkit.weights.card import with_library, with_section
from mimkit.weights.exported import read_export
from mimkit.weights.folder import MARK, READING, replaced
from mimkit.weights.head import Words, read_words

OUTPUTS: dict[DenseTask, str] = {"segment": "logits", "depth": "meters", "keypoints": "joints"}
SHAPES: dict[DenseTask, str] = {
    "segment": "(B, K, H, W), the class of a pixel is that of its greatest",
    "depth": "(B, H, W)",
    "keypoints": "(B, J, 3): column and row in pixels of the image, and score",
}
LARGEST = 1 << 30  # bytes of weights within model.onnx, which can hold twice as much; others lie beside it


class Predictor(nn.Module):
    """What a task says of images."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Float[Tensor, "B C H W"]) -> Tensor:
        """Of a batch, see `methods.dense`."""
        return self.task.predict(images)


def export_onnx(task: Any, export: Path, folder: Path) -> None:
    """Write model.onnx, config.json and README.md of a dense task that says something of every image.

    Args:
        task: a `methods.dense.Dense` in evaluation mode, but no detector.
        export: of its run: what the task was rebuilt from.
        folder: replaced when it holds an earlier export; refused when it holds something else.

    Raises:
        UserError: the extra is missing, or the folder cannot be written.
    """
    words, about = read_words(export), read_export(export)
    name: Any = words["task"]
    large = sum(value.nbytes for value in task.state_dict().values()) > LARGEST
    config: dict[str, Any] = {
        "made_by": f"{MARK} {__version__}",
        "files": ["model.onnx", "model.onnx.data"] if large else ["model.onnx"],
        "task": name,
        "input": "images",
        "output": OUTPUTS[name],
        "reading": about.get(READING) or {},
    }
    config |= {key: words[key] for key in ("categories", "joints", "size", "channels", "mean", "std")}
    identity: dict[str, Any] = read_json(export / IDENTITY) if (export / IDENTITY).exists() else {}
    card = with_library((export / "README.md").read_text(encoding="utf-8"), "onnx")
    with replaced(folder, {key: value for key, value in identity.items() if key != "sha256"}) as partial:
        _write_graph(task, words, OUTPUTS[name], partial / "model.onnx", large)
        (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        (partial / "README.md").write_text(with_section(card, "Load it", _use(words, name)), encoding="utf-8")


def _write_graph(task: nn.Module, words: Words, output: str, file: Path, large: bool) -> None:
    images = torch.zeros(2, words["channels"], *words["size"])  # a batch of 1 would fix its number
    try:
        torch.onnx.export(
            Predictor(task).eval(),
            (images,),
            str(file),
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=large,
            dynamo=True,
            verbose=False,
        )
    except ImportError as error:
        raise missing_extra("--to onnx", "onnx") from error


def _use(words: Words, name: DenseTask) -> str:
    height, width = words["size"]
    return f"""```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
({OUTPUTS[name]},) = session.run(None, {{"images": images}})
```

`images` (B, {words["channels"]}, {height}, {width}) in float32: pixels in [0, 1], minus the mean, divided by the std
of config.json; B is free. `{OUTPUTS[name]}` is {SHAPES[name]}."""
