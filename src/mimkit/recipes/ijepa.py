"""Recipes of I-JEPA, as published and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.data.views import RandomResizedCrop
from mimkit.masks import MultiBlockMasker
from mimkit.methods.ijepa import IJEPAConfig
from mimkit.methods.momentum import Momentum
from mimkit.model.build import EncoderConfig
from mimkit.model.predictor import PredictorConfig
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine

NO_CLASS_TOKEN = {"class_token": False}


def ijepa_vit_h14() -> Pretrain:
    """I-JEPA, ViT-H/14 at 224 px: the authors' recipe, 300 epochs with 2048 pictures a step.

    Assran et al. 2023, facebookresearch/ijepa:configs/in1k_vith14_ep300.yaml: rate 2e-4 to 1e-3 in 40 warm-up epochs,
    at last 1e-6, weight decay 0.04 to 0.4, no clipping, four target blocks, predictor 384 x 12, crops of 0.3 to 1 of
    the area resized bilinearly and not mirrored, no class token. The paper reports 79.3 % linear on ImageNet. Not
    measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(name="vit_huge_patch14_224", model_args=dict(NO_CLASS_TOKEN)),
        method=IJEPAConfig(masker=MultiBlockMasker(edge=False, one_draw=True)),
        images=Images(
            size=224,
            view=RandomResizedCrop(scale=(0.3, 1.0), flip=0.0, interpolation="bilinear"),
            statistics="imagenet",
        ),
        optimizer=AdamWConfig(base_lr=1e-3, per=2048, betas=(0.9, 0.999), weight_decay=0.04, weight_decay_end=0.4),
        schedule=WarmupCosine(warmup=None, warmup_epochs=40, first=0.2, final=1e-3),
        epochs=300,
        batch_size=2048,
    )


def ijepa_mini_32() -> Pretrain:
    """I-JEPA, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), no class token, a predictor of 64 x 3 blocks.

    24 epochs with 256 pictures a step; AdamW, rate 1e-3, weight decay 0.04 to 0.4, 13 of 64 patches visible, four
    target blocks that reach the edge, a teacher that keeps 0.99 to 1 of itself. 2.5 times the FLOPs of `mae_mini_32` a
    picture, counted. Not measured by us.
    """
    run = ijepa_vit_h14()
    run.encoder = EncoderConfig(
        name="vit_tiny_patch16_224", patch=4, width=128, depth=4, heads=4, model_args=dict(NO_CLASS_TOKEN)
    )
    run.method = IJEPAConfig(
        masker=MultiBlockMasker(ratio=0.79),
        predictor=PredictorConfig(width=64, depth=3),
        momentum=Momentum(first=0.99, shape="linear"),
    )
    run.images = Images(size=32, view=RandomResizedCrop(scale=(0.3, 1.0), flip=0.0))
    run.optimizer.per, run.schedule = 256, WarmupCosine(warmup=0.1)
    run.epochs, run.batch_size = 24, 256
    return run
