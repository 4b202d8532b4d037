"""Recipes of BEiT, which is SimMIM with token ids to predict: nothing enters, a Pretrain leaves."""

from mimkit.data.views import RandomResizedCrop
from mimkit.masks import BlockMasker
from mimkit.methods.simmim import SimMIMConfig
from mimkit.methods.targets.tokens import TokenIds
from mimkit.model.build import EncoderConfig
from mimkit.recipes.simmim import simmim_mini_32
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupCosine


def beit_vit_b16() -> Pretrain:
    """BEiT-B/16 at 224 px: the authors' recipe, 800 epochs with 2048 pictures a step.

    Bao et al. 2022, microsoft/unilm:beit: rate 1.5e-3, at last 1e-5, 10 warm-up epochs, AdamW (0.9, 0.999), weight
    decay 0.05, clipping at 3, blocks over 75 of 196 patches or fewer, ids of a tokenizer that you name (theirs was
    DALL-E's), each hidden token alike in the loss, drop path and LayerScale 0.1. The encoder is timm's Beit with
    relative positions that all blocks share. The authors report 83.2 % fine-tuned on ImageNet. Not measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(
            name="beit_base_patch16_224",
            initialization="simmim",
            model_args={"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "drop_path_rate": 0.1},
        ),
        method=SimMIMConfig(masker=BlockMasker(ratio=0.38, exact=False), target=TokenIds(), weigh="token"),
        images=Images(size=224, view=RandomResizedCrop(scale=(0.08, 1.0)), statistics="imagenet"),
        optimizer=AdamWConfig(base_lr=1.5e-3, per=2048, betas=(0.9, 0.999), clip=3.0),
        schedule=WarmupCosine(warmup=None, warmup_epochs=10, final=1e-5 / 1.5e-3),
        epochs=800,
        batch_size=2048,
    )


def beit_mini_32() -> Pretrain:
    """BEiT for 32 px (CIFAR) with ids of your tokenizer: `--method.target.tokenizer RUN`.

    24 epochs with 256 pictures a step; AdamW, rate 1.5e-3, clipping at 3, blocks over 24 of 64 patches or fewer, the
    plain encoder of `mae_mini_32`. RUN is a run of `tokenizer_mini_32`. Not measured by us.
    """
    run = simmim_mini_32()
    run.method = SimMIMConfig(masker=BlockMasker(ratio=0.375, exact=False), target=TokenIds(), weigh="token")
    run.optimizer = AdamWConfig(base_lr=1.5e-3, betas=(0.9, 0.999), clip=3.0)
    run.schedule, run.batch_size = WarmupCosine(warmup=0.1), 256
    return run
