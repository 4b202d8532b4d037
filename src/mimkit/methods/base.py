"""The contract with the training loop: a Batch and the progress enter a Task, a Step leaves it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.guidance.exploitation import Exploitation
from mimkit.guidance.sampler import MaskSampler, no_decoder
from mimkit.masks import Mask, Masker, RandomMasker
from mimkit.model.backbone import Backbone
from mimkit.model.decoder import Decoder
from mimkit.model.patches import patchify
from mimkit.model.reader import CrossDecoder
from mimkit.model.teacher import Teacher


class Task(nn.Module):
    """Anything the loop can train."""

    no_weight_decay: tuple[str, ...] = ()  # parameters without weight decay, besides those with one axis
    rates: Mapping[str, float] = {}  # what parameters whose names begin so have of the learning rate

    def forward(self, batch: Batch, progress: float) -> Step:
        """The loss of a batch; `progress` runs over training in [0, 1). Means the same in train and eval mode."""
        raise NotImplementedError(f"{type(self).__name__} is no task until it defines forward")

    def before_step(self, progress: float) -> None:
        """Called with the gradients of a whole step, before they are clipped, to drop some; by default none is."""

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step, to move slow copies and centers; by default nothing moves."""

    def before_epoch(self, epoch: int, progress: float, dataset: DatasetView) -> dict[str, float]:
        """Called before the first step of each epoch, to look at pictures outside the batches; its result is logged."""
        return {}


class Method(Task):
    """A task that trains an encoder."""

    encoder: Backbone
    decoder: Decoder | CrossDecoder | None
    """What predicts patches from latents, of a method that has one; released weights may fill it."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = None

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        """Called before the first step of a process; `resumed`: buffers will come from a checkpoint."""

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK C H W"], Mask] | None:
        """Pictures of what it learned, in the normalization of its input, and their masks; None if it draws none."""
        return None

    def agreement(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK N"], Mask] | None:
        """For a method that draws no pictures: how far, 0 to 1, each patch is as it should be, and the masks.

        NaN where nothing is compared."""
        return None


class MaskedMethod(Method):
    """Holds an encoder and the sampler of its masks; a subclass defines `forward`, which calls `self.sample`."""

    def __init__(
        self, encoder: Backbone, masker: Masker, teacher: Teacher | None = None, *, average: Backbone | None = None
    ) -> None:
        """`average`: the method's own moving average of the encoder, which a masker may ask instead of its own."""
        super().__init__()
        self.encoder = encoder
        self._student = (encoder,)  # in a tuple: the state dict has it once
        self.mask_sampler = MaskSampler(masker, encoder, teacher, average=average)

    @property
    def student(self) -> Backbone:
        """The encoder that is trained, also where `encoder`, which leaves, is its slow copy."""
        return self._student[0]

    def sample(
        self, batch: Batch, progress: float, attention: Float[Tensor, "B N H"] | None = None
    ) -> tuple[Float[Tensor, "B N P"], Mask, dict[str, Tensor]]:
        """The patches of a batch, which of them are hidden, and what to log about that.

        `attention`: as for `MaskSampler.forward`. Patches without data are hidden whatever the masker says.
        """
        patches = patchify(batch.images, self.student.patch)
        mask, logs = self.mask_sampler(self.student, patches, batch, progress, attention)
        if batch.valid is not None:
            mask = mask.without_holes(patchify(batch.valid.float(), self.student.patch).mean(dim=2))
        return patches, mask, {"hidden": mask.hidden.float().mean()} | logs

    def exploitation(self, images: Float[Tensor, "B C H W"]) -> Exploitation:
        """How far the decoder draws on visible and on mask tokens. Raises UserError where there is no decoder."""
        return no_decoder(images)

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.mask_sampler.begin(self.encoder)

    def after_step(self, progress: float) -> None:
        self.mask_sampler.update(self.student)

    def before_epoch(self, epoch: int, progress: float, dataset: DatasetView) -> dict[str, float]:
        return self.mask_sampler.before_epoch(self.student, epoch, progress, dataset, self.exploitation)


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """Base of the settings of a method."""

    windows = False  # whether the encoder may be one that leaves no patch out, as a Swin
    beits = False  # whether the encoder may be a Beit, whose relative positions belong to the full grid
    convolutions = False  # whether the encoder may be a ResNet, which has no patches at all
    supervised = False  # learns the train split alone, and what is known of its pictures
    learns: ClassVar[str] = ""  # what that is: `classes`, of which it takes a `label_fraction`, or a `DenseTask`
    needs_whole_batch = False  # the loss needs all pictures of a step at once: the loop refuses micro batches
    against_collapse: ClassVar[tuple[str, ...]] = ()  # its settings that keep features apart, named when they collapse
    label_fraction = 1.0  # of the labels of the train split, of methods that learn these: a setting of theirs

    def build(self, encoder: Any) -> Method:
        """The method that trains this encoder, a `Backbone`."""
        raise NotImplementedError(f"{type(self).__name__} is no method until it defines build")


@dataclass(kw_only=True, slots=True)
class MaskedConfig(MethodConfig):
    """Base of the settings of a method that hides patches."""

    masker: Masker = field(default_factory=RandomMasker)
    """Which patches are hidden."""

    @property
    def attention_teacher(self) -> str | None:
        """The method's own teacher, whose attention a masker reads that names no other; empty: not given yet."""
        return None
