"""Linear probe: features of two sets with labels enter, a linear classifier's accuracy for each pool leaves.

Two ways: the protocol of a paper for many pictures, scikit-learn's logistic regression for few. Both choose their
one setting (learning rate, penalty) on a tenth of the train features; the test features are looked at once. Features
are fixed: where a paper trains its classifier on random crops, it sees each picture's one central view here.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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

from mimkit.core.errors import UserError
from mimkit.core.metrics import class_names, class_scores
from mimkit.core.randomness import integer, rng_keys
from mimkit.evaluate.features import Features

ProbeMethod = Literal["auto", "logistic", "lars", "maskalign", "moco", "moco_v3", "simclr", "dino"]
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # base rates of LARS, for a batch of 256; MAE's own is 0.1
AROUND = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # times the published rate of SGD
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the smaller, the stronger
HELD_OUT = 0.1  # share of the train features on which the setting is chosen
WIDE = 1024  # numbers of a feature beyond which logistic regression sees principal components
COMPONENTS = 512
FEW = 10_000  # train features up to which `auto` takes logistic regression


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a paper trains its linear classifier on frozen features, momentum 0.9 and no weight decay in all of them.

    Rates are multiplied by batch / 256. The papers train one classifier with the published rate, here several are
    trained around it.
    """

    rates: tuple[float, ...]
    """Base learning rates, tried in parallel."""
    epochs: int
    lars: bool = False
    """LARS instead of SGD."""
    nesterov: bool = False
    """Of SGD."""
    norm: bool = False
    """BatchNorm without parameters before the classifier."""
    std: float = 0.01
    """Of the classifier's first weights, from a normal distribution; biases begin at 0."""
    warmup: float = 0.0
    """Share of the training in which the rate rises from 0."""
    falls: tuple[float, ...] = ()
    """Shares of the training after which the rate is a tenth of what it was; none: half a cosine to 0, step by step."""

    def fraction(self, done: float) -> float:
        """Of the highest learning rate, when a share of the training is `done`, in [0, 1)."""
        if done < self.warmup:
            return done / self.warmup
        if self.falls:
            # A tenth at each fall, counted rather than stepped: any moment can be asked for.
            return 0.1 ** sum(done >= fall for fall in self.falls)
        return 0.5 + 0.5 * math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))


def _around(rate: float) -> tuple[float, ...]:
    return tuple(float(f"{rate * factor:.6g}") for factor in AROUND)


_MAE = Protocol(rates=RATES, epochs=90, lars=True, norm=True, warmup=10 / 90)
PROTOCOLS = {
    "lars": _MAE,  # He et al. 2022, appendix A.1; facebookresearch/mae:main_linprobe.py, util/lars.py
    "maskalign": replace(_MAE, rates=tuple(rate / 4 for rate in RATES)),  # 0.025; OpenDriveLab/maskalign
    "moco": Protocol(rates=_around(30.0), epochs=100, falls=(0.6, 0.8)),  # v1, v2; facebookresearch/moco:main_lincls.py
    "moco_v3": Protocol(rates=_around(3.0), epochs=90),  # of ViTs; facebookresearch/moco-v3:main_lincls.py
    "simclr": Protocol(rates=_around(0.1), epochs=90, nesterov=True, std=0.0),  # google-research/simclr
    "dino": Protocol(rates=_around(0.001), epochs=100),  # facebookresearch/dino:eval_linear.py
}


def evaluate_probe(
    train: Features,
    test: Features,
    *,
    method: ProbeMethod = "auto",
    seed: int = 0,
    pools: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    classes: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Accuracy on `test` of a linear classifier of `train`.

    Args:
        train, test: with labels.
        method: `logistic` (`fit_logistic`), a key of `PROTOCOLS` (`train_heads`), or `auto`: `logistic` up to 10,000
            train features, `lars` (MAE's) beyond.
        pools: all that the features have, by default.
        classes: what the labels are called.

    Returns:
        {pool: scores, see `core.metrics.class_scores`, with method, `rate` or `penalty` as chosen, and held_out: the
        accuracy on the tenth where it was chosen}.

    Raises UserError when what is left to fit to has fewer than two classes.
    """
    assert train.labels is not None and test.labels is not None
    labels, truth = train.labels, test.labels
    if method == "auto":
        method = "logistic" if len(train) <= FEW else "lars"
    fit, held = split_held_out(labels, seed)
    names, results = class_names(classes, labels, truth), {}
    for pool in train.values if pools is None else pools:
        values, unseen = train.values[pool], test.values[pool]
        if method == "logistic":
            predicted, setting = fit_logistic(values, labels, unseen, fit=fit, held=held)
        else:
            predicted, setting = _best_head(
                values, labels, unseen, fit, held, PROTOCOLS[method], seed, torch.device(device)
            )
        results[pool] = {**class_scores(truth, predicted, names), "method": method, **setting}
    return results


def split_held_out(labels: Int64[Tensor, " N"], seed: int) -> tuple[Int64[Tensor, " F"], Int64[Tensor, " H"]]:
    """Numbers of the pictures to fit to, and of the tenth on which a setting is chosen.

    Raises UserError when the former have fewer than two classes.
    """
    order = rng_keys("held-out", seed, torch.arange(len(labels))).argsort()
    # By address: of one set the same pictures for every target and every run.
    held = order[: max(1, round(HELD_OUT * len(labels)))].sort().values
    fit = order[len(held) :].sort().values
    if len(labels[fit].unique()) < 2:
        raise UserError(f"{len(labels)} pictures to learn from are too few for a probe: give more, or measure with knn")
    return fit, held


class Heads(nn.Module):
    """Several linear classifiers on the same features, behind one BatchNorm without affine or none."""

    def __init__(
        self, width: int, classes: int, count: int, seed: int, *, norm: bool = True, std: float = 0.01
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if norm else nn.Identity()
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, width, classes) for _ in range(count))
        for layer in self.layers:  # all alike, so that they differ by their learning rates alone
            generator = torch.Generator().manual_seed(integer("probe", seed))
            nn.init.zeros_(layer.get_parameter("bias"))
            nn.init.zeros_(layer.get_parameter("weight"))
            if std > 0:
                nn.init.trunc_normal_(layer.get_parameter("weight"), std=std, generator=generator)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B L K"]:
        """Logits of every head."""
        # One product for all heads: each alone would be too small to keep a machine busy.
        weight = torch.cat([layer.get_parameter("weight") for layer in self.layers])
        bias = torch.cat([layer.get_parameter("bias") for layer in self.layers])
        return F.linear(self.norm(features), weight, bias).unflatten(1, (len(self.layers), -1))


def lars(heads: Heads, rates: Sequence[float]) -> Lars:
    """LARS as MAE has it (facebookresearch/mae:util/lars.py), each head with its own learning rate.

    Momentum 0.9, no weight decay. Gradients of weights are scaled by 0.001 |w| / |g|, those of biases not:
    timm adapts all tensors of a group or, without decay, none, hence the groups.
    """
    groups = []
    for layer, rate in zip(heads.layers, rates, strict=True):
        groups.append({"params": [layer.weight], "lr": rate, "always_adapt": True})
        groups.append({"params": [layer.bias], "lr": rate, "always_adapt": False})
    # eps 0, as MAE's code has none; timm has one by default.
    return Lars(groups, momentum=0.9, weight_decay=0.0, trust_coeff=0.001, eps=0.0)


def sgd(heads: Heads, rates: Sequence[float], *, nesterov: bool = False) -> torch.optim.SGD:
    """SGD with momentum 0.9 and without weight decay, each head with its own learning rate."""
    groups: list[Any] = [{"params": layer.parameters(), "lr": r} for layer, r in zip(heads.layers, rates, strict=True)]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=nesterov)


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
    protocol: Protocol = PROTOCOLS["lars"],
    rates: Sequence[float] | None = None,
    epochs: int | None = None,
    seed: int = 0,
) -> Heads:
    """A paper's linear probe on fixed features, for several base learning rates at once, each times batch / 256.

    The heads share batches and normalization, nothing else. `rates` and `epochs` are the protocol's by default.
    """
    rates, size = protocol.rates if rates is None else rates, batch_size(len(features))
    heads = Heads(features.shape[1], classes, len(rates), seed, norm=protocol.norm, std=protocol.std)
    heads.to(features.device)
    scaled = [rate * size / 256 for rate in rates]
    optimizer = lars(heads, scaled) if protocol.lars else sgd(heads, scaled, nesterov=protocol.nesterov)
    epochs = protocol.epochs if epochs is None else epochs
    rows = torch.arange(len(features), device=features.device)
    fit_heads(heads, optimizer, features, labels, rows, size=size, epochs=epochs, fraction=protocol.fraction, seed=seed)
    return heads.eval()


def fit_heads(
    heads: nn.Module,
    optimizer: torch.optim.Optimizer,
    features: Float[Tensor, "N *shape"],
    labels: Int64[Tensor, " N"],
    rows: Int64[Tensor, " F"],
    *,
    size: int,
    epochs: int,
    fraction: Callable[[float], float],
    seed: int,
) -> None:
    """Train classifiers side by side on some `rows`: `heads` make logits (B, heads, classes) of a batch of features.

    The optimizer begins with the highest learning rates, of which `fraction(done)` counts when a share of the training
    is done. The order of an epoch is a function of (seed, epoch), and the last incomplete batch is left out.
    """
    # Any parameter: it tells where the heads are and in which type they compute.
    steps, weight = len(rows) // size, next(heads.parameters())
    peaks = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(epochs):
        order = rows[rng_keys("probe", seed, epoch, torch.arange(len(rows))).argsort().to(rows.device)]
        for step in range(steps):
            factor = fraction((epoch + step / steps) / epochs)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            batch = order[step * size : (step + 1) * size]
            logits = heads(features[batch].to(weight.device, weight.dtype))
            targets = labels[batch].to(weight.device).unsqueeze(1).expand(logits.shape[:2])
            # A sum over heads: each gets the gradient of its own mean.
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / size
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _best_head(
    values: Tensor,
    labels: Tensor,
    unseen: Tensor,
    fit: Tensor,
    held: Tensor,
    protocol: Protocol,
    seed: int,
    device: torch.device,
) -> tuple[Int64[Tensor, " Q"], dict[str, Any]]:
    values, here = values.to(device), labels.to(device)
    fit, held = fit.to(device), held.to(device)
    heads = train_heads(values[fit], here[fit], classes=int(labels.max()) + 1, protocol=protocol, seed=seed)
    best, right = choose_head(heads, values[held], here[held])
    # In pieces: test features may be far more than a GPU has room for beside the heads.
    predicted = torch.cat([predict(heads, piece.to(device))[:, best] for piece in unseen.split(4096)])
    return predicted.cpu(), {"rate": protocol.rates[best], "held_out": right}


@torch.inference_mode()
def predict(heads: nn.Module, features: Float[Tensor, "B *shape"]) -> Int64[Tensor, "B L"]:
    """The class that each head takes a picture for; -1, which is wrong, where a head diverged."""
    weight = next(heads.parameters())
    logits = heads(features.to(weight.device, weight.dtype))
    return logits.argmax(dim=2).masked_fill(~logits.isfinite().all(dim=2), -1)


def choose_head(
    heads: nn.Module, features: Float[Tensor, "H *shape"], labels: Int64[Tensor, " H"], at_once: int = 4096
) -> tuple[int, float]:
    """The head that is right most often on features it did not learn from, and how often; of equals the first.

    Raises UserError when all of them diverged.
    """
    predicted = torch.cat([predict(heads, piece) for piece in features.split(at_once)])
    if (predicted < 0).any(dim=0).all():
        raise UserError("the classifier diverged at every learning rate: the features are too large, measure with knn")
    right = (predicted == labels.to(predicted.device).unsqueeze(1)).double().mean(dim=0)
    return int(right.argmax()), right.max().item()


def fit_logistic(
    values: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    unseen: Float[Tensor, "Q D"],
    *,
    fit: Int64[Tensor, " F"],
    held: Int64[Tensor, " H"],
) -> tuple[Int64[Tensor, " Q"], dict[str, Any]]:
    """Logistic regression on standardized features: penalty chosen on `held`, then fitted to all of `values`.

    Features of more than 1,024 numbers (pixels, wide pools) are reduced to their 512 leading principal components
    first, found without labels: some thousand pictures do not determine more, and it takes seconds, not minutes.

    Returns the classes of `unseen`, and what was chosen.
    """
    x, y, new = values.numpy(), labels.numpy(), unseen.numpy()
    if x.shape[1] > WIDE and len(x) > COMPONENTS:
        # Randomized: the exact decomposition of 7,000 pixels takes minutes and its last components are not wanted.
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

    fit_rows, held_rows = fit.numpy(), held.numpy()
    scores = [fitted(penalty, fit_rows).score(x[held_rows], y[held_rows]) for penalty in PENALTIES]
    # Of equals the first, which is the strongest penalty.
    best = max(range(len(PENALTIES)), key=scores.__getitem__)
    predicted = fitted(PENALTIES[best], slice(None)).predict(new)
    return torch.from_numpy(predicted), {"penalty": PENALTIES[best], "held_out": float(scores[best])}
