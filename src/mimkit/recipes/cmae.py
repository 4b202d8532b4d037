"""Recipes of CMAE, of the paper's size and for small pictures: nothing enters, a Pretrain leaves."""

from dataclasses import replace

from mimkit.data.published import cmae
from mimkit.masks import SalienceMasker
from mimkit.methods.cmae import CMAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.recipes.imagenet import mae_vit_b16
from mimkit.recipes.small import mae_mini_32
from mimkit.train.prepare import Pretrain


def _with_sbam(run: Pretrain) -> Pretrain:
    run.method.masker = SalienceMasker(ratio=0.65, start=0.25)  # type: ignore[attr-defined]
    return run


def cmae_vit_b16() -> Pretrain:
    """CMAE, ViT-B/16 at 224 px: the released recipe, 300 epochs with 4096 pictures a step.

    Huang et al. 2022, ZhichengHuang/CMAE: as MAE, rate 2.4e-3 (1.5e-4 x 4096 / 256), 40 warm-up epochs, squares of 2 x
    2 patches hidden up to 0.65, two views of one box, the second moved by up to 31 of 256 pixels and with other
    colors, temperature 0.07, momentum 0.996. The authors report 83.8 % fine-tuned on ImageNet (84.7 % after 1600
    epochs). Not measured by us.
    """
    run = mae_vit_b16()
    first, second = cmae()
    run.encoder = EncoderConfig(name="vit_base_patch16_224")
    run.method, run.epochs = CMAEConfig(), 300
    run.images = replace(run.images, view=first, other_views=(second,))
    return run


def cmae_vit_b16_sbam() -> Pretrain:
    """CMAE with SBAM masks, ViT-B/16 at 224 px, 300 epochs with 4096 pictures a step.

    As `cmae_vit_b16`, rate 2.4e-3, with single patches hidden, at random in the first quarter; SBAM's paper reports it
    as a plug-in and released no code of that. Not measured by us.
    """
    return _with_sbam(cmae_vit_b16())


def cmae_mini_32() -> Pretrain:
    """CMAE, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), views moved by up to 3 of 36 pixels.

    24 epochs with 256 pictures a step; rate 1.5e-3, momentum 0.99, heads 256 wide to 64 numbers, no blur, else as
    `mae_mini_32`. Not measured by us.
    """
    run = mae_mini_32()
    first, second = (replace(view, scale=(0.4, 1.0)) for view in cmae(margin=1 / 9, places=4))
    assert second.color is not None
    second = replace(second, color=replace(second.color, blur=0.0))
    decoder = run.method.decoder  # type: ignore[attr-defined]
    run.method = CMAEConfig(decoder=decoder, feature_decoder=replace(decoder), momentum=0.99, hidden=256, outputs=64)
    run.images = replace(run.images, view=first, other_views=(second,))
    run.optimizer, run.batch_size = replace(run.optimizer, base_lr=1.5e-3), 256
    return run


def cmae_mini_32_sbam() -> Pretrain:
    """CMAE with SBAM masks for 32 px (CIFAR): random masks in the first quarter.

    24 epochs with 256 pictures a step, rate 1.5e-3, else as `cmae_mini_32`. Not measured by us.
    """
    return _with_sbam(cmae_mini_32())
