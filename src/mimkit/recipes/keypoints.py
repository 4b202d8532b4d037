"""Recipes of keypoints: nothing enters, a Pretrain leaves, to which a target adds the encoder."""

from mimkit.data.views import ScaleJitter
from mimkit.methods.keypoints import KeypointsConfig
from mimkit.train.machine import Machine
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine, WarmupSteps


def keypoints_vitpose_b16() -> Pretrain:
    """Heat maps of joints on a ViT-B at 256 x 192 px: 210 epochs of 512 people a step on COCO.

    Xu et al. 2022 (ViTPose) and ViTAE-Transformer/ViTPose: rate 5e-4, 0.75 of it in each layer below, 500 steps of
    warm-up, a tenth at 81 % and 95 %, AdamW (0.9, 0.999), weight decay 0.1, clipping at 1, drop path 0.3, mirrored at
    the test too. They report an AP of 75.8 with boxes of a detector; here people are given. Theirs turns people by
    up to 40 degrees and shows some by half, which is not done here. Not measured by us at this scale.
    """
    return Pretrain(
        method=KeypointsConfig(drop_path=0.3, test_flip=True),
        images=Images(size=(256, 192), view=ScaleJitter(scale=(0.75, 1.5), covers=True), statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=5e-4, per=512, betas=(0.9, 0.999), layer_decay=0.75, weight_decay=0.1, clip=1.0),
        schedule=WarmupSteps(warmup=0.008, first=0.001, steps=(0.81, 0.952)),
        epochs=210,
        batch_size=512,
        machine=Machine(evals=0),
    )


def keypoints_vitpose_simple_b16() -> Pretrain:
    """As `keypoints_vitpose_b16`, with one layer behind a bilinear map in place of deconvolutions.

    They report an AP of 75.5 (ViTAE-Transformer/ViTPose:README.md). Not measured by us at this scale.
    """
    run = keypoints_vitpose_b16()
    run.method = KeypointsConfig(head="simple", drop_path=0.3, test_flip=True)
    return run


def keypoints_mini() -> Pretrain:
    """Heat maps of joints at 128 x 96 px, for two cores: 100 epochs of 16 people a step.

    Rate 1e-3, 0.75 of it in each layer below, AdamW (0.9, 0.999), weight decay 0.05; people at 0.8 to 1.25 of the size
    at which they cover the view.
    """
    return Pretrain(
        method=KeypointsConfig(channels=64, norm="group", drop_path=0.0),
        images=Images(size=(128, 96), view=ScaleJitter(scale=(0.8, 1.25), covers=True)),
        optimizer=AdamWConfig(base_lr=1e-3, per=16, betas=(0.9, 0.999), layer_decay=0.75),
        schedule=WarmupCosine(warmup=0.05),
        epochs=100,
        batch_size=16,
        machine=Machine(evals=0),
    )
