"""Fine-tuning, before and after training: a target enters, where to start leaves; a tuned run enters, scores leave."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Int64
from PIL import Image, ImageDraw, ImageFont
from rich.markup import escape
from rich.table import Table
from timm.data import resolve_data_config
from torch import Tensor

from mimkit.core.annotation import DENSE_TASKS
from mimkit.core.errors import UserError, unknown
from mimkit.core.grids import RAMP, colorize, save_picture
from mimkit.core.integrity import refuse_changed
from mimkit.core.metrics import class_balance, class_scores, confusion_counts
from mimkit.data.loader import evaluation_batches
from mimkit.data.pictures import Pictures
from mimkit.data.reading import Reading
from mimkit.data.sources import open_measured
from mimkit.data.stream import all_bad
from mimkit.evaluate.balance import missing_classes, needs_balance
from mimkit.evaluate.features import mean_of_tiles
from mimkit.evaluate.target import UNTRAINED, Extractor, export_folder, reading_of
from mimkit.model.build import EncoderConfig
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.run_folder import RunFolder, run_beside, write_json
from mimkit.weights.exported import read_export
from mimkit.weights.official import ENDINGS, official
from mimkit.weights.statistics import IMAGENET

WORST = 10  # classes in the table
NAMED = 40  # classes up to which the picture has their names
BUILT_ANEW = ("img_size", "in_chans", "num_classes", "global_pool", "fc_norm", "drop_path_rate")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a target says about fine-tuning it."""

    encoder: EncoderConfig
    """With the target's weights, or without for an untrained one."""
    size: tuple[int, int]
    """Height and width of its images in pixels."""
    width: int
    """Of its features."""
    method: str = ""
    """What trained it, as `MAE`; empty when nothing says so."""
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    """Per channel, of pixels in 0..1; None for those of the data."""
    std: tuple[float, ...] | None = None
    reading: Reading = field(default_factory=Reading)

    def configure(self, config: Pretrain) -> None:
        """Put encoder and images of the target into a recipe; those of dense tasks have a size of their own."""
        # A recipe's own encoder and normalization would not be those that the weights were trained with.
        config.encoder, images = self.encoder, config.images
        if config.method.learns not in DENSE_TASKS:
            images.size = self.size[0] if self.size[0] == self.size[1] else self.size
        images.mean, images.std = self.mean, self.std
        images.follow(replace(self.reading, channels=self.channels))


def start_of(target: str) -> Start:
    """Where fine-tuning begins: a run folder, an export, a timm name (its released weights), or `untrained:` of these.

    Or a file of weights, see `official`.

    An untrained folder begins with new weights in the same architecture, by the same initialization.

    Raises UserError when there is no such target.
    """
    name, trained = target.removeprefix(UNTRAINED), not target.startswith(UNTRAINED)
    folder, file = export_folder(target), Path(target).expanduser()
    if file.suffix in ENDINGS and file.is_file():
        weights = official(file)
        args = {key: value for key, value in weights.config.model_args.items() if key not in BUILT_ANEW}
        statistics: Any = dict(mean=IMAGENET[0], std=IMAGENET[1]) if weights.channels == 3 else {}
        return Start(
            encoder=replace(weights.config, model_args=args),
            size=weights.size,
            width=weights.config.width or 0,
            channels=weights.channels,
            **statistics,
        )
    if folder is None:
        if not timm.is_model(name):
            raise unknown("run folder, export or timm model", name, timm.list_models())
        if trained and not timm.is_model_pretrained(name):
            raise UserError(f"timm has no released weights of '{name}': use {UNTRAINED}{name}, or a local export")
        # The width is all that is wanted: no weights are drawn or fetched.
        with torch.device("meta"):
            model: Any = timm.create_model(name)
        about = resolve_data_config(model.pretrained_cfg)
        normalization: Any = dict(mean=about["mean"], std=about["std"], channels=len(about["mean"])) if trained else {}
        encoder = EncoderConfig(name=name, positions="learned", weights="timm" if trained else None)
        return Start(encoder=encoder, size=about["input_size"][1:], width=model.num_features, **normalization)
    about = read_export(folder)
    # Beside an export its run tells what the export does not: positions, value range, and what trained it.
    origin: dict[str, Any] = run_beside(folder).get("config", {})
    try:
        cfg, args = about["pretrained_cfg"], about.get("model_args") or {}
        channels, *size = cfg["input_size"]
        return Start(
            encoder=EncoderConfig(
                name=about["architecture"],
                positions=origin.get("encoder", {}).get("positions", "sincos"),
                weights=str(folder.resolve()) if trained else None,
                model_args={key: value for key, value in args.items() if key not in BUILT_ANEW},
            ),
            size=(size[0], size[1]),
            width=about["num_features"],
            method=origin.get("method", {}).get("class", "").rpartition(":")[2].removesuffix("Config"),
            channels=channels,
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            reading=reading_of(about, origin),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder / 'config.json'} does not say {error}: export it again") from error


def count_classes(config: Pretrain) -> int:
    """How many classes the pictures, their pixels or objects have, to learn from and to be measured together.

    Raises UserError when there are no labels, or but one to learn.
    """
    prepared = Prepared(config)
    if config.method.learns in DENSE_TASKS:
        return len(prepared.annotated.train.categories)
    pictures = prepared.pictures
    labels: Any = pictures.labels
    if len(labels.unique()) < 2:
        raise UserError(f"{pictures.name}: all pictures have one label: give two classes or more")
    return len(pictures.classes or ())


def known_of_set(config: Pretrain) -> dict[str, Any]:
    """Settings of a method that follow from its pictures: classes or joints, where they are not set, and masks."""
    method: Any = config.method
    if method.learns == "depth":
        return {}
    if method.learns != "keypoints":
        counted = {"classes": method.classes or count_classes(config)}
        without = method.learns == "detect" and not Prepared(config).annotated.train.has_masks
        return counted | ({"masks": False} if without else {})
    joints = Prepared(config).annotated.train.joints
    return {"joints": method.joints or len(joints.names if joints is not None else ())}


def unfinished(folder: Path) -> bool:
    """Whether a fine-tuning lives here that has still to be trained or measured."""
    run = RunFolder(folder)
    if not run.exists or not run.read_config()["config"].method.supervised:
        return False
    return not run.finished or not {"accuracy", "scores"} & set(run.result())


def held_out(prepared: Prepared) -> Pictures:
    """The labeled pictures that are measured."""
    reading = replace(prepared.reading, channels=prepared.channels)
    return open_measured(prepared.config.data, reading, purpose="fine-tuning", by_class=prepared.by_class).test


@torch.inference_mode()
def measure(folder: Path, *, device: torch.device, workers: int = 0) -> dict[str, Any]:
    """Scores of a finished fine-tuning on the test pictures: its export, as timm loads it, on whole pictures.

    Returns what it adds to the run's result.json: what `core.metrics.class_scores` and `class_balance` give, top5 where
    there are more classes, test (pictures), skipped_test, pictures_per_second of training and confusion (a row of
    counts for each true class). Writes confusion.png beside it.
    """
    run = RunFolder(folder)
    saved = run.read_config()
    config, resolved = saved["config"], saved["resolved"]
    prepared = Prepared(config, resolved, begun=True)
    test = held_out(prepared)
    mean, std = prepared.statistics
    refuse_changed(folder / "export")
    model: Any = timm.create_model(f"local-dir:{(folder / 'export').resolve()}", pretrained=True).eval().to(device)
    # The view of every other evaluation, so that numbers before and after fine-tuning compare.
    view = Extractor(name="", size=prepared.size, channels=prepared.channels, mean=mean, std=std, fingerprint="").view
    skipped: dict[int, str] = {}
    reading: Any = dict(
        size=prepared.size, mean=mean, std=std, device=device, view=view, workers=workers, skipped=skipped
    )
    rows = [
        (model(images).float().softmax(dim=1).cpu(), labels, numbers)
        for images, labels, numbers in evaluation_batches(test, **reading)
    ]
    if not rows:
        raise all_bad(test, skipped)
    likely, truth, numbers = map(torch.cat, zip(*rows, strict=True))
    if not likely.isfinite().all():
        raise UserError(f"the outputs of {folder / 'export'} are not finite: its weights are damaged or overflow")
    if test.owners is not None:
        likely, first = mean_of_tiles(likely, test.owners[numbers])
        truth = truth[first]
    predicted = likely.topk(min(5, config.method.classes), dim=1).indices
    learned: Any = prepared.pictures.labels
    # As many as the head has, which may be given as more than there are.
    names = [*(test.classes or ()), *map(str, range(len(test.classes or ()), config.method.classes))]
    confusion = confusion_counts(truth, predicted[:, 0], len(names))
    result = run.result()
    top5 = {"top5": (predicted == truth.unsqueeze(1)).any(dim=1).double().mean().item()} if len(confusion) > 5 else {}
    scores = class_scores(truth, predicted[:, 0], names)
    result |= scores | top5 | class_balance(learned, truth, names)
    result |= {
        "architecture": config.encoder.name,
        "weights": config.encoder.weights,
        "data": prepared.name,
        "train": prepared.count,
        "test": len(truth),
        "skipped_test": len(skipped),
        "epochs": config.epochs,
        "pictures_per_second": round(result["steps"] * config.batch_size / max(1e-3, result["seconds"]), 1),
        "confusion": confusion.tolist(),
    }
    save_picture(draw_confusion(confusion, names), folder / "confusion.png")
    write_json(run.result_path, result)
    return result


def draw_confusion(confusion: Int64[Tensor, "K K"], names: list[str]) -> Image.Image:
    """Rows: true classes, columns: what they were taken for, in shares of the row from dark (0) to light (1).

    Up to 40 classes are named and up to 20 have their percentages in the cells.
    """
    classes = len(confusion)
    # Of each row: classes with many pictures would else outshine the others.
    shares = confusion.float() / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    side = 34 if classes <= 20 else max(1, 760 // classes)
    pixels = colorize(shares[None, None], (0.0, 1.0))[0].permute(1, 2, 0)
    cells = Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())
    cells = cells.resize((classes * side, classes * side), Image.Resampling.NEAREST)
    # Pillow's own font: no machine needs to have one installed.
    font = ImageFont.load_default(size=13)
    small = ImageFont.load_default(size=12)
    shown = [name[:24] for name in names] if classes <= NAMED else []
    margin = 30 + int(max((font.getlength(name) for name in shown), default=0))
    sheet = Image.new("RGB", (margin + cells.width + 10, margin + cells.height + 10), "white")
    sheet.paste(cells, (margin, margin))
    pen = ImageDraw.Draw(sheet)
    pen.text((8, 8), "true class: rows\ntaken for: columns", fill="black", font=small)
    for i, name in enumerate(shown):
        pen.text((margin - 6, margin + (i + 0.5) * side), name, fill="black", font=font, anchor="rm")
        # Pillow draws no upright text: it is drawn lying into a mask of its own, which is turned and then inked.
        upright = Image.new("L", (margin, side))
        ImageDraw.Draw(upright).text((6, side / 2), name, fill=255, font=font, anchor="lm")
        upright = upright.rotate(90, expand=True)
        sheet.paste("black", (margin + i * side, 0), upright)
        for j in range(classes if classes <= 20 else 0):
            if (fraction := shares[i, j].item()) >= 0.005:
                color = "black" if fraction > 1.5 / (len(RAMP) - 1) else "white"
                place = margin + (j + 0.5) * side, margin + (i + 0.5) * side
                pen.text(place, f"{100 * fraction:.0f}", fill=color, font=small, anchor="mm")
    return sheet


def table(result: dict[str, Any]) -> Table:
    """Accuracies, what they cost, and the classes that do worst."""
    grid = Table(box=None, pad_edge=False, show_header=False)
    worst = sorted(result["per_class"].items(), key=lambda item: item[1]["accuracy"])[:WORST]
    rows = [
        ("fine-tuned", f"{result['architecture']}, from {result['weights'] or 'new weights'}, by {result['recipe']}"),
        ("accuracy", f"{result['accuracy']:.1%} ({result['low']:.1%} to {result['high']:.1%})"),
        *_balance_rows(result),
        *([("top 5", f"{result['top5']:.1%}")] if "top5" in result else []),
        ("pictures", f"{result['train']:,} to learn from, {result['test']:,} measured, of {result['data']}"),
        ("training", f"{result['epochs']} epochs, {result['steps']:,} steps, {result['seconds']:,.0f} s"),
        ("", f"{result['pictures_per_second']:,.0f} pictures/s"),
        ("worst classes", ""),
        *(
            (f"  {label}", f"{scores['accuracy']:.1%} of {scores['pictures']:,}" + _taken(scores["taken_for"]))
            for label, scores in worst
        ),
        ("confusion", str(Path(result["run"]) / "confusion.png")),
        ("the model", f"timm.create_model('local-dir:{(Path(result['run']) / 'export').absolute()}', pretrained=True)"),
    ]
    for row in rows:
        grid.add_row(*map(escape, row))
    return grid


def _balance_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What the accuracy has to be read against; nothing of a result of version 0.2, which does not say it."""
    if "largest_class" not in result:
        return []
    largest = result["largest_class"]
    rows = [("largest class", f"{largest['share']:.1%} of the measured pictures are '{largest['name']}'")]
    if needs_balance(result, len(result["confusion"])):
        rows.insert(0, ("balanced", f"{result['balanced_accuracy']:.1%}, the mean over the classes"))
    return rows + [("", line) for line in missing_classes(result)]


def _taken(name: str | None) -> str:
    return f", most often taken for {name}" if name is not None else ""
