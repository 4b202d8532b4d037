"""Recipes of CrossMAE, of the paper's size and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.masks import RandomMasker
from mimkit.methods.mae import MAEConfig
from mimkit.model.reader import CrossDecoderConfig
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
