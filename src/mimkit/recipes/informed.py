"""Recipes with masks that know where to look, of the papers' sizes and for small pictures: a Pretrain leaves."""

from mimkit.masks import AMTMasker, AttMaskMasker, Masker, SalienceMasker, SelfGuidedMasker
from mimkit.recipes.imagenet import mae_vit_b16, mae_vit_l16
from mimkit.recipes.small import mae_mini_32, mae_mini_48
from mimkit.train.prepare import Pretrain


def _with(run: Pretrain, masker: Masker, epochs: int | None = None) -> Pretrain:
    run.method.masker = masker  # type: ignore[attr-defined]
    run.epochs = epochs or run.epochs
    return run


def _sbam() -> SalienceMasker:
    return SalienceMasker(start=0.25)


def _amr() -> SalienceMasker:
    return SalienceMasker(start=0.25, spread=0.1)


def mae_vit_l16_sbam() -> Pretrain:
    """MAE with SBAM masks, ViT-L/16 at 224 px, 400 epochs with 4096 pictures a step.

    arXiv:2404.08327 and doihye/SBAM: random masks for the first 100 epochs, then salience plus noise up to 0.5;
    the rest as `mae_vit_l16`, rate 2.4e-3 (1.5e-4 x 4096 / 256). The authors report 85.1 % fine-tuned on ImageNet
    (84.3 % without). Not measured by us.
    """
    return _with(mae_vit_l16(), _sbam(), 400)


def mae_vit_b16_sbam() -> Pretrain:
    """MAE with SBAM masks, ViT-B/16 at 224 px, 400 epochs with 4096 pictures a step.

    As `mae_vit_l16_sbam`, rate 2.4e-3. The authors report 83.6 % fine-tuned on ImageNet (82.9 % without). Not
    measured by us.
    """
    return _with(mae_vit_b16(), _sbam(), 400)


def mae_vit_b16_amr() -> Pretrain:
    """MAE with SBAM masks and a ratio of 0.65 to 0.85 by picture (AMR), ViT-B/16 at 224 px.

    400 epochs with 4096 pictures a step, rate 2.4e-3; as `mae_vit_b16_sbam` with `spread` 0.1, for which the released
    code has no values. Pictures are padded to the lowest ratio, 40 % more visible slots. Not measured by us.
    """
    return _with(mae_vit_b16(), _amr(), 400)


def mae_vit_b16_self_guided() -> Pretrain:
    """Self-Guided MAE, ViT-B/16 at 224 px, 400 epochs with 4096 pictures a step.

    arXiv:2507.19773: random masks for 50 epochs, then the object that a normalized cut finds in block 11 is hidden;
    hints fall from 10 % to 0; the rest as `mae_vit_b16`, rate 2.4e-3. The model looks at whole pictures every 40
    epochs; `--method.masker.refresh 0` looks at every crop, 55 % more work. Not measured by us.
    """
    return _with(mae_vit_b16(), SelfGuidedMasker(refresh=40), 400)


def mae_vit_b16_attmask() -> Pretrain:
    """MAE with AttMask's hints on the attention of its own moving average, ViT-B/16 at 224 px.

    400 epochs with 4096 pictures a step, rate 2.4e-3, else as `mae_vit_b16`. Kakogeorgiou et al. 2022 mask iBOT's
    student at ratios of 0.1 to 0.5; here it is MAE's 0.75, from epoch 40 on. Costs a forward pass over all patches,
    60 % more work. Not measured by us.
    """
    return _with(mae_vit_b16(), AttMaskMasker(hides="hint", scorer="ema", start=0.1), 400)


def mae_vit_b16_amt() -> Pretrain:
    """MAE with attention-driven masks and throwing (AMT), ViT-B/16 at 224 px.

    400 epochs with 4096 pictures a step, rate 2.4e-3, else as `mae_vit_b16`. arXiv:2211.15362: from epoch 40 on 45 %
    of the patches are hidden and 40 % thrown away, drawn by the model's own attention to whole pictures, looked at
    every 40 epochs. The authors report 82.8 % fine-tuned. Not measured by us.
    """
    return _with(mae_vit_b16(), AMTMasker(start=0.1, refresh=40), 400)


def mae_mini_32_sbam() -> Pretrain:
    """MAE with SBAM masks for 32 px (CIFAR): random masks in the first quarter.

    24 epochs with 128 pictures a step, rate 1.5e-3, else as `mae_mini_32`. Compared with the other masks in
    docs/lab-notebook.md.
    """
    return _with(mae_mini_32(), _sbam())


def mae_mini_32_amr() -> Pretrain:
    """MAE with SBAM masks and a ratio of 0.65 to 0.85 by picture (AMR) for 32 px (CIFAR).

    24 epochs with 128 pictures a step, rate 1.5e-3, else as `mae_mini_32_sbam`. Compared with the other masks in
    docs/lab-notebook.md.
    """
    return _with(mae_mini_32(), _amr())


def mae_mini_32_self_guided() -> Pretrain:
    """Self-Guided MAE for 32 px (CIFAR): random masks in the first eighth, then a look at every crop.

    24 epochs with 128 pictures a step, rate 1.5e-3, else as `mae_mini_32`. Compared with the other masks in
    docs/lab-notebook.md.
    """
    return _with(mae_mini_32(), SelfGuidedMasker())


def mae_mini_32_attmask() -> Pretrain:
    """MAE with AttMask's hints for 32 px (CIFAR), by its moving average from the first eighth on.

    24 epochs with 128 pictures a step, rate 1.5e-3, else as `mae_mini_32`. Compared with the other masks in
    docs/lab-notebook.md.
    """
    return _with(mae_mini_32(), AttMaskMasker(hides="hint", scorer="ema", start=0.125))


def mae_mini_32_amt() -> Pretrain:
    """MAE with attention-driven masks and throwing (AMT) for 32 px (CIFAR): it asks every 4 epochs.

    24 epochs with 128 pictures a step, rate 1.5e-3, else as `mae_mini_32`. Compared with the other masks in
    docs/lab-notebook.md.
    """
    return _with(mae_mini_32(), AMTMasker(start=0.125, refresh=4))


def mae_mini_48_sbam() -> Pretrain:
    """MAE with SBAM masks for 48 px (`photos`): random masks in the first quarter.

    30 epochs with 128 pictures a step, rate 1.5e-3, else as `mae_mini_48`. Not measured by us.
    """
    return _with(mae_mini_48(), _sbam())


def mae_mini_48_self_guided() -> Pretrain:
    """Self-Guided MAE for 48 px (`photos`), started by the exploitation rate, at the latest halfway.

    30 epochs with 128 pictures a step, rate 1.5e-3, else as `mae_mini_48`. Looks at every crop, about half as much
    work again. Not measured by us.
    """
    return _with(mae_mini_48(), SelfGuidedMasker(trigger="exploitation", start=0.5))
