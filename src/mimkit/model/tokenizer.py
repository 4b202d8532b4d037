"""Tokenizer: images enter, a grid of ids leaves (and back); the name of a trained or an outside one opens it."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mimkit.core.config import from_dict
from mimkit.core.errors import UserError, at_least
from mimkit.core.files import open_regular, read_json
from mimkit.core.names import import_trusted, rename_tensors
from mimkit.core.state_folder import checkpoints, read_state
from mimkit.model.backbone import Backbone
from mimkit.model.patches import unpatchify


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """A codebook behind any encoder, and convolutions that make pictures of its vectors."""

    classes: int = 512
    """Vectors in the codebook: an id is the number of one."""
    code: int = 16
    """Numbers in a vector."""
    width: int = 64
    """Channels of the decoder's convolutions."""
    depth: int = 2
    """Residual blocks of the decoder."""

    def build(self, encoder: Backbone) -> "Tokenizer":
        """A tokenizer with an id for each token of this encoder.

        Raises:
            UserError: a number below 1, or tokens that do not divide the images.
        """
        at_least(1, **{f"tokenizer.{f.name}": getattr(self, f.name) for f in fields(self)})
        size, grid = encoder.size, encoder.out_grid
        if size[0] % grid[0] or size[1] % grid[1]:
            raise UserError(
                f"{grid[0]}x{grid[1]} tokens do not divide images of {size[0]}x{size[1]}: change --images.size"
            )
        return Tokenizer(encoder, self)


class Tokenizer(nn.Module):
    """A VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937): the nearest of `classes` vectors stands for each token.

    Tokens and vectors have length 1 and few numbers, which keeps most of the codebook in use (Yu et al. 2022,
    arXiv:2110.04627, section 3.2). The codebook is a buffer: the method that trains it moves it.
    """

    mean: Float[Tensor, "C 1 1"]
    std: Float[Tensor, "C 1 1"]
    codes: Float[Tensor, "K D"]

    def __init__(self, encoder: Backbone, config: TokenizerConfig) -> None:
        super().__init__()
        self.encoder, self.classes = encoder, config.classes
        self.cell = (encoder.size[0] // encoder.out_grid[0], encoder.size[1] // encoder.out_grid[1])
        self.project = nn.Linear(encoder.width, config.code)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code, config.width, 3, padding=1),
            *(Residual(config.width) for _ in range(config.depth)),
            nn.GELU(),
            nn.Conv2d(config.width, self.cell[0] * self.cell[1] * encoder.channels, 1),
        )
        for name, values in (("mean", encoder.mean), ("std", encoder.std)):
            numbers = torch.tensor(values or [float(name == "std")] * encoder.channels)
            self.register_buffer(name, numbers.view(-1, 1, 1))
        self.register_buffer("codes", F.normalize(torch.randn(config.classes, config.code), dim=1))

    def encode(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        """A vector of length 1 for each token of normalized images, in float32."""
        tokens = self.encoder(images).patches.unflatten(1, self.encoder.out_grid)
        return F.normalize(self.project(tokens).float(), dim=3)

    def nearest(self, vectors: Float[Tensor, "B h w D"]) -> Int64[Tensor, "B h w"]:
        """The number of the codebook's vector nearest to each vector."""
        with torch.autocast(vectors.device.type, enabled=False):
            return (vectors @ self.codes.T).argmax(dim=3)  # of unit vectors the nearest has the largest product

    def decode(self, vectors: Float[Tensor, "B h w D"]) -> Float[Tensor, "B C H W"]:
        """Normalized images."""
        pixels = self.decoder(vectors.permute(0, 3, 1, 2)).flatten(2).mT
        return unpatchify(pixels, self.cell, self.encoder.out_grid)

    @torch.no_grad()
    def ids(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B h w"]:
        """Ids of images in [0, 1] of any size; they are brought to the tokenizer's own."""
        if images.shape[2:] != self.encoder.size:
            images = F.interpolate(images, self.encoder.size, mode="bicubic", antialias=True).clamp(0, 1)
        # Images come in [0, 1]: the tokenizer brings its own normalization, whatever the student's is.
        return self.nearest(self.encode((images - self.mean) / self.std))

    @torch.no_grad()
    def pictures(self, ids: Int64[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] of the tokenizer's own size."""
        return (self.decode(self.codes[ids]) * self.std + self.mean).clamp(0, 1)


class Residual(nn.Module):
    """Two convolutions that add to what enters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Of the same shape."""
        return x + self.inner(x)


def open_tokenizer(name: str) -> Any:
    """A frozen tokenizer: a module with `ids(images in [0, 1]) -> Int64 (B, h, w)` and `classes`.

    Args:
        name: the folder of a run that trained one (its last checkpoint counts), or `package.module:function` of a
            function that returns one. The module may lie in the working folder.

    Raises:
        UserError: there is none in that place.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        tokenizer: Any = _of_run(folder)
    elif ":" in name:
        tokenizer = _outside(name)
    else:
        missing = f"there is no tokenizer '{name}'" if name else "tokens need a tokenizer"
        raise UserError(
            f"{missing}: give --method.target.tokenizer with the folder of a run of tokenizer_mini_32, or with "
            "package.module:function"
        )
    if not (isinstance(tokenizer, nn.Module) and hasattr(tokenizer, "ids") and hasattr(tokenizer, "classes")):
        raise UserError(
            f"tokenizer '{name}' is a {type(tokenizer).__name__}: it needs to be a Module with ids and classes"
        )
    return tokenizer.eval().requires_grad_(False)


def _of_run(folder: Path) -> Tokenizer:
    saved = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    try:
        method, resolved = saved["config"]["method"], saved["resolved"]
        settings = method["tokenizer"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no run that trained a tokenizer: give one of tokenizer_mini_32") from error
    saves = checkpoints(folder)
    if not saves:
        raise UserError(f"the run {folder} has no checkpoint yet: let it go on with 'mimkit pretrain --run {folder}'")
    try:
        with torch.random.fork_rng(devices=[]):  # whoever opens it draws the same numbers afterwards
            encoder = from_dict(saved["config"]["encoder"]).build(tuple(resolved["size"]), resolved["channels"])
            tokenizer = from_dict(settings).build(encoder)
        if saves[-1].is_dir():
            saved = read_state(saves[-1])
        else:
            with open_regular(saves[-1]) as file:
                saved = torch.load(file, map_location="cpu", weights_only=True)
        state = saved["model"] if "format" in saved else rename_tensors(saved["model"])
        # The checkpoint holds the method that trained it; the tokenizer is one part of that.
        start = "tokenizer."
        tokenizer.load_state_dict({key[len(start) :]: v for key, v in state.items() if key.startswith(start)})
    except Exception as error:  # a damaged file makes torch raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the tokenizer in {saves[-1]} cannot be loaded ({reason}): give another run") from error
    return tokenizer


def _outside(name: str) -> Any:
    build = import_trusted(name, "the target is ids of the tokenizer")
    try:
        return build()
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"tokenizer '{name}' cannot be made ({reason}): give package.module:function") from error
