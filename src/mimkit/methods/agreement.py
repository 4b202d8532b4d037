"""Self-consistency: predictions of several views and what each hides enter, how far they disagree leaves."""

from jaxtyping import Bool, Float
from torch import Tensor

from mimkit.methods.losses import DISTANCES


def disagreement(
    prediction: Float[Tensor, "B K N P"],
    hidden: Bool[Tensor, "B K N"],
    distance: str = "l1",
    *,
    stop_gradient: bool = True,
    ordered: bool = True,
    partition: bool = False,
) -> Float[Tensor, ""]:
    """Mean distance of two parts' predictions of a patch that both hide, over patches, then over pairs of parts.

    Over ordered pairs a stopped gradient leaves the value alone and halves the gradient, so each unordered pair is
    computed once. A pair that hides nothing in common counts as 0. Where the views `partition` a picture, l2 over
    ordered pairs takes time proportional to K: see `disagreement_by_variance`.
    """
    if partition and distance == "l2" and ordered:
        total = disagreement_by_variance(prediction, hidden)
        return (total + total.detach()) / 2 if stop_gradient else total
    prediction, measure = prediction.float(), DISTANCES[distance]
    parts, total = prediction.shape[1], prediction.new_zeros(())
    for i in range(parts):
        for j in range(i + 1, parts):
            target = prediction[:, j].detach() if stop_gradient and not ordered else prediction[:, j]
            both = hidden[:, i] & hidden[:, j]
            distances = measure(prediction[:, i] - target).mean(dim=2)
            total = total + (distances * both).sum() / both.sum().clamp(min=1)
    total = total / (parts * (parts - 1) / 2)
    return (total + total.detach()) / 2 if stop_gradient and ordered else total


def disagreement_by_variance(prediction: Float[Tensor, "B K N P"], hidden: Bool[Tensor, "B K N"]) -> Float[Tensor, ""]:
    """`disagreement` with `distance = l2` in time proportional to K, for parts that partition a picture.

    The mean squared difference of the ordered pairs of the K - 1 predictions of a patch is twice their unbiased
    variance; patches and pairs then weigh alike.
    """
    prediction, where = prediction.float(), hidden.unsqueeze(3)
    count = hidden.sum(dim=1).unsqueeze(2)
    mean = (prediction * where).sum(dim=1) / count
    squares = ((prediction - mean.unsqueeze(1)).square() * where).sum(dim=1)
    return (2 * squares / (count - 1)).mean()
