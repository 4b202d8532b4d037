"""Small encoders of each kind for tests, and batches with annotations."""

from typing import Any

import torch

from mimkit.core.annotation import Annotation
from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.model.build import EncoderConfig

KINDS = ("vit", "swin", "swinv2", "resnet")


def small(kind: str = "vit", size: tuple[int, int] = (64, 64), **changes: Any) -> Any:
    """An encoder: a ViT of 4 blocks with patches of 8, or a Swin or ResNet whose stages have strides 4 to 32."""
    torch.manual_seed(0)
    swin = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 2}
    names = {
        "vit": dict(name="vit_tiny_patch16_224", patch=8, width=32, heads=2, depth=4),
        "swin": dict(name="swin_tiny_patch4_window7_224", model_args=swin),
        "swinv2": dict(name="swinv2_tiny_window8_256", model_args=swin),
        "resnet": dict(name="resnet10t"),
    }
    return EncoderConfig(**{**names[kind], **changes}).build(size, 3)


def batch_of(targets: tuple[Annotation, ...], seed: int = 1) -> Batch:
    """Noise of the targets' size with these targets."""
    number = torch.arange(len(targets))
    images = torch.randn(len(targets), 3, *targets[0].size, generator=torch.Generator().manual_seed(seed))
    return Batch(images, rng_keys("test", number), number, targets=targets)


def missing_gradients(task: torch.nn.Module) -> list[str]:
    """Names of parameters that want a gradient and have none."""
    return [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
