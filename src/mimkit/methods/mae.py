"""MAE: hide most patches, encode the rest, predict the hidden pixels. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.batch import Batch, Step
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.guidance.exploitation import Exploitation, decoder_attention, exploitation_rate
from mimkit.masks import Mask, Masker, RandomMasker
from mimkit.methods.base import MaskedConfig, MaskedMethod
from mimkit.methods.channels import channel_losses, logged
from mimkit.methods.losses import squared_error
from mimkit.methods.targets.pixels import PatchTarget, Pixels
from mimkit.model.decoder import Decoder, DecoderConfig
from mimkit.model.patches import patchify, unpatchify
from mimkit.model.reader import CrossDecoder, CrossDecoderConfig
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class MAEConfig(MaskedConfig):
    """Masked autoencoder (He et al. 2022, arXiv:2111.06377); with a `CrossDecoderConfig` it is CrossMAE."""

    masker: Masker = field(default_factory=RandomMasker)
    target: PatchTarget = field(default_factory=Pixels)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def build(self, encoder: Encoder) -> "MAE":
        refuse_reading_decoder(self.decoder, self.masker)
        outputs = self.target.outputs(encoder.patch, encoder.channels)
        return MAE(encoder, self.decoder.build(encoder, outputs), self.masker, self.target)


class MAE(MaskedMethod):
    """The encoder sees the visible patches alone; a light decoder predicts the hidden ones; loss where hidden."""

    encoder: Encoder  # type: ignore[bad-override]
    decoder: Decoder | CrossDecoder  # type: ignore[bad-override]

    def __init__(self, encoder: Encoder, decoder: Decoder | CrossDecoder, masker: Masker, target: PatchTarget) -> None:
        super().__init__(encoder, masker)
        self.decoder, self.target = decoder, target

    def predict(self, patches: Float[Tensor, "B N P"], mask: Mask) -> Float[Tensor, "BK N O"]:
        """Predictions for every patch of every view."""
        return self.decoder.predict(self.encoder, self.encoder.embed(patches, mask), mask)

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        prediction = self.predict(patches, mask)
        logs |= self.by_channel(prediction, patches, batch, mask)
        return Step(self.reconstruction(prediction, patches, batch, mask), logs)

    def reconstruction(
        self, prediction: Float[Tensor, "BK N O"], patches: Float[Tensor, "B N P"], batch: Batch, mask: Mask
    ) -> Float[Tensor, ""]:
        """Mean squared error of hidden patches; of pixels that have data, where some have none."""
        if batch.valid is None:
            target = mask.repeat(self.target(patches))
            return squared_error(prediction, target, mask.counted, per_picture=mask.alike)
        valid = patchify(batch.valid, self.encoder.patch)
        target = mask.repeat(self.target(patches, valid))
        if target.shape[2] == valid.shape[2]:
            return squared_error(prediction, target, mask.counted, mask.alike, mask.repeat(valid))
        # Other numbers than pixels are known of whole patches alone.
        whole = mask.counted * mask.repeat(valid.all(dim=2))
        return squared_error(prediction, target, whole, mask.alike)

    @torch.no_grad()
    def by_channel(
        self, prediction: Float[Tensor, "BK N O"], patches: Float[Tensor, "B N P"], batch: Batch, mask: Mask
    ) -> dict[str, Tensor]:
        """The reconstruction loss of each channel, of a target of pixels with more than three."""
        channels = self.encoder.channels
        if not (isinstance(self.target, Pixels) and logged(channels)):
            return {}
        valid = None if batch.valid is None else patchify(batch.valid, self.encoder.patch)
        errors = (prediction.float() - mask.repeat(self.target(patches, valid))).square()

        def rows(values: Tensor) -> Tensor:
            return values.flatten(1).unflatten(1, (-1, channels))  # channels lie fastest in a patch

        where = mask.counted.repeat_interleave(errors.shape[2] // channels, dim=1)
        return channel_losses(rows(errors), where, None if valid is None else rows(mask.repeat(valid)))

    @torch.no_grad()
    def exploitation(self, images: Float[Tensor, "B C H W"]) -> Exploitation:
        """How far the decoder draws on visible and on mask tokens, under fixed random masks of ratio 0.75."""
        if isinstance(self.decoder, CrossDecoder):
            raise UserError(f"no exploitation can be measured: {READS}")
        training = self.training
        self.eval()  # or drop path would draw from what a resumed run cannot repeat
        patches = patchify(images, self.encoder.patch)
        address = rng_keys("exploitation", torch.arange(len(images))).to(images.device)
        mask = RandomMasker()(patches[..., :0], address, 0.0, self.encoder.grid)
        latents = self.encoder.encode(self.encoder.embed(patches, mask), mask)
        rates = exploitation_rate(decoder_attention(self.decoder, latents, mask), mask.hidden)
        self.train(training)
        return rates

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Mask] | None:
        """Pictures of what it learned: predictions (BK, C, H, W) in the input's normalization, and the mask.

        With a standardized target each patch borrows mean and variance of the true patch, so contrast and color of
        hidden patches are not the model's own; None of a target that cannot be drawn.
        """
        patches, mask, _ = self.sample(batch, progress)
        prediction = self.predict(patches, mask)
        restored = self.target.restore(prediction, mask.repeat(patches))
        if restored is None:
            return None
        return unpatchify(restored, self.encoder.patch, self.encoder.grid), mask


READS = "CrossMAE's decoder reads visible tokens alone and never exploits mask tokens"


def refuse_reading_decoder(decoder: DecoderConfig, masker: Masker) -> None:
    """Refuse a masker that waits for the exploitation of mask tokens under a decoder that reads none."""
    if isinstance(decoder, CrossDecoderConfig) and masker.needs_exploitation:
        raise UserError(
            f"{type(masker.guide).__name__} is to start by the exploitation of a decoder and {READS}: use "
            "--method.masker.trigger fixed"
        )
