"""Recipes of SimMIM, of the papers' sizes and for small pictures: nothing enters, a Pretrain leaves."""

from mimkit.data.views import RandomResizedCrop
from mimkit.masks import SimMIMMasker
from mimkit.methods.simmim import SimMIMConfig
from mimkit.methods.targets.color import ColorBins, ColorClusters, RawPixels
from mimkit.methods.targets.tokens import TokenIds
from mimkit.methods.tokenizer import VQVAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from mimkit.train.schedule import WarmupSteps


def simmim_vit_b16() -> Pretrain:
    """SimMIM, ViT-B/16 at 224 px: the paper's recipe, 800 epochs with 2048 pictures a step.

    Xie et al. 2022 and microsoft/SimMIM: rate 4e-4 (1e-4 x 2048 / 512), a tenth of it from epoch 700 on, AdamW (0.9,
    0.999), weight decay 0.05, clipping at 5, 10 warm-up epochs, 0.6 of the 32-pixel squares hidden, drop path and
    LayerScale 0.1. The ViT is a plain one with sine-cosine positions, where the paper has relative position biases
    shared by all blocks. The paper reports 83.8 % fine-tuned on ImageNet. Not measured by us.
    """
    return Pretrain(
        encoder=EncoderConfig(
            name="vit_base_patch16_224",
            initialization="simmim",
            model_args={"drop_path_rate": 0.1, "init_values": 0.1},
        ),
        method=SimMIMConfig(masker=SimMIMMasker(unit=2)),
        images=Images(
            size=224, view=RandomResizedCrop(scale=(0.67, 1.0), interpolation="bilinear"), statistics="imagenet"
        ),
        optimizer=AdamWConfig(base_lr=1e-4, per=512, betas=(0.9, 0.999), clip=5.0),
        schedule=WarmupSteps(warmup=None, warmup_epochs=10, first=0.005, steps=(0.875,)),
        epochs=800,
        batch_size=2048,
    )


def simmim_swin_b() -> Pretrain:
    """SimMIM, Swin-B, windows of 6, at 192 px: the authors' recipe, 800 epochs with 2048 pictures a step.

    Rate 4e-4 and the rest as `simmim_vit_b16`, without drop path, with Swin's own weights at the start. The authors
    report 84.0 % fine-tuned on ImageNet at 224 px. Not measured by us.
    """
    run = simmim_vit_b16()
    run.encoder = EncoderConfig(name="swin_base_patch4_window7_224", model_args={"window_size": 6})
    run.method = SimMIMConfig(masker=SimMIMMasker(unit=8))
    run.images.size = 192
    return run


def simmim_swin_mini_64() -> Pretrain:
    """SimMIM, a Swin of three stages (48 to 192 wide, 2 + 2 + 2 blocks, windows of 4) for 64 px.

    100 epochs with 128 pictures a step, squares of 16 pixels; rate 1.5e-3 (3e-3 x 128 / 256). Not measured by us.
    """
    run = simmim_mini_32()
    shape = {"embed_dim": 48, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 4}
    run.encoder = EncoderConfig(name="swin_tiny_patch4_window7_224", model_args=shape)
    run.method = SimMIMConfig(masker=SimMIMMasker(unit=4))
    run.images.size = 64
    run.epochs = 100
    return run


def simmim_swin_mini_32() -> Pretrain:
    """SimMIM, a Swin of two stages (64 and 128 wide, 2 + 2 blocks, windows of 4) for 32 px (CIFAR).

    24 epochs with 128 pictures a step, patches of 4, squares of 8 pixels hidden; rate 1.5e-3 (3e-3 x 128 / 256).
    Compared with the other methods in docs/lab-notebook.md.
    """
    run = simmim_mini_32()
    shape = {"embed_dim": 64, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    run.encoder = EncoderConfig(name="swin_tiny_patch4_window7_224", patch=4, model_args=shape)
    return run


def simmim_swinv2_b() -> Pretrain:
    """SimMIM, SwinV2-B, windows of 12, at 192 px, 800 epochs with 2048 pictures a step.

    The authors' recipe (microsoft/Swin-Transformer:configs/simmim): as `simmim_swin_b`, rate 4e-4, with drop path 0.1;
    each target pixel is standardized by the 47 x 47 pixels around it. Not measured by us.
    """
    run = simmim_swin_b()
    run.encoder = EncoderConfig(name="swinv2_base_window12_192", model_args={"drop_path_rate": 0.1})
    run.method.target = RawPixels(window=47)  # type: ignore[attr-defined]
    return run


def simmim_mini_32() -> Pretrain:
    """SimMIM, 128 x 4 blocks, patches of 4 on 32 px (CIFAR), squares of 8 pixels hidden.

    24 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256), encoder and views of `mae_mini_32`.
    Compared with the other methods in docs/lab-notebook.md.
    """
    return Pretrain(
        encoder=EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=128, depth=4, heads=4),
        method=SimMIMConfig(masker=SimMIMMasker(unit=2)),
        images=Images(size=32, view=RandomResizedCrop(scale=(0.4, 1.0))),
        optimizer=AdamWConfig(base_lr=3e-3, betas=(0.9, 0.999), clip=5.0),
        epochs=24,
        batch_size=128,
    )


def simmim_mini_32_bins() -> Pretrain:
    """SimMIM for 32 px (CIFAR) that predicts in which of 8 ranges each channel of a pixel lies.

    24 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256), else as `simmim_mini_32`. Not measured by us.
    """
    run = simmim_mini_32()
    run.method.target = ColorBins()  # type: ignore[attr-defined]
    return run


def simmim_mini_32_clusters() -> Pretrain:
    """SimMIM for 32 px (CIFAR) that predicts the nearest of 512 colors found in the data.

    24 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256), else as `simmim_mini_32`. One color for 2 x 2
    pixels: for each pixel (`--method.target.cell 1`) the 512 scores take four times the memory. Not measured by us.
    """
    run = simmim_mini_32()
    run.method.target = ColorClusters(cell=2)  # type: ignore[attr-defined]
    return run


def simmim_mini_32_tokens() -> Pretrain:
    """SimMIM for 32 px (CIFAR) that predicts ids of your tokenizer: `--method.target.tokenizer RUN`.

    24 epochs with 128 pictures a step; rate 1.5e-3 (3e-3 x 128 / 256), else as `simmim_mini_32`. RUN is a run of
    `tokenizer_mini_32`. Not measured by us.
    """
    run = simmim_mini_32()
    run.method.target = TokenIds()  # type: ignore[attr-defined]
    return run


def tokenizer_mini_32() -> Pretrain:
    """Tokenizer for SimMIM's tokens: 512 ids, one for 4 x 4 pixels of 32 px (CIFAR).

    8 epochs with 128 pictures a step; rate 1e-3 (2e-3 x 128 / 256). A VQ-VAE, ViT 64 x 2 blocks and convolutions.
    Measured on CIFAR-10 after 264 steps, one seed: squared error 0.0076 of pixels in [0, 1] (0.045 of each picture's
    mean color, 0.011 of the means of 4 x 4 pixels), perplexity 424; shapes are there, rare colors not yet.
    """
    run = simmim_mini_32()
    run.encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=64, depth=2, heads=2)
    run.method = VQVAEConfig()
    run.optimizer = AdamWConfig(base_lr=2e-3, betas=(0.9, 0.999), clip=5.0)
    run.epochs = 8
    return run
