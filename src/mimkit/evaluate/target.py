"""What is measured: the name of a target enters, an Extractor that turns images into features leaves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import VisionTransformer
from torch import Tensor, nn

from mimkit.core.errors import UserError, unknown
from mimkit.core.files import read_json_of, refuse_no_name
from mimkit.core.integrity import refuse_bad_statistics, refuse_bad_weights, refuse_changed
from mimkit.core.randomness import integer
from mimkit.data.pictures import digest
from mimkit.data.reading import Reading
from mimkit.data.views import CenterCrop, Interpolation
from mimkit.evaluate.pools import Pool, maps_of, pooled, pools_of, tokens_of
from mimkit.model.patches import sincos_positions
from mimkit.model.projector import small_normal
from mimkit.model.vit import initialize
from mimkit.train.run_folder import run_beside
from mimkit.weights.exported import read_export
from mimkit.weights.folder import READING
from mimkit.weights.official import ENDINGS, official
from mimkit.weights.statistics import IMAGENET

_PIXELS = 48  # longest side at which pixels are compared; wider vectors cost much and tell no more
PIXEL_CELL = 8  # pixels along the sides of what stands for a patch where pixels are compared place by place
REDRAWN = ("DINOConfig", "IBOTConfig", "MSTConfig", "MSNConfig", "IJEPAConfig")
"""Methods whose `build` draws the linear layers of the encoder with `small_normal`."""
UNTRAINED = "untrained:"
HUB = "hf-hub:"
_NATIVE = (224, 224)  # pixels that a timm model without weights of its own is built for


@dataclass(kw_only=True)
class Extractor:
    """Images to features, and what the images must be like."""

    name: str
    """The target as the user called it."""
    size: tuple[int, int]
    """Height and width of the images in pixels."""
    channels: int
    mean: tuple[float, ...]
    """Per channel, of pixels in 0..1."""
    std: tuple[float, ...]
    fingerprint: str
    """Changes when weights or settings do; for caches of features."""
    interpolation: Interpolation = "bicubic"
    reading: Reading = field(default_factory=Reading)
    """How its pictures were read when a run was trained."""
    model: nn.Module | None = None
    """None for the pixels themselves."""
    assumed: str = ""
    """What the target does not say about itself and was taken to be so, in words."""
    headline: Pool = "mean"
    """The pool that training was about: `class` where it trained the class token to stand for the picture."""

    @property
    def view(self) -> CenterCrop:
        """What of a picture is looked at: all that the aspect permits below 128 pixels, else MAE's crop."""
        return CenterCrop(fraction=1.0 if min(self.size) < 128 else 0.875, interpolation=self.interpolation)

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The ways to make a row of a picture that the target has; see `pools`."""
        return pools_of(self.model)

    def __call__(self, images: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, "B _"]]:
        """Features of normalized images in float32, one row a picture for each of `pools`; `pixels` are flattened."""
        if self.model is None:
            return {"pixels": images.flatten(1).float()}
        return {pool: self._finite(rows) for pool, rows in pooled(self.model, images).items()}

    def tokens(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """Class token, where there is one, and patch tokens. Raises UserError for a target without tokens."""
        return self._finite(tokens_of(self.model, images, self.name))

    def maps(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Features of each patch where it lies; of `pixels` those of each cell of 8 x 8, cells that are cut left out.

        Raises UserError for a target without maps.
        """
        if self.model is None:
            height, width = (side // PIXEL_CELL * PIXEL_CELL for side in images.shape[2:])
            return F.pixel_unshuffle(images[:, :, :height, :width].float(), PIXEL_CELL)
        return self._finite(maps_of(self.model, images, self.name))

    def _finite(self, rows: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *shape"]:
        """The rows themselves. Raises UserError when numbers among them are not finite: nothing could be measured."""
        if rows.isfinite().all():
            return rows
        raise UserError(
            f"the features of '{self.name}' are not finite: its weights are damaged or overflow, so nothing is measured"
        )


def export_folder(target: str) -> Path | None:
    """The export that a target names (`untrained:` or not); None when it names no folder.

    Raises UserError when it names a folder without an export.
    """
    name = target.removeprefix(UNTRAINED)
    refuse_no_name(name)
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():
        return None
    for place in (folder, folder / "export"):
        if "architecture" in read_json_of(place / "config.json"):
            if not (place / "model.safetensors").is_file():
                raise UserError(f"{place} holds no model.safetensors beside its config.json: export it again")
            return place
    if "config" in read_json_of(folder / "config.json"):
        raise UserError(
            f"the run {folder} has no export yet: let it reach its first checkpoint with "
            f"'mimkit pretrain --run {folder}'"
        )
    if (folder / "config.json").is_file():
        raise UserError(
            f"{folder / 'config.json'} is of no timm model and of no run: give a run folder, or an export "
            "made with 'mimkit export RUN --to timm'"
        )
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    near = f"; did you mean {inside[0]}?" if inside else ""
    raise UserError(
        f"{folder} holds no model: a run folder has config.json and export/, an export has config.json and "
        f"model.safetensors{near}"
    )


def open_target(
    target: str,
    *,
    size: tuple[int, int] | None,
    channels: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Extractor:
    """The extractor of a target.

    Args:
        target: a run folder, an export folder, a timm name (with its released weights), `hf-hub:` and the name of a
            timm model on Hugging Face's hub, a file of weights (see `official`), `pixels`, or `untrained:X` with X a
            timm name (timm's own initialization) or a folder (MAE's initialization, with the run's seed: the weights
            that the run began with).
        size: height and width of the data in pixels; a folder has its own, a timm ViT and a file take the next
            larger size that divides into patches. None: the size that the target was trained with.
        channels: of the data; a folder has its own.
        mean, std: of the data per channel, in 0..1; a folder and released weights have their own.

    Raises:
        UserError: there is no such target, or its weights cannot be loaded or fetched.
    """
    if target == "pixels":
        if size is None:
            raise UserError("the pixels themselves have no size of their own: say which data")
        scale = min(1.0, _PIXELS / max(size))
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        return replace(_extractor(target, None, size, channels, mean, std), headline="pixels")
    folder = export_folder(target)
    if folder is not None:
        return _open_folder(target, folder)
    if (file := Path(target).expanduser()).suffix in ENDINGS and file.is_file():
        return _open_file(target, file, size, tuple(mean), tuple(std))
    if target.startswith(HUB):
        return _open_timm(target, target, size, channels, tuple(mean), tuple(std))
    name = target.removeprefix(UNTRAINED)
    if any(sign in name for sign in "/\\~") or name in ("", "."):
        raise UserError(f"there is no folder '{name}' to measure{_nearest(name)}")
    if not timm.is_model(name):
        names = [*timm.list_models(), *(path.name for path in Path().iterdir() if path.is_dir())]
        names = [UNTRAINED + name for name in names] if name != target else ["pixels", *names]
        raise unknown("run folder, export or timm model", target, names, see="Baseline: pixels.")
    return _open_timm(target, name, size, channels, tuple(mean), tuple(std))


def _extractor(
    target: str,
    model: nn.Module | None,
    size: tuple[int, int],
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    *settings: object,
    **more: Any,
) -> Extractor:
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"'{target}' sees {channels} channels, but mean and std have {len(mean)} and {len(std)} numbers"
        )
    refuse_bad_statistics(mean, std, target)
    more.setdefault("reading", Reading(channels=channels))
    parts: list[object] = [type(model).__name__, size, channels, tuple(mean), tuple(std), *settings, more]
    if model is not None:
        model.eval().requires_grad_(False)
        refuse_bad_weights(model.state_dict(), target)
        for key, value in sorted(model.state_dict().items()):
            content = value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            parts += [key, tuple(value.shape), digest(content)]
    return Extractor(
        name=target,
        size=size,
        channels=channels,
        mean=tuple(mean),
        std=tuple(std),
        fingerprint=digest(*parts),
        model=model,
        **more,
    )


def _open_folder(target: str, folder: Path) -> Extractor:
    config, run = read_export(folder), run_beside(folder).get("config", {})
    where = f"local-dir:{folder}"
    refuse_changed(folder)
    try:
        model = timm.create_model(where, pretrained=True, num_classes=0)
        cfg = config["pretrained_cfg"]
        channels, *size = cfg["input_size"]
        mean, std = cfg["mean"], cfg["std"]
    except Exception as error:  # a damaged file makes timm and safetensors raise anything
        raise UserError(f"the export {folder} cannot be loaded ({_reason(error)}): export it again") from error
    if target.startswith(UNTRAINED):
        kind = (run.get("encoder") or {}).get("initialization", "mae")
        method = str((run.get("method") or {}).get("class", "")).rpartition(":")[2]
        build = lambda: timm.create_model(where, num_classes=0)  # noqa: E731
        model = _initialized(model, build, run.get("seed", 0), kind, method)
    extractor = _extractor(
        target,
        model,
        (size[0], size[1]),
        channels,
        mean,
        std,
        config["architecture"],
        config.get("model_args"),
        interpolation=cfg["interpolation"] if cfg["interpolation"] in get_args(Interpolation) else "bicubic",
        reading=replace(reading_of(config, run), channels=channels),
    )
    return replace(
        extractor, headline=_trained_pool(model, config, run)
    )  # it changes no feature: not in the fingerprint


def reading_of(export: dict[str, Any], run: dict[str, Any]) -> Reading:
    """How the pictures of an export were read; those of versions before 0.3 say nothing of it, but their run does."""
    if READING in export:
        return Reading.from_json(export[READING])
    value_range = run.get("images", {}).get("value_range")
    return Reading(value_range=tuple(value_range) if value_range else None)


def reading_for(target: str, reading: Reading) -> Reading:
    """How a target wants files read: as it was trained, but for what `reading` says. Raises UserError."""
    folder = export_folder(target)
    if folder is None:
        return reading
    export, run = read_export(folder), run_beside(folder).get("config", {})
    channels = (export.get("pretrained_cfg") or {}).get("input_size", (None,))[0]
    return replace(reading_of(export, run), channels=channels).changed_by(reading)


def _trained_pool(model: nn.Module, config: dict[str, Any], run: dict[str, Any]) -> Pool:
    """`class` if an export says that the class token is pooled, by timm's `global_pool`, else `mean`.

    Contrastive exports that say nothing are older: their run's `method.pool` does, of which None is the class token.
    """
    says = (config.get("model_args") or {}).get("global_pool") == "token"
    says = says or (run.get("method") or {}).get("pool", "mean") in ("class", None)
    return "class" if says and "class" in pools_of(model) else "mean"


def _initialized(trained: nn.Module, build: Callable[[], nn.Module], seed: int, kind: str, method: str) -> nn.Module:
    """The same architecture with the weights that `pretrain` begins with; sine-cosine positions stay.

    Under a method that draws linear layers anew they are other numbers of the same distribution.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer("init", seed))
        with torch.random.fork_rng(devices=[]):  # as in EncoderConfig.build
            model: Any = build()
        if isinstance(model, VisionTransformer):  # others begin as timm has them
            initialize(model, kind)
            if method in REDRAWN:
                model.apply(small_normal)
            if method == "IJEPAConfig":
                nn.init.trunc_normal_(model.patch_embed.proj.weight, std=0.02)
    table: Any = getattr(trained, "pos_embed", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if table is not None and grid is not None and model.embed_dim % 4 == 0:
        fixed = torch.zeros_like(table)
        fixed[:, -grid[0] * grid[1] :] = sincos_positions(grid, model.embed_dim)
        if torch.allclose(table, fixed, atol=1e-6):
            model.pos_embed = nn.Parameter(fixed)
    return model


def _open_file(
    target: str, file: Path, size: tuple[int, int] | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Extractor:
    """Released weights in a file, which say nothing about themselves but their shapes."""
    weights = official(file)
    patch = weights.config.patch or 1
    height, width = (max(patch, -(-side // patch) * patch) for side in size or weights.size)
    if weights.channels == 3:
        mean, std = IMAGENET
    extractor = _extractor(target, weights.build((height, width)), (height, width), weights.channels, mean, std)
    return replace(extractor, assumed=weights.assumed)


def _open_timm(
    target: str,
    name: str,
    size: tuple[int, int] | None,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Extractor:
    pretrained, hub = name == target, name.startswith(HUB)
    if not hub and "." in name and name not in (tagged := timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)):
        raise unknown("timm model", target, [("" if pretrained else UNTRAINED) + model_name for model_name in tagged])
    if pretrained and not hub and not timm.is_model_pretrained(name):
        raise UserError(f"timm has no released weights of '{name}': use {UNTRAINED}{name}, or a local export")

    if size is None and not hub:
        released = timm.get_pretrained_cfg(name)
        size = (released.input_size[1], released.input_size[2]) if released is not None else _NATIVE

    def build(**args: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer("init", 0))
            return timm.create_model(name, pretrained=pretrained, in_chans=channels, num_classes=0, **args)

    try:
        try:
            model: Any = build() if size is None else build(img_size=size)
            if size is None:  # of a model on the hub
                size = (model.pretrained_cfg["input_size"][1], model.pretrained_cfg["input_size"][2])
            patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
            whole = tuple(-(-side // p) * p for side, p in zip(size, patch, strict=True))
            if whole != size:
                size = (whole[0], whole[1])
                model = build(img_size=size)
        except TypeError:  # a network that takes images of any size
            model = build()
    except (AssertionError, ValueError, TypeError) as error:
        raise UserError(
            f"timm cannot build '{name}' for images of {_sides(size)} and {channels} channels "
            f"({_reason(error)}): use another model"
        ) from error
    except Exception as error:  # the hub's client and the network raise many kinds
        if not pretrained:
            raise
        raise UserError(
            f"the released weights of '{name}' cannot be fetched ({_reason(error)}): use {UNTRAINED}{name} "
            "for the same network without them, or a local export folder"
        ) from error
    cfg: Any = model.pretrained_cfg
    if pretrained and len(cfg["mean"]) == channels:
        mean, std = cfg["mean"], cfg["std"]
    assert size is not None  # of a model on the hub it is known by now
    return _extractor(target, model, size, channels, mean, std, name)


def _sides(size: tuple[int, int] | None) -> str:
    return "its own size" if size is None else f"{size[0]}x{size[1]}"


def _nearest(name: str) -> str:
    """A hint at a folder with nearly that name."""
    path = Path(name).expanduser()
    beside = [child.name for child in path.parent.iterdir() if child.is_dir()] if path.parent.is_dir() else []
    message = str(unknown("folder", path.name, beside))
    near = message.partition("did you mean '")[2].partition("'")[0]
    return f"; did you mean {path.parent / near}?" if near else ": give a run folder, an export or a timm name"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
