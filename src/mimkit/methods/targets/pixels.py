"""Targets of patches, and pixels as one: patches enter, the numbers to predict for them leave."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-6  # added to the variance, as in facebookresearch/mae:models_mae.py


@dataclass(frozen=True, kw_only=True)
class PatchTarget:
    """Base of what MAE predicts for each patch. A subclass is a frozen dataclass of settings.

    Patches are those of `patchify`: P numbers each, of normalized pixels (row, column, channel).
    """

    def outputs(self, patch: tuple[int, int], channels: int) -> int:
        """How many numbers are predicted for a patch of these sides, O; by default its pixels."""
        return patch[0] * patch[1] * channels

    def __call__(
        self, patches: Float[Tensor, "B N P"], valid: Bool[Tensor, "B N P"] | None = None
    ) -> Float[Tensor, "B N O"]:
        """The numbers to predict, in float32; `valid` says which pixels have data, by default all."""
        raise NotImplementedError(f"{type(self).__name__} is no target until it defines __call__")

    def restore(
        self, prediction: Float[Tensor, "B N O"], patches: Float[Tensor, "B N P"]
    ) -> Float[Tensor, "B N P"] | None:
        """Predictions as normalized pixels, for pictures; None where they cannot be drawn."""
        return None


@dataclass(frozen=True, kw_only=True)
class Pixels(PatchTarget):
    """The pixels of a patch, by default each patch standardized by its own mean and variance (`norm_pix_loss`).

    He et al. 2022, section 3. Mean and variance run over all numbers of a patch, colors together; the variance is
    the unbiased one (divided by P - 1), which is what the released code computes.
    """

    norm: bool = True
    """Standardize each patch; off predicts plain normalized pixels."""

    def __call__(
        self, patches: Float[Tensor, "B N P"], valid: Bool[Tensor, "B N P"] | None = None
    ) -> Float[Tensor, "B N P"]:
        patches = patches.float()
        if not self.norm:
            return patches
        if valid is not None:
            count = valid.sum(dim=-1, keepdim=True)
            mean = (patches * valid).sum(dim=-1, keepdim=True) / count.clamp(min=1)
            variance = ((patches - mean) * valid).square().sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)
            return (patches - mean) / (variance + EPSILON).sqrt()
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + EPSILON).sqrt()

    def restore(self, prediction: Float[Tensor, "B N P"], patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
        """Predictions as normalized pixels, for pictures; with `norm` each patch borrows the true one's statistics."""
        if not self.norm:
            return prediction.float()
        variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
        return prediction.float() * (variance + EPSILON).sqrt() + mean


def standardized_channels(patches: Float[Tensor, "B N P"], channels: int) -> Float[Tensor, "B N P"]:
    """Each channel of a patch by its own mean and biased variance, eps 1e-5 (BootMAE; not as `Pixels`)."""
    mean, scale = _of_channels(patches, channels)
    return ((patches.float().unflatten(2, (-1, channels)) - mean) / scale).flatten(2)


def restored_channels(
    prediction: Float[Tensor, "B N P"], patches: Float[Tensor, "B N P"], channels: int
) -> Float[Tensor, "B N P"]:
    """Undo `standardized_channels`, with the statistics of the true patches."""
    mean, scale = _of_channels(patches, channels)
    return (prediction.float().unflatten(2, (-1, channels)) * scale + mean).flatten(2)


def _of_channels(patches: Float[Tensor, "B N P"], channels: int) -> tuple[Float[Tensor, "B N 1 C"], Tensor]:
    variance, mean = torch.var_mean(patches.float().unflatten(2, (-1, channels)), dim=2, correction=0, keepdim=True)
    return mean, (variance + 1e-5).sqrt()
