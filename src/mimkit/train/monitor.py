"""Looks at a run while it trains: the task enters; online kNN, rank and spread of features and pictures leave."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.batch import Batch
from mimkit.core.grids import (
    colorize,
    displayable,
    mask_to_pixels,
    masked,
    pasted,
    patches_to_pixels,
    save_picture,
    titled_grid,
)
from mimkit.core.metrics import effective_rank, knn
from mimkit.core.randomness import rng_keys
from mimkit.data.loader import evaluation_batches
from mimkit.data.sources import Pictures
from mimkit.data.views import CenterCrop
from mimkit.masks import Mask
from mimkit.methods import losses as losses
from mimkit.methods.base import Method
from mimkit.model.backbone import Backbone
from mimkit.model.patches import patchify
from mimkit.train.machine import Engine

BANK, QUERIES, SHOWN = 2000, 1000, 8  # pictures of a look: with known labels, to be classified, to be shown
MEMORY = 400_000_000  # bytes that they may take together


class Monitor:
    """The same few pictures at every look, so that numbers and pictures of a run compare.

    Args:
        train: pictures with or without labels; the bank of the online kNN and what the rank is measured on.
        test: pictures to classify, when there are labels.
    """

    def __init__(
        self,
        train: Pictures,
        test: Pictures | None,
        *,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        engine: Engine,
        workers: int,
        seed: int,
    ) -> None:
        self.mean, self.std, self.engine, self.seed = mean, std, engine, seed
        self.test = test if test is not None and test.labels is not None and train.labels is not None else None
        bytes_each = 4 * train.channels * size[0] * size[1]
        fraction = min(1.0, MEMORY / (bytes_each * (BANK + QUERIES)))
        settings: dict[str, Any] = dict(size=size, mean=mean, std=std, view=CenterCrop(fraction=1.0), workers=workers)

        def load(pictures: Pictures, count: int) -> tuple[Tensor, Tensor | None]:
            parts = list(evaluation_batches(pictures, limit=max(SHOWN, int(count * fraction)), **settings))
            labels = [part[1] for part in parts if part[1] is not None]
            return torch.cat([part[0] for part in parts]), torch.cat(labels) if labels else None

        self.bank, self.bank_labels = load(train, BANK)
        self.queries, self.query_labels = load(self.test, QUERIES) if self.test is not None else (None, None)

    @torch.no_grad()  # no inference mode: the first step may use what the encoder keeps of the look before it
    def features(self, encoder: Backbone, images: Tensor) -> Tensor:
        """Class token where the method trains that one (timm's `global_pool`), else mean of the patch tokens."""
        rows, by_class = [], encoder.timm.global_pool == "token"
        for part in images.split(256):
            with self.engine.autocast():
                prefix, patches = encoder(part.to(self.engine.device))
            rows.append((prefix[:, 0].float() if by_class else patches.float().mean(dim=1)).cpu())
        return torch.cat(rows)

    def most(self, encoder: Backbone) -> int:
        """The largest rank that the features can have."""
        return min(len(self.bank), encoder.width)

    def look(self, method: Method, encoder: Backbone, *, classify: bool = True) -> dict[str, float]:
        """Effective rank and spread of the features, and unless `classify` is off the online kNN, with labels."""
        training = method.training
        method.eval()
        bank = self.features(encoder, self.bank)
        record = {"effective_rank": float(effective_rank(bank)), "feature_spread": float(losses.feature_spread(bank))}
        if classify and self.test is not None and self.bank_labels is not None and self.queries is not None:
            classes = len(self.test.classes or ()) or int(self.bank_labels.max()) + 1
            predicted = knn(bank, self.bank_labels, self.features(encoder, self.queries), classes=classes)
            record["knn"] = torch.eq(predicted, torch.as_tensor(self.query_labels)).float().mean().item()
        method.train(training)
        return record

    @torch.inference_mode()
    def draw(self, method: Method, encoder: Backbone, path: Path) -> None:
        """Write original | masked | reconstruction of a few pictures, under the same masks at every look.

        A method that reconstructs nothing may have a map of agreement instead.
        """
        source = self.queries if self.queries is not None else self.bank
        places = torch.linspace(0, len(source) - 1, SHOWN).long()  # of several classes, where they lie in order
        images = source[places].to(self.engine.device)
        number = torch.arange(len(images))
        batch = Batch(images, rng_keys("look", self.seed, number).to(images.device), number)
        training = method.training
        method.eval()
        with self.engine.autocast():
            drawn = method.reconstruct(batch, 0.0)
            agreed = method.agreement(batch, 0.0) if drawn is None else None
        method.train(training)
        found = drawn or agreed
        if found is None:
            return
        values, mask = found
        values = values[:: mask.views]
        hidden, thrown = (
            mask_to_pixels(part[:: mask.views], encoder.grid, encoder.patch) for part in (mask.hidden, mask.thrown)
        )
        originals = displayable(images, self.mean, self.std)
        if drawn is None:
            third = (
                "agreement",
                masked(colorize(patches_to_pixels(values, encoder.grid, encoder.patch), (0, 1)), hidden, thrown),
            )
        else:
            shown = displayable(values, self.mean, self.std)
            third = "reconstruction", masked(pasted(originals, shown, hidden), hidden * 0, thrown)
        columns = [("original", originals), ("masked", masked(originals, hidden, thrown)), third]
        if mask.views > 1 and drawn is not None:
            columns += self._parts(originals, *drawn, encoder)
        save_picture(titled_grid(columns, sets=2 if mask.views == 1 else 1), path)

    def _parts(
        self, originals: Tensor, predicted: Tensor, mask: Mask, encoder: Backbone
    ) -> list[tuple[str, Float[Tensor, "B 3 H W"]]]:
        """The other parallel parts of each picture, and how far all disagree (dark: not at all)."""
        columns = []
        for part in range(1, mask.views):
            hidden = mask_to_pixels(mask.hidden[part :: mask.views], encoder.grid, encoder.patch)
            shown = displayable(predicted[part :: mask.views], self.mean, self.std)
            columns.append((f"part {part + 1}", masked(originals, hidden)))
            columns.append(("reconstruction", pasted(originals, shown, hidden)))
        patches = patchify(predicted.float(), encoder.patch).unflatten(0, (-1, mask.views))
        where = mask.hidden.unflatten(0, (-1, mask.views)).unsqueeze(3)
        mean = (patches * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)
        apart = ((patches - mean.unsqueeze(1)).square() * where).mean(dim=(1, 3))
        columns.append(("disagreement", colorize(patches_to_pixels(apart, encoder.grid, encoder.patch))))
        return columns
