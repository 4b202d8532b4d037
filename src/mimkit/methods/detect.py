"""Detection: an encoder under Mask R-CNN learns boxes and masks of objects. A Batch enters, a Step leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.annotation import Annotation
from mimkit.core.batch import Batch, Step
from mimkit.core.errors import at_least
from mimkit.methods.dense import Dense, DenseConfig
from mimkit.model.backbone import Backbone
from mimkit.model.detection import Detections, MaskRCNN, MaskRCNNConfig
from mimkit.model.pyramid import FeaturePyramid, Pyramid, SimplePyramid
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class DetectConfig(DenseConfig):
    """Objects get boxes, classes and masks, by Mask R-CNN on all weights (Li et al. 2022, ViTDet)."""

    learns = "detect"

    classes: int = 0
    """Kinds of objects; 'mimkit evaluate detect' counts them itself."""
    masks: bool = True
    """Objects have masks, and these are learned too."""
    window: int | None = None
    """Side in patches of the windows in which three of four blocks of a ViT attend; None: all attend everywhere."""
    heads: MaskRCNNConfig = field(default_factory=MaskRCNNConfig)

    def build(self, encoder: Backbone) -> "Detect":
        self.check()
        self.heads.check()
        at_least(1, **{"method.classes": self.classes})
        return Detect(encoder, self)

    def pyramid(self, encoder: Backbone) -> Pyramid:
        """The five maps of this encoder."""
        if isinstance(encoder, Encoder):
            return SimplePyramid(encoder, self.heads.channels, self.window)
        return FeaturePyramid(encoder, self.heads.channels)

    def example(self, count: int, size: tuple[int, int], device: torch.device | str) -> tuple[Annotation, ...]:
        height, width = size
        boxes = torch.tensor([[0, 0, width, height], [0, 0, width / 2, height / 2]], device=device)
        masks = torch.ones(2, height, width, dtype=torch.bool, device=device) if self.masks else None
        labels = torch.zeros(2, dtype=torch.int64, device=device)
        return tuple(Annotation(size=size, boxes=boxes, labels=labels, masks=masks) for _ in range(count))


class Detect(Dense):
    """torchvision's proposals and heads on the maps of a pyramid, and the sum of their losses."""

    def __init__(self, encoder: Backbone, config: DetectConfig) -> None:
        super().__init__(encoder, config.pyramid(encoder), config)
        self.heads = MaskRCNN(self.pyramid.strides, config.classes, config.masks, config.heads)
        self.masks = config.masks

    def forward(self, batch: Batch, progress: float) -> Step:
        losses = self.losses(batch, self.maps(batch.images))
        return Step(torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()})

    @torch.compiler.disable
    def losses(self, batch: Batch, maps: list[Float[Tensor, "B _ _ _"]]) -> dict[str, Tensor]:
        """Losses by name. Not compiled: each batch has another number of objects."""
        sizes, truth = [target.size for target in batch.targets], [self.truth(target) for target in batch.targets]
        return self.heads(batch.images, sizes, maps, truth)[0]

    def truth(self, target: Annotation) -> dict[str, Tensor]:
        """What torchvision learns of an image: no crowds, and 0 is the class of the background."""
        objects = target if target.crowd is None else target.at(~target.crowd)
        assert objects.boxes is not None and objects.labels is not None
        truth = {"boxes": objects.boxes, "labels": objects.labels + 1}
        if self.masks:
            assert objects.masks is not None
            truth["masks"] = objects.masks
        return truth

    @torch.no_grad()
    def detect(self, images: Float[Tensor, "B C H W"], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Objects of each image, of which the upper left part of `sizes` is a picture and the rest is filled."""
        _, objects = self.heads(images, sizes, self.maps(images), None)
        return [
            Detections(
                size=size,
                boxes=of_image["boxes"],
                labels=of_image["labels"] - 1,
                scores=of_image["scores"],
                masks=of_image["masks"][:, 0] if self.masks else None,
            )
            for size, of_image in zip(sizes, objects, strict=True)
        ]

    def predict(self, images: Float[Tensor, "B C H W"]) -> list[Detections]:
        """Objects of each image."""
        return self.detect(images, [(images.shape[2], images.shape[3])] * len(images))
