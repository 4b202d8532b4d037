"""Export for torchvision: a trained detector and its export enter; a folder that needs no mimkit leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from mimkit import __version__
from mimkit.core.files import read_json
from mimkit.core.integrity import IDENTITY
from mimkit.data.reading import Reading
from mimkit.model.convolutional import ConvolutionalEncoder
from mimkit.model.pyramid import FeaturePyramid, SimplePyramid
from mimkit.model.windows import global_blocks
from mimkit.weights import torchvision_model
from mimkit.weights.card import NAMES, names_table, with_library, with_section
from mimkit.weights.exported import read_export
from mimkit.weights.folder import MARK, READING, replaced
from mimkit.weights.head import read_words

PLACES = {"encoder.timm.": "backbone.", "pyramid.stages.": "pyramid.", "heads.": ""}  # in a task and in model.py
GRAY = 128 / 255  # beside 8-bit pictures, as in `data.resize.crop_beyond`
USE = """```python
from model import load  # model.py lies in this folder; it needs torch, torchvision and timm

detector = load(".")
(objects,) = detector([picture])  # (C, H, W), uint8 or float from 0 to 1, of any size
names = [detector.categories[label] for label in objects["labels"]]
```

`boxes` (left, top, right, bottom) and `masks` (from 0.5 on) are in the picture's own pixels, `scores` from 0 to 1.
Resizing and normalization happen inside."""


def export_torchvision(task: Any, export: Path, folder: Path) -> None:
    """Write config.json, model.safetensors, model.py and README.md of a detector.

    Args:
        task: a `methods.detect.Detect`.
        export: of its run: what the task was rebuilt from.
        folder: replaced when it holds an earlier export; refused when it holds something else.

    Raises:
        UserError: the folder cannot be written.
    """
    words, about = read_words(export), read_export(export)
    reading = Reading.from_json(about.get(READING) or {}, READING)
    plain = (reading.value_range, reading.value_transform, reading.nodata) == (None, "none", None)
    mean, std = words["mean"], words["std"]
    config = {
        "made_by": f"{MARK} {__version__}",
        "files": ["model.py"],
        "task": "detect",
        "backbone": {"name": about["architecture"], "args": about.get("model_args") or {}},
        "pyramid": _pyramid(task),
        "heads": {name: value for name, value in words["method"]["heads"].items() if not isinstance(value, str)},
        "masks": task.masks,
        "categories": words["categories"],
        "size": list(words["size"]),
        "channels": words["channels"],
        "bits": 8 if plain else None,
        "mean": mean,
        "std": std,
        "fill": [(GRAY - m) / s for m, s in zip(mean, std, strict=True)] if plain else [0.0] * len(mean),
    }
    identity: dict[str, Any] = read_json(export / IDENTITY) if (export / IDENTITY).exists() else {}
    card = with_library((export / "README.md").read_text(encoding="utf-8"), "torchvision")
    card = with_section(card, NAMES, names_table(words["categories"], first=1, file="config.json"))
    with replaced(folder, {name: value for name, value in identity.items() if name != "sha256"}) as partial:
        save_file(_state(task), partial / "model.safetensors")
        (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        (partial / "README.md").write_text(with_section(card, "Load it", USE), encoding="utf-8")
        shutil.copyfile(torchvision_model.__file__, partial / "model.py")


def _pyramid(task: Any) -> dict[str, Any]:
    """What model.py builds the pyramid of."""
    pyramid, encoder = task.pyramid, task.encoder
    if isinstance(pyramid, SimplePyramid):
        blocks = list(global_blocks(len(encoder.timm.blocks)))
        shape: dict[str, Any] = {"width": encoder.width, "window": pyramid.window, "global_blocks": blocks}
    else:
        assert isinstance(pyramid, FeaturePyramid)
        stages, norms = pyramid.stages, not isinstance(encoder, ConvolutionalEncoder)
        shape = {"widths": list(stages.widths), "stages": list(stages.indices), "norms": norms}
    return shape | {"strides": list(pyramid.strides)}


def _state(task: nn.Module) -> dict[str, Any]:
    """The weights by their names in model.py."""
    state = {}
    for name, value in task.state_dict().items():
        place = next((start for start in PLACES if name.startswith(start)), "")
        state[PLACES.get(place, "") + name.removeprefix(place)] = value.cpu().contiguous()
    return state
