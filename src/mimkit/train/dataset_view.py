"""Pictures outside the batches: a set and how its images are made enter; a Gallery for `before_epoch` leaves."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mimkit.core import distributed
from mimkit.core.batch import DatasetView
from mimkit.data.loader import evaluation_batches
from mimkit.data.pictures import Pictures, Subset
from mimkit.data.views import Whole

BATCH = 256
SAMPLE = 256  # pictures on which maskers and targets learn about a set


def open_dataset_view(
    pictures: Pictures,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: torch.device,
    workers: int,
) -> DatasetView:
    """Whole pictures, not mirrored; `batches` gives each process its own part of them.

    All processes get equally many batches, since a sharded encoder sees them together; the last ones may be empty.
    """
    settings: dict[str, Any] = dict(size=size, mean=mean, std=std, device=device, view=Whole(flip=0.0), workers=workers)

    @cache
    def sample() -> Tensor:
        return torch.cat([images for images, _, _ in evaluation_batches(pictures, limit=SAMPLE, **settings)])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        mine = torch.arange(distributed.rank(), len(pictures), distributed.world())
        subset = pictures if distributed.world() == 1 else Subset(pictures, mine)
        missing = 0 if distributed.world() == 1 else -(-len(pictures) // (distributed.world() * BATCH))
        for images, _, index in evaluation_batches(subset, batch_size=BATCH, **settings):
            yield images, mine[index]
            missing -= 1
        for _ in range(missing):
            yield torch.zeros(0, pictures.channels, *size, device=device), mine[:0]

    return DatasetView(len(pictures), sample, batches, pictures.labels, len(pictures.classes or ()))
