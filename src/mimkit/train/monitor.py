"""The monitor: a task in training enters; online kNN, rank and spread of its features and pictures leave."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mimkit.core.batch import Batch
from mimkit.core.display import split_holes
from mimkit.core.grids import save_picture
from mimkit.core.metrics import class_names, effective_rank, knn
from mimkit.core.randomness import rng_keys
from mimkit.data.loader import evaluation_batches
from mimkit.data.sources import Pictures
from mimkit.data.views import CenterCrop
from mimkit.methods import losses as losses
from mimkit.methods.base import Method
from mimkit.model.backbone import Backbone
from mimkit.train.drawing import channel_grid, prediction_grid
from mimkit.train.machine import Engine
from mimkit.train.prepare import Prepared

BANK, QUERIES, SHOWN = 2000, 1000, 8  # pictures of an evaluation: with known labels, to be classified, to be shown
MEMORY = 400_000_000  # bytes that they may take together
PIXELS = 48  # of the longer side of images that are compared pixel by pixel, as for `mimkit evaluate knn pixels`


class Monitor:
    """The same few pictures at every evaluation, so that numbers and pictures of a run compare.

    With labels, pictures of the train split are the bank of the online kNN and those of the test split are classified.
    """

    def __init__(self, prepared: Prepared, engine: Engine, *, workers: int) -> None:
        """Load the pictures: whole, as evaluation sees them."""
        self.engine, self.seed = engine, prepared.config.seed
        mean, std = prepared.statistics
        self.display = prepared.config.images.display(prepared.pictures.values, mean, std)
        self.bands = prepared.config.images.bands
        train, test = prepared.labeled or (prepared.pictures, None)
        self.test = test if test is not None and test.labels is not None and train.labels is not None else None
        height, width = prepared.size
        bytes_per_picture = 4 * train.channels * height * width
        fraction = min(1.0, MEMORY / (bytes_per_picture * (BANK + QUERIES)))  # of large pictures fewer are kept

        def load(pictures: Pictures, count: int) -> tuple[Tensor, Tensor | None]:
            view, limit = CenterCrop(fraction=1.0), max(SHOWN, int(count * fraction))
            batches = list(
                evaluation_batches(
                    pictures,
                    size=prepared.size,
                    mean=mean,
                    std=std,
                    view=view,
                    workers=workers,
                    limit=limit,
                    keep_holes=True,
                )
            )
            labels = [batch[1] for batch in batches if batch[1] is not None]
            return torch.cat([batch[0] for batch in batches]), torch.cat(labels) if labels else None

        self.bank, self.bank_labels = load(train, BANK)
        self.queries: Tensor | None = None
        self.query_labels: Tensor | None = None
        if self.test is not None:
            self.queries, self.query_labels = load(self.test, QUERIES)
        source = self.bank if self.queries is None else self.queries
        places = torch.linspace(0, len(source) - 1, SHOWN).long()  # of several classes, where they lie in order
        self.shown, self.shown_valid = split_holes(source[places])
        for images in (self.bank, self.queries):
            if images is not None and prepared.pictures.values.holes:
                images.nan_to_num_(0.0)

    @torch.no_grad()  # no inference mode: the first step may use what the encoder keeps from the evaluation before it
    def features(self, encoder: Backbone, images: Tensor) -> Tensor:
        """Class token where the method trains that one (timm's `global_pool`), else mean of the patch tokens."""
        rows = []
        for batch in images.split(256):
            with self.engine.autocast():
                tokens = encoder(batch.to(self.engine.device))
            if encoder.timm.global_pool == "token":
                rows.append(tokens.prefix[:, 0].float().cpu())
            else:
                rows.append(tokens.patches.float().mean(dim=1).cpu())
        return torch.cat(rows)

    def largest_rank(self, encoder: Backbone) -> int:
        """The largest rank that the features can have."""
        return min(len(self.bank), encoder.width)

    def evaluate(self, method: Method, encoder: Backbone) -> dict[str, float]:
        """Effective rank and spread of the features, and with labels the online kNN."""
        training = method.training
        method.eval()
        bank = self.features(encoder, self.bank)
        record = {"effective_rank": float(effective_rank(bank)), "feature_spread": float(losses.feature_spread(bank))}
        if self.queries is not None:
            record["knn"] = self.classify(bank, self.features(encoder, self.queries))
        method.train(training)
        return record

    def evaluate_start(self, method: Method, encoder: Backbone) -> dict[str, float]:
        """Before the first step: rank and spread, and with labels what the online kNN has to be compared with.

        knn_start, of the encoder as it begins; knn_pixels, of the images themselves, at most 48 px a side; chance, the
        share of the largest class among the queries.
        """
        record = self.evaluate(method, encoder)
        if self.queries is None or self.query_labels is None:
            return record
        record["knn_start"] = record.pop("knn")
        record["knn_pixels"] = self.classify(shrunk(self.bank), shrunk(self.queries))
        record["chance"] = self.query_labels.bincount().max().item() / len(self.query_labels)
        return record

    def classify(self, bank: Tensor, queries: Tensor) -> float:
        """The share of the queries whose class their neighbors in the bank name, of rows of either."""
        assert self.test is not None and self.bank_labels is not None and self.query_labels is not None
        classes = len(class_names(self.test.classes, self.bank_labels, self.query_labels))
        predicted = knn(bank, self.bank_labels, queries, classes=classes)
        return torch.eq(predicted, self.query_labels).float().mean().item()

    @torch.inference_mode()
    def draw(self, method: Method, encoder: Backbone, folder: Path, steps: int) -> None:
        """Write pictures of what a method predicts, under the same masks at every evaluation.

        `step-N.png` and `reconstruction.png` are `drawing.prediction_grid` of a few pictures; `channels.png` is
        `drawing.channel_grid` of the first, where it has more than three channels.
        """
        images, device = self.shown.to(self.engine.device), self.engine.device
        number = torch.arange(len(images))
        valid = None if self.shown_valid is None else self.shown_valid.to(device)
        batch = Batch(images, rng_keys("look", self.seed, number).to(device), number, valid=valid)
        training = method.training
        method.eval()
        with self.engine.autocast():
            grid = prediction_grid(method, encoder, batch, self.display)
            channels = channel_grid(method, encoder, batch, self.display, self.bands)
        method.train(training)
        files = {f"step-{steps:09d}.png": grid, "reconstruction.png": grid, "channels.png": channels}
        for name, sheet in files.items():
            if sheet is not None:
                save_picture(sheet, folder / name)


def shrunk(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
    """The pixels of each image in one row, of large ones after they were made smaller."""
    scale = min(1.0, PIXELS / max(images.shape[2:]))
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bicubic", antialias=True).flatten(1) if scale < 1 else images.flatten(1)
