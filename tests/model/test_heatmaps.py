"""Heat maps: the codec there and back, against transformers' and pycocotools; heads against transformers' ViTPose."""

import numpy as np
import pytest
import torch
from transformers import VitPoseBackboneConfig, VitPoseConfig
from transformers.models.vitpose.image_processing_pil_vitpose import post_dark_unbiased_data_processing
from transformers.models.vitpose.modeling_vitpose import VitPoseClassicDecoder, VitPoseSimpleDecoder

from mimkit.model.heatmaps import HeatmapHead, _blurred, decode, encode

SIZE, GRID = (256, 192), (64, 48)


def joints(count: int = 64, rim: float = 16.0) -> torch.Tensor:
    """Joints anywhere in an image but for its rim, all seen."""
    places = torch.rand(count, 17, 2, generator=torch.Generator().manual_seed(0))
    places = rim + places * (torch.tensor([SIZE[1], SIZE[0]]) - 2 * rim)
    return torch.cat([places, torch.full((count, 17, 1), 2.0)], dim=2)


def oks(distance: torch.Tensor, area: float) -> torch.Tensor:
    """COCO's similarity of nose, eyes, ..., ankles at a distance, in an object of an area."""
    pycocotools = pytest.importorskip("pycocotools.cocoeval")
    k = 2 * torch.tensor(pycocotools.Params(iouType="keypoints").kpt_oks_sigmas)
    return torch.exp(-(distance**2) / (2 * area * k**2)).mean(dim=1)


@pytest.mark.parametrize(("decoding", "pixels", "least"), [("dark", 0.05, 0.99999), ("quarter", 1.5, 0.97)])
def test_what_is_encoded_is_decoded(decoding, pixels, least):
    keypoints = joints()
    heatmaps, weights = encode(keypoints, SIZE, GRID)
    assert heatmaps.shape == (64, 17, *GRID) and weights.min() == 1
    decoded = decode(heatmaps, SIZE, decoding)
    distance = torch.linalg.vector_norm(decoded[..., :2] - keypoints[..., :2], dim=2)
    assert distance.max() < pixels
    assert oks(distance, 0.5 * SIZE[0] * SIZE[1]).min() > least
    assert decoded[..., 2].min() > 0.9 and decoded[..., 2].max() <= 1


def test_the_quarter_goes_to_the_higher_neighbor():
    heatmaps, _ = encode(joints(), SIZE, GRID)
    plain = heatmaps.flatten(2).argmax(dim=2)
    middle = torch.stack([plain % 48, plain // 48], dim=2) * 4 + 2
    truth = joints()[..., :2]
    nearer = (decode(heatmaps, SIZE, "quarter")[..., :2] - truth).abs() <= (middle - truth).abs()
    assert nearer.float().mean() > 0.7  # not of those that lie within half a pixel of the middle
    assert ((decode(heatmaps, SIZE, "quarter")[..., :2] - truth).abs() <= 1 + 1e-4).all()  # of up to 2 without it


def test_joints_at_the_edge_stay_inside_and_others_weigh_nothing():
    edge = torch.tensor([[[0.0, 0, 2], [191.9, 255.9, 1], [96, 0, 2], [0, 0, 0], [-1, 5, 2], [5, 256, 2]]])
    heatmaps, weights = encode(edge, SIZE, GRID)
    assert weights.tolist() == [[1, 1, 1, 0, 0, 0]]
    for decoding in ("dark", "quarter"):
        distance = decode(heatmaps, SIZE, decoding)[0, :3, :2] - edge[0, :3, :2]
        assert distance.abs().max() <= 2.1
    assert torch.isfinite(decode(torch.zeros(1, 2, 6, 5), (24, 20))).all()  # flat: no top


def test_a_mirrored_map_is_that_of_the_mirrored_image():
    keypoints = joints()
    mirrored = keypoints.clone()
    mirrored[..., 0] = SIZE[1] - mirrored[..., 0]
    torch.testing.assert_close(encode(mirrored, SIZE, GRID)[0], encode(keypoints, SIZE, GRID)[0].flip(3))


def test_dark_is_transformers_on_noisy_maps():
    generator = torch.Generator().manual_seed(1)
    heatmaps, _ = encode(joints(8), SIZE, GRID)
    heatmaps = (heatmaps + 0.05 * torch.rand(heatmaps.shape, generator=generator)).clamp(min=0)
    blurred = _blurred(heatmaps)
    place = heatmaps.flatten(2).argmax(dim=2)
    coordinates = torch.stack([place % 48, place // 48], dim=2).numpy().astype(np.float64)
    theirs = post_dark_unbiased_data_processing(coordinates.copy(), blurred.numpy(), kernel=1)
    ours = decode(heatmaps, SIZE, "dark")[..., :2].numpy() / 4 - 0.5
    # They take the mixed slope from two of four corners, and all steps however long they are.
    close = np.abs(theirs - coordinates).max(axis=2) < 1
    assert close.mean() > 0.95 and np.abs(ours - theirs)[close].mean() < 0.01
    assert np.abs(theirs - coordinates)[close].mean() > 0.2


def test_heads_are_transformers():
    torch.manual_seed(0)
    config = VitPoseConfig(backbone_config=VitPoseBackboneConfig(hidden_size=12), num_labels=5, scale_factor=4)
    x = torch.randn(2, 12, 4, 3)
    classic, simple = VitPoseClassicDecoder(config).eval(), VitPoseSimpleDecoder(config).eval()
    ours, our_simple = HeatmapHead(12, 16, 5).eval(), HeatmapHead(12, 16, 5, channels=0).eval()
    for one, other in ((ours, classic), (our_simple, simple)):
        values = list(other.state_dict().values())
        one.load_state_dict(dict(zip(one.state_dict(), values, strict=True)))
        assert torch.equal(one(x), other(x)) and one(x).shape == (2, 5, 16, 12)
    assert HeatmapHead(12, 32, 5)(torch.randn(2, 12, 2, 2)).shape == (2, 5, 16, 16)
    assert HeatmapHead(12, 8, 5)(torch.randn(2, 12, 8, 8)).shape == (2, 5, 16, 16)


def test_dark_follows_slanted_maps():
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    truth = torch.tensor([9.3, 11.6])  # column and row, in places
    across, down = x - truth[0], y - truth[1]
    slanted = torch.exp(-(across**2 + down**2 + 1.4 * across * down) / 8)
    (place,) = decode(slanted[None, None], (24, 20))[0, :, :2] - 0.5
    torch.testing.assert_close(place, truth, rtol=0, atol=0.02)
