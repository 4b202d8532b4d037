"""Recipes of EMAE, of the paper's sizes and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.methods.emae import EMAEConfig
from mimkit.methods.mae import MAEConfig
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
