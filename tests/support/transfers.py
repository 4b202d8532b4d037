"""Small runs of dense tasks on drawn scenes: a task and a folder enter, a Pretrain that trains in seconds leaves."""

from pathlib import Path

from mimkit.data.views import ScaleJitter
from mimkit.methods.depth import DepthConfig
from mimkit.methods.detect import DetectConfig
from mimkit.methods.segment import SegmentConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.detection import MaskRCNNConfig
from mimkit.train.machine import Machine
from mimkit.train.optimizer import AdamWConfig
from mimkit.train.prepare import Images, Pretrain
from scenes import scenes, write_coco, write_depth, write_pairs

HEADS = MaskRCNNConfig(
    channels=16,
    proposal_convolutions=1,
    box_convolutions=0,
    box_width=32,
    mask_convolutions=1,
    anchors=32,
    proposals=32,
    boxes=16,
    least_score=0.0,
)
METHODS = {
    "segment": lambda: SegmentConfig(classes=4, channels=16, auxiliary_channels=8, drop_path=0.1),
    "depth": lambda: DepthConfig(channels=8, fine_channels=8, norm="group", drop_path=0.1),
    "detect": lambda: DetectConfig(classes=2, heads=HEADS, drop_path=0.1),
}


def write(task: str, folder: Path, train: int = 6, test: int = 3) -> Path:
    """Scenes in a layout of the task."""
    sets = scenes({"train": train, "val": test})
    if task == "detect":
        return write_coco(folder, sets)
    return write_pairs(folder, sets) if task == "segment" else write_depth(folder, sets)


def settings(task: str, data: Path, *, workers: int = 0, epochs: int = 2, batch_size: int = 4) -> Pretrain:
    """A run of some steps at 32 px."""
    return Pretrain(
        data=(str(data),),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=4, heads=2),
        method=METHODS[task](),
        images=Images(size=32, view=ScaleJitter(scale=(0.8, 1.4), covers=task != "detect")),
        optimizer=AdamWConfig(base_lr=1e-3, per=4, layer_decay=0.9),
        epochs=epochs,
        batch_size=batch_size,
        machine=Machine(evals=0, workers=workers, threads=1, precision="float32", attention="plain", log_every=1),
    )
