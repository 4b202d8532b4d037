"""Heads of boxes: anchors, pools and pasted masks against torchvision's and against what they stand for."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign, roi_align

from mimkit.core.errors import UserError
from mimkit.model.detection import AlignedPool, Anchors, MaskRCNN, MaskRCNNConfig, paste

STRIDES = (4.0, 8.0, 16.0, 32.0, 64.0)


def maps(side: int = 128, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, -(-side // int(s)), -(-side // int(s)), generator=generator) for s in STRIDES]


def test_anchors_are_torchvisions_where_its_strides_are_right():
    images = ImageList(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2)
    theirs = AnchorGenerator(tuple((int(8 * s),) for s in STRIDES), ((0.5, 1.0, 2.0),) * 5)
    ours = Anchors(STRIDES)(images, maps())
    for one, two in zip(ours, theirs(images, maps()), strict=True):
        assert torch.equal(one, two)
    assert len(ours) == 2 and ours[0].dtype == torch.float32
    # At 96 pixels torchvision takes 96 // 2 = 48 pixels for the stride of the coarsest map, which is 64.
    images = ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)])
    last = Anchors(STRIDES)(images, maps(96))[0][-12:]
    assert torch.equal(last[3:6] - last[:3], torch.tensor([[64.0, 0, 64, 0]] * 3))


def boxes() -> list[torch.Tensor]:
    # Sides of 20, 112, 224, 448 pixels: maps of stride 4, 8, 16 and 32.
    sides = torch.tensor([20.0, 112, 224, 448])
    corner = torch.tensor([3.0, 5, 1, 2])
    return [torch.stack([corner, corner, corner + sides, corner + 2 * sides - sides], dim=1), torch.zeros(0, 4)]


def test_pools_read_the_map_of_a_box_by_its_size():
    features = {str(i): torch.full((2, 1, 512 // int(s), 512 // int(s)), float(i)) for i, s in enumerate(STRIDES)}
    pooled = AlignedPool(STRIDES, 7)(features, boxes(), [(512, 512)] * 2)
    assert pooled.mean(dim=(1, 2, 3)).tolist() == [0, 1, 2, 3]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(features, boxes(), [(512, 512)] * 2)
    assert torch.equal(pooled, theirs)
    assert AlignedPool(STRIDES, 7)(features, [torch.zeros(0, 4)] * 2, None).shape == (0, 1, 7, 7)
    tiny = torch.tensor([[0.0, 0, 511, 511], [5, 5, 6, 6]])
    assert AlignedPool(STRIDES, 7)(features, [tiny], None).mean(dim=(1, 2, 3)).tolist() == [3, 0]


def test_pools_are_aligned_and_of_the_right_image():
    features = {str(i): x for i, x in enumerate(maps(256))}
    both = [torch.tensor([[4.0, 8, 40, 44]]), torch.tensor([[10.0, 10, 150, 150]])]
    pooled = AlignedPool(STRIDES, 7)(features, both, None)
    first = roi_align(features["0"], [both[0], both[1][:0]], 7, 1 / 4, -1, aligned=True)
    second = roi_align(features["1"], [both[0][:0], both[1]], 7, 1 / 8, -1, aligned=True)
    assert torch.equal(pooled, torch.cat([first, second]))
    # A ramp of the column, read where its places have their middles: exact means of a box.
    ramp = (torch.arange(64.0) + 0.5).mul(4).expand(1, 1, 64, 64)
    read = AlignedPool((4.0, 8.0), 7)({"0": ramp}, [torch.tensor([[8.0, 8, 50, 50]])], None)
    torch.testing.assert_close(read[0, 0, 0], torch.arange(7.0) * 6 + 8 + 3)


def test_pasted_masks_are_where_they_were_cut():
    full = paste(torch.ones(1, 28, 28), torch.tensor([[10.0, 20, 30, 50]]), (64, 48))
    rows, columns = torch.where(full[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 49, 10, 29)
    assert full.sum() == 20 * 30
    halves = torch.zeros(1, 28, 28)
    halves[:, :, 14:] = 1
    right = paste(halves, torch.tensor([[-4.0, 0, 60, 64]]), (64, 48))
    assert right[0, :, 28:].all() and not right[0, :, :28].any()
    assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)).shape == (0, 5, 6)
    # torchvision's, which moves boxes to whole pixels, agrees on all but a rim.
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(3, 1, 4, 4), (28, 28), mode="bicubic")
    places = torch.tensor([[13.2, 14.1, 200.7, 240.2], [0, 0, 80.5, 120.5], [80, 40, 250, 190.9]])
    theirs = paste_masks_in_image(smooth, places, (256, 256))[:, 0] >= 0.5
    ours = paste(smooth[:, 0], places, (256, 256))
    assert ((ours != theirs).sum(dim=(1, 2)) < 0.06 * theirs.sum(dim=(1, 2))).all()


def test_the_heads_of_vitdet_have_their_weights():
    c, k = 256, 80
    with torch.device("meta"):
        heads = MaskRCNN(STRIDES, k, True, MaskRCNNConfig())
    convolution = 9 * c * c + 2 * c  # without bias, behind a LayerNorm
    rpn = 2 * (9 * c * c + c) + 3 * (c + 1) + 12 * (c + 1)
    box = 4 * convolution + (49 * c + 1) * 1024 + 1025 * 5 * (k + 1)
    mask = 4 * convolution + (4 * c * c + c) + (c + 1) * (k + 1)
    assert sum(p.numel() for p in heads.parameters()) == rpn + box + mask
    with torch.device("meta"):
        fpn = MaskRCNN(STRIDES, k, False, MaskRCNNConfig(box_convolutions=0, proposal_convolutions=1))
    rpn, box = 9 * c * c + c + 15 * (c + 1), (49 * c + 1) * 1024 + 1025 * 1024 + 1025 * 5 * (k + 1)
    assert sum(p.numel() for p in fpn.parameters()) == rpn + box


def test_numbers_that_cannot_be_meant_are_refused():
    for changes, words in ((dict(channels=0), "heads.channels"), (dict(overlap=1.5), "heads.overlap")):
        with pytest.raises(UserError, match=words):
            MaskRCNNConfig(**changes).check()
