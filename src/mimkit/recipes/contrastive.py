"""Recipes of SimCLR, MoCo and DINO, as published and for small pictures: nothing enters, a Pretrain leaves."""

from dataclasses import replace

from mimkit.data.published import byol, dino, moco_v1, moco_v2, simclr
from mimkit.data.views import View
from mimkit.methods.base import MethodConfig
from mimkit.methods.dino import DINOConfig
from mimkit.methods.moco import MoCoConfig
from mimkit.methods.moco_v3 import MoCoV3Config
from mimkit.methods.simclr import SimCLRConfig
from mimkit.model.build import EncoderConfig
from mimkit.train.optimizer import AdamWConfig, LarsConfig, SGDConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine, WarmupSteps


def _pair(view: View, size: int = 224) -> Images:
    """Two views by the same rule."""
    return Images(size=size, view=view, other_views=(view,))


def _raw(images: Images) -> Images:
    """Pixels in [0, 1], as SimCLR's."""
    return replace(images, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _mini(method: MethodConfig) -> Pretrain:
    """The encoder of `mae_mini_32` and SimCLR's views for CIFAR."""
    return Pretrain(
        encoder=EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=128, depth=4, heads=4),
        method=method,
        images=_pair(simclr(0.5, blur=False), 32),
        optimizer=AdamWConfig(base_lr=1e-3, betas=(0.9, 0.999)),
        schedule=WarmupCosine(warmup=0.1),
        epochs=24,
        batch_size=256,
    )


def simclr_resnet50() -> Pretrain:
    """SimCLR, ResNet-50 at 224 px: the paper's recipe, 100 epochs with 4096 pictures a step.

    Chen et al. 2020: LARS, rate 4.8 (0.3 x 4096 / 256), 10 warm-up epochs, temperature 0.1, a projector of two layers,
    pixels in [0, 1] without normalization, BatchNorm over all processes. google-research/simclr reports 69.1 % linear
    on ImageNet after 1000 epochs, and 64.5 % after 100 with a projector of three layers. Not measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(name="resnet50"),
        method=SimCLRConfig(scale=2.0),
        images=_raw(_pair(simclr())),
        optimizer=LarsConfig(base_lr=0.3, weight_decay=1e-6),
        schedule=WarmupCosine(warmup=None, warmup_epochs=10),
        epochs=100,
        batch_size=4096,
    )


def simclr_resnet18_32() -> Pretrain:
    """SimCLR, ResNet-18 at 32 px (CIFAR-10): the released code's recipe.

    1000 epochs with 512 pictures a step, LARS, rate 2.0 (1.0 x 512 / 256), weight decay 1e-4, temperature 0.5, a
    projector of three layers, no blur, pixels in [0, 1] without normalization. The ResNet is timm's with
    `output_stride` 8: a 4 x 4 map leaves it as in the code's, but its stem halves twice, where the code's has a 3 x 3
    convolution and no pooling. google-research/simclr reports about 91 % linear. Not measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(name="resnet18", model_args={"output_stride": 8}),
        method=SimCLRConfig(temperature=0.5, layers=3, scale=2.0),
        images=_raw(_pair(simclr(0.5, blur=False), 32)),
        optimizer=LarsConfig(base_lr=1.0, weight_decay=1e-4),
        schedule=WarmupCosine(warmup=None, warmup_epochs=10),
        epochs=1000,
        batch_size=512,
    )


def simclr_mini_32() -> Pretrain:
    """SimCLR, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), the class token projected.

    24 epochs with 256 pictures a step; AdamW, rate 1e-3, temperature 0.5, views of CIFAR in the paper. Not measured by
    us.
    """
    return _mini(SimCLRConfig(temperature=0.5))


def moco_v1_resnet50() -> Pretrain:
    """MoCo v1, ResNet-50 at 224 px: the authors' recipe, 200 epochs with 256 pictures a step.

    He et al. 2020, facebookresearch/moco: SGD, rate 3e-2, a tenth of it from epochs 120 and 160 on, weight decay 1e-4
    on everything, queue of 65536, temperature 0.07. Shuffled BatchNorm needs several processes: the authors had eight.
    They report 60.6 % linear on ImageNet. Not measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(name="resnet50", model_args={"zero_init_last": False}),
        method=MoCoConfig(head="linear", temperature=0.07),
        images=replace(_pair(moco_v1()), statistics="imagenet"),
        optimizer=SGDConfig(base_lr=0.03, weight_decay=1e-4),
        schedule=WarmupSteps(warmup=0.0, steps=(0.6, 0.8)),
        epochs=200,
        batch_size=256,
    )


def moco_v2_resnet50() -> Pretrain:
    """MoCo v2, ResNet-50 at 224 px: the authors' recipe, 200 epochs with 256 pictures a step.

    Chen et al. 2020: as `moco_v1_resnet50`, rate 3e-2, with a head of two layers, temperature 0.2, stronger colors and
    blur, and half a cosine without warm-up. The authors report 67.7 % linear on ImageNet (71.1 % after 800 epochs).
    Not measured by us.
    """
    run = moco_v1_resnet50()
    run.method, run.images = MoCoConfig(), replace(_pair(moco_v2()), statistics="imagenet")
    run.schedule = WarmupCosine(warmup=0.0)
    return run


def moco_v2_mini_32() -> Pretrain:
    """MoCo v2, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), a queue of 4096.

    24 epochs with 256 pictures a step; AdamW, rate 1e-3, momentum 0.99, views of `simclr_mini_32`. Not measured by us.
    """
    return _mini(MoCoConfig(queue=4096, momentum=0.99))


def _moco_v3(least: float = 0.08) -> Images:
    """BYOL's two views of `least` to all of the area, resized bilinearly as in the released code."""
    first, second = (replace(byol(first), scale=(least, 1.0), interpolation="bilinear") for first in (True, False))
    return Images(size=224, view=first, other_views=(second,), statistics="imagenet")


def moco_v3_vit_b16() -> Pretrain:
    """MoCo v3, ViT-B/16 at 224 px: the paper's recipe, 300 epochs with 4096 pictures a step.

    Chen, Xie, He 2021, facebookresearch/moco-v3: AdamW, rate 2.4e-3 (1.5e-4 x 4096 / 256), weight decay 0.1 on
    everything, 40 warm-up epochs, temperature 0.2, frozen patch embedding, BYOL's pair of views
    resized bilinearly. The authors report
    76.7 % linear and 83.2 % fine-tuned on ImageNet. Not measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(name="vit_base_patch16_224"),
        method=MoCoV3Config(),
        images=_moco_v3(),
        optimizer=AdamWConfig(weight_decay=0.1, betas=(0.9, 0.999), decay_all=True),
        schedule=WarmupCosine(warmup=None, warmup_epochs=40),
        epochs=300,
        batch_size=4096,
    )


def moco_v3_vit_s16() -> Pretrain:
    """MoCo v3, ViT-S/16 with 12 heads at 224 px: the paper's recipe, 300 epochs with 4096 pictures a step.

    As `moco_v3_vit_b16`, rate 2.4e-3. The authors report 73.2 % linear and 81.4 % fine-tuned on ImageNet. Not measured
    by us.
    """
    run = moco_v3_vit_b16()
    run.encoder = EncoderConfig(name="vit_small_patch16_224", heads=12)
    return run


def moco_v3_resnet50() -> Pretrain:
    """MoCo v3, ResNet-50 at 224 px: the paper's recipe, 300 epochs with 4096 pictures a step.

    LARS, rate 4.8 (0.3 x 4096 / 256), weight decay 1e-6, 10 warm-up epochs, temperature 1. The authors report 72.8 %
    linear on ImageNet (68.9 % after 100 epochs at twice the rate). Not measured by us.
    """
    run = moco_v3_vit_b16()
    run.encoder, run.method = EncoderConfig(name="resnet50"), MoCoV3Config(temperature=1.0)
    run.images = _moco_v3(least=0.2)
    run.optimizer = LarsConfig(base_lr=0.3, weight_decay=1e-6)
    run.schedule = WarmupCosine(warmup=None, warmup_epochs=10)
    return run


def moco_v3_mini_32() -> Pretrain:
    """MoCo v3, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), heads 1024 wide.

    24 epochs with 256 pictures a step; AdamW, rate 1e-3, views of `simclr_mini_32`. Not measured by us.
    """
    return _mini(MoCoV3Config(hidden=1024))


def dino_vit_s16() -> Pretrain:
    """DINO, ViT-S/16 at 224 px, crops of 96: the paper's recipe, 100 epochs with 1024 pictures a step.

    Caron et al. 2021, facebookresearch/dino: eight crops, AdamW, rate 2e-3 (5e-4 x 1024 / 256), 10 warm-up epochs, at
    last 1e-6, weight decay 0.04 to 0.4, gradients of each tensor up to 3, drop path 0.1, prototypes still for an epoch.
    The authors report kNN 69.3 % and 74.0 % linear on ImageNet after 100 epochs on eight GPUs with 64 pictures each,
    and 74.5 and 77.0 % of the weights they released. Not measured by us.
    """
    first, *other_views = dino()
    return Pretrain(
        encoder=EncoderConfig(name="vit_small_patch16_224", positions="learned", model_args={"drop_path_rate": 0.1}),
        method=DINOConfig(),
        images=Images(size=224, view=first, other_views=tuple(other_views), statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=5e-4, weight_decay=0.04, weight_decay_end=0.4, betas=(0.9, 0.999), clip_each=3.0),
        schedule=WarmupCosine(warmup=None, warmup_epochs=10, final=1e-6 / 2e-3),
        epochs=100,
        batch_size=1024,
    )


def dino_mini_32() -> Pretrain:
    """DINO, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), four crops of 16, 4096 prototypes.

    24 epochs with 256 pictures a step; AdamW, rate 1e-3, weight decay 0.04 to 0.4, gradients of each tensor up to 3, no
    blur. Not measured by us.
    """
    run = _mini(DINOConfig(prototypes=4096, hidden=512, bottleneck=64, freeze_last=1 / 24))
    first, *other_views = dino(4, 16, blur=False)
    run.images = Images(size=32, view=first, other_views=tuple(other_views))
    run.optimizer = replace(dino_vit_s16().optimizer, base_lr=1e-3)
    return run
