"""Teacher: a frozen timm ViT that sees the same grid as the student. The student's images enter, its tokens leave."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from mimkit.core.errors import UserError, unknown
from mimkit.core.integrity import refuse_bad_statistics, refuse_bad_weights, refuse_changed
from mimkit.model.attention import class_attention
from mimkit.model.backbone import Tokens
from mimkit.model.patches import patchify
from mimkit.model.vit import Encoder, refuse_unsuitable


class TeacherFeatures(NamedTuple):
    """What a teacher makes of whole images."""

    blocks: list[Tokens]  # raw outputs of its last blocks, in their order, before the final norm
    attention: Float[Tensor, "B N H"] | None  # of the class token to the patches in the last block, per head


class Teacher(nn.Module):
    """A frozen plain ViT of timm with released weights, or an export folder of a run.

    The student's images are brought to its own mean and standard deviation and to the size at which its patches are
    as many as the student's, and so are its positions: bicubic, with antialiasing as timm does it or without, as
    MaskAlign's code. Always in evaluation mode, never with gradient.
    """

    def __init__(
        self,
        name: str,
        grid: tuple[int, int],
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        self.name, self.antialias = name, antialias
        folder = Path(name)
        local = folder / "export" if (folder / "export").is_dir() else folder
        source = f"local-dir:{local}" if local.is_dir() else name
        if not local.is_dir() and not timm.is_model(name):
            raise unknown("teacher", name, timm.list_models(pretrained=True), see="Or give a run or an export folder.")
        if local.is_dir():
            refuse_changed(local)
        try:
            side = _patch(source)
            size = (grid[0] * side[0], grid[1] * side[1])
            args: dict[str, Any] = {"img_size": size} if antialias else {}
            model = timm.create_model(source, pretrained=True, num_classes=0, in_chans=channels, **args)
        except UserError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"teacher '{name}' cannot be loaded ({reason}): give a run or an export folder") from error
        refuse_unsuitable(model, name)
        refuse_bad_weights(model.state_dict(), name)
        assert isinstance(model, VisionTransformer)
        if not antialias:
            _resize(model, size)
        self.encoder = Encoder(model).requires_grad_(False)
        self.size = size
        own: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        own_mean = torch.tensor(own["mean"]).expand(channels)
        own_std = torch.tensor(own["std"]).expand(channels)
        refuse_bad_statistics(own_mean.tolist(), own_std.tolist(), name)
        # From the student's normalization to the teacher's in one product and one sum, without the pixels between.
        scale = torch.tensor(std) / own_std
        self.register_buffer("scale", scale.view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", ((torch.tensor(mean) - own_mean) / own_std).view(-1, 1, 1), persistent=False)
        # At once: whoever uses a teacher before any call of `train` has it without dropout too.
        self.train(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def images(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """The student's images as this teacher wants them."""
        images = images * self.scale + self.shift
        if images.shape[2:] == self.size:
            return images
        return F.interpolate(images, self.size, mode="bicubic", antialias=self.antialias)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "B C H W"], layers: int, *, attention: bool = False) -> TeacherFeatures:
        """One pass over the student's images: the outputs of the last `layers` blocks, and attention where asked for.

        Raises:
            UserError: attention is asked for and there is no class token, or it cannot be read from these blocks.
        """
        encoder, vit = self.encoder, self.encoder.timm
        tokens = encoder.embed(patchify(self.images(images), encoder.patch))
        # Block by block, as outputs and the input of the last block are needed; timm's forward gives neither.
        x, prefix, depth = vit.norm_pre(torch.cat(tokens, dim=1)), vit.num_prefix_tokens, len(vit.blocks)
        outputs, looked = [], None
        for number, block in enumerate(vit.blocks):
            if attention and number == depth - 1:
                looked = class_attention(block, x, prefix)
            x = block(x)
            if number >= depth - layers:
                outputs.append(Tokens(x[:, :prefix], x[:, prefix:]))
        return TeacherFeatures(outputs, looked)


def _resize(vit: VisionTransformer, size: tuple[int, int]) -> None:
    """Let a model look at images of another size, its positions resampled without antialiasing."""
    table, grid = vit.pos_embed, vit.patch_embed.grid_size
    vit.set_input_size(size)
    if table is not None and vit.patch_embed.grid_size != grid:
        sides = [[*vit.patch_embed.grid_size], [*grid]]
        rows = table.shape[1] - grid[0] * grid[1]
        vit.pos_embed = nn.Parameter(resample_abs_pos_embed(table, *sides, num_prefix_tokens=rows, antialias=False))


def _patch(source: str) -> tuple[int, int]:
    """Size of the model's patches."""
    # Only the size of its patches is wanted: no weights are made.
    with torch.device("meta"):
        model = timm.create_model(source, pretrained=False)
    refuse_unsuitable(model, source)
    assert isinstance(model, VisionTransformer)
    return model.patch_embed.patch_size
