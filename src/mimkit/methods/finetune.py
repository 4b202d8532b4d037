"""Fine-tuning: an encoder with a linear classifier on top learns labels. A Batch enters, a Step leaves."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from timm.data.mixup import Mixup, mixup_target
from timm.layers import DropPath
from timm.loss import SoftTargetCrossEntropy
from timm.models import Beit, VisionTransformer
from torch import Tensor, nn

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import UserError, at_least
from mimkit.methods.base import Method, MethodConfig
from mimkit.model.backbone import Backbone


@dataclass(kw_only=True, slots=True)
class FineTuneConfig(MethodConfig):
    """All weights learn labels, end to end (He et al. 2022, appendix A.1; facebookresearch/mae:main_finetune.py)."""

    windows = beits = convolutions = supervised = True
    learns = "classes"

    classes: int = 0
    """Kinds of labels; 'mimkit evaluate finetune' counts them itself."""
    label_fraction: float = 1.0
    """Share of the labeled pictures to learn from: the same of each class, and at least one of each."""
    pool: Literal["mean", "class"] = "mean"
    """ViTs classify the mean of the patch tokens, with a new norm behind the pooling, or the class token."""
    head_std: float = 2e-5
    """Spread of the classifier's first weights; SimMIM's 0.02 x 0.001 is MAE's."""
    drop_path: float = 0.1
    """How often the last block is left out; earlier ones less often."""
    mixup: float = 0.8
    """Beta distribution of the shares in which two pictures are blended; 0: never blended."""
    cutmix: float = 1.0
    """Beta distribution of the area that another picture's box takes; 0: no boxes."""
    switch: float = 0.5
    """Share of the steps with a box, where there are both ways."""
    smoothing: float = 0.1
    """Share of a label that goes to all classes alike."""

    def build(self, encoder: Backbone) -> "FineTune":
        at_least(2, **{"method.classes": self.classes})
        at_least(0, **{"method.mixup": self.mixup, "method.cutmix": self.cutmix, "method.head_std": self.head_std})
        for name in ("drop_path", "switch", "smoothing"):
            if not 0 <= getattr(self, name) < 1 + (name == "switch"):
                raise UserError(f"method.{name} is a share between 0 and 1, got {getattr(self, name)}")
        return FineTune(encoder, self)


class FineTune(Method):
    """timm's own model with its own head, so that what it learns leaves as it is."""

    encoder: Backbone  # type: ignore[bad-override]
    labels: Int64[Tensor, " n"]

    def __init__(self, encoder: Backbone, config: FineTuneConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        vit: Any = encoder.timm
        if isinstance(vit, VisionTransformer | Beit):
            if config.pool == "mean" and isinstance(vit.fc_norm, nn.Identity):
                vit.norm, vit.fc_norm = vit.fc_norm, vit.norm
            if config.pool == "class" and vit.cls_token is None:
                raise UserError("this encoder has no class token: leave --method.pool class away")
            vit.reset_classifier(config.classes, "avg" if config.pool == "mean" else "token")
        else:
            vit.reset_classifier(config.classes)
        vit.requires_grad_(True)  # positions too
        nn.init.trunc_normal_(vit.get_classifier().weight, std=config.head_std)
        nn.init.zeros_(vit.get_classifier().bias)
        set_drop_path(vit, config.drop_path)
        self.no_weight_decay = tuple(f"encoder.timm.{name}" for name in sorted(getattr(vit, "no_weight_decay", set)()))
        mixed = float(config.mixup > 0 or config.cutmix > 0)
        self.mixup = Mixup(config.mixup, config.cutmix, prob=mixed, switch_prob=config.switch)
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64), persistent=False)

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        """Take the labels. Raises UserError when there are none, one class alone, or more than the head has."""
        if dataset.labels is None:
            raise UserError("fine-tuning needs labels, and the pictures have none: give class folders or a list")
        if (dataset.labels < 0).any():
            raise UserError("some pictures to learn from have no label: leave them out (data.labels.only_labeled)")
        kinds = dataset.labels.unique()
        if len(kinds) < 2:
            raise UserError("all pictures to learn from have one label: give two classes or more")
        if kinds[-1] >= self.config.classes:
            raise UserError(f"the pictures have {kinds[-1] + 1} classes, not --method.classes {self.config.classes}")
        self.labels = dataset.labels

    @torch.compiler.disable
    def mix(self, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]) -> tuple[Tensor, Float[Tensor, "B K"]]:
        """Images blended with those of the reversed batch, by one draw for all, and how much of each label is in them.

        timm draws from NumPy's one generator, which starts from torch's here and is put back.
        """
        before, images = np.random.get_state(), images.clone()
        np.random.seed(int(torch.randint(1 << 32, ())))  # on the CPU: nothing waits
        try:
            fraction = self.mixup._mix_batch(images)  # not its __call__, which refuses odd batches without need
        finally:
            np.random.set_state(before)
        return images, mixup_target(labels, self.config.classes, fraction, self.config.smoothing)

    def forward(self, batch: Batch, progress: float) -> Step:
        images, targets = self.mix(batch.images, self.labels[batch.index.to(self.labels.device)])
        logits = self.encoder.timm(images).float()
        right = torch.eq(logits.detach().argmax(dim=1), targets.argmax(dim=1)).float().mean()
        return Step(SoftTargetCrossEntropy()(logits, targets), {"train_accuracy": right})


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Drop path as timm's `drop_path_rate`: from 0 in the first block, linearly to `rate` in the last."""
    names = ("drop_path", "drop_path1", "drop_path2")
    blocks: list[Any] = [module for module in model.modules() if any(hasattr(module, name) for name in names)]
    for block, block_rate in zip(blocks, torch.linspace(0, rate, len(blocks), device="cpu").tolist(), strict=True):
        for name in names:
            if hasattr(block, name):
                setattr(block, name, DropPath(block_rate) if block_rate > 0 else nn.Identity())
