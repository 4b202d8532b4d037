"""Recipes of MaskFeat, of the paper's size and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.data.views import RandomResizedCrop
from mimkit.masks import BlockMasker
from mimkit.methods.simmim import SimMIMConfig
from mimkit.methods.targets.hog import HOG
from mimkit.model.build import EncoderConfig
from mimkit.recipes.simmim import simmim_mini_32
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine


def maskfeat_vit_b16() -> Pretrain:
    """MaskFeat, ViT-B/16 at 224 px: histograms of gradients, 300 epochs with 2048 pictures a step.

    Wei et al. 2022 and facebookresearch/SlowFast: rate 1.6e-3 (2e-4 x 2048 / 256), clipping at 0.02, BEiT's blocks
    over 40 % of the patches, crops of 0.5 to 1 of the area, a token in place of hidden patches, a linear head.
    Warm-up (30 epochs) and AdamW (0.9, 0.999) are our choice. mmpretrain's reproduction reports 83.4 % fine-tuned on
    ImageNet. Not measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(name="vit_base_patch16_224"),
        method=SimMIMConfig(masker=BlockMasker(ratio=0.4), target=HOG(), loss="l2"),
        images=Images(size=224, view=RandomResizedCrop(scale=(0.5, 1.0)), statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=2e-4, betas=(0.9, 0.999), clip=0.02),
        schedule=WarmupCosine(warmup=None, warmup_epochs=30),
        epochs=300,
        batch_size=2048,
    )


def maskfeat_mini_32() -> Pretrain:
    """MaskFeat for 32 px (CIFAR): histograms of gradients in cells of 4 pixels, one for each patch.

    24 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256), else as `simmim_mini_32`, with blocks over 40 %
    of the patches. Not measured by us.
    """
    run = simmim_mini_32()
    run.method = SimMIMConfig(masker=BlockMasker(ratio=0.4), target=HOG(cell=4), loss="l2")
    return run
