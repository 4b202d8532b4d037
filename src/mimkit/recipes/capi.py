"""Recipes of CAPI, of the paper's size and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.data.views import RandomResizedCrop
from mimkit.masks import InverseBlockMasker
from mimkit.methods.capi import CAPIConfig
from mimkit.methods.momentum import Momentum
from mimkit.model.build import EncoderConfig
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine


def capi_vit_l14() -> Pretrain:
    """CAPI, ViT-L/14 with 16 registers at 224 px: the released settings, 500,000 steps.

    Darcet et al. 2025 and facebookresearch/capi: on ImageNet 6400 epochs with 16384 pictures a step; AdamW (0.9, 0.95),
    rate 1e-3, weight decay 0.1, a tenth for warm-up, then four fifths of half a cosine, drop path up to 0.2, crops of
    0.6 to 1 of the area. A plain ViT, with LayerNorm and fixed positions not RMSNorm and rotary ones. The authors
    report 82.9 % by an attentive probe on ImageNet. Not measured by us.
    """
    registers = {"class_token": False, "reg_tokens": 16, "no_embed_class": True, "drop_path_rate": 0.2}
    return Pretrain(
        encoder=EncoderConfig(name="vit_large_patch16_224", patch=14, model_args=registers),
        method=CAPIConfig(),
        images=Images(size=224, view=RandomResizedCrop(scale=(0.6, 1.0)), statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=1e-3, per=16384, weight_decay=0.1),
        schedule=WarmupCosine(warmup=0.1, span=0.8),
        epochs=6400,
        batch_size=16384,
    )


def capi_mini_32() -> Pretrain:
    """CAPI, 128 x 4 blocks with 4 registers, patches of 4 on 32 px (CIFAR), 512 clusters.

    24 epochs with 256 pictures a step; AdamW (0.9, 0.95), rate 1e-3, weight decay 0.1; of the 41 of 64 patches that are
    not seen a quarter is predicted, by two blocks; a teacher that keeps 1, then 0.99 to 0.999 of itself. 2.8
    times the FLOPs of `mae_mini_32` a picture, counted. Not measured by us.
    """
    registers = {"class_token": False, "reg_tokens": 4, "no_embed_class": True}
    name = "vit_tiny_patch16_224"
    momentum = Momentum(first=0.99, stretch=1.25, warmup=0.1)
    return Pretrain(
        encoder=EncoderConfig(name=name, patch=4, width=128, depth=4, heads=4, model_args=registers),
        method=CAPIConfig(
            masker=InverseBlockMasker(predict=0.25), clusters=512, momentum=momentum, depth=2, heads=4, patch_rate=1.0
        ),
        images=Images(size=32, view=RandomResizedCrop(scale=(0.6, 1.0))),
        optimizer=AdamWConfig(base_lr=1e-3, weight_decay=0.1),
        schedule=WarmupCosine(warmup=0.1, span=0.8),
        epochs=24,
        batch_size=256,
    )
