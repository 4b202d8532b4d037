"""Linear probe: features of two sets with labels enter, a linear classifier's accuracy for each pool leaves.

Two ways: MAE's own protocol for many pictures, scikit-learn's logistic regression for few. Both choose their
one setting (learning rate, penalty) on a tenth of the train features; the test features are looked at once.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from timm.optim import Lars
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.evaluate.features import Features
from mimkit.measures import accuracy_interval
from mimkit.randomness import integer, keys

ProbeMethod = Literal["auto", "lars", "logistic"]
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # base rates, for a batch of 256; MAE's own is 0.1
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the smaller, the stronger
EPOCHS, WARMUP = 90, 0.1
HELD_OUT = 0.1  # share of the train features on which the setting is chosen
WIDE = 1024  # numbers of a feature beyond which logistic regression sees principal components
COMPONENTS = 512
FEW = 10_000  # train features up to which `auto` takes logistic regression


def evaluate_probe(
    train: Features,
    test: Features,
    *,
    method: ProbeMethod = "auto",
    seed: int = 0,
    pools: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Accuracy on `test` of a linear classifier of `train`, with its 95 % interval.

    Args:
        train, test: with labels.
        method: `lars` (`train_heads`), `logistic` (`fit_logistic`), or `auto`: `logistic` up to 10,000 train
            features.
        pools: all that the features have, by default.

    Returns:
        {pool: {accuracy, low, high, method, and `rate` or `penalty` as chosen, held_out: accuracy there}}.

    Raises UserError when what is left to fit to has fewer than two classes.
    """
    assert train.labels is not None and test.labels is not None
    labels, truth = train.labels, test.labels
    if method == "auto":
        method = "logistic" if len(train) <= FEW else "lars"
    order = keys("held-out", seed, torch.arange(len(train))).argsort()
    held = order[: max(1, round(HELD_OUT * len(train)))].sort().values
    fit = order[len(held) :].sort().values
    if len(labels[fit].unique()) < 2:
        raise UserError(f"{len(train)} pictures to learn from are too few for a probe: give more, or measure with knn")
    results = {}
    for pool in train.values if pools is None else pools:
        values, unseen = train.values[pool], test.values[pool]
        if method == "logistic":
            predicted, chosen = fit_logistic(values, labels, unseen, fit=fit, held=held)
        else:
            predicted, chosen = _best_head(values, labels, unseen, fit, held, seed, torch.device(device))
        accuracy, low, high = accuracy_interval(predicted == truth)
        results[pool] = {"accuracy": accuracy, "low": low, "high": high, "method": method, **chosen}
    return results


class Heads(nn.Module):
    """Several linear classifiers on the same features: BatchNorm without affine, then one layer each."""

    def __init__(self, width: int, classes: int, count: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, width, classes) for _ in range(count))
        for layer in self.layers:  # all alike, so that they differ by their learning rates alone
            generator = torch.Generator().manual_seed(integer("probe", seed))
            nn.init.trunc_normal_(layer.get_parameter("weight"), std=0.01, generator=generator)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B L K"]:
        """Logits of every head."""
        weight, bias = (torch.cat([layer.get_parameter(name) for layer in self.layers]) for name in ("weight", "bias"))
        return F.linear(self.norm(features), weight, bias).unflatten(1, (len(self.layers), -1))


def lars(heads: Heads, rates: Sequence[float]) -> Lars:
    """LARS as MAE has it (facebookresearch/mae:util/lars.py), each head with its own learning rate.

    Momentum 0.9, no weight decay. Gradients of weights are scaled by 0.001 |w| / |g|, those of biases not:
    timm adapts all tensors of a group or, without decay, none, hence the groups.
    """
    groups = []
    for layer, rate in zip(heads.layers, rates, strict=True):
        groups.append({"params": [layer.weight], "lr": rate, "peak": rate, "always_adapt": True})
        groups.append({"params": [layer.bias], "lr": rate, "peak": rate, "always_adapt": False})
    return Lars(groups, momentum=0.9, weight_decay=0.0, trust_coeff=0.001, eps=0.0)


def batch_size(pictures: int) -> int:
    """Features in a step: the power of two nearest below a 64th of them, from 32 to MAE's 16384.

    MAE makes 78 steps an epoch with 1.28 million pictures; so do smaller sets here, about.
    """
    return min(16384, max(32, 2 ** int(math.log2(max(1, pictures / 64)))), pictures)


def train_heads(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    *,
    classes: int,
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> Heads:
    """MAE's linear probe on fixed features, for several base learning rates at once.

    LARS with rate x batch / 256, ten percent of linear warm-up, then a cosine to 0; the order of an epoch is
    a function of (seed, epoch), and the last incomplete batch is left out. He et al. 2022, appendix A.1;
    facebookresearch/mae:main_linprobe.py. The heads share batches and normalisation, nothing else.
    """
    size = batch_size(len(features))
    steps = len(features) // size
    heads = Heads(features.shape[1], classes, len(rates), seed).to(features.device)
    optimizer = lars(heads, [rate * size / 256 for rate in rates])
    for epoch in range(epochs):
        order = keys("probe", seed, epoch, torch.arange(len(features))).argsort().to(features.device)
        for step in range(steps):
            done = (epoch + step / steps) / epochs
            share = done / WARMUP if done < WARMUP else 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            chosen = order[step * size : (step + 1) * size]
            logits = heads(features[chosen])
            wanted = labels[chosen].unsqueeze(1).expand(-1, len(rates))
            # A sum over heads: each gets the gradient of its own mean.
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / size
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return heads.eval()


def _best_head(
    values: Tensor, labels: Tensor, unseen: Tensor, fit: Tensor, held: Tensor, seed: int, device: torch.device
) -> tuple[Int64[Tensor, " Q"], dict[str, Any]]:
    values, here = values.to(device), labels.to(device)
    fit, held = fit.to(device), held.to(device)
    heads = train_heads(values[fit], here[fit], classes=int(labels.max()) + 1, seed=seed)

    @torch.inference_mode()
    def predict(features: Tensor) -> Tensor:
        return torch.cat([heads(part.to(device)).argmax(dim=2) for part in features.split(4096)])

    right = (predict(values[held]) == here[held].unsqueeze(1)).double().mean(dim=0)
    best = int(right.argmax())
    return predict(unseen)[:, best].cpu(), {"rate": RATES[best], "held_out": right[best].item()}


def fit_logistic(
    values: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    unseen: Float[Tensor, "Q D"],
    *,
    fit: Int64[Tensor, " F"],
    held: Int64[Tensor, " H"],
) -> tuple[Int64[Tensor, " Q"], dict[str, Any]]:
    """Logistic regression on standardised features: penalty chosen on `held`, then fitted to all of `values`.

    Features of more than 1,024 numbers (pixels) are reduced to their 512 leading principal components first,
    found without labels: some thousand pictures do not determine more, and it takes seconds, not minutes.

    Returns the classes of `unseen`, and what was chosen.
    """
    x, y, new = (part.numpy() for part in (values, labels, unseen))
    if x.shape[1] > WIDE and len(x) > COMPONENTS:
        reduce: Any = PCA(COMPONENTS, svd_solver="randomized", random_state=0)
        reduce.fit(x)
        x, new = reduce.transform(x), reduce.transform(new)

    def fitted(penalty: float, rows: Any) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300))
        # Threads do not pay for many small products: 8,100 x 192 with 17 classes took 7 s of CPU on two busy
        # cores, 0.2 s on one.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(x[rows], y[rows])

    scores = [fitted(penalty, fit.numpy()).score(x[held.numpy()], y[held.numpy()]) for penalty in PENALTIES]
    best = max(range(len(PENALTIES)), key=scores.__getitem__)
    predicted = fitted(PENALTIES[best], slice(None)).predict(new)
    return torch.from_numpy(predicted), {"penalty": PENALTIES[best], "held_out": float(scores[best])}
