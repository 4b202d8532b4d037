"""Convolutional encoder: a timm ResNet, whose last feature map is the tokens. Images enter, Tokens leave."""

from jaxtyping import Float
from timm.models import ResNet
from torch import Tensor

from mimkit.model.backbone import Backbone, Tokens


class ConvolutionalEncoder(Backbone):
    """A sibling of `Encoder` without patches: only whole images go through it, by `forward`.

    A place of the last feature map counts as a token and the pixels between two of them as its patch, so the mean of
    the tokens is what timm pools. There are no prefix tokens.

    Args:
        vit: the ResNet, called as in its siblings.
        size: height and width of the images, in pixels.
    """

    def __init__(self, vit: ResNet, size: tuple[int, int]) -> None:
        super().__init__()
        self.timm = vit
        vit.reset_classifier(0, "avg")  # a head gets no gradient in pre-training, and DDP insists on one
        stride = vit.feature_info[-1]["reduction"]
        self.patch = (stride, stride)
        self.grid = self.out_grid = (-(-size[0] // stride), -(-size[1] // stride))
        self._size = size
        self.channels = next(vit.parameters()).shape[1]
        self.width = self.embed_width = vit.num_features

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels; the stride need not divide them."""
        return self._size

    def forward(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        """Tokens of whole images, row-major: timm's `forward_features`, flattened."""
        x = self.timm.forward_features(images).flatten(2).transpose(1, 2)
        return Tokens(x[:, :0], x)
