"""Draw masks: a masker and pictures enter; a picture of its masks and their statistics leave."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import timm
import torch
from jaxtyping import Bool, Float
from rich.markup import escape
from rich.table import Table
from timm.models import VisionTransformer
from torch import Tensor

from mimkit.core.batch import Batch
from mimkit.core.display import Display, split_holes
from mimkit.core.errors import UserError, at_least
from mimkit.core.grids import (
    colorize,
    faded,
    mask_to_pixels,
    masked,
    patches_to_pixels,
    save_picture,
    titled_grid,
)
from mimkit.core.randomness import integer, rng_keys
from mimkit.data.loader import evaluation_batches, statistics
from mimkit.data.objects import object_fractions
from mimkit.data.pictures import Pictures
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.views import CenterCrop
from mimkit.evaluate.target import export_folder, open_target
from mimkit.guidance.sampler import MaskSampler
from mimkit.masks import Mask, Masker, RandomMasker, SelfGuidedMasker, Signal
from mimkit.masks.informed import InformedMasker, ModelMasker
from mimkit.masks.statistics import mask_statistics, mean
from mimkit.methods.base import MaskedConfig
from mimkit.model.build import EncoderConfig, is_beit, is_windowed
from mimkit.model.patches import patchify
from mimkit.model.teacher import Teacher
from mimkit.model.vit import Encoder, refuse_unsuitable
from mimkit.train.drawing import run_display, with_holes
from mimkit.train.prepare import Images, Pretrain
from mimkit.weights.load import load_weights

VIEW = CenterCrop(fraction=1.0)
LATEST = 0.999  # a masker that only a trigger starts is drawn as if that came at last
SAMPLE = 256  # pictures from which mean and standard deviation are taken for a model that has none


@dataclass(kw_only=True)
class MaskDrawing:
    """What to draw: a masker's masks on pictures."""

    data: tuple[str, ...] = ("photos",)
    """Pictures, as for pretrain."""
    masker: Masker = field(default_factory=RandomMasker)
    images: Reading = field(default_factory=Reading)
    """How files become pictures; a run or an export reads them as it was trained, but for what is said here."""
    model: str | None = None
    """The model that the masker asks: a run folder, an export folder, or a timm model with released weights. By
    default the teacher of a recipe whose masker asks it, the recipe's encoder before any training, or a small ViT."""
    progress: float | None = None
    """Moment of training, 0 <= progress < 1; by default just after the masker has started to look."""
    ratios: tuple[float, ...] = ()
    """Several shares of hidden patches to draw one below the other, instead of the masker's one."""
    size: int | tuple[int, int] | None = None
    """Side of the images in pixels, or height and width; by default the model's or the recipe's, else 224."""
    patch: int | None = None
    """Side of a patch in pixels; by default the model's or the recipe's, else 16."""
    objects: Path | None = None
    """Folder of object masks that are named like the pictures (not zero: object), to count how much is hidden."""
    out: Path = Path("masks.png")
    """The picture to write."""
    show: int = 6
    """Pictures to draw."""
    seeds: int = 4
    """Masks to draw on each."""
    channels: tuple[int, ...] | None = None
    """Channels to show, counted from 1, as images.shown; by default as the run or the recipe says."""
    stretch: bool | None = None
    """Spread the 2nd to the 98th percentile over black to white, as images.stretch; by default as the run or the recipe
    says."""
    color_map: bool = False
    """A single channel in colors, as images.color_map."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What masks are drawn on, and who looks at it."""

    pictures: Pictures
    size: tuple[int, int]
    patch: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    encoder: Encoder | None = None
    teacher: str | None = None  # the method's own, whose attention a masker reads that names no other
    model_name: str | None = None  # what to call who looks; None where nobody does
    trained: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch[0], self.size[1] // self.patch[1]


def masker_of(name: str, recipe: Pretrain) -> Masker:
    """The masker of a recipe."""
    if not isinstance(recipe.method, MaskedConfig):
        raise UserError(f"recipe '{name}' hides no patches: choose another one, 'mimkit recipes' lists them")
    return recipe.method.masker


def draw_masks(drawing: MaskDrawing, recipe: Pretrain | None = None) -> tuple[dict[str, Any], Table]:
    """Write the picture; returns the statistics over all masks drawn, as JSON and as a table."""
    at_least(1, show=drawing.show, seeds=drawing.seeds)
    if drawing.out.suffix.lower() != ".png":
        raise UserError(f"--out {drawing.out} must end in .png")
    prototype, progress = moment(drawing.masker, drawing.progress)
    maskers = [with_ratio(prototype, ratio) for ratio in drawing.ratios] or [prototype]
    scene = open_scene(drawing, prototype, prototype.reads(progress), recipe)
    images, valid, picture_numbers = some_images(scene, drawing.show)
    # Looked at once: maskers of other ratios see the same signal.
    signal = look(scene, prototype, images, progress)
    objects = None
    if drawing.objects is not None:
        objects = object_fractions(
            drawing.objects, scene.pictures, picture_numbers.tolist(), VIEW, scene.size, scene.patch
        )

    # The same keys for every ratio: rows of the sheet differ by the ratio alone.
    addresses = [rng_keys("masks", seed, torch.arange(len(images))) for seed in range(drawing.seeds)]
    scores = signal[..., 0] if signal.shape[2] else None
    drawn, by_ratio = [], []
    for masker in maskers:
        masks = [masker(signal, address, progress, scene.grid) for address in addresses]
        if valid is not None:
            measured = patchify(valid.float(), scene.patch).mean(dim=2)
            masks = [mask.without_holes(measured) for mask in masks]
        numbers = mask_statistics(masks, addresses, scene.grid, scene.patch, scores=scores, objects=objects)
        descriptions = [masker.describe(signal, mask) for mask in masks]
        for key in descriptions[0]:
            numbers[f"masker_{key}"] = mean(torch.stack([each[key].float() for each in descriptions]))
        drawn.append(masks)
        by_ratio.append(numbers)
    display = display_of(drawing, scene, recipe).fitted(images, valid)
    sheet = columns(scene, prototype, display(images), signal, objects, drawn)
    if (holes := display.holes(valid)) is not None:
        sheet = with_holes(sheet, holes.repeat_interleave(len(drawn), dim=0))
    try:
        labels = [f"{ratio:g}" for _ in images for ratio in drawing.ratios]
        save_picture(titled_grid(sheet, labels=labels), drawing.out)
    except OSError as error:
        raise UserError(f"cannot write {drawing.out}: {error.strerror or error}") from error
    result: dict[str, Any] = {
        "masker": repr(drawing.masker),
        "out": str(drawing.out),
        "model": scene.model_name,
        "trained": scene.trained if scene.model_name else None,
        "progress": progress,
        **by_ratio[0],
    }
    if drawing.ratios:
        result["ratios"] = [{"asked": ratio} | numbers for ratio, numbers in zip(drawing.ratios, by_ratio, strict=True)]
    return result, as_table(result, by_ratio, [f"{ratio:g}" for ratio in drawing.ratios])


def moment(masker: Masker, progress: float | None) -> tuple[Masker, float]:
    """The masker and the moment to draw it at: the one given, else the first at which it looks."""
    if progress is not None:
        if not 0 <= progress < 1:
            raise UserError(f"--progress runs over training, from 0 up to but not including 1, got {progress:g}")
        return masker, progress
    if not isinstance(masker.guide, InformedMasker):
        return masker, 0.0
    # Just when it starts to look: earlier its masks are random, and nobody wants to see those.
    start = min(masker.guide.start, LATEST)
    return masker.start_at(start), start


def with_ratio(masker: Masker, ratio: float) -> Masker:
    """The masker with another ratio, in all its parts that have one."""
    settings = {setting.name: getattr(masker, setting.name) for setting in fields(masker)}
    parts: dict[str, Any] = {n: with_ratio(value, ratio) for n, value in settings.items() if isinstance(value, Masker)}
    if "ratio" in settings:
        parts["ratio"] = ratio
    if not parts:
        raise UserError(f"{type(masker).__name__} has no ratio, it follows from other settings: leave --ratios away")
    return replace(masker, **parts)


def open_scene(drawing: MaskDrawing, masker: Masker, reads: Signal, recipe: Pretrain | None) -> Scene:
    """Pictures, and the model that the masker asks where it asks one."""
    size = (drawing.size, drawing.size) if isinstance(drawing.size, int) else drawing.size
    if min(*(size or (1,)), drawing.patch or 1) < 1 or drawing.patch == 0:
        raise UserError("--size and --patch must be at least 1")
    scorer = masker.guide.scorer if isinstance(masker.guide, ModelMasker) else "online"
    teacher = None if scorer in ("online", "ema") else scorer
    pictures = open_pictures(drawing.data, "all", drawing.images)
    if drawing.model is not None:
        if teacher and reads is not Signal.NONE:
            raise UserError(f"the masker asks its own teacher '{teacher}': leave --from away, or use --scorer online")
        return with_model(drawing.model, pictures, drawing, size)
    image_size = size or (recipe.images.shape() if recipe else (224, 224))
    config = recipe.encoder if recipe else EncoderConfig(name="vit_tiny_patch16_224")
    patch = (drawing.patch, drawing.patch) if drawing.patch else patch_of(config, image_size)
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise UserError(
            f"{image_size[0]}x{image_size[1]} pixels do not divide into patches of {patch[0]}: change --size or --patch"
        )
    plain = Scene(
        pictures=pictures, size=image_size, patch=patch, mean=(0.0,) * pictures.channels, std=(1.0,) * pictures.channels
    )
    if reads is Signal.NONE:
        return plain
    shared = recipe is not None and reads is Signal.ATTENTION and scorer == "online"
    own = recipe.method.attention_teacher if shared and isinstance(recipe.method, MaskedConfig) else None
    if own == "":
        raise UserError("the masker asks the method's teacher and this recipe names none: give one with --from")
    # The weights that `pretrain` begins with: same seed, same address.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer("init", recipe.seed if recipe else 0))
        encoder = replace(config, patch=drawing.patch or config.patch).build(image_size, pictures.channels)
    refuse_unsuitable(encoder.timm, config.name)
    assert isinstance(encoder, Encoder)
    model_name, trained = teacher or own or config.name, (teacher or own) is not None
    if config.weights and not trained:
        load_weights(config.weights, encoder, name=config.name)
        model_name, trained = f"{config.name} from {config.weights}", True
    encoder.mean, encoder.std = statistics(pictures, sample_size=SAMPLE)
    plain = replace(plain, mean=encoder.mean, std=encoder.std)
    return replace(plain, encoder=encoder, teacher=own, model_name=model_name, trained=trained)


def patch_of(config: EncoderConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Size of the encoder's patches; no weights are made."""
    with torch.device("meta"):
        args = config.timm_args(size, 3)
        gridded = is_windowed(config.name) or is_beit(config.name)
        vit = timm.create_model(config.name, **args if gridded else args | {"img_size": None})
    side = vit.get_submodule("patch_embed").get_submodule("proj").kernel_size
    assert isinstance(side, tuple)
    return side[0], side[1]


def with_model(target: str, pictures: Pictures, drawing: MaskDrawing, fixed_size: tuple[int, int] | None) -> Scene:
    """The scene as a model of `--from` sees it: in its size, normalized like its pictures."""
    size, mean, std = fixed_size, (0.0,) * pictures.channels, (1.0,) * pictures.channels
    if target != "pixels" and export_folder(target) is None:  # timm's: it takes any size, and has one of its own
        pretrained = timm.get_pretrained_cfg(target.removeprefix("untrained:"))
        size = fixed_size or (pretrained.input_size[1:] if pretrained else None)
        mean, std = statistics(pictures, sample_size=SAMPLE)
    extractor = open_target(target, size=size or (224, 224), channels=pictures.channels, mean=mean, std=std)
    if extractor.model is None:
        raise UserError(f"'{target}' is no model that a masker could ask: give a run, an export or a timm model")
    refuse_unsuitable(extractor.model, target)
    encoder = Encoder(cast(VisionTransformer, extractor.model))
    encoder.mean, encoder.std = extractor.mean, extractor.std
    sides = f"images of {encoder.size[0]}x{encoder.size[1]} in patches of {encoder.patch[0]}"
    if fixed_size not in (None, encoder.size) or drawing.patch not in (None, encoder.patch[0]):
        raise UserError(f"the model of {target} sees {sides}: leave --size and --patch away")
    reading = extractor.reading.changed_by(drawing.images)
    if not pictures.read_as(reading):
        pictures = open_pictures(drawing.data, "all", reading)
    return Scene(
        pictures=pictures,
        size=encoder.size,
        patch=encoder.patch,
        mean=extractor.mean,
        std=extractor.std,
        encoder=encoder,
        model_name=target,
        trained=not target.startswith("untrained:"),
    )


def display_of(drawing: MaskDrawing, scene: Scene, recipe: Pretrain | None) -> Display:
    """How pictures are shown: as the flags say, else as the run of the model or the recipe does."""
    if drawing.channels or drawing.stretch is not None or drawing.color_map or drawing.model is None:
        images = Images() if recipe is None else replace(recipe.images)
        images.shown, images.color_map = drawing.channels or images.shown, drawing.color_map or images.color_map
        images.stretch = images.stretch if drawing.stretch is None else drawing.stretch
        return images.display(scene.pictures.values, scene.mean, scene.std)
    folder = export_folder(drawing.model)
    return run_display(folder.parent if folder else Path(), scene.pictures.values, scene.mean, scene.std)


def some_images(scene: Scene, count: int) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B C H W"] | None, Tensor]:
    """So many images, spread over the set, where they have data if not everywhere, and their numbers."""
    batches = evaluation_batches(
        scene.pictures, size=scene.size, mean=scene.mean, std=scene.std, view=VIEW, limit=count, keep_holes=True
    )
    parts = [(images, numbers) for images, _, numbers in batches]
    if not parts:
        raise UserError(f"none of {count} pictures of {scene.pictures.name} can be read: see 'mimkit doctor'")
    images, valid = split_holes(torch.cat([images for images, _ in parts]))
    return images, valid, torch.cat([numbers for _, numbers in parts])


def look(scene: Scene, masker: Masker, images: Float[Tensor, "B C H W"], progress: float) -> Float[Tensor, "B N M"]:
    """The masker's maps, computed as in training."""
    patches = patchify(images, scene.patch)
    reads = masker.reads(progress)
    if reads is Signal.NONE:
        return patches[..., :0]
    assert scene.encoder is not None
    teacher = None
    if scene.teacher:
        assert scene.encoder.mean is not None and scene.encoder.std is not None
        student = (scene.encoder.grid, scene.encoder.channels, scene.encoder.mean, scene.encoder.std)
        teacher = Teacher(scene.teacher, *student)
    elif reads is Signal.ATTENTION and scene.model_name and not scene.encoder.timm.has_class_token:
        guide = masker.guide
        if not isinstance(guide, ModelMasker) or guide.scorer in ("online", "ema"):
            raise UserError(
                f"{type(guide).__name__} reads the class token's attention and {scene.model_name} has no class token: "
                "give another model with --from"
            )
    encoder = scene.encoder.eval()
    number = torch.arange(len(images))
    with torch.inference_mode():
        batch = Batch(images, rng_keys("draw", number), number)
        return MaskSampler(masker, encoder, teacher).score_maps(encoder, patches, batch, progress)


def columns(
    scene: Scene,
    masker: Masker,
    originals: Float[Tensor, "B 3 H W"],
    signal: Float[Tensor, "B N M"],
    objects: Float[Tensor, "B N"] | None,
    drawn: list[list[Mask]],
) -> list[tuple[str, Float[Tensor, "rows 3 H W"]]]:
    """Titles and images: a row for each picture and ratio, a column for each seed and view beside what was seen."""

    def rows(per_picture: Tensor) -> Tensor:
        return per_picture.repeat_interleave(len(drawn), dim=0)

    def outside_faded(inside: Tensor) -> Tensor:
        return rows(faded(originals, patches_to_pixels(inside, scene.grid, scene.patch)))

    titled = [("original", rows(originals))]
    if objects is not None:
        titled.append(("object", outside_faded(objects)))
    if signal.shape[2]:
        name = "score" if scene.trained else "score, untrained"
        titled.append((name, rows(colorize(patches_to_pixels(signal[..., 0], scene.grid, scene.patch)))))
        if isinstance(masker.guide, SelfGuidedMasker):
            titled.append(("side of object", outside_faded(signal[..., 1])))
    for seed in range(len(drawn[0])):
        views = drawn[0][seed].views
        for view in range(views):
            cells = []
            for masks in drawn:
                mask = masks[seed]
                hidden = mask_to_pixels(mask.hidden[view::views], scene.grid, scene.patch)
                thrown = mask_to_pixels(mask.thrown[view::views], scene.grid, scene.patch)
                cells.append(masked(originals, hidden, thrown))
            title = f"seed {seed}" if views == 1 else f"seed {seed}, view {view + 1}"
            titled.append((title, torch.stack(cells, dim=1).flatten(0, 1)))
    return titled


WORDS = {
    "average_distance": "AvgDist, pixels",
    "overlap_random": "overlap with a random mask",
    "overlap_seeds": "overlap of two seeds",
    "overlap_expected": "overlap by chance",
    "score_entropy": "score entropy / ln N",
    "object": "object's share of the picture",
    "object_hidden": "share of the object hidden",
    "masker_object": "share of its own object side",
    "masker_object_hidden": "share of that side hidden",
}


def as_table(result: dict[str, Any], by_ratio: list[dict[str, Any]], titles: list[str]) -> Table:
    """The same for people: a line each, with a column for each ratio."""
    table = Table(box=None, pad_edge=False, show_header=False)
    model_name = result["model"]
    if model_name and not result["trained"]:
        model_name = f"{model_name}, untrained: its masks are those of the first moment; --from names a trained one"
    for key, value in (("masker", result["masker"]), ("out", result["out"]), ("model", model_name)):
        if value is not None:
            table.add_row(key, escape(value))
    table.add_row("progress", f"{result['progress']:.4g}")
    rows = [("ratio asked for", titles)] if titles else []
    for key in by_ratio[0]:
        cells = ["-" if numbers[key] is None else f"{numbers[key]:.4g}" for numbers in by_ratio]
        rows.append((WORDS.get(key, key.replace("_", " ")), cells))
    for name, cells in rows:
        table.add_row(name, "".join(f"{cell:<10}" for cell in cells).rstrip())
    return table
