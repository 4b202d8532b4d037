"""Model card: what was run and measured enters, the README of an export leaves."""

import html
import re
from collections.abc import Mapping, Sequence

from mimkit import __version__
from mimkit.core.annotation import DenseTask

LOAD = {
    "timm": 'import timm\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)',
    "transformers": "from transformers import ViTMAEForPreTraining\n"
    'model = ViTMAEForPreTraining.from_pretrained("FOLDER")',
}  # what a person types to load an export, by library
LISTED = 50  # classes named in a card
USE = """```sh
mimkit predict FOLDER --data PICTURES --out PREDICTIONS
```

```python
import mimkit
mimkit.load("FOLDER").predict("picture.jpg")
```

The backbone alone, without the head:

"""  # of a dense task
PIPELINES: dict[DenseTask, str] = {
    "segment": "image-segmentation",
    "depth": "depth-estimation",
    "detect": "object-detection",
    "keypoints": "keypoint-detection",
}  # as Hugging Face's hub calls tasks
SAYS: dict[DenseTask, str] = {
    "segment": "the class of each pixel",
    "depth": "the depth of each pixel in meters",
    "detect": "boxes and classes of objects, with masks where it learned them",
    "keypoints": "the joints of each person whose box is given",
}
MEASURED, NAMES = "What was measured", "What it names"
LICENSE = "These weights belong to the person who trained them, who decides on their license."
Measured = Mapping[str, float | str | tuple[float, float, float]]


def model_card(
    *,
    architecture: str,
    recipe: str,
    data: str,
    pictures: int,
    steps: int,
    epochs: float,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    measured: Measured,
    reading: str = "",
    library: str = "timm",
    supervised: bool = False,
    masked: bool = True,
    classes: Sequence[str] = (),
    task: DenseTask | None = None,
) -> str:
    """The README of an export in Markdown: how to load it, what was run, what was measured.

    Args:
        data, pictures: name and number of the pictures it learned from; any text, it is escaped.
        size: height and width in pixels; `mean` and `std` of pixels in [0, 1], one a channel.
        measured: what was measured, as a value, (value, low, high) or words.
        reading: how values of files become pixels in [0, 1], in words; empty for 8-bit pictures.
        library: `timm` or `transformers`, which loads the folder.
        supervised: it learned the labels of the pictures, and has a classifier or a head.
        masked: it learned by masked image modeling.
        classes: what its outputs are called, of a classifier; of a dense task its classes, or joints.
        task: that it was fine-tuned for, if it says more of a picture than its class.
    """
    labels = "annotations" if task else "labels"
    facts = {
        "Architecture": architecture,
        "Recipe": recipe,
        "Data": f"{data}, {pictures:,} pictures, {f'with {labels}' if supervised else 'no labels'}",
        "Training": f"{steps:,} steps, {epochs:.4g} epochs",
        "Images": f"{size[0]} x {size[1]} pixels, {len(mean)} channel{'s' if len(mean) > 1 else ''}",
        **({"Values": reading} if reading else {}),
        "Mean": ", ".join(f"{value:.4f}" for value in mean),
        "Standard deviation": ", ".join(f"{value:.4f}" for value in std),
        "Made with": f"mimkit {__version__}",
    }
    rows = [f"| {_escaped(key)} | {_escaped(value)} |" for key, value in facts.items()]
    parts = [
        _front(library, supervised, masked, task),
        f"# {_escaped(architecture)}, {'fine-tuned' if supervised else 'pre-trained'} on {_escaped(data)}",
        _description(supervised, masked, task),
        f"## Load it\n\n{USE if task else ''}```python\n{LOAD[library]}\n```\n\nFOLDER is where this file lies. "
        "Pixels in [0, 1], minus the mean, divided by the standard deviation.",
        *([_outputs(classes, task)] if classes else []),
        "## What was run\n\n| | |\n|-|-|\n" + "\n".join(rows),
        f"## {MEASURED}\n\n{_scores(measured)}",
        LICENSE,
    ]
    return "\n\n".join(parts) + "\n"


def with_scores(card: str, measured: Measured) -> str:
    """A card that says what was measured after it was written."""
    return with_section(card, MEASURED, _scores(measured))


def with_section(card: str, title: str, text: str) -> str:
    """A card with another text below a title; unchanged where it has no such title."""
    pattern = rf"(?<=\n## {re.escape(title)}\n\n).*?(?=\n\n## |\n\n{re.escape(LICENSE)})"
    return re.sub(pattern, lambda _: text, card, count=1, flags=re.DOTALL)


def with_library(card: str, library: str) -> str:
    """A card for the hub that names another library."""
    front, end, rest = card.partition("\ntags:\n")
    front, rest = (
        re.sub(r"(?m)^library_name: .*", f"library_name: {library}", front),
        re.sub("^- .*", f"- {library}", rest),
    )
    return front + end + rest


def _scores(measured: Measured) -> str:
    table = [f"| {_escaped(key)} | {_number(value)} |" for key, value in measured.items()]
    return "| | |\n|-|-|\n" + "\n".join(table) if table else "Nothing yet."


def names_table(classes: Sequence[str], first: int = 0, titles: str = "number | class", file: str = "head.json") -> str:
    """Numbers from `first` on and what they are called, of the first ones; `file` has all."""
    rows = [f"| {number} | {_escaped(name)} |" for number, name in enumerate(classes[:LISTED], first)]
    rest = f"\n\nand {len(classes) - LISTED:,} more in {file}." if len(classes) > LISTED else ""
    return "\n".join([f"| {titles} |", "|-|-|", *rows]) + rest


def _outputs(classes: Sequence[str], task: DenseTask | None) -> str:
    """Which output is which class, of the first ones."""
    if task:
        titles = "number | joint" if task == "keypoints" else "number | class"
        return f"## {NAMES}\n\n{names_table(classes, titles=titles)}"
    words = (
        "As `label_names` in config.json has them, by which transformers answers: "
        '`pipeline("image-classification", model="FOLDER")`.'
    )
    table = names_table(classes, titles="output | class", file="config.json")
    return f"## What its outputs are\n\n{words}\n\n{table}"


def _front(library: str, supervised: bool, masked: bool, task: DenseTask | None) -> str:
    """The YAML that the hub reads: by these tags a model is found there."""
    if task:
        lines = [f"library_name: {library}", f"pipeline_tag: {PIPELINES[task]}", "tags:", f"- {library}", "- mimkit"]
        return "\n".join(["---", *lines, "---"])
    kinds = ["image-classification"] if supervised else ["image-feature-extraction"]
    kinds += ["masked-image-modeling"] if masked and not supervised else []
    tags = [library, *kinds, "mimkit"]
    return "\n".join(["---", f"library_name: {library}", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _description(supervised: bool, masked: bool, task: DenseTask | None) -> str:
    if task:
        return f"A backbone and a head, fine-tuned on annotated pictures to say {SAYS[task]}."
    if supervised:
        return "A classifier, all of whose weights learned the labels of these pictures."
    if masked:
        return "A vision transformer that learned from unlabeled pictures by masked image modeling."
    return "A network that learned from unlabeled pictures."


def _number(value: float | str | tuple[float, float, float]) -> str:
    """A measured value, with its interval where there is one; words as they are."""
    if isinstance(value, str):
        return _escaped(value)
    if isinstance(value, tuple):
        return f"{value[0]:.4g} ({value[1]:.4g} to {value[2]:.4g})"
    return f"{value:.4g}"


def _escaped(text: str) -> str:
    """Any text as one line of Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
