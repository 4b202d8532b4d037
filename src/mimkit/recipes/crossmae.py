"""Recipes of CrossMAE, of MAE and of EMAE with its decoder: nothing enters, a Pretrain leaves."""

from mimkit.masks import PartitionMasker, RandomMasker
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.mae import MAEConfig
from mimkit.model.reader import CrossDecoderConfig
from mimkit.recipes.emae import emae_mini_32, emae_vit_b16
from mimkit.recipes.imagenet import mae_vit_b16
from mimkit.recipes.small import mae_mini_32
from mimkit.train.prepare import Pretrain


def crossmae_vit_b16() -> Pretrain:
    """CrossMAE, ViT-B/16 at 224 px: the released command, 800 epochs with 4096 pictures a step.

    Fu et al. 2024 and TonyLianLong/CrossMAE: a quarter of the patches is seen, a quarter predicted, by 12 blocks of
    cross-attention to a mix of all blocks of the encoder; the rest as `mae_vit_b16`, rate 2.4e-3. The authors report
    83.7 % fine-tuned on ImageNet. Not measured by us.
    """
    run = mae_vit_b16()
    run.method = MAEConfig(masker=RandomMasker(ratio=0.25, throw=0.5), decoder=CrossDecoderConfig())
    return run


def crossmae_mini_32() -> Pretrain:
    """CrossMAE for 32 px (CIFAR): a quarter of the patches predicted by two blocks of cross-attention.

    24 epochs with 128 pictures a step, rate 1.5e-3, else as `mae_mini_32`, of whose FLOPs it takes 0.88, counted. Not
    measured by us.
    """
    run = mae_mini_32()
    decoder = CrossDecoderConfig(width=64, depth=2, heads=4)
    run.method = MAEConfig(masker=RandomMasker(ratio=0.25, throw=0.5), decoder=decoder)
    return run


def emae_vit_b16_cross() -> Pretrain:
    """EMAE with CrossMAE's decoder, ViT-B/16 at 224 px: four parts that each predict a quarter.

    Not in a paper: 300 epochs with 4096 pictures a step, rate 2.4e-3, else as `emae_vit_b16`, with 8 blocks of
    cross-attention; all parts predict the same patches, a third of what they hide. Not measured by us.
    """
    run = emae_vit_b16()
    run.method = EMAEConfig(masker=PartitionMasker(throw=0.5), decoder=CrossDecoderConfig(depth=8))
    return run


def emae_mini_32_cross() -> Pretrain:
    """EMAE with CrossMAE's decoder for 32 px (CIFAR): four parts that each predict a quarter.

    6 epochs with 128 pictures a step, rate 1.5e-3, else as `emae_mini_32`, with two blocks of cross-attention. 3.5
    times the FLOPs of `mae_mini_32` a picture, counted. Not measured by us.
    """
    run = emae_mini_32()
    decoder = CrossDecoderConfig(width=64, depth=2, heads=4)
    run.method = EMAEConfig(masker=PartitionMasker(throw=0.5), decoder=decoder)
    return run
