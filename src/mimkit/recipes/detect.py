"""Recipes of detection: nothing enters, a Pretrain leaves, to which a target adds the encoder."""

from mimkit.data.views import ScaleJitter
from mimkit.methods.detect import DetectConfig
from mimkit.model.detection import MaskRCNNConfig
from mimkit.train.machine import Machine
from mimkit.train.optimizer import AdamWConfig, SGDConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupSteps

FPN_HEADS = MaskRCNNConfig(proposal_convolutions=1, box_convolutions=0)
SMALL_HEADS = MaskRCNNConfig(
    channels=64,
    proposal_convolutions=1,
    box_convolutions=0,
    box_width=256,
    mask_convolutions=2,
    anchors=128,
    proposals=200,
    boxes=64,
)


def detect_vitdet_b16() -> Pretrain:
    """Mask R-CNN on the simple pyramid of a ViT-B at 1,024 px: 100 epochs of 64 pictures a step on COCO.

    Li et al. 2022 (ViTDet) and facebookresearch/detectron2:projects/ViTDet: rate 1e-4, 0.7 of it in each layer below,
    250 steps of warm-up, a tenth at 89 % and 96 %, AdamW (0.9, 0.999), weight decay 0.1, drop path 0.1, large-scale
    jitter 0.1 to 2. They report box AP 51.6 and mask AP 45.9. Windows here are of 16 patches, which divide 64, and
    positions are absolute alone. Not measured by us at this scale.
    """
    return Pretrain(
        method=DetectConfig(window=16, drop_path=0.1),
        images=Images(size=1024, view=ScaleJitter(scale=(0.1, 2.0)), statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=1e-4, per=64, betas=(0.9, 0.999), layer_decay=0.7, weight_decay=0.1),
        schedule=WarmupSteps(warmup=250 / 184_375, first=0.001, steps=(0.889, 0.963)),
        epochs=100,
        batch_size=64,
        machine=Machine(evals=0),
    )


def detect_vitdet_l16() -> Pretrain:
    """Mask R-CNN on the simple pyramid of a ViT-L at 1,024 px, as `detect_vitdet_b16`.

    Layer decay 0.8, drop path 0.4; they report box AP 55.5 and mask AP 49.2. Not measured by us at this scale.
    """
    run = detect_vitdet_b16()
    run.method = DetectConfig(window=16, drop_path=0.4)
    run.optimizer = AdamWConfig(base_lr=1e-4, per=64, betas=(0.9, 0.999), layer_decay=0.8, weight_decay=0.1)
    return run


def detect_vitdet_h16() -> Pretrain:
    """Mask R-CNN on the simple pyramid of a ViT-H at 1,024 px with patches of 16 (`--encoder.patch 16`): 75 epochs.

    Layer decay 0.9, drop path 0.5; they report box AP 56.7 and mask AP 50.2. Not measured by us at this scale.
    """
    run = detect_vitdet_b16()
    run.method = DetectConfig(window=16, drop_path=0.5)
    run.optimizer = AdamWConfig(base_lr=1e-4, per=64, betas=(0.9, 0.999), layer_decay=0.9, weight_decay=0.1)
    run.epochs = 75
    return run


def detect_fpn_swin_b() -> Pretrain:
    """Mask R-CNN on a feature pyramid of a Swin-B at 1,024 px: 36 epochs of 16 pictures a step on COCO.

    In the manner of Liu et al. 2021, not checked against their files: rate 1e-4, weight decay 0.05, drop path 0.3, a
    tenth at 75 % and 92 %; with a layer decay of 0.9 and large-scale jitter. Not measured by us at this scale.
    """
    run = detect_vitdet_b16()
    run.method = DetectConfig(drop_path=0.3)
    run.optimizer = AdamWConfig(base_lr=1e-4, per=16, betas=(0.9, 0.999), layer_decay=0.9)
    run.schedule = WarmupSteps(warmup=0.003, first=0.001, steps=(0.75, 0.917))
    run.epochs, run.batch_size = 36, 16
    return run


def detect_fpn_resnet50() -> Pretrain:
    """Mask R-CNN on a feature pyramid of a ResNet-50 at 800 px: 24 epochs of 16 pictures a step, the 2x of MoCo.

    In the manner of He et al. 2020 (MoCo), not checked against their files: SGD, rate 0.02, momentum 0.9, weight decay
    1e-4, a tenth at 78 % and 93 %, all layers; pictures there in their own sizes, here jittered from 0.8 to 1.25. Not
    measured by us at this scale.
    """
    run = detect_vitdet_b16()
    run.method = DetectConfig(drop_path=0.0, heads=FPN_HEADS)
    run.images.size, run.images.view = 800, ScaleJitter(scale=(0.8, 1.25))
    run.optimizer = SGDConfig(base_lr=0.02, per=16, weight_decay=1e-4)
    run.schedule = WarmupSteps(warmup=0.003, first=0.001, steps=(0.778, 0.926))
    run.epochs, run.batch_size = 24, 16
    return run


def detect_mini() -> Pretrain:
    """Mask R-CNN with small heads at 192 px, for two cores: 60 epochs of 8 pictures a step.

    Rate 1e-3, 0.75 of it in each layer below, a tenth from 80 % on, AdamW (0.9, 0.999), weight decay 0.05; pictures at
    0.7 to 1.3 of the size at which they fit.
    """
    return Pretrain(
        method=DetectConfig(drop_path=0.0, heads=SMALL_HEADS),
        images=Images(size=192, view=ScaleJitter(scale=(0.7, 1.3))),
        optimizer=AdamWConfig(base_lr=1e-3, per=8, betas=(0.9, 0.999), layer_decay=0.75, clip=1.0),
        schedule=WarmupSteps(warmup=0.05, steps=(0.8,)),
        epochs=60,
        batch_size=8,
        machine=Machine(evals=0),
    )
