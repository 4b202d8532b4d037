"""Recipes of EMAE, of the paper's sizes and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.masks import PartitionMasker
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.mae import MAEConfig
from mimkit.model.reader import CrossDecoderConfig
from mimkit.recipes.imagenet import mae_vit_b16, mae_vit_l16
from mimkit.recipes.small import mae_mini_32, mae_mini_48
from mimkit.train.prepare import Pretrain


def _emae(run: Pretrain, epochs: int) -> Pretrain:
    assert isinstance(run.method, MAEConfig)
    run.method, run.epochs = EMAEConfig(decoder=run.method.decoder), epochs
    return run


def emae_vit_b16() -> Pretrain:
    """EMAE, ViT-B/16 at 224 px: four parallel parts, 300 epochs with 4096 pictures a step.

    arXiv:2302.14431, by notes on the paper, which came without code; the rest as `mae_vit_b16`, rate 2.4e-3. The
    paper reports 68.4 % linear and 83.8 % fine-tuned on ImageNet. An epoch costs four of MAE. Not measured by us.
    """
    return _emae(mae_vit_b16(), 300)


def emae_vit_l16() -> Pretrain:
    """EMAE, ViT-L/16 at 224 px: four parallel parts, 800 epochs with 4096 pictures a step.

    As `emae_vit_b16`, rate 2.4e-3. The paper reports 76.7 % linear and 86.3 % fine-tuned. Not measured by us.
    """
    return _emae(mae_vit_l16(), 800)


def emae_vit_b16_cross() -> Pretrain:
    """EMAE with CrossMAE's decoder, ViT-B/16 at 224 px: four parts that each predict a quarter.

    Not in a paper: 300 epochs with 4096 pictures a step, rate 2.4e-3, else as `emae_vit_b16`, with 8 blocks of
    cross-attention; all parts predict the same patches, a third of what they hide. Not measured by us.
    """
    run = emae_vit_b16()
    run.method = EMAEConfig(masker=PartitionMasker(throw=0.5), decoder=CrossDecoderConfig(depth=8))
    return run


def emae_mini_32() -> Pretrain:
    """EMAE for 32 px (CIFAR): four parallel parts, 6 epochs with 128 pictures a step.

    As `mae_mini_32` with a quarter of its epochs, which cost four times as much; rate 1.5e-3. Compared with
    the other methods in docs/lab-notebook.md.
    """
    return _emae(mae_mini_32(), 6)


def emae_mini_48() -> Pretrain:
    """EMAE for 48 px (`photos`): four parallel parts, 8 epochs with 128 pictures a step.

    As `mae_mini_48` with a quarter of its epochs, which cost four times as much; rate 1.5e-3. Not measured by us.
    """
    return _emae(mae_mini_48(), 8)


def emae_mini_32_cross() -> Pretrain:
    """EMAE with CrossMAE's decoder for 32 px (CIFAR): four parts that each predict a quarter.

    6 epochs with 128 pictures a step, rate 1.5e-3, else as `emae_mini_32`, with two blocks of cross-attention. 3.5
    times the FLOPs of `mae_mini_32` a picture, counted. Not measured by us.
    """
    run = emae_mini_32()
    decoder = CrossDecoderConfig(width=64, depth=2, heads=4)
    run.method = EMAEConfig(masker=PartitionMasker(throw=0.5), decoder=decoder)
    return run
