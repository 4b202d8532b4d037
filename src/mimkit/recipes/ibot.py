"""Recipes of iBOT, as published and for small pictures: nothing enters, a Pretrain leaves."""

from dataclasses import replace

from mimkit.data.published import dino
from mimkit.masks import AttMaskMasker, BlockMasker, Masker, SalienceMasker
from mimkit.methods.ibot import IBOTConfig
from mimkit.recipes.contrastive import dino_mini_32, dino_vit_s16
from mimkit.train.prepare import Images, Pretrain


def _images(border: float) -> Images:
    """Two whole views and ten crops of 96 px."""
    first, *further = dino(10, border=border)
    return Images(size=224, view=first, other_views=tuple(further), statistics="imagenet")


def _with(run: Pretrain, masker: Masker) -> Pretrain:
    run.method.masker = masker  # type: ignore[attr-defined]
    return run


def ibot_vit_s16() -> Pretrain:
    """iBOT, ViT-S/16 at 224 px, ten crops of 96: the authors', 800 epochs with 1024 pictures a step.

    Zhou et al. 2022, bytedance/ibot: as `dino_vit_s16`, rate 2e-3 (5e-4 x 1024 / 256), 8192 prototypes shared by class
    token and patches, blocks over 10 to 50 % of the patches of every second view, whole views of 0.25 to 1 of the
    area, the teacher's temperatures 0.04 to 0.07 in 30 epochs. The authors report kNN 75.2 %, 77.9 % linear and 82.3 %
    fine-tuned on ImageNet. Not measured by us.
    """
    run = dino_vit_s16()
    run.method, run.images, run.epochs = IBOTConfig(warmup=30 / 800, freeze_last=1 / 800), _images(0.25), 800
    return run


def ibot_vit_b16() -> Pretrain:
    """iBOT, ViT-B/16 at 224 px, ten crops of 96, 400 epochs with 1024 pictures a step.

    As `ibot_vit_s16`, rate 3e-3 (7.5e-4 x 1024 / 256), whole views of 0.32 to 1 of the area, prototypes still for three
    epochs; these three and the epochs are second-hand. The authors report kNN 77.1 %, 79.5 % linear and 84.0 %
    fine-tuned on ImageNet. Not measured by us.
    """
    run = ibot_vit_s16()
    run.encoder = replace(run.encoder, name="vit_base_patch16_224")
    run.method, run.images = IBOTConfig(warmup=30 / 400, freeze_last=3 / 400), _images(0.32)
    run.optimizer, run.epochs = replace(run.optimizer, base_lr=7.5e-4), 400
    return run


def ibot_vit_s16_attmask() -> Pretrain:
    """iBOT with AttMask, ViT-S/16 at 224 px: the patches that the teacher attends to are hidden.

    Kakogeorgiou et al. 2022; as `ibot_vit_s16`, rate 2e-3, 800 epochs with 1024 pictures a step, but in all
    whole views 27 % of the patches are hidden, and 3 % stay as hints. Not measured by us.
    """
    return _with(ibot_vit_s16(), AttMaskMasker(hides="hint", scorer="ema", ratio=0.3))


def ibot_vit_s16_sbam() -> Pretrain:
    """iBOT with SBAM masks, ViT-S/16 at 224 px: random masks in the first quarter.

    As `ibot_vit_s16`, rate 2e-3, 800 epochs with 1024 pictures a step, but 30 % of the patches are hidden in all whole
    views; SBAM's paper reports it as a plug-in and released no code of that. Not measured by us.
    """
    return _with(ibot_vit_s16(), SalienceMasker(ratio=0.3, start=0.25))


def ibot_mini_32() -> Pretrain:
    """iBOT, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), no crops, 1024 prototypes.

    8 epochs with 256 pictures a step; AdamW, rate 1e-3, weight decay 0.04 to 0.4, gradients of each tensor up to 3,
    momentum 0.99, no blur. Not measured by us.
    """
    run = dino_mini_32()
    first, second = dino(0, blur=False, border=0.25)
    run.images = Images(size=32, view=first, other_views=(second,))
    run.method = IBOTConfig(
        masker=BlockMasker(ratio=0.3, spread=0.2, none=0.5, exact=False, least=4),
        prototypes=1024,
        hidden=512,
        bottleneck=64,
        momentum=0.99,
        warmup=0.3,
        freeze_last=1 / 24,
    )
    run.epochs = 8
    return run


def ibot_mini_32_attmask() -> Pretrain:
    """iBOT with AttMask for 32 px (CIFAR): what its teacher attends to is hidden.

    8 epochs with 256 pictures a step, rate 1e-3, from the first eighth on, else as `ibot_mini_32`. Not measured by us.
    """
    return _with(ibot_mini_32(), AttMaskMasker(hides="hint", scorer="ema", start=0.125, ratio=0.3))


def ibot_mini_32_sbam() -> Pretrain:
    """iBOT with SBAM masks for 32 px (CIFAR): random masks in the first quarter.

    8 epochs with 256 pictures a step, rate 1e-3, else as `ibot_mini_32`. Not measured by us.
    """
    return _with(ibot_mini_32(), SalienceMasker(ratio=0.3, start=0.25))
