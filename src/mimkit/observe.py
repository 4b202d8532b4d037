"""Observe: compute what a masker looks at, and remember what must outlive a step. A Batch enters, a Mask leaves."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import DropPath
from torch import Tensor, nn

from mimkit import distributed
from mimkit.errors import UserError
from mimkit.exploitation import Exploitation, Trigger
from mimkit.masks.informed import ModelMasker
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Signal
from mimkit.masks.salience import SalienceMasker, salient_share
from mimkit.model.attention import class_attention
from mimkit.model.encoder import Backbone, Encoder
from mimkit.model.patches import patchify, unpatchify
from mimkit.model.teacher import Teacher
from mimkit.randomness import keys, uniform
from mimkit.task import Batch, Gallery

LATE = 0.999  # when every masker has started
UNSATURATED = 0.05  # salient share at which salience masks start, with `trigger = "saturation"`


class Observer(nn.Module):
    """A masker's eyes: computes the signal without gradient, keeps moving average, trigger and cached maps.

    All of these are buffers, so they survive a resume. A method holds one and asks it for the mask of each batch.
    """

    def __init__(self, masker: Masker, encoder: Backbone, teacher: Teacher | None = None) -> None:
        """`teacher`: the method's own, whose attention a masker reads that names no other.

        Raises:
            UserError: the masker does not fit the grid of patches, now or once it has started, or cannot look.
        """
        super().__init__()
        self.views = try_out(masker, encoder.grid)
        self.masker = masker  # with a trigger's start put in; as configured until then
        self.guide = guide = masker.guide
        self._configured = masker
        self.ramps = isinstance(getattr(guide, "ratio", None), tuple)  # numbers of patches change: not to be compiled
        self.slow: Backbone | None = None
        self._teacher: tuple[Teacher, ...] = ()  # a tuple: its weights belong into no checkpoint
        self._shared = False  # whether that is the method's own
        self.trigger: Tensor | None
        self.cache: Tensor | None
        trigger = getattr(guide, "trigger", "fixed")
        self.register_buffer("trigger", None if trigger == "fixed" else Trigger().to_tensor())
        self.register_buffer("cache", None)
        if not isinstance(guide, ModelMasker):
            return
        scorer, name = encoder, guide.scorer
        if guide.scorer == "ema":
            self.slow = copy.deepcopy(encoder).requires_grad_(False).eval()
        elif guide.scorer != "online":
            assert encoder.mean is not None and encoder.std is not None
            self._teacher = (Teacher(guide.scorer, encoder.grid, encoder.channels, encoder.mean, encoder.std),)
            scorer = self._teacher[0].encoder
        elif guide.signal is Signal.ATTENTION and teacher is not None:
            self._teacher, self._shared = (teacher,), True
            scorer, name = teacher.encoder, teacher.name
        if guide.signal is Signal.ATTENTION and not scorer.vit.has_class_token:
            who = "this encoder" if scorer is encoder else f"'{name}'"
            raise UserError(
                f"{type(guide).__name__} reads the class token's attention and {who} has none: use an encoder with "
                "a class token or another --method.masker.scorer"
            )
        depth = len(scorer.vit.blocks)
        if -getattr(guide, "layer", -1) > depth:
            raise UserError(f"masker.layer {guide.layer} lies before the first of {depth} blocks")  # type: ignore[attr-defined]
        if guide.refresh:
            self.register_buffer("cache", torch.zeros(0))

    def shares(self, progress: float) -> bool:
        """Whether the masker now wants the attention of the method's own teacher."""
        return self._shared and self.masker.reads(progress) is Signal.ATTENTION

    def forward(
        self,
        encoder: Backbone,
        patches: Float[Tensor, "B N P"],
        batch: Batch,
        progress: float,
        attention: Float[Tensor, "B N H"] | None = None,
    ) -> tuple[Mask, dict[str, Tensor]]:
        """The mask of a batch, and what the masker has to say about it.

        `attention`: of the method's own teacher to these images, where it is known already (see `shares`).
        """
        maps = self.maps(encoder, patches, batch, progress, attention)
        moment = progress if batch.moment is None or self.ramps else batch.moment
        mask = self.masker(maps, batch.keys, moment, encoder.grid)
        return mask, self.guide.describe(maps, mask)

    @torch.no_grad()
    def maps(
        self,
        encoder: Backbone,
        patches: Float[Tensor, "B N P"],
        batch: Batch,
        progress: float,
        attention: Float[Tensor, "B N H"] | None = None,
    ) -> Float[Tensor, "B N M"]:
        """The masker's maps of a batch: looked up where they are cached, else computed from its images."""
        wanted = self.masker.reads(progress)
        if wanted is Signal.NONE:
            return patches[..., :0]
        if self.cache is not None and len(self.cache) and batch.crop is not None:
            assert batch.flip is not None
            chosen = self.cache[batch.index.to(self.cache.device, non_blocking=True)].float()
            return carried(chosen, batch.crop, batch.flip, encoder.grid)
        signal = self.signal(wanted, encoder, patches) if attention is None else attention
        return self.masker.maps(signal, encoder.grid)

    @torch.no_grad()
    def signal(self, wanted: Signal, encoder: Backbone, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N C"]:
        """The signal of whole images, by whom the masker asks."""
        if self._teacher:
            teacher = self._teacher[0].to(patches.device)
            images = unpatchify(patches, encoder.patch, encoder.grid)
            scorer, patches = teacher.encoder, patchify(teacher.images(images), teacher.encoder.patch)
        else:
            scorer = self.slow or encoder
        return observe(wanted, scorer, patches, getattr(self.guide, "layer", -1))

    @torch.no_grad()
    def follow(self, encoder: Backbone) -> None:
        """Move the average towards the encoder, after each optimiser step."""
        if self.slow is not None and isinstance(self.guide, ModelMasker):
            torch._foreach_lerp_([*self.slow.parameters()], [*encoder.parameters()], 1 - self.guide.momentum)

    @torch.no_grad()
    def before_epoch(
        self,
        encoder: Backbone,
        epoch: int,
        progress: float,
        gallery: Gallery,
        exploit: Callable[[Tensor], Exploitation] | None = None,
    ) -> dict[str, float]:
        """Measure what starts the masker and renew cached maps; returns what to log.

        `exploit` measures the exploitation rates of the method's decoder on images.
        """
        logs: dict[str, float] = {}
        if self.slow is not None and progress == 0:  # released weights were loaded after the copy was made
            self.slow.load_state_dict(encoder.state_dict())
        if isinstance(self.guide, SalienceMasker):
            patches = patchify(gallery.some(), encoder.patch)
            maps = self.guide.maps(observe(Signal.PATCHES, encoder, patches), encoder.grid)
            share = salient_share(maps[..., 0]).item()
            logs |= {"gallery_salience": maps.mean().item(), "gallery_salient_share": share}
            if self.trigger is not None:
                state = Trigger.from_tensor(self.trigger)
                if share > UNSATURATED and not state.fired:
                    state = Trigger(armed=True, fired_at=progress)
                self._keep(state)
                logs["trigger_fired"] = float(state.fired)
        elif self.trigger is not None:
            if exploit is None:
                raise UserError("this method has no decoder whose exploitation could be measured: use trigger fixed")
            masked, visible = (rate.mean().item() for rate in reversed(exploit(gallery.some())))
            state = Trigger.from_tensor(self.trigger).update(masked, visible, progress)
            self._keep(state)
            logs |= {"exploited_masked": masked, "exploited_visible": visible}
            logs |= {"trigger_armed": float(state.armed), "trigger_fired": float(state.fired)}
        if self.cache is not None and self.masker.reads(progress) is not Signal.NONE:
            assert isinstance(self.guide, ModelMasker)
            if not len(self.cache) or epoch % self.guide.refresh == 0:
                self.cache = self._look_at_all(encoder, progress, gallery)
        return logs

    def _keep(self, state: Trigger) -> None:
        """Remember the trigger, and start the masker when it has fired."""
        assert self.trigger is not None
        self.trigger.copy_(state.to_tensor())
        state = Trigger.from_tensor(self.trigger)  # as rounded as a resumed run will read it
        if state.fired:
            self.masker = self._configured.started(state.fired_at)

    def _look_at_all(self, encoder: Backbone, progress: float, gallery: Gallery) -> Tensor:
        """Maps of every whole picture, half precision, each process a part of them."""
        cache = None
        for images, index in gallery.every():
            patches = patchify(images, encoder.patch)
            maps = self.masker.maps(self.signal(self.masker.reads(progress), encoder, patches), encoder.grid)
            if cache is None:
                cache = torch.zeros(gallery.count, *maps.shape[1:], device=maps.device)
            cache[index.to(maps.device)] = maps.float()
        assert cache is not None
        return distributed.total(cache).half()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:  # type: ignore[no-untyped-def]
        """Takes a cache of any size, and what a trigger started."""
        if self.cache is not None and f"{prefix}cache" in state_dict:
            self.cache = torch.empty_like(state_dict[f"{prefix}cache"], device=self.cache.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.trigger is not None:
            self._keep(Trigger.from_tensor(self.trigger))


def try_out(masker: Masker, grid: tuple[int, int]) -> int:
    """Draw a mask on noise, before the masker's start and late in training; returns how many views it makes.

    Raises:
        UserError: with the masker's name and its reason, such as a grid that it does not divide.
    """
    views = 0
    with torch.device("cpu"):  # also where a model is built without weights
        key = keys("try out", torch.arange(1))
        for one, progress in ((masker.started(LATE), LATE), (masker, 0.0)):
            try:
                width = 0 if one.reads(progress) is Signal.NONE else 4
                noise = uniform(key, grid[0] * grid[1] * width).reshape(1, grid[0] * grid[1], width)
                views = one(one.maps(noise, grid) if width else noise, key, progress, grid).views
            except UserError as error:
                raise UserError(f"{type(masker).__name__}: {error}") from error
    return views


def refuse_exploitation(masker: Masker, method: str) -> None:
    """Refuse a masker that waits for the exploitation of a decoder under a method that has none."""
    guide = masker.guide
    if getattr(guide, "trigger", "fixed") == "exploitation":
        raise UserError(
            f"{type(guide).__name__} is to start by the exploitation of a decoder and {method} has no decoder whose "
            "exploitation could be measured: use --method.masker.trigger fixed"
        )


def observe(
    wanted: Signal, encoder: Backbone, patches: Float[Tensor, "B N P"], layer: int = -1
) -> Float[Tensor, "B N C"]:
    """The signal of an encoder that sees all patches: without gradient, without dropping anything.

    A fifth signal is one member of `Signal` and one branch here.
    """
    if wanted is Signal.NONE:
        return patches[..., :0]
    assert isinstance(encoder, Encoder), "refused by methods that train other encoders"
    awake = [part for part in encoder.modules() if part.training]
    if not any(
        isinstance(part, (nn.Dropout, DropPath)) and (getattr(part, "p", 0) or getattr(part, "drop_prob", 0))
        for part in awake
    ):
        awake = []  # nothing drops: a compiled step need not switch anything
    for part in awake:
        part.training = False
    try:
        tokens = encoder.embed(patches)
        if wanted is Signal.PATCHES:
            return tokens.patches
        blocks = encoder.vit.blocks
        if wanted is Signal.FEATURES:
            return encoder.through(tokens, len(blocks) + 1 + layer).patches
        before = torch.cat(encoder.through(tokens, len(blocks) - 1), dim=1)
        return class_attention(blocks[-1], before, tokens.prefix.shape[1])
    finally:
        for part in awake:
            part.training = True


def carried(
    maps: Float[Tensor, "B N M"],
    crop: Float[Tensor, "B 4"],
    flip: Bool[Tensor, " B"],
    grid: tuple[int, int],
) -> Float[Tensor, "B N M"]:
    """Maps of whole pictures through the crop and the mirror of their views, bilinearly; the identity for no crop.

    `crop` holds top, left, height and width as shares of the picture.
    """
    rows, columns = grid
    device = maps.device
    down = (torch.arange(rows, device=device) + 0.5) / rows
    across = (torch.arange(columns, device=device) + 0.5) / columns
    y = crop[:, :1] + crop[:, 2:3] * down  # (B, rows), shares of the picture
    x = crop[:, 1:2] + crop[:, 3:] * torch.where(flip.unsqueeze(1), across.flip(0), across)
    places = torch.stack([x.unsqueeze(1).expand(-1, rows, -1), y.unsqueeze(2).expand(-1, -1, columns)], dim=3)
    square = maps.mT.reshape(len(maps), -1, rows, columns)
    out = F.grid_sample(square, 2 * places - 1, mode="bilinear", padding_mode="border", align_corners=False)
    return out.flatten(2).mT
