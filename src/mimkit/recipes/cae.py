"""Recipes of CAE, of the paper's size and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.methods.cae import CAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.recipes.small import mae_mini_32
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine


def cae_vit_b16() -> Pretrain:
    """CAE, ViT-B/16 at 224 px: the authors' recipe, 800 epochs with 2048 pictures a step.

    Chen et al. 2022, lxtGH/CAE: AdamW (0.9, 0.999), rate 1.5e-3, clipping at 3, 20 warm-up epochs, blocks over 98 of
    196 patches, drop path and LayerScale 0.1, a regressor and a decoder of four blocks. `--method.target.tokenizer`
    stands for DALL-E's. The authors report 70.3 % linear, 77.2 % by an attentive probe and 83.9 % fine-tuned on
    ImageNet after 1600 epochs. Not measured by us.
    """
    scales = {"drop_path_rate": 0.1, "init_values": 0.1}
    return Pretrain(
        encoder=EncoderConfig(name="vit_base_patch16_224", model_args=scales),
        method=CAEConfig(),
        images=Images(size=224, statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=1.5e-3, per=2048, betas=(0.9, 0.999), clip=3.0),
        schedule=WarmupCosine(warmup=None, warmup_epochs=20),
        epochs=800,
        batch_size=2048,
    )


def cae_mini_32() -> Pretrain:
    """CAE for 32 px (CIFAR), ids of your tokenizer: `--method.target.tokenizer RUN`.

    24 epochs with 256 pictures a step; rate 1.5e-3, clipping at 3, the encoder of `mae_mini_32`, a regressor and a
    decoder of two blocks. RUN is a run of `tokenizer_mini_32`. Not measured by us.
    """
    run = mae_mini_32()
    run.method = CAEConfig(depth=2, decoder_depth=2, scale=None)
    run.optimizer = AdamWConfig(base_lr=1.5e-3, betas=(0.9, 0.999), clip=3.0)
    run.batch_size = 256
    return run
