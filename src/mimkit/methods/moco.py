"""MoCo v1 and v2: a view shall find its other view's slow embedding in a queue. A Batch enters, a Step leaves."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.distributed import gather, rank, world
from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import uniform
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.losses import info_nce
from mimkit.methods.simclr import check_temperature, describe, picture_numbers, second_view
from mimkit.model.backbone import Backbone
from mimkit.model.projector import Embedder, Pool, SlowCopy, check_momentum, mlp


@dataclass(kw_only=True, slots=True)
class MoCoConfig(MethodConfig):
    """Momentum contrast (v1: He et al. 2020, arXiv:1911.05722; v2: Chen et al. 2020, arXiv:2003.04297).

    The other view is the first of `images.other_views`. The defaults are v2's; v1 has a linear head and 0.07.
    A ResNet's BatchNorm tells which key is whose unless several processes shuffle them: use more than one.
    """

    windows = convolutions = needs_whole_batch = True
    against_collapse = ("temperature", "momentum")

    head: Literal["linear", "mlp"] = "mlp"
    """`linear`: one layer (v1); `mlp`: two with ReLU between, without BatchNorm (v2)."""
    temperature: float = 0.2
    """Cosines are divided by it before the softmax; v1 has 0.07."""
    momentum: float = 0.999
    """Share of the slow encoder that stays in each step: 0 copies the encoder, 1 never moves."""
    queue: int = 65536
    """Keys to find the own one among; a multiple of the pictures in a step."""
    outputs: int = 128
    """Numbers of a key."""
    pool: Pool | None = None
    """What of the encoder is projected: `class` token, or `mean` of the patches; by default the class token where there
    is one."""

    def build(self, encoder: Backbone) -> "MoCo":
        check_temperature(self.temperature)
        check_momentum(self.momentum)
        at_least(1, **{"method.queue": self.queue, "method.outputs": self.outputs})
        widths = [encoder.width] * (1 if self.head == "linear" else 2) + [self.outputs]
        return MoCo(Embedder(encoder, self.pool, mlp(widths, norm=False)), self)


class MoCo(Method):
    """Keys of the other view come from a slow copy of encoder and head; the queue of earlier keys are the others.

    Beside each key the queue has the number of its picture, of which the keys are no negatives.

    The copy moves and the queue takes this step's keys in `after_step`. Moving before the next keys are computed, as
    the released code does (facebookresearch/moco:moco/builder.py), is the same, for the copy begins equal.
    """

    queue: Float[Tensor, "K D"]
    queue_index: Int64[Tensor, " K"]
    place: Int64[Tensor, ""]

    def __init__(self, embedder: Embedder, config: MoCoConfig) -> None:
        super().__init__()
        self.embedder, self.slow = embedder, SlowCopy(embedder)
        self.temperature, self.momentum = config.temperature, config.momentum
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.outputs), dim=1))
        # -1: of no picture, as the noise that the queue begins with
        self.register_buffer("queue_index", torch.full((config.queue,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # where the next keys go
        self.fresh: Tensor | None = None  # keys of this step, of all processes
        self.fresh_index: Tensor | None = None  # the numbers of their pictures

    @property
    def encoder(self) -> Backbone:  # type: ignore[override]
        """The encoder that is trained, inside the embedder."""
        return self.embedder.encoder

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # type: ignore[bad-override]
        # Checkpoints of version 0.2 do not know of which pictures their keys are.
        state_dict.setdefault(f"{prefix}queue_index", torch.full_like(self.queue_index, -1))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.embedder, 0.0)  # released weights were loaded after the copy was made

    def forward(self, batch: Batch, progress: float) -> Step:
        features = self.embedder.features(batch.images)
        own, self.fresh = self.momentum_keys(second_view(batch), batch.rng_keys)
        index = picture_numbers(batch)
        self.fresh_index = gather(index).flatten()
        same = index.unsqueeze(1) == self.queue_index
        contrast = info_nce(self.embedder.projector(features), own, self.queue, self.temperature, same)
        return Step(contrast.loss, describe(contrast, features))

    @torch.no_grad()
    def momentum_keys(
        self, images: Float[Tensor, "B C H W"], address: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "everyone D"]]:
        """Unit keys of these images, and of those of all processes.

        Each process embeds images of all, shuffled by their random keys, so that BatchNorm tells nothing.
        """
        if world() == 1:
            momentum_keys = F.normalize(self.slow(images).float(), dim=1)
            return momentum_keys, momentum_keys
        order = uniform(gather(address).flatten(), 1, stream=1).squeeze(1).argsort()
        mine = slice(rank() * len(images), (rank() + 1) * len(images))
        shuffled = gather(images).flatten(0, 1)[order[mine]]
        momentum_keys = gather(F.normalize(self.slow(shuffled).float(), dim=1)).flatten(0, 1)[order.argsort()]
        return momentum_keys[mine], momentum_keys

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.slow.update(self.embedder, self.momentum)
        assert self.fresh is not None and self.fresh_index is not None
        count, size = len(self.fresh), len(self.queue)
        if size % count:
            near = max(count, round(size / count) * count)
            raise UserError(f"method.queue {size} is no multiple of the {count} pictures in a step: use {near}")
        places = self.place + torch.arange(count, device=self.queue.device)
        self.queue.index_copy_(0, places, self.fresh)
        self.queue_index.index_copy_(0, places, self.fresh_index)
        self.place.copy_((self.place + count) % size)
