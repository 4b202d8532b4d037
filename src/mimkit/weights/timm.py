"""Export for timm: a trained encoder enters, a folder that timm loads leaves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from timm.models import Beit, save_for_hf
from torch import nn

from mimkit import __version__
from mimkit.data.reading import Reading
from mimkit.model.backbone import Backbone
from mimkit.weights.folder import MARK, READING, replaced
from mimkit.weights.head import Head, write_head


def export_timm(
    encoder: Backbone,
    folder: Path,
    *,
    model_args: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    card: str,
    name: str,
    reading: Reading = Reading(),
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
    classes: Sequence[str] = (),
    identity: Mapping[str, Any] = MappingProxyType({}),
    head: Head | None = None,
) -> None:
    """Write `encoder.timm` for `timm.create_model("local-dir:FOLDER", pretrained=True)`, with equal outputs.

    transformers opens it too, by `AutoModel`, `AutoModelForImageClassification` and `pipeline`.

    Args:
        folder: replaced when it holds an earlier export; refused when it holds something else.
        model_args: what `timm.create_model(name, ...)` needs to build this ViT (`EncoderConfig.timm_args`).
        mean, std: per channel, of pixels in [0, 1], from black to white.
        card: the README, see `model_card`.
        reading: how files became the pictures, for who reads others.
        name: the timm architecture.
        interpolation: resizing that the pictures were prepared with, as timm calls it.
        crop_pct: share of the resized picture that evaluation crops; MAE's evaluation has 0.875.
        identity: of the run and its step, which identity.json keeps with the checksums of the files.
        head: of a dense task, for two more files.
        classes: what the outputs of a classifier are called, one name each; none of an encoder without one.

    Raises:
        UserError: the folder cannot be written.
    """
    vit = encoder.timm
    pool = getattr(vit.global_pool, "pool_type", vit.global_pool)
    # The classifier and pooling as they are now: training may have replaced those that the model was built with.
    args = dict(model_args) | {"num_classes": vit.num_classes, "global_pool": pool}
    if hasattr(vit, "fc_norm"):  # where the last norm stands
        args["use_fc_norm" if isinstance(vit, Beit) else "fc_norm"] = not isinstance(vit.fc_norm, nn.Identity)
    data = {
        "input_size": (encoder.channels, *encoder.size),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    # What the architecture's released weights say about themselves is not true of these.
    about = dict.fromkeys(("tag", "license", "origin_url", "paper_name", "paper_ids", "notes"))
    about["description"] = f"{MARK} {__version__}"
    config: dict[str, Any] = {"architecture": name.split(".")[0], "pretrained_cfg": about, READING: reading.to_json()}
    config |= {"label_names": list(classes)} if classes else {}
    with replaced(folder, identity) as partial:
        save_for_hf(vit, str(partial), model_config=config, model_args=args, safe_serialization=True, data_config=data)
        _leave_out_num_classes(partial / "config.json")
        (partial / "README.md").write_text(card, encoding="utf-8")
        if head is not None:
            write_head(head, partial)


def _leave_out_num_classes(file: Path) -> None:
    """Let the number of outputs stand at the top of config.json alone.

    timm writes it into `model_args` too and reads either; transformers hands it over itself and fails on a second one.
    """
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model_args"].pop("num_classes", None)
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")
