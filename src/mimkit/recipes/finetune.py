"""Recipes of fine-tuning with labels: nothing enters, a Pretrain leaves, to which a target adds the encoder."""

import math

from mimkit.data.augment import RandAugment
from mimkit.data.views import RandomResizedCrop
from mimkit.evaluate.finetune import Start
from mimkit.methods.finetune import FineTuneConfig
from mimkit.model.build import is_convolutional, is_windowed
from mimkit.train.machine import Machine
from mimkit.train.optimizer import AdamWConfig, SGDConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine

SMALL_SIDE = 128  # pixels: encoders of smaller images take the small recipes
DENSE_RECIPES = {
    ("keypoints", "base"): "keypoints_vitpose_b16",
    ("keypoints", "large"): "keypoints_vitpose_b16",
    ("keypoints", "swin"): "keypoints_vitpose_b16",
    ("keypoints", "resnet"): "keypoints_vitpose_b16",
    ("segment", "base"): "segment_upernet_vit_b16",
    ("segment", "large"): "segment_upernet_vit_l16",
    ("segment", "swin"): "segment_upernet_swin_b",
    ("segment", "resnet"): "segment_upernet_swin_b",
    ("detect", "base"): "detect_vitdet_b16",
    ("detect", "large"): "detect_vitdet_l16",
    ("detect", "swin"): "detect_fpn_swin_b",
    ("detect", "resnet"): "detect_fpn_resnet50",
    ("depth", "base"): "depth_simmim_vit_b16",
    ("depth", "large"): "depth_simmim_vit_b16",
    ("depth", "swin"): "depth_simmim_swin_b",
    ("depth", "resnet"): "depth_simmim_swin_b",
}
"""Of a dense task and a kind of encoder."""
LEAST_STEPS = 300  # with fewer a classifier on top of 40 labels has hardly moved
LEAST_BATCH = 8


def finetune_mae_vit_b16() -> Pretrain:
    """MAE's fine-tuning of a ViT-B at 224 px: 100 epochs with 1024 pictures a step.

    He et al. 2022 and facebookresearch/mae:FINETUNE.md: rate 2e-3 (5e-4 x 1024 / 256) on top, 0.65 of it in each layer
    below, 1e-6 at the end, AdamW (0.9, 0.999), weight decay 0.05, drop path 0.1, 5 epochs of warm-up; mixup 0.8,
    cutmix 1, label smoothing 0.1, RandAugment of magnitude 9, random erasing 0.25. The paper reports 83.6 % on
    ImageNet. Not measured by us at this scale.
    """
    return Pretrain(
        method=FineTuneConfig(drop_path=0.1),
        images=Images(
            size=224,
            view=RandomResizedCrop(scale=(0.08, 1.0), augment=RandAugment(), erase=0.25),
            statistics="imagenet",
        ),
        optimizer=AdamWConfig(base_lr=5e-4, betas=(0.9, 0.999), layer_decay=0.65),
        schedule=WarmupCosine(warmup=None, warmup_epochs=5, final=5e-4),
        epochs=100,
        batch_size=1024,
        machine=Machine(evals=0),
    )


def finetune_mae_vit_l16() -> Pretrain:
    """MAE's fine-tuning of a ViT-L at 224 px: 50 epochs with 1024 pictures a step.

    As `finetune_mae_vit_b16` with rate 4e-3 (1e-3 x 1024 / 256), layer decay 0.75 and drop path 0.2. The paper reports
    85.9 % on ImageNet. Not measured by us at this scale.
    """
    run = finetune_mae_vit_b16()
    run.method = FineTuneConfig(drop_path=0.2)
    run.optimizer = AdamWConfig(base_lr=1e-3, betas=(0.9, 0.999), layer_decay=0.75)
    run.schedule = WarmupCosine(warmup=None, warmup_epochs=5, final=2.5e-4)
    run.epochs = 50
    return run


def finetune_mae_vit_h14() -> Pretrain:
    """MAE's fine-tuning of a ViT-H at 224 px: 50 epochs with 1024 pictures a step.

    As `finetune_mae_vit_l16` with drop path 0.3. The paper reports 86.9 % on ImageNet. Not measured by us.
    """
    run = finetune_mae_vit_l16()
    run.method = FineTuneConfig(drop_path=0.3)
    return run


def finetune_simmim_vit_b16() -> Pretrain:
    """SimMIM's fine-tuning of a ViT-B at 224 px: 100 epochs with 2048 pictures a step.

    microsoft/SimMIM:configs: rate 5e-3 (1.25e-3 x 2048 / 512), layer decay 0.65, clipping at 5, 20 epochs of warm-up
    that hide the beginning of the cosine, else as `finetune_mae_vit_b16`; without SimMIM's color jitter, which
    RandAugment replaces in timm. The paper reports 83.8 % on ImageNet. Not measured by us at this scale.
    """
    run = finetune_mae_vit_b16()
    run.optimizer = AdamWConfig(base_lr=1.25e-3, per=512, betas=(0.9, 0.999), clip=5.0, layer_decay=0.65)
    run.schedule = WarmupCosine(warmup=None, warmup_epochs=20, first=2e-4, final=2e-4, whole=True)
    run.batch_size = 2048
    return run


def finetune_simmim_swin_b() -> Pretrain:
    """SimMIM's fine-tuning of a Swin-B: 100 epochs with 2048 pictures a step.

    As `finetune_simmim_vit_b16` with layer decay 0.8, the authors' after 800 epochs (0.9 after 100; 0.75 for SwinV2-B).
    The authors report 84.0 % on ImageNet at 224 px. Not measured by us at this scale.
    """
    run = finetune_simmim_vit_b16()
    run.optimizer.layer_decay = 0.8  # type: ignore[attr-defined]
    return run


def finetune_maskalign_vit_b16() -> Pretrain:
    """MaskAlign's fine-tuning of a ViT-B at 224 px: 100 epochs with 1024 pictures a step.

    OpenDriveLab/maskalign:README.md: as `finetune_mae_vit_b16` with rate 1.2e-3 (3e-4 x 1024 / 256), layer decay 0.55
    and drop path 0.2. The authors report 85.4 % on ImageNet. Not measured by us at this scale.
    """
    run = finetune_mae_vit_b16()
    run.method = FineTuneConfig(drop_path=0.2)
    run.optimizer = AdamWConfig(base_lr=3e-4, betas=(0.9, 0.999), layer_decay=0.55)
    run.schedule = WarmupCosine(warmup=None, warmup_epochs=5, final=8e-4)
    return run


def finetune_maskalign_vit_l16() -> Pretrain:
    """MaskAlign's fine-tuning of a ViT-L at 224 px: 50 epochs with 1024 pictures a step.

    As `finetune_maskalign_vit_b16` with layer decay 0.75 and drop path 0.4. The authors report 87.4 % on ImageNet. Not
    measured by us at this scale.
    """
    run = finetune_maskalign_vit_b16()
    run.method = FineTuneConfig(drop_path=0.4)
    run.optimizer.layer_decay = 0.75  # type: ignore[attr-defined]
    run.schedule = WarmupCosine(warmup=None, warmup_epochs=5, final=8e-4)
    run.epochs = 50
    return run


def finetune_resnet50() -> Pretrain:
    """Fine-tuning of a ResNet with few labels: 30 epochs with 1024 pictures a step.

    Chen et al. 2020 (SimCLR), semi-supervised: SGD with Nesterov momentum 0.9, rate 0.2 (0.05 x 1024 / 256), neither
    warm-up nor weight decay nor augmentation besides crop and mirror; 60 epochs for 1 % of the labels. Smaller batches
    than the paper's 4096, and a cosine. Not measured by us at this scale.
    """
    run = finetune_mae_vit_b16()
    run.method = FineTuneConfig(drop_path=0.0, mixup=0.0, cutmix=0.0, smoothing=0.0)
    run.images.view = RandomResizedCrop(scale=(0.08, 1.0))
    run.optimizer = SGDConfig(base_lr=0.05, weight_decay=0.0, nesterov=True)
    run.schedule = WarmupCosine(warmup=0.0)
    run.epochs = 30
    return run


def finetune_mini_32() -> Pretrain:
    """Fine-tuning for small pictures (28 to 96 px): 20 epochs with 128 pictures a step.

    Rate 1e-3 (2e-3 x 128 / 256) on top, 0.75 of it in each layer below, AdamW (0.9, 0.999), weight decay 0.05; crops
    of 0.5 to 1 of the area, mirrored or not, label smoothing 0.1, neither mixup nor cutmix nor drop path.
    """
    run = finetune_mae_vit_b16()
    run.method = FineTuneConfig(drop_path=0.0, mixup=0.0, cutmix=0.0)
    run.images.view, run.images.statistics = RandomResizedCrop(scale=(0.5, 1.0)), "data"
    run.optimizer = AdamWConfig(base_lr=2e-3, betas=(0.9, 0.999), layer_decay=0.75)
    run.schedule = WarmupCosine(warmup=0.05, final=5e-4)
    run.epochs, run.batch_size = 20, 128
    return run


def choose_finetuning(start: Start, kind: str = "classes") -> tuple[str, str]:
    """(name, why): a small recipe for small images, else what the authors of the pre-training used at this size.

    `kind` is what is learned: `classes`, or a DenseTask.
    """
    if kind != "classes":
        return choose_dense(start, kind)
    name, method = start.encoder.name, start.method
    if min(start.size) < SMALL_SIDE:
        return "finetune_mini_32", f"its images have {start.size[0]}x{start.size[1]} pixels"
    if name.startswith("swin"):
        return "finetune_simmim_swin_b", "it is a Swin"
    if name.startswith(("resne", "wide_resnet")):
        return "finetune_resnet50", "it is a ResNet"
    why = f"it is {start.width} wide" + (f" and was trained by {method}" if method else "")
    if method == "MaskAlign":
        return f"finetune_maskalign_vit_{'l16' if start.width >= 1024 else 'b16'}", why
    if method == "SimMIM":
        return "finetune_simmim_vit_b16", why
    size = "h14" if start.width >= 1280 else "l16" if start.width >= 1024 else "b16"
    return f"finetune_mae_vit_{size}", why


def choose_dense(start: Start, kind: str) -> tuple[str, str]:
    """(name, why): the small recipe for encoders of small images, else that of the architecture."""
    name, width = start.encoder.name, start.width
    if min(start.size) < SMALL_SIDE:
        return f"{kind}_mini", f"its images have {start.size[0]}x{start.size[1]} pixels"
    if is_windowed(name):
        return DENSE_RECIPES[kind, "swin"], "it is a Swin"
    if is_convolutional(name):
        return DENSE_RECIPES[kind, "resnet"], "it is a ResNet"
    return DENSE_RECIPES[kind, "large" if width >= 1024 else "base"], f"it is {width} wide"


def fit_to_labels(config: Pretrain, pictures: int) -> str:
    """Lower the batch and raise the epochs of a recipe for a set of few pictures with labels, in place; says so.

    A batch is at most a fourth of the pictures (a power of two, at least 8), and there are at least 300 steps. Where a
    recipe does that by itself, it stays as it is and nothing is said.
    """
    largest = max(LEAST_BATCH, 2 ** int(math.log2(max(1.0, pictures / 4))))
    batch_size = min(config.batch_size, largest)
    epochs = max(config.epochs, math.ceil(LEAST_STEPS * batch_size / pictures))
    if (epochs, batch_size) == (config.epochs, config.batch_size):
        return ""
    line = (
        f"{pictures:,} pictures with labels are few: {epochs} epochs of batches of {batch_size}, not {config.epochs} "
        f"of {config.batch_size}; --epochs and --batch-size say otherwise"
    )
    config.epochs, config.batch_size = epochs, batch_size
    return line
