"""Recipes of segmentation: nothing enters, a Pretrain leaves, to which a target adds the encoder."""

from mimkit.data.color import ColorAugment
from mimkit.data.views import ScaleJitter
from mimkit.methods.segment import SegmentConfig
from mimkit.train.machine import Machine
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine, WarmupLinear

PHOTOMETRIC = ColorAugment(jitter=0.5, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05, gray=0.0, blur=0.0)


def segment_upernet_vit_b16() -> Pretrain:
    """UperNet on a ViT-B at 512 px: 160,000 steps of 16 pictures on ADE20K, 127 epochs of its 20,210 pictures.

    He et al. 2022 and open-mmlab/mmsegmentation:configs/mae: rate 1e-4, 0.65 of it in each layer below, 1,500 steps of
    warm-up, then linearly to 0, AdamW (0.9, 0.999), weight decay 0.05, drop path 0.1; 768 channels, a second head of
    weight 0.4; pictures at 0.5 to 2 of the size at which they cover the view. mmsegmentation reports a mIoU of 48.1 %.
    Theirs has BatchNorm over all processes and refuses crops of which one class holds more than 75 %. Not measured by
    us at this scale.
    """
    return Pretrain(
        method=SegmentConfig(channels=768, drop_path=0.1),
        images=Images(
            size=512,
            view=ScaleJitter(scale=(0.5, 2.0), covers=True, color=PHOTOMETRIC),
            statistics="imagenet",
        ),
        optimizer=AdamWConfig(base_lr=1e-4, per=16, betas=(0.9, 0.999), layer_decay=0.65),
        schedule=WarmupLinear(warmup=1500 / 160_000, first=1e-6),
        epochs=127,
        batch_size=16,
        machine=Machine(evals=0),
    )


def segment_upernet_beit_b16() -> Pretrain:
    """UperNet on a ViT-B at 512 px with BEiT's rates: as `segment_upernet_vit_b16`.

    microsoft/unilm:beit/semantic_segmentation: rate 3e-5, 0.9 of it in each layer below, drop path 0.1, windows two
    thirds apart at the test. Not measured by us at this scale.
    """
    run = segment_upernet_vit_b16()
    run.method = SegmentConfig(channels=768, drop_path=0.1, test_stride=2 / 3)
    run.optimizer = AdamWConfig(base_lr=3e-5, per=16, betas=(0.9, 0.999), layer_decay=0.9)
    return run


def segment_upernet_vit_l16() -> Pretrain:
    """UperNet on a ViT-L at 512 px: as `segment_upernet_vit_b16` with BEiT-L's rates.

    microsoft/unilm:beit/semantic_segmentation: rate 2e-5, 0.95 of it in each layer below, drop path 0.2, 1,024
    channels, windows a third apart at the test. Not measured by us at this scale.
    """
    run = segment_upernet_vit_b16()
    run.method = SegmentConfig(channels=1024, drop_path=0.2, test_stride=2 / 3)
    run.optimizer = AdamWConfig(base_lr=2e-5, per=16, betas=(0.9, 0.999), layer_decay=0.95)
    return run


def segment_upernet_swin_b() -> Pretrain:
    """UperNet on the stages of a Swin-B at 512 px, 160,000 steps of 16 pictures on ADE20K.

    In the manner of Liu et al. 2021, not checked against their files: rate 6e-5, weight decay 0.01, drop path 0.3, 512
    channels; with a layer decay of 0.9, as encoders trained without labels want one. Not measured by us.
    """
    run = segment_upernet_vit_b16()
    run.method = SegmentConfig(channels=512, drop_path=0.3, test_stride=2 / 3)
    run.optimizer = AdamWConfig(base_lr=6e-5, per=16, betas=(0.9, 0.999), layer_decay=0.9, weight_decay=0.01)
    return run


def segment_linear() -> Pretrain:
    """A linear head on frozen features at 512 px: 40,000 steps of 16 pictures on ADE20K.

    facebookresearch/dinov2:eval/segmentation: a BatchNorm and one layer on the last map, AdamW, rate 1e-3. Not measured
    by us at this scale; 'mimkit evaluate segment' without --train measures frozen features in minutes.
    """
    run = segment_upernet_vit_b16()
    run.method = SegmentConfig(head="linear", freeze=True, drop_path=0.0)
    run.optimizer = AdamWConfig(base_lr=1e-3, per=16, betas=(0.9, 0.999), weight_decay=1e-4)
    run.epochs = 32
    return run


def segment_mini() -> Pretrain:
    """UperNet of 64 channels at 96 px, for two cores: 60 epochs of 16 pictures a step.

    Rate 1e-3, 0.75 of it in each layer below, AdamW (0.9, 0.999), weight decay 0.05; pictures at 0.75 to 1.5 of the
    size at which they cover the view.
    """
    return Pretrain(
        method=SegmentConfig(channels=64, auxiliary_channels=32, drop_path=0.0, dropout=0.0),
        images=Images(size=96, view=ScaleJitter(scale=(0.75, 1.5), covers=True)),
        optimizer=AdamWConfig(base_lr=1e-3, per=16, betas=(0.9, 0.999), layer_decay=0.75),
        schedule=WarmupCosine(warmup=0.05),
        epochs=60,
        batch_size=16,
        machine=Machine(evals=0),
    )
