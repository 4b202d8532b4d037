"""MaskAlign: visible patches and a frozen teacher's tokens enter, the distance of the two leaves as the loss."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mimkit.core.batch import Batch, Step
from mimkit.core.config import absolute
from mimkit.core.errors import UserError, at_least
from mimkit.guidance.sampler import refuse_exploitation
from mimkit.masks import Mask, Masker, MultinomialMasker
from mimkit.methods.base import MaskedConfig, MaskedMethod
from mimkit.methods.losses import mean_where
from mimkit.model.alignment import Alignment
from mimkit.model.backbone import Tokens
from mimkit.model.frozen import Frozen
from mimkit.model.teacher import Teacher
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class MaskAlignConfig(MaskedConfig):
    """MaskAlign (Xue et al., CVPR 2023, arXiv:2211.08887; OpenDriveLab/maskalign:models_pretrain.py)."""

    teacher: str
    """Who is imitated: a timm model's name with released weights, a run or an export folder."""
    antialias: bool = True
    """Where the teacher sees images of another size, these and its positions are resampled with antialiasing, as timm
    does it; the released code has none."""
    masker: Masker = field(default_factory=MultinomialMasker)
    """One that reads attention reads the teacher's, unless its `scorer` is `ema` or another teacher."""
    layers: int | None = 5
    """How many of the teacher's last blocks to imitate; None: all."""
    mixture: str = "linear"
    """`linear`: learned mixtures of the student's blocks that begin close to the block of the same number; `sum`: that
    begin as their mean, for other depths; `simple`: block by block."""
    adapter: str = "linear"
    """From the student's width to the teacher's: `linear`, `norm_linear`, `mlp` or `mlp2` (a norm in place of GELU)."""
    order: str = "mix-adapt"
    """`mix-adapt`: an adapter for each mixture (released code); `adapt-mix`: for each student block (paper)."""

    def __post_init__(self) -> None:
        self.teacher = absolute(self.teacher)

    @property
    def attention_teacher(self) -> str:
        return self.teacher

    def build(self, encoder: Encoder) -> "MaskAlign":
        at_least(1, **{"method.layers": self.layers})
        if not self.teacher:
            raise UserError("MaskAlign needs a teacher: give --method.teacher with a timm name, a run or an export")
        refuse_exploitation(self.masker, "MaskAlign")
        assert encoder.mean is not None and encoder.std is not None
        settings: Any = dict(mean=encoder.mean, std=encoder.std, antialias=self.antialias)
        teacher = Teacher(self.teacher, encoder.grid, encoder.channels, **settings)
        sizes = [(model.width, len(model.timm.blocks)) for model in (encoder, teacher.encoder)]
        layers = sizes[1][1] if self.layers is None else self.layers
        kinds = dict(layers=layers, mixture=self.mixture, adapter=self.adapter, order=self.order)
        return MaskAlign(encoder, teacher, Alignment(sizes[0], sizes[1], **kinds), self.masker)  # type: ignore[arg-type]


class MaskAlign(MaskedMethod):
    """The student sees the visible patches alone, a frozen teacher the whole image; their visible tokens shall agree.

    Nothing is reconstructed. Targets are the teacher's raw block outputs, each token standardized. The class token
    takes part where both have one. The student's final norm would get no gradient, so it is frozen as it starts: what
    leaves with the encoder is the last block's output, standardized as the targets are.
    """

    no_weight_decay = ("alignment.mixture",)

    encoder: Encoder  # type: ignore[bad-override]

    def __init__(self, encoder: Encoder, teacher: Teacher, alignment: Alignment, masker: Masker) -> None:
        super().__init__(encoder, masker, teacher)
        self.alignment, self.teacher = alignment, Frozen(teacher)
        self.with_class = encoder.timm.has_class_token and teacher.encoder.timm.has_class_token
        encoder.timm.norm.requires_grad_(False)

    def aligned(self, batch: Batch, progress: float) -> tuple[list[Tensor], list[Tensor], Mask, dict[str, Any]]:
        """Predictions and targets, (BK, class token + V, C) for each imitated block; the mask, and its log."""
        # One pass of the teacher gives the targets and, where the masker wants it, the attention that it hides by.
        attention = self.mask_sampler.uses_method_teacher(progress)
        features = self.teacher.network.features(batch.images, self.alignment.layers, attention=attention)
        patches, mask, logs = self.sample(batch, progress, features.attention)
        blocks = self.encoder.by_block(self.encoder.embed(patches, mask), mask)
        predictions = self.alignment([self.joined(tokens) for tokens in blocks])
        targets = []
        for tokens in features.blocks:
            visible = Tokens(mask.repeat(tokens.prefix), mask.take(mask.repeat(tokens.patches)))
            target = self.joined(visible).float()
            targets.append(F.layer_norm(target, target.shape[2:], eps=1e-5))
        return predictions, targets, mask, logs

    def joined(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        """The tokens that are aligned: the class token where both have one, and patches, but no registers."""
        return torch.cat([tokens.prefix[:, : int(self.with_class)], tokens.patches], dim=1)

    def forward(self, batch: Batch, progress: float) -> Step:
        predictions, targets, mask, logs = self.aligned(batch, progress)
        pairs = zip(predictions, targets, strict=True)
        distances = [2 * F.smooth_l1_loss(p.float(), t, reduction="none").mean(dim=2) for p, t in pairs]
        where = F.pad(~mask.padding, (int(self.with_class), 0), value=True)
        loss = mean_where(torch.stack(distances).mean(dim=0), where, per_picture=mask.alike)
        return Step(loss, logs)

    def agreement(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK N"], Mask]:
        """Cosine of prediction and target at each visible patch, the mean over the imitated blocks, 0 at least.

        NaN at hidden ones."""
        predictions, targets, mask, _ = self.aligned(batch, progress)
        pairs = zip(predictions, targets, strict=True)
        cosine = torch.stack([F.cosine_similarity(p.float(), t, dim=2) for p, t in pairs]).mean(dim=0)
        cosine = cosine[:, int(self.with_class) :, None].clamp(min=0)
        return mask.put(cosine, cosine.new_full((1, 1, 1), torch.nan))[..., 0], mask
