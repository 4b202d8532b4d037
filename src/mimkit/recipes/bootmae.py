"""Recipes of BootMAE, of the paper's size and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.masks import SalienceMasker, ToppedBlockMasker
from mimkit.methods.bootmae import BootMAEConfig
from mimkit.methods.momentum import Momentum
from mimkit.model.build import EncoderConfig
from mimkit.recipes.imagenet import mae_vit_b16
from mimkit.recipes.small import mae_mini_32
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Pretrain
from mimkit.train.schedule import WarmupCosine


def bootmae_vit_b16() -> Pretrain:
    """BootMAE, ViT-B/16 at 224 px: the authors' recipe, 800 epochs with 4096 pictures a step.

    Dong et al. 2022, LightDXY/BootMAE: AdamW (0.9, 0.999), rate 2.4e-3 (1.5e-4 x 4096 / 256) that ends at 1e-4, 40
    warm-up epochs, pixels normalized by 0.5, blocks over 120 of 196 patches and 27 more, two decoders of two blocks.
    The authors report 66.1 % linear and 84.2 % fine-tuned on ImageNet. Not measured by us.
    """
    run = mae_vit_b16()
    run.encoder = EncoderConfig(name="vit_base_patch16_224")
    run.method = BootMAEConfig()
    run.images.mean = run.images.std = (0.5, 0.5, 0.5)
    run.optimizer = AdamWConfig(betas=(0.9, 0.999))
    run.schedule = WarmupCosine(warmup=None, warmup_epochs=40, final=1e-4 / 2.4e-3)
    return run


def bootmae_mini_32() -> Pretrain:
    """BootMAE for 32 px (CIFAR): blocks over 39 of 64 patches and 9 more, decoders 64 x 2 and 128 x 2.

    24 epochs with 128 pictures a step, rate 1.5e-3, a teacher that keeps 0.99 to 0.999 of itself, else as
    `mae_mini_32`. 4.3 times its FLOPs a picture, counted. Not measured by us.
    """
    run = mae_mini_32()
    momentum = Momentum(first=0.99, last=0.999, shape="linear")
    run.method = BootMAEConfig(masker=ToppedBlockMasker(roll=1), momentum=momentum, width=64)
    return run


def bootmae_mini_32_sbam() -> Pretrain:
    """BootMAE with SBAM masks for 32 px (CIFAR): random masks in the first quarter.

    24 epochs with 128 pictures a step, rate 1.5e-3, else as `bootmae_mini_32`. Not measured by us.
    """
    run = bootmae_mini_32()
    assert isinstance(run.method, BootMAEConfig)
    run.method.masker = SalienceMasker(start=0.25)
    return run
