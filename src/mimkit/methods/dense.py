"""What learns annotations: an encoder, a pyramid and a head. A Batch with targets enters, a Step leaves.

Every method has `predict(images)`: predictions of a batch in the pixels of its images, without gradient, in float32.
Who calls it puts the method into evaluation mode. What it gives is

- segment: logits (B, K, H, W);
- depth: meters (B, H, W);
- keypoints: column, row and score of each joint (B, J, 3), of images of one person each;
- detect: a `Detections` for each image.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.annotation import Annotation, DenseTask
from mimkit.core.errors import UserError, at_least, within
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.finetune import set_drop_path
from mimkit.model.backbone import Backbone
from mimkit.model.pyramid import Pyramid
from mimkit.model.vit import Encoder
from mimkit.model.windows import drop_whole_pictures


@dataclass(kw_only=True, slots=True)
class DenseConfig(MethodConfig):
    """Base of the settings of methods that learn annotations."""

    windows = convolutions = supervised = True
    learns: ClassVar[DenseTask]

    labels: str | None = None
    """Where the annotations lie, if not beside the pictures: a folder or a file."""
    drop_path: float = 0.1
    """How often the last block is left out; earlier ones less often."""
    freeze: bool = False
    """The encoder stays as it is, and the head alone learns."""

    def check(self) -> None:
        """Refuse numbers that cannot be meant."""
        if not 0 <= self.drop_path < 1:
            raise UserError(f"method.drop_path is a share between 0 and 1, got {self.drop_path}")

    def check_classes(self, classes: int, setting: str = "classes") -> None:
        """Refuse to learn nothing."""
        at_least(1, **{f"method.{setting}": classes})

    def of_labels(self) -> dict[str, Any]:
        """What `open_annotated` is told about the annotations."""
        return {"labels": self.labels}

    def example(self, count: int, size: tuple[int, int], device: torch.device | str) -> tuple[Annotation, ...]:
        """Annotations in the shape of those of a batch, made up, to time and to weigh a step with."""
        raise NotImplementedError(f"{type(self).__name__} makes up no annotations until it defines example")


@dataclass(kw_only=True, slots=True)
class MapConfig(DenseConfig):
    """Base of the settings of methods that say something of every pixel, and look at pictures window by window."""

    test_stride: float = 0.5
    """How far windows at the test lie apart, as a share of their side: a half in MAE, two thirds in BEiT."""
    test_flip: bool = False
    """At the test, the mean over the picture and its mirror."""

    def check(self) -> None:
        DenseConfig.check(self)  # super() knows no classes with slots
        within(0.01, 1, **{"method.test_stride": self.test_stride})


class Dense(Method):
    """Base of the methods that learn annotations: the encoder and what makes maps of it."""

    encoder: Backbone  # type: ignore[bad-override]

    def __init__(self, encoder: Backbone, pyramid: Pyramid, config: DenseConfig) -> None:
        super().__init__()
        self.encoder, self.pyramid, self.freeze = encoder, pyramid, config.freeze
        model: Any = encoder.timm
        model.requires_grad_(not config.freeze)  # positions too
        pyramid.freeze_unused(encoder)
        set_drop_path(model, 0.0 if config.freeze else config.drop_path)
        if isinstance(encoder, Encoder) and pyramid.window is not None:
            drop_whole_pictures(encoder, pyramid.window)
        undecayed = getattr(model, "no_weight_decay", set)()
        self.no_weight_decay = tuple(f"encoder.timm.{name}" for name in sorted(undecayed))
        self.train()

    def train(self, mode: bool = True) -> "Dense":
        """As of any module, but a frozen encoder stays in evaluation mode: BatchNorm's statistics do not move."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def maps(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """What the pyramid makes of the encoder, the finest map first."""
        return self.pyramid(self.encoder, images)

    def predict(self, images: Float[Tensor, "B C H W"]) -> Any:
        """Predictions of a batch, as this file says."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing until it defines predict")
