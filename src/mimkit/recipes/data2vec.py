"""Recipes of data2vec, as published and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.data.views import RandomResizedCrop
from mimkit.masks import BlockMasker, PartitionMasker
from mimkit.methods.data2vec import Data2VecConfig
from mimkit.methods.momentum import Momentum
from mimkit.model.build import EncoderConfig
from mimkit.model.grid_decoder import GridDecoderConfig
from mimkit.model.latents import LatentTargetConfig
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine


def data2vec_vit_b16() -> Pretrain:
    """data2vec, ViT-B/16 at 224 px: the authors' recipe, 800 epochs with 2048 pictures a step.

    Baevski et al. 2022, facebookresearch/data2vec_vision: rate 2e-3, at last 1e-5, 10 warm-up epochs, AdamW (0.9,
    0.999), weight decay 0.05, clipping at 3, BEiT's blocks over 120 of 196 patches, the last six blocks of a teacher
    that keeps 0.9998 of itself, drop path 0.25, dropped attention 0.05, LayerScale 1e-4. The ViT is a plain one with
    sine-cosine positions, where the authors have BEiT's relative ones. They report 84.2 % fine-tuned on ImageNet. Not
    measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(
            name="vit_base_patch16_224",
            initialization="simmim",
            model_args={"drop_path_rate": 0.25, "attn_drop_rate": 0.05, "init_values": 1e-4},
        ),
        method=Data2VecConfig(),
        images=Images(size=224, view=RandomResizedCrop(scale=(0.08, 1.0)), statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=2e-3, per=2048, betas=(0.9, 0.999), clip=3.0),
        schedule=WarmupCosine(warmup=None, warmup_epochs=10, final=1e-5 / 2e-3),
        epochs=800,
        batch_size=2048,
    )


def data2vec_mini_32() -> Pretrain:
    """data2vec, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), the teacher's last three blocks.

    24 epochs with 256 pictures a step; AdamW, rate 1e-3, clipping at 3, BEiT's blocks over 39 of 64 patches, a teacher
    that keeps 0.99 to 0.999 of itself. 4.2 times the FLOPs of `mae_mini_32` a picture, counted. Not measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=128, depth=4, heads=4),
        method=Data2VecConfig(
            masker=BlockMasker(ratio=0.6, exact=False),
            target=LatentTargetConfig(layers=3, standardize="both"),
            momentum=Momentum(first=0.99, last=0.999, shape="linear"),
        ),
        images=Images(size=32, view=RandomResizedCrop(scale=(0.4, 1.0))),
        optimizer=AdamWConfig(base_lr=1e-3, betas=(0.9, 0.999), clip=3.0),
        schedule=WarmupCosine(warmup=0.1),
        epochs=24,
        batch_size=256,
    )


def data2vec2_mini_32() -> Pretrain:
    """data2vec 2.0 for 32 px (CIFAR): four masks a picture share one pass of the teacher.

    24 epochs with 256 pictures a step; AdamW (0.9, 0.95), rate 1e-3, clipping at 4, a quarter of the patches visible in
    each view, squares over the root of the width, two convolutions of 8 groups for a decoder. 6.1 times the
    FLOPs of `mae_mini_32` a picture, counted. Not measured by us.
    """
    run = data2vec_mini_32()
    run.method = Data2VecConfig(
        masker=PartitionMasker(parts=4, mode="independent"),
        target=LatentTargetConfig(layers=3, standardize="both"),
        momentum=Momentum(first=0.99, last=0.999, shape="linear"),
        decoder=GridDecoderConfig(layers=2, groups=8),
        loss="l2",
    )
    run.optimizer = AdamWConfig(base_lr=1e-3, clip=4.0)
    return run
