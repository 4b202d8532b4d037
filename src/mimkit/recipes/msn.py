"""Recipes of MSN, as published and for small pictures: nothing enters, a Pretrain leaves."""

from dataclasses import replace

from mimkit.data.published import msn
from mimkit.methods.msn import MSNConfig
from mimkit.model.build import EncoderConfig
from mimkit.recipes.contrastive import dino_mini_32
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine


def msn_vit_s16() -> Pretrain:
    """MSN, ViT-S/16 at 224 px, ten crops of 96: the authors' recipe, 800 epochs with 1024 pictures a step.

    Assran et al. 2022, facebookresearch/msn: AdamW, rate 1e-3 after 15 epochs from 2e-4, weight decay from 0.04,
    gradients up to 3, 15 % of the patches of one view dropped, 1024 prototypes, Sinkhorn. The authors' schedules are
    stretched by 1.25: rate and decay end at 9.9e-5 and 0.366, as here, by another curve. Not measured by us.
    """
    first, *further = msn()
    return Pretrain(
        encoder=EncoderConfig(name="vit_small_patch16_224", positions="learned"),
        method=MSNConfig(),
        images=Images(size=224, view=first, other_views=tuple(further), statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=2.5e-4, weight_decay=0.04, weight_decay_end=0.366, betas=(0.9, 0.999), clip=3.0),
        schedule=WarmupCosine(warmup=None, warmup_epochs=15, first=0.2, final=0.099),
        epochs=800,
        batch_size=1024,
    )


def msn_mini_32() -> Pretrain:
    """MSN, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), four crops of 16, 256 prototypes.

    24 epochs with 256 pictures a step; AdamW, rate 1e-3, weight decay 0.04 to 0.4, gradients up to 3, momentum 0.99, no
    blur. Not measured by us.
    """
    run = dino_mini_32()
    first, *further = msn(4, 16, blur=False)
    run.images = Images(size=32, view=first, other_views=tuple(further))
    run.method = MSNConfig(prototypes=256, hidden=512, outputs=64, momentum=0.99)
    run.optimizer = replace(run.optimizer, clip=3.0, clip_each=None)
    return run
