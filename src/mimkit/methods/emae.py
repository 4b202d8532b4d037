"""EMAE: MAE on several parts of each picture at once, whose predictions shall agree. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field

from torch import Tensor

from mimkit.errors import UserError, at_least
from mimkit.masks import ComplementaryMasker, Mask, Masker, PartitionMasker
from mimkit.masks.informed import choice
from mimkit.methods.mae import MAE, MAEConfig
from mimkit.model.decoder import Decoder, DecoderConfig
from mimkit.model.encoder import Encoder
from mimkit.model.patches import patchify
from mimkit.objectives import DISTANCES, disagreement, squared_error
from mimkit.targets import Pixels
from mimkit.task import Batch, Gallery, Method, MethodConfig, Step


@dataclass(kw_only=True, slots=True)
class EMAEConfig(MethodConfig):
    """Efficient masked autoencoder with self-consistency (arXiv:2302.14431).

    The paper came without code: distance, stopped gradient and averaging are options, with our defaults.
    """

    masker: Masker = field(default_factory=PartitionMasker)
    target: Pixels = field(default_factory=Pixels)
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
        mae = MAEConfig(masker=masker, target=self.target, decoder=self.decoder).build(encoder)
        if mae.observer.views == 1:
            raise UserError(f"EMAE compares several views of a picture and {name} makes one: use PartitionMasker")
        return EMAE(mae, self)


class EMAE(Method):
    """Has an MAE: reconstruction over all parts, plus agreement where a patch is hidden in two of them."""

    def __init__(self, mae: MAE, config: EMAEConfig) -> None:
        super().__init__()
        self.mae, self.config = mae, config
        masker = config.masker
        self.partition = isinstance(masker, PartitionMasker) and masker.mode == "parallel"

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The encoder inside the autoencoder."""
        return self.mae.encoder

    @property
    def decoder(self) -> Decoder:
        """The decoder inside the autoencoder."""
        return self.mae.decoder

    def forward(self, batch: Batch, progress: float) -> Step:
        mae = self.mae
        patches = patchify(batch.images, mae.encoder.patch)
        mask, logs = mae.observer(mae.encoder, patches, batch, progress)
        prediction = mae.predict(patches, mask)
        whole = squared_error(prediction, mask.repeat(mae.target(patches)), mask.hidden, per_picture=mask.ragged)
        logs |= {"hidden": mask.hidden.float().mean(), "reconstruction": whole.detach()}
        if self.config.weight == 0:
            return Step(whole, logs)
        agreement = disagreement(
            prediction.unflatten(0, (-1, mask.views)),
            mask.hidden.unflatten(0, (-1, mask.views)),
            self.config.distance,
            stop_gradient=self.config.stop_gradient,
            ordered=self.config.pairs == "ordered",
            partition=self.partition,
        )
        return Step(whole + self.config.weight * agreement, logs | {"disagreement": agreement.detach()})

    def after_step(self, progress: float) -> None:
        self.mae.after_step(progress)

    def before_epoch(self, epoch: int, progress: float, gallery: Gallery) -> dict[str, float]:
        return self.mae.before_epoch(epoch, progress, gallery)

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Mask]:
        """Predictions of all parts (BK, C, H, W) and their masks."""
        return self.mae.reconstruct(batch, progress)
