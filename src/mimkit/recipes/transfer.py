"""Recipes of dense tasks: nothing enters, a Pretrain leaves, to which a target adds the encoder."""

from mimkit.data.color import ColorAugment
from mimkit.data.views import ScaleJitter
from mimkit.evaluate.finetune import Start
from mimkit.methods.depth import DepthConfig
from mimkit.methods.detect import DetectConfig
from mimkit.methods.segment import SegmentConfig
from mimkit.model.build import is_convolutional, is_windowed
from mimkit.model.detection import MaskRCNNConfig
from mimkit.train.machine import Machine
from mimkit.train.optimizer import AdamWConfig, SGDConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine, WarmupLinear, WarmupSteps

SMALL = 128  # pixels: encoders of smaller images take the small recipes


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


PHOTOMETRIC = ColorAugment(jitter=0.5, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05, gray=0.0, blur=0.0)


def segment_upernet_vit_l16() -> Pretrain:
    """UperNet on a ViT-L at 512 px: as `segment_upernet_vit_b16` with BEiT-L's rates.

    microsoft/unilm:beit/semantic_segmentation: rate 2e-5, 0.95 of it in each layer below, drop path 0.2, 1,024
    channels, windows a third apart at the test. MAE's paper reports 53.6 % with its own. Not measured by us.
    """
    run = segment_upernet_vit_b16()
    run.method = SegmentConfig(channels=1024, drop_path=0.2, test_stride=2 / 3)
    run.optimizer = AdamWConfig(base_lr=2e-5, per=16, betas=(0.9, 0.999), layer_decay=0.95)
    return run


def segment_upernet_swin_b() -> Pretrain:
    """UperNet on the stages of a Swin-B at 512 px, 160,000 steps of 16 pictures on ADE20K.

    SwinTransformer/Swin-Transformer-Semantic-Segmentation: rate 6e-5, weight decay 0.01, drop path 0.3, 512 channels;
    here with a layer decay of 0.9, as encoders without labels want one. Not measured by us at this scale.
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


BRIGHTNESS = ColorAugment(jitter=0.5, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02, gray=0.0, blur=0.0)


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

    Liu et al. 2021 (Swin): rate 1e-4, weight decay 0.05, drop path 0.3, a tenth at 75 % and 92 %; here with a layer
    decay of 0.9 and large-scale jitter. Not measured by us at this scale.
    """
    run = detect_vitdet_b16()
    run.method = DetectConfig(drop_path=0.3)
    run.optimizer = AdamWConfig(base_lr=1e-4, per=16, betas=(0.9, 0.999), layer_decay=0.9)
    run.schedule = WarmupSteps(warmup=0.003, first=0.001, steps=(0.75, 0.917))
    run.epochs, run.batch_size = 36, 16
    return run


def detect_fpn_resnet50() -> Pretrain:
    """Mask R-CNN on a feature pyramid of a ResNet-50 at 800 px: 24 epochs of 16 pictures a step, the 2x of MoCo.

    He et al. 2020 (MoCo): SGD, rate 0.02, momentum 0.9, weight decay 1e-4, a tenth at 78 % and 93 %, all layers; pictures
    there in their own sizes, here jittered from 0.8 to 1.25. Not measured by us at this scale.
    """
    run = detect_vitdet_b16()
    run.method = DetectConfig(drop_path=0.0, heads=FPN_HEADS)
    run.images.size, run.images.view = 800, ScaleJitter(scale=(0.8, 1.25))
    run.optimizer = SGDConfig(base_lr=0.02, per=16, weight_decay=1e-4)
    run.schedule = WarmupSteps(warmup=0.003, first=0.001, steps=(0.778, 0.926))
    run.epochs, run.batch_size = 24, 16
    return run


FPN_HEADS = MaskRCNNConfig(proposal_convolutions=1, box_convolutions=0)


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


def choose_dense(start: Start, kind: str) -> tuple[str, str]:
    """(name, why): the small recipe for encoders of small images, else that of the architecture."""
    name, width = start.encoder.name, start.width
    if min(start.size) < SMALL:
        return f"{kind}_mini", f"its images have {start.size[0]}x{start.size[1]} pixels"
    if is_windowed(name):
        return _RECIPES[kind, "swin"], "it is a Swin"
    if is_convolutional(name):
        return _RECIPES[kind, "resnet"], "it is a ResNet"
    return _RECIPES[kind, "large" if width >= 1024 else "base"], f"it is {width} wide"


_RECIPES = {
    ("segment", "base"): "segment_upernet_vit_b16",
    ("segment", "large"): "segment_upernet_vit_l16",
    ("segment", "swin"): "segment_upernet_swin_b",
    ("segment", "resnet"): "segment_upernet_swin_b",
    ("detect", "base"): "detect_vitdet_b16",
    ("detect", "large"): "detect_vitdet_l16",
    ("detect", "swin"): "detect_fpn_swin_b",
    ("detect", "resnet"): "detect_fpn_resnet50",
    ("depth", "base"): "depth_simmim_vit_b16",
    ("depth", "large"): "depth_simmim_vit_b16",
    ("depth", "swin"): "depth_simmim_swin_b",
    ("depth", "resnet"): "depth_simmim_swin_b",
}
