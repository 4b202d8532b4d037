"""Measures of a decoder: a trained method and images enter, values a picture by metric and decoder layer leave."""

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.analysis.reconstruction import disagreement, reconstruction_error
from mimkit.analysis.relations import feature_variance
from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.guidance.exploitation import decoder_attention, exploitation_rate
from mimkit.masks import PartitionMasker, RandomMasker
from mimkit.masks.statistics import average_distance
from mimkit.methods.base import Method
from mimkit.methods.mae import MAE, READS
from mimkit.model.decoder import Decoder
from mimkit.model.patches import patchify

LATE = 0.999  # masks are measured as at the end of training


def refusal(task: Method) -> str | None:
    """Why this method has no measures of a decoder; None if it has them."""
    if isinstance(task, MAE):
        return None if isinstance(task.decoder, Decoder) else READS
    return f"{type(task).__name__} has no decoder with mask tokens"


def decoder_measures(
    task: Method, images: Float[Tensor, "B C H W"], index: Int64[Tensor, " B"]
) -> Iterator[tuple[str, int | None, Float[Tensor, " B"]]]:
    """Metric, decoder layer and a value for each picture: all of the group `decoder` in `metrics.METRICS`.

    Exploitation and the variance of mask tokens under one random mask of ratio 0.75. Error and disagreement under a
    partition into K parts (the least divisor of N from 4 on), each visible once, so that K - 1 masks hide each patch.
    AvgDist of the run's own masks. Masks are addressed by `index`, hence the same for every model.
    """
    mae = task
    assert isinstance(mae, MAE)
    encoder, decoder, grid = mae.encoder, mae.decoder, mae.encoder.grid
    assert isinstance(decoder, Decoder)
    patches = patchify(images, encoder.patch)
    # By picture alone: a picture has the same mask in every run and whatever batch it comes in.
    address = rng_keys("analysis", index).to(images.device)
    mask = RandomMasker()(patches[..., :0], address, 0.0, grid)
    outputs: list[Tensor] = []

    def keep(block: Any, inputs: Any, output: Tensor) -> None:
        outputs.append(output)

    # One pass gives attention and what each block gives out: hooks catch the latter on the way.
    handles = [block.register_forward_hook(keep) for block in decoder.blocks]
    try:
        attention = decoder_attention(decoder, encoder.encode(encoder.embed(patches, mask), mask), mask)
    finally:
        for handle in handles:
            handle.remove()
    for layer, tokens in enumerate(outputs):
        yield "exploitation_masked", layer, exploitation_rate(attention[: layer + 1], mask.hidden).masked
        # The decoder's prefix comes first; patches are the last N.
        among = tokens[:, -mask.hidden.shape[1] :].float()
        yield "mask_token_variance", layer, feature_variance(among, mask.hidden)

    n = grid[0] * grid[1]
    # From 4 on, as its masks then hide 3 in 4 patches, like MAE's own.
    parts = next(k for k in range(4, n + 1) if n % k == 0)
    mask = PartitionMasker(parts=parts)(patches[..., :0], address, 0.0, grid)
    prediction = mae.predict(patches, mask).float().unflatten(0, (-1, parts))
    target, hidden = mae.target(patches), mask.hidden.unflatten(0, (-1, parts))
    yield "reconstruction_error", None, reconstruction_error(prediction, target, hidden)
    yield "disagreement", None, disagreement(prediction, target, hidden)

    # The run's own masker, at the end of training, when informed masks have started.
    mask, _ = mae.mask_sampler(encoder, patches, Batch(images, address, index), LATE)
    yield "average_distance", None, average_distance(mask, grid, encoder.patch).unflatten(0, (-1, mask.views)).mean(1)
