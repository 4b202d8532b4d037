"""Dynamic alignment: what each block of a student gives out enters, predictions of a teacher's blocks leave."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.core.errors import UserError, unknown
from mimkit.model.vit import initialize

Norm = partial(nn.LayerNorm, eps=1e-6)  # the student's own eps

ADAPTERS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda width, out: nn.Linear(width, out),
    "norm_linear": lambda width, out: nn.Sequential(Norm(width), nn.Linear(width, out)),
    "mlp": lambda width, out: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out)),
    "mlp2": lambda width, out: nn.Sequential(nn.Linear(width, width), Norm(width), nn.Linear(width, out)),
}
MIXTURES = ("linear", "sum", "simple")
ORDERS = ("mix-adapt", "adapt-mix")


class Alignment(nn.Module):
    """Predicts the last `layers` blocks of a teacher from all blocks of a student (MaskAlign, CVPR 2023).

    `mixture` has a row for each predicted teacher block and a column for each student block; adapters bring the
    student's width to the teacher's. Mixing comes first, with one adapter a teacher block, as in the released code, or
    second, with one adapter a student block, as the paper writes it: these are different models. Source:
    OpenDriveLab/maskalign:models_pretrain.py.

    Args:
        student, teacher: width and number of blocks.
        layers: how many of the teacher's last blocks to predict.
        mixture: `linear` begins with ones where teacher and student block have the same number and adds 0.01
            everywhere; `sum` begins with the mean of all student blocks; `simple` has no mixture, each student block
            predicts the teacher block of its number.
        adapter: a key of `ADAPTERS`.
        order: `mix-adapt` or `adapt-mix`.

    Raises:
        UserError: an unknown name, more layers than blocks, or blocks of other numbers where they must be the same.
    """

    def __init__(
        self,
        student: tuple[int, int],
        teacher: tuple[int, int],
        *,
        layers: int,
        mixture: str = "linear",
        adapter: str = "linear",
        order: str = "mix-adapt",
    ) -> None:
        super().__init__()
        for kind, value, valid in (
            ("mixture", mixture, MIXTURES),
            ("adapter", adapter, ADAPTERS),
            ("order", order, ORDERS),
        ):
            if value not in valid:
                raise unknown(f"value of method.{kind}", value, valid)
        (width, blocks), (out, taught) = student, teacher
        if layers > taught:
            raise UserError(
                f"the teacher has {taught} blocks, method.layers {layers} wants more: lower --method.layers"
            )
        if mixture != "sum" and blocks != taught:
            raise UserError(
                f"the mixture '{mixture}' pairs blocks by their number, but the student has {blocks} and the teacher "
                f"{taught}: use --method.mixture sum, or --encoder.depth {taught}"
            )
        self.layers, self.mix_first = layers, order == "mix-adapt"
        # With 0.01 beside the ones every block gets a gradient from the first step on.
        start = torch.eye(blocks) + 0.01 if mixture == "linear" else torch.full((taught, blocks), 1 / blocks)
        self.mixture = None if mixture == "simple" else nn.Parameter(start[-layers:].clone())
        adapters = layers if self.mix_first or mixture == "simple" else blocks
        self.adapters = nn.ModuleList(ADAPTERS[adapter](width, out) for _ in range(adapters))
        initialize(self.adapters)

    def forward(self, blocks: Sequence[Float[Tensor, "B T D"]]) -> list[Float[Tensor, "B T C"]]:
        """Predictions of the teacher's last blocks, in their order, from all blocks of the student."""
        if self.mixture is None:
            return self._adapt(blocks[-self.layers :])
        if self.mix_first:
            return self._adapt(self._mix(blocks))
        return self._mix(self._adapt(blocks))

    def _adapt(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        return [adapter(block) for adapter, block in zip(self.adapters, blocks, strict=True)]

    def _mix(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Weighted sums in float32: bfloat16 would lose how far a weight has moved."""
        assert self.mixture is not None
        with torch.autocast(parts[0].device.type, enabled=False):
            return [*torch.einsum("as,sbtd->abtd", self.mixture, torch.stack(tuple(parts)).float())]
