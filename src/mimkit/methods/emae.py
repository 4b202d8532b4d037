"""EMAE: MAE on several parts of each picture at once, whose predictions shall agree. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field

from mimkit.core.batch import Batch, Step
from mimkit.core.errors import UserError, at_least
from mimkit.masks import ComplementaryMasker, Masker, PartitionMasker
from mimkit.masks.informed import choice
from mimkit.methods.agreement import disagreement
from mimkit.methods.base import MaskedConfig
from mimkit.methods.losses import DISTANCES
from mimkit.methods.mae import MAE, refuse_reading_decoder
from mimkit.methods.targets.pixels import PatchTarget, Pixels
from mimkit.model.decoder import Decoder, DecoderConfig
from mimkit.model.reader import CrossDecoder
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class EMAEConfig(MaskedConfig):
    """Efficient masked autoencoder with self-consistency (arXiv:2302.14431).

    The paper came without code: distance, stopped gradient and averaging are options, with our defaults.
    """

    against_collapse = ("weight",)

    masker: Masker = field(default_factory=PartitionMasker)
    target: PatchTarget = field(default_factory=Pixels)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    weight: float = 1.0
    """Of the self-consistency beside the reconstruction; 0 leaves the parallel masks alone."""
    distance: str = "l1"
    """Between two predictions of a patch: `l1`, `l2` or `smooth_l1`."""
    stop_gradient: bool = True
    """Each prediction is pulled towards others that are held fixed; off: both move, which doubles the gradient."""
    pairs: str = "ordered"
    """`ordered`: every part is pulled towards every other. `later`: the first of two parts towards the later one."""

    def build(self, encoder: Encoder) -> "EMAE":
        choice("distance", self.distance, tuple(DISTANCES), of="method")
        choice("pairs", self.pairs, ("ordered", "later"), of="method")
        at_least(0, **{"method.weight": self.weight})
        masker = self.masker
        name = type(masker).__name__
        if self.weight and (
            isinstance(masker, ComplementaryMasker)
            or (isinstance(masker, PartitionMasker) and masker.mode == "parallel" and masker.parts == 2)
        ):
            raise UserError(
                f"the two views of {name} hide no patch in common, so nothing can agree: use PartitionMasker with "
                "masker.parts 3 or more, or method.weight 0"
            )
        refuse_reading_decoder(self.decoder, masker)
        outputs = self.target.outputs(encoder.patch, encoder.channels)
        method = EMAE(encoder, self.decoder.build(encoder, outputs), masker, self.target, self)
        if method.mask_sampler.views == 1:
            raise UserError(f"EMAE compares several views of a picture and {name} makes one: use PartitionMasker")
        return method


class EMAE(MAE):
    """An MAE over all parts of a picture, plus agreement of two predictions where a patch is hidden in both parts."""

    def __init__(
        self, encoder: Encoder, decoder: Decoder | CrossDecoder, masker: Masker, target: PatchTarget, config: EMAEConfig
    ) -> None:
        super().__init__(encoder, decoder, masker, target)
        self.config = config
        self.partition = isinstance(masker, PartitionMasker) and masker.mode == "parallel" and not masker.throw

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        prediction = self.predict(patches, mask)
        reconstruction = self.reconstruction(prediction, patches, batch, mask)
        logs |= {"reconstruction": reconstruction.detach()} | self.by_channel(prediction, patches, batch, mask)
        if self.config.weight == 0:
            return Step(reconstruction, logs)
        consistency = disagreement(
            prediction.unflatten(0, (-1, mask.views)),
            (mask.counted > 0).unflatten(0, (-1, mask.views)),
            self.config.distance,
            stop_gradient=self.config.stop_gradient,
            ordered=self.config.pairs == "ordered",
            partition=self.partition,
        )
        loss = reconstruction + self.config.weight * consistency
        return Step(loss, logs | {"disagreement": consistency.detach()})
