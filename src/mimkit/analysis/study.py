"""Study of one model: a network, groups of metrics and batches enter, rows, Gram matrices and spectra leave."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mimkit.analysis.attention import attention_distance, attention_entropy, head_divergence, mutual_information
from mimkit.analysis.collect import Averages, known, mean_and_error
from mimkit.analysis.decoder import decoder_measures
from mimkit.analysis.network import Layer, Network
from mimkit.analysis.relations import (
    feature_variance,
    intra_inter,
    row_divergence,
    similarity_variance,
    token_similarity,
)
from mimkit.analysis.robustness import knn_accuracy, relative_change, swapped
from mimkit.analysis.similarity import gram
from mimkit.analysis.spectrum import frequencies, log_amplitude
from mimkit.core.metrics import effective_rank
from mimkit.masks.ncut import ncut
from mimkit.methods.base import Method

PROBE = 32  # pictures whose relations are kept for a comparison over training
_SOME = 16  # pictures that a decoder takes at once

Relations = dict[tuple[str, int], list[Tensor]]
"""Rows of relations of the probe's pictures, by kind (`similarity`, `attention`) and layer."""


@dataclass
class Study:
    """What one model gives on a series of batches."""

    network: Network
    groups: frozenset[str]
    """Those of `metrics.GROUPS` to compute; the network has no refusal for them."""
    task: Method | None = None
    """For the group `decoder`."""
    keep: bool = False
    """Keep the relations of the first pictures."""
    reference: Relations | None = None
    """Relations at the end of training, to measure the distance from."""
    averages: Averages = field(default_factory=Averages)
    left_out: dict[str, str] = field(default_factory=dict)
    """What these pictures do not allow, with the reason."""
    grams: list[Float64[Tensor, "L B B"]] = field(default_factory=list)
    """One entry a batch."""
    relations: Relations = field(default_factory=lambda: defaultdict(list))
    index: list[Int64[Tensor, " B"]] = field(default_factory=list)
    """Numbers of the pictures of each batch."""
    _spectra: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _grids: dict[int, tuple[int, int]] = field(default_factory=dict)
    _pooled: dict[tuple[str, int], list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    @torch.inference_mode()
    def batches(self, batches: Iterable[tuple[Tensor, Any, Tensor]], labels: Tensor | None) -> None:
        """Look at all batches of images, then at what needs all pictures at once."""
        for images, _, index in batches:
            self._batch(images, index)
        for (kind, layer), parts in self._pooled.items():
            features = torch.cat(parts)
            if kind == "drop" and "rank" in self.groups:
                self.averages.note("effective_rank", layer, effective_rank(features).item(), None, len(features))
            if labels is not None and kind in self.groups:
                truth = labels[torch.cat(self.index)]
                features, truth = features[truth >= 0], truth[truth >= 0]
                # With fewer than four of a class a neighbor of the same class is luck.
                if 0 < 4 * len(truth.unique()) <= len(truth):
                    self.averages.note(f"{kind}_knn", layer, *knn_accuracy(features, truth), len(features) // 2)
                else:
                    reason = f"{len(truth)} pictures of {len(truth.unique())} classes are fewer than four of each"
                    self.left_out[f"kNN of {kind}"] = reason

    def _batch(self, images: Float[Tensor, "B C H W"], index: Int64[Tensor, " B"]) -> None:
        before = sum(map(len, self.index))
        self.index.append(index)
        grams: list[Tensor] = []
        pooled: dict[int, Tensor] = {}

        def visit(layer: Layer) -> None:
            if "cka" in self.groups and len(images) >= 4:
                grams.append(gram(layer.tokens).cpu())
            if self.groups & {"rank", "drop"}:
                pooled[layer.number] = self.network.pooled(layer).float()
            self._tokens(layer, max(0, PROBE - before))

        self.network.run(images, visit)
        if grams:  # n x n numbers a layer are kept of a batch, whatever the width: tokens are not
            self.grams.append(torch.stack(grams))
        for number, features in pooled.items():
            self._pooled["drop", number].append(features.cpu())
            if "drop" in self.groups:
                self.averages.add("drop_change", number, relative_change(features, pooled[len(self.network) - 1]))
        if "swap" in self.groups:
            extractor = self.network.extractor
            # Once for all pairs of blocks, whose outputs are compared with it.
            reference = extractor(images)[extractor.headline]
            for first in range(len(self.network) - 1):
                with swapped(self.network.layers, first):
                    features = extractor(images)[extractor.headline]
                self._pooled["swap", first].append(features.cpu())
                self.averages.add("swap_change", first, relative_change(features, reference))
        if self.task is not None and "decoder" in self.groups:
            for piece, numbers in zip(images.split(_SOME), index.split(_SOME), strict=True):
                for metric, number, values in decoder_measures(self.task, piece, numbers):
                    self.averages.add(metric, number, values)

    def _tokens(self, layer: Layer, probe: int) -> None:
        """All that is told from tokens and attention of one layer; `probe`: of so many pictures relations are kept."""
        number, tokens, add = layer.number, layer.tokens.float(), self.averages.add
        side, compare = None, bool(self.keep or self.reference) and probe > 0
        if "fourier" in self.groups and min(layer.grid) > 2:
            amplitude = log_amplitude(tokens, layer.grid)
            add("high_frequency", number, amplitude[:, -1])
            self._spectra[number].append(amplitude.cpu())
            self._grids[number] = layer.grid
        if "variance" in self.groups:
            add("feature_variance", number, feature_variance(tokens))
        if self.groups & {"variance", "clusters"}:
            similarity = token_similarity(tokens)
            if "variance" in self.groups:
                add("similarity_variance", number, similarity_variance(similarity))
            if "clusters" in self.groups:
                side = ncut(tokens).side
                intra, inter = intra_inter(similarity, side)
                for name, values in (("intra", intra), ("inter", inter), ("gap", intra - inter)):
                    add(f"similarity_{name}", number, values)
                if compare:
                    self._compare("similarity", number, similarity[:probe].softmax(dim=-1))
        if self.groups & {"attention", "clusters"} and "attention" not in self.network.refusals:
            for here, attention in layer.attention():
                self._attention(number, attention, side if side is None else side[here])
                if compare and side is not None and here.start < probe:
                    self._compare("attention", number, attention.mean(dim=1)[: probe - here.start])

    def _attention(self, number: int, attention: Float[Tensor, "B H N N"], side: Tensor | None) -> None:
        if "attention" in self.groups:
            entropy = attention_entropy(attention)
            for name, values in (
                ("attention_distance", attention_distance(attention, self.network.grid, self.network.patch)),
                ("attention_entropy", entropy),
                ("relative_entropy", entropy / math.log(attention.shape[-1])),
                ("head_divergence", head_divergence(attention)),
                ("mutual_information", mutual_information(attention)),
            ):
                self.averages.add(name, number, values)
        if side is not None:
            intra, inter = intra_inter(attention.mean(dim=1), side)
            self.averages.add("attention_gap", number, intra - inter)

    def _compare(self, kind: str, layer: int, rows: Float[Tensor, "b N N"]) -> None:
        """Measure how far relations of the probe are from the reference, which those that are kept will be."""
        done = sum(map(len, self.relations[kind, layer]))
        # Of a comparison only the number of pictures is kept: a view of one stands for all N * N.
        self.relations[kind, layer].append(rows.cpu() if self.keep else rows[:, :1, :1].cpu())
        # Without a reference this is the end itself, whose distance from itself is 0.
        end = rows
        if self.reference is not None:
            end = torch.cat(self.reference[kind, layer])[done : done + len(rows)].to(rows.device)
        self.averages.add(f"{kind}_kl", layer, row_divergence(end, rows))

    def spectrum(self, target: str, step: int | None) -> list[dict[str, Any]]:
        """Rows of the log amplitude over frequency, in units of pi a patch."""
        rows = []
        for layer, parts in self._spectra.items():
            values = torch.cat(parts).double()
            for frequency, column in zip(frequencies(self._grids[layer]).tolist(), values.T, strict=True):
                value, stderr, n = mean_and_error(column)
                rows.append(
                    {"target": target, "step": step, "layer": layer, "frequency": frequency}
                    | {"value": known(value), "stderr": known(stderr), "n": n}
                )
        return rows
