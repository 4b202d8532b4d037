"""Targets: a name as the command line takes it enters; a model, and what it can do with pictures, leaves."""

import copy
import os
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models import Beit, ResNet, SwinTransformer, SwinTransformerV2
from torch import nn

from mimkit.analysis.metrics import USUAL
from mimkit.analysis.run import analyze
from mimkit.api.embed import embed, embed_to_file, open_for
from mimkit.api.embeddings import Embeddings
from mimkit.api.predict import Predicted, predict_one
from mimkit.api.preprocess import Picture, Preprocess
from mimkit.api.pretrain import Data, places
from mimkit.api.results import Analysis, DenseEvaluation, Evaluation, Result, html_table
from mimkit.core.errors import UserError
from mimkit.data.reading import Reading
from mimkit.evaluate.dense import evaluate_dense
from mimkit.evaluate.run import evaluate
from mimkit.evaluate.target import Extractor, open_target
from mimkit.evaluate.trained import Trained, open_trained
from mimkit.model.backbone import Backbone
from mimkit.model.beit import BeitEncoder
from mimkit.model.convolutional import ConvolutionalEncoder
from mimkit.model.vit import Encoder, refuse_unsuitable
from mimkit.model.windowed import WindowedEncoder
from mimkit.weights.statistics import IMAGENET


class Target:
    """What runs and models have in common: a frozen network, and what it does with pictures."""

    def __init__(self, target: str, data: tuple[str, ...] = ()) -> None:
        self.target = target
        """As the command line takes it."""
        self.data = data
        """The pictures that are looked at where none are named."""
        self.reading = Reading()
        """Their column of labels, where one was named."""
        self._opened: Extractor | None = None
        self._trained: Trained | None = None

    @property
    def extractor(self) -> Extractor:
        """The network with the size, channels, mean and std of its images, opened when it is first asked for."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> Extractor:
        if self.data:
            return open_for(self.target, self.data)[0]
        mean, std = IMAGENET
        return open_target(self.target, size=None, channels=3, mean=mean, std=std)

    def model(self) -> nn.Module:
        """A copy of the timm model without a classifier, on the CPU, in evaluation mode, free to be trained.

        `model.forward_features(images)` gives its tokens; images are those of `preprocess`, (B, C, H, W).
        """
        return copy.deepcopy(self._network()).cpu().requires_grad_(True)

    def encoder(self) -> Backbone:
        """A copy of the model as an encoder: images (B, C, H, W) enter, `Tokens` leave.

        `encoder(images)` has `prefix` (B, P, D), the class and register tokens, and `patches` (B, N, D), row by row of
        `encoder.out_grid`; a ViT's takes a `Mask` too and leaves hidden patches out.

        Raises UserError for a network that has no plain sequence of tokens.
        """
        network = self.model()
        if isinstance(network, (SwinTransformer, SwinTransformerV2)):
            encoder: Backbone = WindowedEncoder(network)
        elif isinstance(network, Beit):
            encoder = BeitEncoder(network)
        elif isinstance(network, ResNet):
            encoder = ConvolutionalEncoder(network, self.extractor.size)
        else:
            refuse_unsuitable(network, self.target)
            encoder = Encoder(network)  # type: ignore[bad-argument-type]
        encoder.mean, encoder.std = self.extractor.mean, self.extractor.std
        return encoder.eval()

    def _network(self) -> nn.Module:
        network = self.extractor.model
        if network is None:
            raise UserError(f"'{self.target}' has no model: it is the baseline of the pixels themselves")
        return network

    def preprocess(self) -> Preprocess:
        """From a path, a picture of Pillow or an array to an image (C, H, W), exactly as evaluation makes it."""
        return Preprocess(self.extractor)

    def predict(self, picture: Picture, boxes: Any = None) -> Predicted:
        """What a fine-tuned dense task says of a picture; Jupyter shows it drawn.

        Args:
            picture: a path, a picture of Pillow, or an array (H, W) or (H, W, C).
            boxes: of keypoints, the people as rows of left, top, right and bottom; by default one fills the picture.

        Raises:
            UserError: the target is no run or export of a dense task, or the picture cannot be read.
        """
        if self._trained is None:
            self._trained = open_trained(self.target, torch.device("cpu"))
        return predict_one(self._trained, picture, boxes)

    def embed(self, data: Data = (), **settings: Any) -> Embeddings:
        """A vector of each picture, held in memory.

        Args:
            data: see `open_pictures`; by default a run's own.
            settings: see `mimkit.api.embed.embed`: pool, split, limit, device, workers, batch_size,
                reading.

        Raises:
            UserError: anything a person can mend, as vectors that half of the memory does not hold.
        """
        return embed(self.target, self._data(data), **self._labels(data, settings))

    def embed_to(self, out: str | os.PathLike[str], data: Data = (), **settings: Any) -> Result:
        """A vector of each picture, or of each patch, into a file while pictures are read: sets of any size.

        Args:
            out: a .parquet, .npz or .csv file; `Embeddings.load` reads those of pictures.
            data: see `open_pictures`; by default a run's own.
            settings: see `mimkit.api.embed.embed_to_file`: tokens, pool, split, limit, device, workers,
                batch_size, reading.

        Raises:
            UserError: anything a person can mend.
        """
        return embed_to_file(self.target, self._data(data), Path(out), **self._labels(data, settings))

    def evaluate(
        self,
        kind: Literal["knn", "probe", "attentive", "segment", "depth"] = "knn",
        data: Data = (),
        **settings: Any,
    ) -> Evaluation | DenseEvaluation:
        """Accuracy on pictures with labels, or scores of the pixels of annotated ones, with intervals.

        Args:
            kind: `knn`, `probe` (linear) or `attentive`; `segment` or `depth`, of frozen patches.
            data: see `open_pictures`, with labels, or `open_annotated`; by default a run's own.
            settings: see `mimkit.evaluate.run.evaluate`: k, pools, method, limit_train, limit_test, device, workers,
                reading; of `segment` and `depth` see `mimkit.evaluate.dense.evaluate_dense`: labels, void, depth_scale,
                measures, memory, and the last five of those.

        Raises:
            UserError: anything a person can mend.
        """
        if kind in ("segment", "depth"):
            settings = self._labels(data, settings)
            return DenseEvaluation(evaluate_dense(kind, self.target, self._data(data), **settings))
        return Evaluation(evaluate(kind, self.target, self._data(data), **self._labels(data, settings)))

    def analyze(self, data: Data = (), *, metrics: tuple[str, ...] = USUAL, **settings: Any) -> Analysis:
        """What each layer and head does with pictures.

        Args:
            data: see `open_pictures`; by default a run's own.
            metrics: some of attention, cka, fourier, variance, clusters, rank, drop, decoder and swap.
            settings: see `mimkit.analysis.run.analyze`: pictures (how many), film, device, workers, reading.

        Raises:
            UserError: anything a person can mend.
        """
        return Analysis(analyze([self.target], self._data(data), metrics=metrics, **self._labels(data, settings)))

    def _labels(self, data: Data, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings, with the column of labels of one's own pictures where no others are named."""
        return settings if places(data) else {"reading": self.reading} | settings

    def _data(self, data: Data) -> tuple[str, ...]:
        """The pictures that are named, or else one's own. Raises UserError when there are none."""
        named = places(data) or self.data
        if not named:
            raise UserError("say which pictures: a folder, a list, Parquet files or the name of a set")
        return named


class Model(Target):
    """A network that has no run: an export folder, a timm name, `hf-hub:...` or a file of weights.

    `embed`, `evaluate` and `analyze` look at pictures in their own size, as the command line does, where the network
    takes any; `model`, `encoder` and `preprocess` are for pictures like `data`, or else for the size that it was
    trained with.
    """

    def __repr__(self) -> str:
        return f"mimkit.load({self.target!r})"

    def _repr_html_(self) -> str:
        """What it is and what it wants to see."""
        extractor = self.extractor
        rows: list[tuple[str, object]] = [("target", self.target)]
        if extractor.model is not None:
            millions = sum(parameter.numel() for parameter in extractor.model.parameters()) / 1e6
            rows.append(("network", f"{type(extractor.model).__name__}, {millions:.1f} M parameters"))
        sides = f"{extractor.size[0]}x{extractor.size[1]}, {extractor.channels} channels"
        rows += [("images", sides), ("mean", extractor.mean), ("std", extractor.std), ("pool", extractor.headline)]
        if extractor.assumed:
            rows.append(("assumed", extractor.assumed))
        return html_table(("", ""), rows)
