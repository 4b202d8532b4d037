"""Heads of maps: the maps of a pyramid enter, logits for every place of the finest leave."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.model.norms import Norm, norm_of
from mimkit.model.projector import GlobalBatchNorm

Map = Float[Tensor, "B _ _ _"]


def resized(x: Map, size: Sequence[int]) -> Map:
    """A map of another height and width, bilinear, in which the outer corners keep their places."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def convolution(inputs: int, outputs: int, side: int, norm: Norm) -> nn.Sequential:
    """A convolution, a norm and a ReLU."""
    layer = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, norm_of(norm, outputs), nn.ReLU())


def classifier(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """A linear classifier of each place, behind a dropout of whole channels.

    Its first weights keep the spread of what enters. With the usual 0.01, a head of 32 channels saw no small objects
    in its first hundred steps.
    """
    layer = nn.Conv2d(inputs, outputs, 1)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    nn.init.zeros_(layer.get_parameter("bias"))
    return nn.Sequential(nn.Dropout2d(dropout), layer)


class UperNet(nn.Module):
    """What several maps say together (Xiao et al. 2018, UPerNet; open-mmlab/mmsegmentation).

    The coarsest map is pooled to 1, 2, 3 and 6 places a side, so that each place sees the whole picture. From there a
    way down adds the finer maps, and all levels are joined at the finest.
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        channels: int = 512,
        norm: Norm = "group",
        dropout: float = 0.1,
        pools: Sequence[int] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        *finer, coarsest = widths
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), *convolution(coarsest, channels, 1, norm)) for side in pools
        )
        self.bottleneck = convolution(coarsest + len(pools) * channels, channels, 3, norm)
        self.laterals = nn.ModuleList(convolution(width, channels, 1, norm) for width in finer)
        self.outputs = nn.ModuleList(convolution(channels, channels, 3, norm) for _ in finer)
        self.fusion = convolution(len(widths) * channels, channels, 3, norm)
        self.classifier = classifier(channels, classes, dropout)

    def forward(self, maps: list[Map]) -> Float[Tensor, "B K h w"]:
        """Logits at the places of the first map."""
        x = maps[-1]
        pooled = [resized(pool(x), x.shape[2:]) for pool in self.pools]
        levels = [lateral(finer) for lateral, finer in zip(self.laterals, maps, strict=False)]
        levels.append(self.bottleneck(torch.cat([x, *pooled], dim=1)))
        for number in range(len(levels) - 1, 0, -1):
            levels[number - 1] = levels[number - 1] + resized(levels[number], levels[number - 1].shape[2:])
        outputs = [layer(level) for layer, level in zip(self.outputs, levels, strict=False)] + levels[-1:]
        joined = torch.cat([resized(output, outputs[0].shape[2:]) for output in outputs], dim=1)
        return self.classifier(self.fusion(joined))


class FCNHead(nn.Module):
    """One convolution and a classifier, which teach a map in the middle of an encoder (Long et al. 2015)."""

    def __init__(self, width: int, classes: int, channels: int = 256, norm: Norm = "group", dropout: float = 0.1):
        super().__init__()
        self.convolution = convolution(width, channels, 3, norm)
        self.classifier = classifier(channels, classes, dropout)

    def forward(self, x: Map) -> Float[Tensor, "B K h w"]:
        """Logits at the places of the map."""
        return self.classifier(self.convolution(x))


class LinearHead(nn.Module):
    """A BatchNorm and a linear classifier of each place, of several maps in a row (Oquab et al. 2023, DINOv2)."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norm = GlobalBatchNorm(sum(widths))
        self.classifier = classifier(sum(widths), classes, dropout=0.0)

    def forward(self, maps: list[Map]) -> Float[Tensor, "B K h w"]:
        """Logits at the places of the maps, which are of one size."""
        return self.classifier(self.norm(torch.cat(maps, dim=1)))
