"""Model card: what was run and measured enters, the README of an export leaves."""

import html
import re
from collections.abc import Mapping, Sequence

from mimkit import __version__

LOAD = {
    "timm": 'import timm\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)',
    "transformers": "from transformers import ViTMAEForPreTraining\n"
    'model = ViTMAEForPreTraining.from_pretrained("FOLDER")',
}  # what a person types to load an export, by library
LISTED = 50  # classes named in a card


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
    measured: Mapping[str, float | tuple[float, float, float]],
    reading: str = "",
    library: str = "timm",
    supervised: bool = False,
    masked: bool = True,
    classes: Sequence[str] = (),
) -> str:
    """The README of an export in Markdown: how to load it, what was run, what was measured.

    Args:
        data, pictures: name and number of the pictures it learned from; any text, it is escaped.
        size: height and width in pixels; `mean` and `std` of pixels in [0, 1], one a channel.
        measured: what was measured, as a value or (value, low, high).
        reading: how values of files become pixels in [0, 1], in words; empty for 8-bit pictures.
        library: `timm` or `transformers`, which loads the folder.
        supervised: it learned the labels of the pictures, and has a classifier.
        masked: it learned by masked image modeling.
        classes: what its outputs are called, of a classifier.
    """
    facts = {
        "Architecture": architecture,
        "Recipe": recipe,
        "Data": f"{data}, {pictures:,} pictures, {'with' if supervised else 'no'} labels",
        "Training": f"{steps:,} steps, {epochs:.4g} epochs",
        "Images": f"{size[0]} x {size[1]} pixels, {len(mean)} channel{'s' if len(mean) > 1 else ''}",
        **({"Values": reading} if reading else {}),
        "Mean": ", ".join(f"{value:.4f}" for value in mean),
        "Standard deviation": ", ".join(f"{value:.4f}" for value in std),
        "Made with": f"mimkit {__version__}",
    }
    rows = [f"| {_escaped(key)} | {_escaped(value)} |" for key, value in facts.items()]
    table = [f"| {_escaped(key)} | {_number(value)} |" for key, value in measured.items()]
    parts = [
        _front(library, supervised, masked),
        f"# {_escaped(architecture)}, {'fine-tuned' if supervised else 'pre-trained'} on {_escaped(data)}",
        _description(supervised, masked),
        f"## Load it\n\n```python\n{LOAD[library]}\n```\n\nFOLDER is where this file lies. Pixels in [0, 1], minus "
        "the mean, divided by the standard deviation.",
        *([_outputs(classes)] if classes else []),
        "## What was run\n\n| | |\n|-|-|\n" + "\n".join(rows),
        "## What was measured\n\n" + ("| | |\n|-|-|\n" + "\n".join(table) if table else "Nothing yet."),
        "These weights belong to the person who trained them, who decides on their license.",
    ]
    return "\n\n".join(parts) + "\n"


def _outputs(classes: Sequence[str]) -> str:
    """Which output is which class, of the first ones."""
    rows = [f"| {number} | {_escaped(name)} |" for number, name in enumerate(classes[:LISTED])]
    rest = [f"and {len(classes) - LISTED:,} more in config.json."] if len(classes) > LISTED else []
    words = (
        "As `label_names` in config.json has them, by which transformers answers: "
        '`pipeline("image-classification", model="FOLDER")`.'
    )
    return "\n\n".join(["## What its outputs are", words, "\n".join(["| output | class |", "|-|-|", *rows]), *rest])


def _front(library: str, supervised: bool, masked: bool) -> str:
    """The YAML that the hub reads: by these tags a model is found there."""
    kinds = ["image-classification"] if supervised else ["image-feature-extraction"]
    kinds += ["masked-image-modeling"] if masked and not supervised else []
    tags = [library, *kinds, "mimkit"]
    return "\n".join(["---", f"library_name: {library}", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _description(supervised: bool, masked: bool) -> str:
    if supervised:
        return "A classifier, all of whose weights learned the labels of these pictures."
    if masked:
        return "A vision transformer that learned from unlabeled pictures by masked image modeling."
    return "A network that learned from unlabeled pictures."


def _number(value: float | tuple[float, float, float]) -> str:
    """A measured value, with its interval where there is one."""
    if isinstance(value, tuple):
        return f"{value[0]:.4g} ({value[1]:.4g} to {value[2]:.4g})"
    return f"{value:.4g}"


def _escaped(text: str) -> str:
    """Any text as one line of Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
