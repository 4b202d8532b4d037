"""Recipes of depth: nothing enters, a Pretrain leaves, to which a target adds the encoder."""

from mimkit.data.color import ColorAugment
from mimkit.data.views import ScaleJitter
from mimkit.methods.depth import DepthConfig
from mimkit.train.machine import Machine
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine, WarmupLinear

BRIGHTNESS = ColorAugment(jitter=0.5, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02, gray=0.0, blur=0.0)


def depth_simmim_swin_b() -> Pretrain:
    """Depth by deconvolutions on a Swin-B at 480 px: 25 epochs of 24 pictures a step on NYU Depth v2.

    Xie et al. 2023 (Dark Secrets) and SwinTransformer/MIM-Depth-Estimation: rate 5e-4 at most, 0.9 of it in each layer
    below, half of the time up from 3e-5 and half down (there with a power of 0.9, here linearly), AdamW (0.9, 0.999),
    weight decay 0.05, drop path 0.3, mirrored pictures and the mean of both at the test. Their SwinV2-B reaches a RMSE
    of 0.304 m. Without their CutDepth, and with windows that pre-training had. Not measured by us at this scale.
    """
    return Pretrain(
        method=DepthConfig(drop_path=0.3, test_flip=True),
        images=Images(
            size=480, view=ScaleJitter(scale=(1.0, 1.0), covers=True, color=BRIGHTNESS), statistics="imagenet"
        ),
        optimizer=AdamWConfig(base_lr=5e-4, per=24, betas=(0.9, 0.999), layer_decay=0.9),
        schedule=WarmupLinear(warmup=0.5, first=0.06),
        epochs=25,
        batch_size=24,
        machine=Machine(evals=0),
    )


def depth_simmim_vit_b16() -> Pretrain:
    """As `depth_simmim_swin_b` on the last map of a ViT-B, with a layer decay of 0.75.

    Not of a paper, and not measured by us at this scale.
    """
    run = depth_simmim_swin_b()
    run.optimizer = AdamWConfig(base_lr=5e-4, per=24, betas=(0.9, 0.999), layer_decay=0.75)
    run.method = DepthConfig(drop_path=0.1, test_flip=True)
    return run


def depth_linear() -> Pretrain:
    """DINOv2's linear depth on frozen features at 480 px: 256 bins, SigLoss of weight 10 and gradients of 0.5.

    facebookresearch/dinov2:eval/depth: AdamW, rate 1e-4, 38,400 steps of 16 pictures. Not measured by us at this scale;
    'mimkit evaluate depth' without --train measures frozen features in minutes.
    """
    run = depth_simmim_swin_b()
    run.method = DepthConfig(
        head="linear", freeze=True, drop_path=0.0, mean_weight=0.15, silog=10.0, gradient=0.5, test_flip=True
    )
    run.optimizer = AdamWConfig(base_lr=1e-4, per=16, betas=(0.9, 0.999), weight_decay=0.01)
    run.schedule = WarmupCosine(warmup=0.333)
    run.batch_size = 16
    return run


def depth_mini() -> Pretrain:
    """Depth by deconvolutions at 96 px, for two cores: 60 epochs of 16 pictures a step.

    Rate 1e-3, 0.75 of it in each layer below, AdamW (0.9, 0.999), weight decay 0.05; pictures at 1 to 1.2 of the size
    at which they cover the view.
    """
    return Pretrain(
        method=DepthConfig(channels=32, fine_channels=32, norm="group", drop_path=0.0),
        images=Images(size=96, view=ScaleJitter(scale=(1.0, 1.2), covers=True)),
        optimizer=AdamWConfig(base_lr=1e-3, per=16, betas=(0.9, 0.999), layer_decay=0.75),
        schedule=WarmupCosine(warmup=0.05),
        epochs=60,
        batch_size=16,
        machine=Machine(evals=0),
    )
