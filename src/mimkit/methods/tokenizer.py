"""Train a tokenizer: images enter, the error of what their ids say about them leaves as the loss."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core import distributed
from mimkit.core.batch import Batch, Step
from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import uniform
from mimkit.masks import Mask
from mimkit.methods.base import Method, MethodConfig
from mimkit.model.backbone import Backbone
from mimkit.model.tokenizer import Tokenizer, TokenizerConfig

DEAD = 0.2  # share of the mean use below which a vector is replaced


@dataclass(kw_only=True, slots=True)
class VQVAEConfig(MethodConfig):
    """VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937) with a codebook that follows by moving averages."""

    windows = convolutions = True  # encoders that leave no patch out will do

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    commitment: float = 0.25
    """Weight of the squared distance from a token to its vector, which draws the token near."""
    decay: float = 0.95
    """Share of a moving average that a step leaves as it is."""

    def build(self, encoder: Backbone) -> "VQVAE":
        at_least(0, **{"method.commitment": self.commitment})
        if not 0 <= self.decay < 1:
            raise UserError(f"method.decay lies between 0 and 1 (excluded), got {self.decay}")
        return VQVAE(self.tokenizer.build(encoder), self)


class VQVAE(Method):
    """Encoder, nearest vector, decoder; the gradient passes by the choice as if nothing had been chosen.

    A vector is the normalized moving average of the tokens that chose it (paper, appendix A.1, on the unit sphere).
    Pictures offer one token each, at an address, to a vector at an address; one that is hardly used takes the offer.
    So the codebook begins, too. Masks, labels and released ids play no part.
    """

    average: Float[Tensor, "K D+1"]
    seen: Float[Tensor, "2 K D+1"]

    def __init__(self, tokenizer: Tokenizer, config: VQVAEConfig) -> None:
        super().__init__()
        self.tokenizer, self.commitment, self.decay = tokenizer, config.commitment, config.decay
        rows, numbers = tokenizer.codes.shape
        self.register_buffer("average", torch.zeros(rows, numbers + 1))  # sums, and use: 1 on the average
        self.register_buffer("seen", torch.zeros(2, rows, numbers + 1), persistent=False)  # in this step: use, offers

    @property
    def encoder(self) -> Backbone:  # type: ignore[bad-override]
        return self.tokenizer.encoder

    def forward(self, batch: Batch, progress: float) -> Step:
        vectors = self.tokenizer.encode(batch.images)
        ids = self.tokenizer.nearest(vectors.detach())
        codes = self.tokenizer.codes[ids]
        pictures = self.tokenizer.decode(vectors + (codes - vectors).detach())
        error = self.error(pictures.float(), batch)
        distance = (vectors - codes).square().sum(dim=3).mean()
        self.note(vectors.detach(), ids, batch.rng_keys)
        ones = torch.ones_like(ids, dtype=torch.float32).flatten()
        use = torch.zeros_like(self.average[:, 0]).index_add(0, ids.flatten(), ones) / len(ones)
        logs = {"reconstruction": error, "distance": distance, "perplexity": torch.special.entr(use).sum().exp()}
        return Step(error + self.commitment * distance, logs)

    def error(self, pictures: Float[Tensor, "B C H W"], batch: Batch) -> Float[Tensor, ""]:
        """Mean squared error of the pixels that have data."""
        if batch.valid is None:
            return F.mse_loss(pictures, batch.images.float())
        errors = (pictures - batch.images.float()).square() * batch.valid
        return errors.sum() / batch.valid.sum().clamp(min=1)

    @torch.no_grad()
    def note(
        self, vectors: Float[Tensor, "B h w D"], ids: Int64[Tensor, "B h w"], rng_keys: Int64[Tensor, " B"]
    ) -> None:
        """Add up which tokens chose which vector, and what the pictures offer."""
        tokens = F.pad(vectors.flatten(1, 2), (0, 1), value=1.0)
        self.seen[0].index_add_(0, ids.flatten(), tokens.flatten(0, 1))
        place = (uniform(rng_keys, 1, 0)[:, 0] * tokens.shape[1]).long()
        vector = (uniform(rng_keys, 1, 1)[:, 0] * len(self.average)).long()
        self.seen[1].index_add_(0, vector, tokens[torch.arange(len(tokens), device=rng_keys.device), place])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        used, offered = distributed.total(self.seen)
        self.average.lerp_(used * (len(used) / used[:, -1].sum()), 1 - self.decay)
        dead = (self.average[:, -1:] < DEAD) & (offered[:, -1:] > 0)
        fresh = F.pad(F.normalize(offered[:, :-1], dim=1), (0, 1), value=1.0) * (2 * DEAD)
        self.average.copy_(torch.where(dead, fresh, self.average))
        in_use = self.average[:, -1:] > 0
        self.tokenizer.codes.copy_(torch.where(in_use, F.normalize(self.average[:, :-1], dim=1), self.tokenizer.codes))
        self.seen.zero_()

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "B C H W"], Mask]:
        """Pictures of the ids alone: all patches count as hidden."""
        ids = self.tokenizer.nearest(self.tokenizer.encode(batch.images))
        rows, patches = len(ids), self.encoder.grid[0] * self.encoder.grid[1]
        hidden = torch.ones(rows, patches, dtype=torch.bool, device=ids.device)
        return self.tokenizer.decode(self.tokenizer.codes[ids]).float(), Mask(hidden, hidden.new_zeros(rows, 0).long())
