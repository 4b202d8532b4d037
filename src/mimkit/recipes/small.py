"""Recipes for small pictures (28 to 96 px) that a laptop can run: nothing enters, a Pretrain leaves."""

from mimkit.data.views import RandomResizedCrop, Whole
from mimkit.methods.mae import MAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain


def _mini(size: int, patch: int, *, width: int, depth: int, decoder: int) -> Pretrain:
    """A narrow ViT with 32 channels a head and a one-block decoder."""
    return Pretrain(
        encoder=EncoderConfig(name="vit_tiny_patch16_224", patch=patch, width=width, depth=depth, heads=width // 32),
        method=MAEConfig(decoder=DecoderConfig(width=decoder, depth=1, heads=decoder // 16)),
        images=Images(size=size, view=RandomResizedCrop(scale=(0.4, 1.0))),
        optimizer=AdamWConfig(base_lr=3e-3),
        epochs=100,
        batch_size=128,
    )


def mae_mini_28() -> Pretrain:
    """MAE, 128 x 4 blocks, patches of 7 on 28 px (Fashion-MNIST): seven minutes on one core.

    24 epochs with 128 pictures a step, whole pictures, mirrored or not; rate 1.5e-3 (3e-3 x 128 / 256). Measured on
    Fashion-MNIST, one seed: kNN 86.4 %, probe 87.1 %, with `--pool grid` 87.3 and 88.6 % (pixels 85.8 and 84.7 %); see
    docs/lab-notebook.md.
    """
    run = _mini(28, 7, width=128, depth=4, decoder=64)
    run.images.view = Whole(flip=0.5)
    run.epochs = 24
    return run


def mae_mini_32() -> Pretrain:
    """MAE, 128 x 4 blocks, patches of 4 on 32 px (CIFAR): half an hour on one core.

    24 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256). Measured on CIFAR-10, one seed: kNN 50.2 %,
    probe 57.4 % (pixels 45.9 and 41.2 %), still rising; see docs/lab-notebook.md.
    """
    run = _mini(32, 4, width=128, depth=4, decoder=64)
    run.epochs = 24
    return run


def mae_mini_48_quick() -> Pretrain:
    """MAE, 128 x 4 blocks, patches of 8 on 48 px: the quickstart, a few minutes on two cores.

    12 epochs with 128 pictures a step, looked at four times; rate 1.5e-3 (3e-3 x 128 / 256). Measured on `photos`, one
    seed: kNN 82.1 %, probe 87.9 % (pixels 46.6 and 45.2 %, untrained 76.4 and 80.4 %).
    """
    run = _mini(48, 8, width=128, depth=4, decoder=64)
    run.epochs = 12
    run.machine.evals = 4
    return run


def mae_mini_48() -> Pretrain:
    """MAE, 192 x 4 blocks, patches of 8 on 48 px: three minutes on two cores with bfloat16 units.

    30 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256). Measured on `photos`, one seed: kNN 83.4 %,
    probe 90.1 % (pixels 46.6 and 45.4 %, untrained 75.0 and 81.4 %).
    """
    run = _mini(48, 8, width=192, depth=4, decoder=96)
    run.epochs = 30
    return run


def mae_mini_64() -> Pretrain:
    """MAE, 192 x 6 blocks, patches of 8 on 64 px.

    100 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256). Not measured by us.
    """
    return _mini(64, 8, width=192, depth=6, decoder=96)


def mae_mini_96() -> Pretrain:
    """MAE, 192 x 6 blocks, patches of 8 on 96 px.

    100 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256). Not measured by us.
    """
    return _mini(96, 8, width=192, depth=6, decoder=96)
