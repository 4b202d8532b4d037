"""Recipes of MaskAlign, a student that imitates a frozen teacher: nothing enters, a Pretrain leaves."""

from mimkit.methods.maskalign import MaskAlignConfig
from mimkit.recipes.imagenet import mae_vit_b16
from mimkit.recipes.small import mae_mini_32
from mimkit.train.prepare import Pretrain
from mimkit.train.schedule import WarmupCosine


def maskalign_vit_b16() -> Pretrain:
    """MaskAlign, ViT-B/16 taught by CLIP-B/16 at 224 px: the released recipe.

    200 epochs with 1024 pictures a step, rate 6e-4 (1.5e-4 x 1024 / 256) after 20 epochs of warm-up, 1e-5 at the end;
    attentive masks of ratio 0.7, the teacher's last 5 blocks, drop path 0.1 (OpenDriveLab/maskalign:README.md). The
    teacher is fetched; OpenAI's weights need timm's `quickgelu` model. The authors report 85.4 % fine-tuned on
    ImageNet. Not measured by us.
    """
    run = mae_vit_b16()
    run.encoder.model_args = {"drop_path_rate": 0.1}
    run.method = MaskAlignConfig(teacher="vit_base_patch16_clip_quickgelu_224.openai", antialias=False)
    run.schedule = WarmupCosine(warmup=None, warmup_epochs=20, final=1 / 60)
    run.epochs, run.batch_size = 200, 1024
    return run


def maskalign_vit_l16() -> Pretrain:
    """MaskAlign, ViT-L/16 at 224 px taught by CLIP-L/14, which sees 196 px: the released recipe.

    200 epochs with 1024 pictures a step, as `maskalign_vit_b16` with drop path 0.2, rate 6e-4. The authors report
    87.4 % fine-tuned on ImageNet; 86.5 % with `--method.teacher vit_base_patch16_clip_quickgelu_224.openai
    --method.mixture sum`. Not measured by us.
    """
    run = maskalign_vit_b16()
    run.encoder.name = "vit_large_patch16_224"
    run.encoder.model_args = {"drop_path_rate": 0.2}
    run.method = MaskAlignConfig(teacher="vit_large_patch14_clip_quickgelu_224.openai", antialias=False)
    return run


def maskalign_mini_32() -> Pretrain:
    """MaskAlign for 32 px (CIFAR), taught by a run of yours: `--method.teacher runs/mae_mini_32-cifar10`.

    24 epochs with 128 pictures a step, rate 1.5e-3 (3e-3 x 128 / 256), else as `mae_mini_32`. The teacher's last 2
    blocks; `--method.mixture sum` where it has other than 4 blocks. Compared with the other methods in
    docs/lab-notebook.md.
    """
    run = mae_mini_32()
    run.method = MaskAlignConfig(teacher="", layers=2)
    return run
