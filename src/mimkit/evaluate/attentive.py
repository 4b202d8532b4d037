"""Attentive probe: a frozen encoder and pictures enter; the accuracy of one layer of attention over its tokens leaves.

A linear probe sees one pooled row of a picture; masked image modeling keeps what it knows in the patches. Here a
learned query looks for it: x are a picture's tokens behind a BatchNorm without parameters, and

    pooled = concat over heads h of  softmax_n(q_h . W_k,h x_n / sqrt(d)) W_v,h x_n,    logits = W pooled + b

as AIM's (El-Nouby et al. 2024, arXiv:2401.08541; apple/ml-aim:AttentionPoolingClassifier). CAE (arXiv:2202.03026)
and V-JEPA (arXiv:2404.08471) probe alike, with an MLP behind it. The training is ours: AdamW, fixed tokens.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from rich.markup import escape
from torch import Tensor, nn

from mimkit.core.memory import memory_budget
from mimkit.core.metrics import class_balance, class_names, class_scores
from mimkit.core.randomness import integer
from mimkit.data.pictures import Pictures, sample
from mimkit.data.stream import all_bad
from mimkit.evaluate.features import batches_for, refuse_too_large
from mimkit.evaluate.probe import Protocol, batch_size, choose_head, fit_heads, predict, split_held_out
from mimkit.evaluate.target import Extractor

PROTOCOL = Protocol(rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2), epochs=50, warmup=0.1)  # rates as they are, of no batch
DECAY = 0.1  # of matrices
LARGEST = 1024  # pictures in a step
AT_ONCE = 256  # pictures that are measured at once
WIDTH = 64  # of an attention head, at least


class AttentiveHead(nn.Module):
    """The weights of one classifier; `AttentiveHeads` uses them.

    A projection of the learned query would be one more learned query, and there is none (AIM).
    """

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(heads, width // heads))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.linear = nn.Linear(width, classes)


class AttentiveHeads(nn.Module):
    """Several attentive classifiers on the same tokens.

    A query meets W_k x as W_k' q meets x, and a mean of values is the value of a mean: keys and values of single
    tokens are never made, which divides the cost by the width of a head.
    """

    def __init__(self, width: int, classes: int, count: int, seed: int, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads_of(width) if heads is None else heads
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.layers = nn.ModuleList()
        for _ in range(count):  # all alike, so that they differ by their learning rates alone
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(integer("attentive", seed))
                self.layers.append(AttentiveHead(width, classes, self.heads))

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B L K"]:
        """Logits of every classifier."""
        # Letters: l classifiers, h heads, d numbers of a head, c = h d channels of a token, b pictures, k classes.
        x = self.norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        query = self._stacked("query")
        key = self._stacked("key.weight").unflatten(1, (self.heads, -1))
        value = self._stacked("value.weight").unflatten(1, (self.heads, -1))
        # W_k' q once for each head instead of W_k x for each token: then one product with the tokens serves all heads
        # of all classifiers.
        probes = torch.einsum("lhd,lhdc->lhc", query, key) / math.sqrt(query.shape[2])
        attention = (x @ probes.flatten(0, 1).T).softmax(dim=1)
        # Means of the tokens first and W_v after, for the same reason: it is linear.
        means = (attention.transpose(1, 2) @ x).unflatten(1, probes.shape[:2])
        pooled = torch.einsum("blhc,lhdc->blhd", means, value).flatten(2)
        return torch.einsum("bld,lkd->blk", pooled, self._stacked("linear.weight")) + self._stacked("linear.bias")

    def _stacked(self, name: str) -> Float[Tensor, "L *shape"]:
        """A parameter of all classifiers in one tensor, so that one product computes them all."""
        return torch.stack([layer.get_parameter(name) for layer in self.layers])


def heads_of(width: int) -> int:
    """As many attention heads as divide the width into parts of 64 numbers or more: 12 of 768."""
    return max((count for count in range(1, width // WIDTH + 1) if width % count == 0), default=1)


def evaluate_attentive(
    extractor: Extractor,
    train: Pictures,
    test: Pictures,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy on `test` of an attentive classifier of the tokens of `train`; both have labels.

    Tokens of `train` are computed once and kept in memory as float16; they are in no cache. Of several learning rates
    the one is taken that does best on a tenth of them.

    Returns:
        train, test, skipped (pictures), results {"tokens": {..., rate, held_out, heads}} with what
        `core.metrics.class_scores` gives, and what `class_balance` gives.

    Raises:
        UserError: the target has no tokens, they do not fit into a quarter of the memory, or there are too few.
    """
    device = torch.device(device)
    reading: Any = dict(device=device, workers=workers, batch_size=AT_ONCE)
    tokens, labels, bad = _tokens(extractor, train, limit_train, **reading)
    fit, held = split_held_out(labels, seed)
    rates, size = PROTOCOL.rates, min(LARGEST, batch_size(len(fit)))
    # All learning rates at once on the same batches: reading the tokens is what takes the time.
    heads = AttentiveHeads(tokens.shape[2], int(labels.max()) + 1, len(rates), seed).to(device)
    optimizer, fraction = adamw(heads, rates), PROTOCOL.fraction
    fit_heads(heads, optimizer, tokens, labels, fit, size=size, epochs=PROTOCOL.epochs, fraction=fraction, seed=seed)
    # Chosen before any test picture is seen, on pictures that no head has learned from.
    best, right = choose_head(heads.eval(), tokens[held], labels[held], AT_ONCE)
    skipped: dict[int, str] = {}
    limit = len(test) if limit_test is None else limit_test
    title, predicted, true = f"tokens of {escape(test.name)}", [], []
    for images, truth, _ in batches_for(extractor, test, title, limit=limit, skipped=skipped, **reading):
        assert truth is not None
        predicted.append(predict(heads, _half(extractor, images))[:, best].cpu())
        true.append(truth)
    if not true:
        raise all_bad(test, skipped)
    tested = torch.cat(true)
    names = class_names(train.classes, labels, tested)
    scores = class_scores(tested, torch.cat(predicted), names)
    return {
        "train": len(tokens),
        "test": len(tested),
        "skipped": bad + len(skipped),
        **class_balance(labels, tested, names),
        "results": {"tokens": scores | {"rate": rates[best], "held_out": right, "heads": heads.heads}},
    }


def adamw(heads: AttentiveHeads, rates: tuple[float, ...]) -> torch.optim.AdamW:
    """AdamW, each classifier with its own learning rate; the query and the biases do not decay."""
    groups: list[dict[str, Any]] = []
    for layer, rate in zip(heads.layers, rates, strict=True):
        matrices = [value for name, value in layer.named_parameters() if name.endswith("weight")]
        vectors = [value for name, value in layer.named_parameters() if not name.endswith("weight")]
        groups.append({"params": matrices, "lr": rate, "weight_decay": DECAY})
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(groups)


@torch.inference_mode()
def _half(extractor: Extractor, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
    # float16: half the memory, and far finer than what a frozen encoder's tokens carry.
    return extractor.tokens(images).half()


def _tokens(
    extractor: Extractor,
    pictures: Pictures,
    limit: int | None,
    *,
    device: torch.device,
    workers: int,
    batch_size: int,
) -> tuple[Float[Tensor, "N T D"], Int64[Tensor, " N"], int]:
    """Tokens and labels of the pictures that can be read, on the CPU, and how many cannot.

    Raises UserError when they take more than a quarter of the memory.
    """
    if extractor.model is not None:
        extractor.model.to(device)
    count = len(sample(len(pictures), len(pictures) if limit is None else limit))
    skipped: dict[int, str] = {}
    reading: Any = dict(device=device, workers=workers, batch_size=batch_size, limit=count, skipped=skipped)
    # One tensor for all, filled in place: gathered batches would be held twice while they are joined.
    tokens, labels, done = torch.empty(0), [], 0
    for images, truth, _ in batches_for(extractor, pictures, f"tokens of {escape(pictures.name)}", **reading):
        batch = _half(extractor, images).cpu()
        if not done:
            refuse_too_large("tokens", count, batch[0].nbytes, memory_budget())
            tokens = torch.empty(count, *batch.shape[1:], dtype=batch.dtype)
        tokens[done : done + len(batch)] = batch
        done += len(batch)
        labels.append(truth)
    if not done:
        raise all_bad(pictures, skipped)
    return tokens[:done], torch.cat(labels), len(skipped)
