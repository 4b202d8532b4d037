"""The overview: nothing enters, the text of `mimkit --help` leaves. Nothing is imported, so that it is fast.

A test compares each line with what the command declares.
"""

from mimkit.core.errors import UserError

COMMANDS = {
    "recipes": ("[--json FILE]", "list the recipes"),
    "pretrain": ("[RECIPE] --data DATA [--run DIR] [--epochs N] ...", "learn from pictures without labels"),
    "launch": ("[--gpus N] pretrain ...", "the same in several processes, on one host or more"),
    "evaluate": (
        "knn|probe|attentive|all|finetune|segment|depth|detect|keypoints TARGET ... --data DATA",
        "measure a run, an export, a timm model or a baseline",
    ),
    "embed": ("TARGET --data DATA --out FILE [--tokens]", "a vector of each picture, into Parquet, npz or csv"),
    "neighbors": ("TARGET --data DATA --out FOLDER [--k 8]", "the most similar pictures of each"),
    "duplicates": ("TARGET --data DATA --out FOLDER [--threshold 0.97]", "groups of pictures that look alike"),
    "clusters": ("TARGET --data DATA --out FOLDER [--clusters N]", "pictures in clusters, the most typical first"),
    "outliers": ("TARGET --data DATA --out FOLDER", "pictures that look least like any others"),
    "curate": ("TARGET --data DATA --out FOLDER [--count N]", "a balanced list without near-duplicates, for --data"),
    "compare": ("RECIPE RECIPE ... --data DATA [--budget compute]", "train and measure several under one budget"),
    "analyze": ("TARGET ... --data DATA [--out DIR]", "what each layer and head of a model does"),
    "report": ("RUN ... [--out FILE]", "one page of curves, pictures and metrics, to open anywhere"),
    "view": ("RUN [--port 0] [--host 127.0.0.1]", "the same page, following a run that still trains"),
    "masks": ("MASKER|RECIPE [--data DATA] [--from RUN]", "draw masks on your pictures"),
    "predict": ("TARGET --data DATA --out FOLDER", "what a fine-tuned dense task says of pictures, as files"),
    "export": ("RUN --out DIR [--to timm|huggingface|torchvision|onnx]", "leave with the model"),
    "doctor": ("DATA ... [RECIPE]", "what is wrong with a folder before anything trains"),
    "shards": ("pack|index|check DATA ... [--out DIR]", "pictures in tar files: write, index or verify them"),
    "diff": ("RUN RUN", "what differs between two runs"),
    "check": ("RUN", "whether every file of a run is what was written"),
}
"""Name: positionals and the flags that one gives most, and what the command does."""

TEXT = """usage: mimkit COMMAND ...

{commands}

'mimkit COMMAND --help' explains one. DATA: folders, text files of paths, Parquet files, shards, or
photos, fashion-mnist, cifar10, cifar100, stl10, imagenette. Every command takes --json FILE (or - for the standard
output), --trust PACKAGE (of your own, whose code a run folder may name) and --debug; flags may stand before
other words. 'mimkit --print-completion bash' (or zsh) prints what completes all this behind a Tab.

A first run, no data needed:   mimkit pretrain --data photos
"""


def overview() -> str:
    """The text of `mimkit --help`."""
    lines = (f"  {name:<10} {form:<57} {summary}" for name, (form, summary) in COMMANDS.items())
    return TEXT.format(commands="\n".join(lines))


def wanted(command: str) -> UserError:
    """The error for a command that lacks something that must be given."""
    return UserError(f"wanted: mimkit {command} {COMMANDS[command][0]}; 'mimkit {command} --help' explains")
