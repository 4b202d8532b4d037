"""MAE: hide most patches, encode the rest, predict the hidden pixels. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from mimkit.masks import Mask, Masker, RandomMasker
from mimkit.methods.observe import observe
from mimkit.model.decoder import Decoder, DecoderConfig
from mimkit.model.encoder import Encoder
from mimkit.model.patches import patchify, unpatchify
from mimkit.objectives import squared_error
from mimkit.targets import Pixels
from mimkit.task import Batch, Method, MethodConfig, Step


@dataclass(kw_only=True, slots=True)
class MAEConfig(MethodConfig):
    """Masked autoencoder (He et al. 2022, arXiv:2111.06377)."""

    masker: Masker = field(default_factory=RandomMasker)
    target: Pixels = field(default_factory=Pixels)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def build(self, encoder: Encoder) -> "MAE":
        outputs = encoder.patch[0] * encoder.patch[1] * encoder.channels
        return MAE(encoder, self.decoder.build(encoder, outputs), self.masker, self.target)


class MAE(Method):
    """The encoder sees the visible patches alone; a light decoder predicts the hidden ones; loss where hidden."""

    def __init__(self, encoder: Encoder, decoder: Decoder, masker: Masker, target: Pixels) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.masker, self.target = masker, target

    def predict(
        self, patches: Float[Tensor, "B N P"], keys: Tensor, progress: float
    ) -> tuple[Float[Tensor, "BK N P"], Mask]:
        """Predictions for every patch of every view, and the mask they were made under."""
        signal = observe(self.masker.reads(progress), patches)
        mask = self.masker(signal, keys, progress, self.encoder.grid)
        latents = self.encoder.encode(self.encoder.embed(patches, mask), mask)
        return self.decoder(latents, mask), mask

    def forward(self, batch: Batch, progress: float) -> Step:
        patches = patchify(batch.images, self.encoder.patch)
        prediction, mask = self.predict(patches, batch.keys, progress)
        loss = squared_error(prediction, mask.repeat(self.target(patches)), mask.hidden)
        return Step(loss, {"hidden": mask.hidden.float().mean()})

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Mask]:
        """Pictures of what it learned: predictions (BK, C, H, W) in the input's normalisation, and the mask.

        With a standardised target each patch borrows mean and variance of the true patch, so contrast and colour of
        hidden patches are not the model's own.
        """
        patches = patchify(batch.images, self.encoder.patch)
        prediction, mask = self.predict(patches, batch.keys, progress)
        restored = self.target.restore(prediction, mask.repeat(patches))
        return unpatchify(restored, self.encoder.patch, self.encoder.grid), mask
