"""Recipes of the papers, for pictures of 224 pixels: nothing enters, a Pretrain leaves."""

from mimkit.methods.mae import MAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine


def mae_vit_b16() -> Pretrain:
    """MAE, ViT-B/16 at 224 px: the paper's recipe, 800 epochs with 4096 pictures a step.

    He et al. 2022 and the released commands: rate 2.4e-3 (1.5e-4 x 4096 / 256), AdamW (0.9, 0.95), weight
    decay 0.05, 40 warm-up epochs, ratio 0.75, standardized patches, decoder 512 x 8. 58 GFLOP a picture and
    step; the paper reports 83.6 % fine-tuned and 68.0 % linear on ImageNet after 1600 epochs. Not measured
    by us at this scale.
    """
    return Pretrain(
        encoder=EncoderConfig(name="vit_base_patch16_224", initialization="mae-code"),
        method=MAEConfig(),
        images=Images(size=224, statistics="imagenet"),
        schedule=WarmupCosine(warmup=None, warmup_epochs=40),
    )


def mae_vit_l16() -> Pretrain:
    """MAE, ViT-L/16 at 224 px: the paper's recipe, 800 epochs with 4096 pictures a step.

    As `mae_vit_b16`; 124 GFLOP a picture and step. The paper reports 85.9 % fine-tuned and 75.8 % linear on
    ImageNet after 1600 epochs. Not measured by us at this scale.
    """
    run = mae_vit_b16()
    run.encoder.name = "vit_large_patch16_224"
    return run


def mae_vit_h14() -> Pretrain:
    """MAE, ViT-H/14 at 224 px: the paper's recipe, 800 epochs with 4096 pictures a step.

    As `mae_vit_b16`, patches of 14 pixels; 290 GFLOP a picture and step. The paper reports 86.9 % fine-tuned
    and 76.6 % linear on ImageNet after 1600 epochs. Not measured by us at this scale.
    """
    run = mae_vit_b16()
    run.encoder.name = "vit_huge_patch14_224"
    return run


def mae_vit_s16() -> Pretrain:
    """MAE, ViT-S/16 at 224 px with a decoder of half the depth, 800 epochs with 1024 pictures a step.

    Not in the paper. The paper's decoder would be 83 % of the work here; 512 x 4 with 8 heads halves that.
    Rate 6e-4 (1.5e-4 x 1024 / 256). Not measured by us at this scale.
    """
    run = mae_vit_b16()
    run.encoder.name = "vit_small_patch16_224"
    run.method = MAEConfig(decoder=DecoderConfig(width=512, depth=4, heads=8))
    run.batch_size = 1024
    return run


def mae_vit_ti16() -> Pretrain:
    """MAE, ViT-Ti/16 at 224 px with a decoder of its own width, 800 epochs with 1024 pictures a step.

    Not in the paper: decoder 192 x 4 with 3 heads. Rate 6e-4. Not measured by us at this scale.
    """
    run = mae_vit_s16()
    run.encoder.name = "vit_tiny_patch16_224"
    run.method = MAEConfig(decoder=DecoderConfig(width=192, depth=4, heads=3))
    return run
