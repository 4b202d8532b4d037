"""CMAE: MAE whose hidden patches' features shall find a slow copy's of the same picture. A Batch in, a Step out."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import UserError, at_least
from mimkit.guidance.sampler import MaskSampler, refuse_several
from mimkit.masks import Masker, SimMIMMasker
from mimkit.methods.base import MaskedConfig
from mimkit.methods.losses import Contrast, in_batch
from mimkit.methods.mae import MAE
from mimkit.methods.simclr import check_temperature, describe, picture_numbers, second_view
from mimkit.methods.targets.pixels import PatchTarget, Pixels
from mimkit.model.decoder import Decoder, DecoderConfig
from mimkit.model.latents import LatentTarget, LatentTargetConfig
from mimkit.model.projector import SlowCopy, check_momentum, mlp
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class CMAEConfig(MaskedConfig):
    """Contrastive masked autoencoder (Huang et al. 2022, arXiv:2207.13532; ZhichengHuang/CMAE:cmae.py, cmae_head.py).

    The first of `images.other_views` is what the slow copy sees, whole: `data.published.cmae` makes both views.
    """

    needs_whole_batch = True
    against_collapse = ("temperature", "momentum", "weight")

    masker: Masker = field(default_factory=lambda: SimMIMMasker(unit=2, ratio=0.65))
    target: PatchTarget = field(default_factory=Pixels)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    feature_decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(depth=2))
    """Of the features that are compared."""
    weight: float = 1.0
    """Of the contrast beside the reconstruction."""
    temperature: float = 0.07
    """Cosines are divided by it before the softmax."""
    momentum: float = 0.996
    """Share of the slow copy that stays in each step."""
    hidden: int = 1536
    """Width of the hidden layers of projector and predictor."""
    outputs: int = 256
    """Numbers of a point that is compared."""

    def build(self, encoder: Encoder) -> "CMAE":
        check_temperature(self.temperature)
        check_momentum(self.momentum)
        at_least(0, **{"method.weight": self.weight})
        at_least(1, **{"method.hidden": self.hidden, "method.outputs": self.outputs})
        decoder = self.decoder.build(encoder, self.target.outputs(encoder.patch, encoder.channels))
        return CMAE(encoder, decoder, self.feature_decoder.build(encoder, encoder.width), self)


class CMAE(MAE):
    """Features of all patches, predicted from the visible ones, are the query; the slow copy's of a moved view the key.

    Both are means over patches, before a projector; its slow copy has BatchNorm of its own batches.
    """

    # Besides norms and biases: positions are fixed here.
    no_weight_decay = ("encoder.timm.cls_token", "decoder.mask_token", "feature_decoder.mask_token")

    def __init__(self, encoder: Encoder, decoder: Decoder, feature_decoder: Decoder, config: CMAEConfig) -> None:
        super().__init__(encoder, decoder, config.masker, config.target)
        self.config, self.feature_decoder = config, feature_decoder
        self.projector = mlp([encoder.width, config.hidden, config.outputs])
        self.predictor = mlp([config.outputs, config.hidden, config.outputs])
        self.slow_encoder, self.slow_projector = LatentTarget(encoder, LatentTargetConfig()), SlowCopy(self.projector)
        self.mask_sampler = MaskSampler(config.masker, encoder, average=self.slow_encoder.module)
        refuse_several(self.mask_sampler, "CMAE")

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.follow(0.0)  # released weights were loaded after the copy was made

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        latents = self.encoder.encode(self.encoder.embed(patches, mask), mask)
        prediction = self.decoder(latents, mask)
        logs |= self.by_channel(prediction, patches, batch, mask)
        reconstruction = self.reconstruction(prediction, patches, batch, mask)
        features = self.feature_decoder(latents, mask).mean(dim=1)
        contrast = self.contrast(features, batch)
        logs |= describe(contrast, features) | {"reconstruction": reconstruction.detach()}
        return Step(reconstruction + self.config.weight * contrast.loss, logs | {"contrast": contrast.loss.detach()})

    def contrast(self, features: Float[Tensor, "B D"], batch: Batch) -> Contrast:
        """How well each picture's features find the slow copy's among those of all pictures."""
        view = second_view(batch)
        if view.shape != batch.images.shape:
            raise UserError("CMAE's slow copy sees images.size: give the first of images.other_views no size")
        momentum_keys = self.slow_projector(self.slow_encoder(view).mean(dim=1))
        queries = self.predictor(self.projector(features))
        return in_batch(queries, momentum_keys, self.config.temperature, picture_numbers(batch))

    def follow(self, momentum: float) -> None:
        """Move both slow copies, of which so much stays."""
        self.slow_encoder.update(self.encoder, momentum)
        self.slow_projector.update(self.projector, momentum)

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.follow(self.config.momentum)
