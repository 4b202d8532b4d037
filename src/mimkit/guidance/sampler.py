"""Mask sampler: a Batch enters, a Mask leaves. It computes what the masker reads, and keeps its memory."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.core import distributed
from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys, uniform
from mimkit.guidance.exploitation import Exploitation
from mimkit.guidance.signals import compute_signal, warp_to_view
from mimkit.masks.informed import InformedMasker, ModelMasker
from mimkit.masks.inverse import InverseBlockMasker
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Signal
from mimkit.model.backbone import Backbone
from mimkit.model.beit import BeitEncoder
from mimkit.model.frozen import Frozen
from mimkit.model.patches import patchify, unpatchify
from mimkit.model.teacher import Teacher
from mimkit.model.vit import Encoder

LATE = 0.999  # progress at which every masker is tried as if its start had come


@dataclass(frozen=True)
class SampleEvidence:
    """`masks.masker.Evidence` on the sample of a set: signals of the encoder in training, exploitation of a decoder."""

    encoder: Backbone
    sample: Callable[[], Float[Tensor, "B C H W"]]
    measure: Callable[[Tensor], Exploitation]
    """Exploitation rates of the method's decoder on images; raises UserError where it has none."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.encoder.grid

    def signal(self, kind: Signal) -> Float[Tensor, "B N C"]:
        """A signal of the encoder in training."""
        return compute_signal(kind, self.encoder, patchify(self.sample(), self.encoder.patch))

    def exploitation(self) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Fractions of the decoder's output that come from visible and from mask tokens."""
        return self.measure(self.sample())


class MaskSampler(nn.Module):
    """A masker with what it needs around it: a model that gives its signal, and state that outlives a step.

    A masker is a frozen value and sees no model. The sampler computes the signal that it asks for, without gradient, by
    the encoder in training, its moving average or a teacher, and lets the masker make score maps and masks of it. The
    moving average, the masker's memory and cached score maps are in the state dict, so they survive a resume. A method
    holds one sampler and asks it for the mask of each batch.
    """

    memory: Tensor | None
    cache: Tensor | None

    def __init__(
        self, masker: Masker, encoder: Backbone, teacher: Teacher | None = None, *, average: Backbone | None = None
    ) -> None:
        """`teacher`: the method's own. A masker that reads attention then reads the teacher's instead of the encoder's,
        unless its `scorer` names the moving average or another teacher.

        `average`: the method's own moving average of the encoder, which then stands for that of the masker's `scorer`,
        so that there are not two; it moves as the method says.

        Raises:
            UserError: the masker does not fit the grid of patches, now or once it has started, or the model that it
                asks cannot give the signal.
        """
        super().__init__()
        masks = try_out(masker, encoder.grid)
        self.views = masks[-1].views
        self.throws = any(mask.decoded is not None for mask in masks)
        self.ragged = any(mask.ragged for mask in masks)
        self.configured = masker
        self.masker = masker  # as configured, until its memory changes it (see `remember`)
        self.guide = guide = masker.guide  # the part of it that reads a signal: of a mixture, one of the two
        self.ramps = masker.ramps
        # The moving average of the encoder, where that gives the signal. It may be put into training mode with the
        # method: `compute_signal` drops nothing all the same.
        self.slow: Backbone | None = None
        self._average: tuple[Backbone, ...] = ()
        self.teacher: Frozen | None = None
        self.reads_method_teacher = False
        self.register_buffer("memory", masker.memory())
        self.register_buffer("cache", None)
        if not isinstance(guide, ModelMasker):
            return
        scorer, name = encoder, guide.scorer
        if guide.scorer == "ema" and average is not None:
            self._average = (average,)  # in a tuple: the method holds it, and its state dict has it once
        elif guide.scorer == "ema":
            self.slow = copy.deepcopy(encoder).requires_grad_(False).eval()
        elif guide.scorer != "online":
            assert encoder.mean is not None and encoder.std is not None
            own = Teacher(guide.scorer, encoder.grid, encoder.channels, encoder.mean, encoder.std)
            self.teacher, scorer = Frozen(own), own.encoder
        elif guide.signal is Signal.ATTENTION and teacher is not None:
            self.teacher, self.reads_method_teacher = Frozen(teacher), True
            scorer, name = teacher.encoder, teacher.name
        check_scorer(guide, scorer, "this encoder" if scorer is encoder else f"'{name}'")
        if guide.refresh:
            self.register_buffer("cache", torch.zeros(0))

    def uses_method_teacher(self, progress: float) -> bool:
        """Whether the masker now wants the attention of the method's own teacher."""
        return self.reads_method_teacher and self.masker.reads(progress) is Signal.ATTENTION

    def forward(
        self,
        encoder: Backbone,
        patches: Float[Tensor, "B N P"],
        batch: Batch,
        progress: float,
        attention: Float[Tensor, "B N H"] | None = None,
    ) -> tuple[Mask, dict[str, Tensor]]:
        """The mask of a batch, and what the masker has to say about it.

        `attention`: of the method's own teacher to these images, where it is known already (`uses_method_teacher`).
        """
        score_maps = self.score_maps(encoder, patches, batch, progress, attention)
        # A masker whose ratio ramps needs a number, since shapes follow from it; the others take the tensor, so that
        # a compiled step does not compile anew at every step.
        now = progress if batch.progress is None or self.ramps else batch.progress
        mask = self.masker(score_maps, batch.rng_keys, now, encoder.grid)
        return mask, self.guide.describe(score_maps, mask)

    @torch.no_grad()
    def score_maps(
        self,
        encoder: Backbone,
        patches: Float[Tensor, "B N P"],
        batch: Batch,
        progress: float,
        attention: Float[Tensor, "B N H"] | None = None,
    ) -> Float[Tensor, "B N M"]:
        """The masker's score maps of a batch: looked up where they are cached, else computed from its images."""
        kind = self.masker.reads(progress)
        if kind is Signal.NONE:
            return patches[..., :0]  # no score maps, but their shape and device
        if self.cache is not None and len(self.cache) and batch.crop is not None:
            assert batch.flip is not None
            cached = self.cache[batch.index.to(self.cache.device, non_blocking=True)].float()
            return warp_to_view(cached, batch.crop, batch.flip, encoder.grid, batch.symmetry)
        signal = self.signal(kind, encoder, patches) if attention is None else attention
        return self.masker.score_maps(signal, encoder.grid)

    @torch.no_grad()
    def signal(self, kind: Signal, encoder: Backbone, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N C"]:
        """The signal of whole images, from the model that the masker names."""
        scorer: Backbone = next(iter(self._average), self.slow or encoder)
        if self.teacher is not None:
            teacher = self.teacher.network
            images = unpatchify(patches, encoder.patch, encoder.grid)
            scorer, patches = teacher.encoder, patchify(teacher.images(images), teacher.encoder.patch)
        layer = self.guide.layer if isinstance(self.guide, ModelMasker) else -1
        return compute_signal(kind, scorer, patches, layer)

    @torch.no_grad()
    def update(self, encoder: Backbone) -> None:
        """Move the average towards the encoder, after each optimizer step."""
        if self.slow is not None and isinstance(self.guide, ModelMasker):
            torch._foreach_lerp_([*self.slow.parameters()], [*encoder.parameters()], 1 - self.guide.momentum)

    def begin(self, encoder: Backbone) -> None:
        """Before the first step of a run: the average starts from the encoder as it is now."""
        if self.slow is not None:  # released weights were loaded after the copy was made
            self.slow.load_state_dict(encoder.state_dict())

    @torch.no_grad()
    def before_epoch(
        self,
        encoder: Backbone,
        epoch: int,
        progress: float,
        dataset: DatasetView,
        exploitation: Callable[[Tensor], Exploitation] | None = None,
    ) -> dict[str, float]:
        """Let the masker learn about the model, and renew cached score maps; returns what to log.

        `exploitation` measures how far the method's decoder draws on mask tokens; see `SampleEvidence.measure`.
        """
        evidence = SampleEvidence(encoder, dataset.sample, exploitation or no_decoder)
        memory, logs = self.configured.learn(self.memory, evidence, progress)
        if self.memory is not None and memory is not None:
            self.remember(memory)
        if self.cache is not None and self.masker.reads(progress) is not Signal.NONE:
            assert isinstance(self.guide, ModelMasker)
            if not len(self.cache) or epoch % self.guide.refresh == 0:
                self.cache = self.cached_maps(encoder, progress, dataset)
        return logs

    def remember(self, memory: Float[Tensor, "..."]) -> None:
        """Keep what the masker learned, and let it be what follows from that."""
        assert self.memory is not None
        self.memory.copy_(memory)
        self.masker = self.configured.recall(self.memory)

    def cached_maps(self, encoder: Backbone, progress: float, dataset: DatasetView) -> Float[Tensor, "n N M"]:
        """Score maps of every whole picture, in half precision.

        Each process computes those of its own pictures, no two the same, and zeros elsewhere: the sum has them all.
        """
        cache = None
        for images, index in dataset.batches():
            signal = self.signal(self.masker.reads(progress), encoder, patchify(images, encoder.patch))
            if not len(images):  # seen with the others, whose encoder may be sharded
                continue
            maps = self.masker.score_maps(signal, encoder.grid)
            if cache is None:
                cache = torch.zeros(dataset.count, *maps.shape[1:], device=maps.device)
            cache[index.to(maps.device)] = maps.float()
        assert cache is not None
        return distributed.total(cache).half()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # type: ignore[bad-override]
        """Takes a cache of any size, and lets the masker be what its memory says."""
        if self.cache is not None and f"{prefix}cache" in state_dict:
            self.cache = torch.empty_like(state_dict[f"{prefix}cache"], device=self.cache.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.memory is not None:
            self.masker = self.configured.recall(self.memory)


def no_decoder(images: Tensor) -> Exploitation:
    """Instead of a measurement of exploitation, where a method has no decoder of which it could be said."""
    raise UserError("this method has no decoder whose exploitation could be measured: use trigger fixed")


def check_scorer(guide: ModelMasker, scorer: Backbone, name: str) -> None:
    """Refuse a model that cannot give the masker its signal: no class token, or fewer blocks than it asks for."""
    if guide.signal is Signal.ATTENTION and not scorer.timm.has_class_token:
        raise UserError(
            f"{type(guide).__name__} reads the class token's attention and {name} has none: use an encoder with "
            "a class token or another --method.masker.scorer"
        )
    depth = len(scorer.timm.blocks)
    if -guide.layer > depth:
        raise UserError(f"masker.layer {guide.layer} lies before the first of {depth} blocks")


def try_out(masker: Masker, grid: tuple[int, int]) -> list[Mask]:
    """Masks drawn on noise: as late in training, then as before the masker's start.

    Raises:
        UserError: with the masker's name and its reason, such as a grid that it does not divide.
    """
    masks, patches = [], grid[0] * grid[1]
    with torch.device("cpu"):  # also where a model is built on the meta device
        key = rng_keys("try out", torch.arange(1))
        for stage, progress in ((masker.start_at(LATE), LATE), (masker, 0.0)):
            try:
                width = 0 if stage.reads(progress) is Signal.NONE else 4
                noise = uniform(key, patches * width).reshape(1, patches, width)
                score_maps = stage.score_maps(noise, grid) if width else noise
                masks.append(stage(score_maps, key, progress, grid))
            except UserError as error:
                raise UserError(f"{type(masker).__name__}: {error}") from error
    return masks


def refuse_exploitation(masker: Masker, method: str) -> None:
    """Refuse a masker that waits for the exploitation of a decoder under a method that has none."""
    if masker.needs_exploitation:
        raise UserError(
            f"{type(masker.guide).__name__} is to start by the exploitation of a decoder and {method} has no decoder "
            "whose exploitation could be measured: use --method.masker.trigger fixed"
        )


def refuse_several(sampler: MaskSampler, method: str, *, ragged: bool = True) -> None:
    """Refuse several masks a picture and thrown patches, and unless `ragged` numbers that differ between pictures."""
    name = type(sampler.configured).__name__
    if sampler.views > 1:
        raise UserError(f"{method} hides patches of a view once and {name} does so {sampler.views} times: use another")
    if sampler.throws:
        setting = "predict 1" if isinstance(sampler.configured, InverseBlockMasker) else "throw 0"
        raise UserError(
            f"{method} knows seen and hidden patches alone and {name} throws some away: use --method.masker.{setting}"
        )
    if sampler.ragged and not ragged:
        raise UserError(f"{method} hides as many patches in each picture and {name} does not: use another masker")


def refuse_reading_maskers(masker: Masker, encoder: Backbone) -> None:
    """Refuse a masker that looks at the encoder, ever, where that is no plain ViT."""
    evals = any(masker.reads(moment / 64) is not Signal.NONE for moment in range(64))
    if isinstance(encoder, Encoder) or not (evals or isinstance(masker.guide, InformedMasker)):
        return
    reason = "an encoder with windows merges its patches and has no class token"
    if isinstance(encoder, BeitEncoder):
        reason = "a Beit's attention has biases by position that it does not know"
    raise UserError(
        f"{type(masker.guide).__name__} reads a value for each patch from the encoder, and {reason}: use a masker that "
        "reads nothing, or a vit_* encoder"
    )


def refuse_holes(batch: Batch, method: str) -> None:
    """Refuse pixels without data in a method of several views, of which only the first says where they are."""
    if batch.valid is not None:
        raise UserError(
            f"{method} cannot leave out pixels without data, since it looks at several views: fill them before, or use "
            "MAE, SimMIM or another method of one view"
        )
