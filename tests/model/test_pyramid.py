"""Pyramids against the shapes and the counts of published ones, windows against attention in windows."""

import pytest
import torch
from einops import rearrange
from timm.layers import DropPath

from encoders import KINDS, small
from mimkit.core.errors import UserError
from mimkit.model.norms import norm_of
from mimkit.model.patches import patchify
from mimkit.model.pyramid import FeaturePyramid, LastMaps, SimplePyramid, StagePyramid, TappedPyramid
from mimkit.model.windows import block_outputs, drop_whole_pictures, global_blocks


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def weights(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_simple_pyramid_has_the_shapes_and_the_weights_of_vitdet(size):
    encoder = small(size=size)
    pyramid, images = SimplePyramid(encoder, channels=16), torch.randn(2, 3, *size)
    maps = pyramid(encoder, images)
    assert pyramid.strides == (2, 4, 8, 16, 32) and pyramid.widths == (16,) * 5
    assert [tuple(x.shape) for x in maps] == [(2, 16, *(-(-s // t) for s in size)) for t in (2, 4, 8, 16, 32)]
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])
    d, c = 768, 256  # ViTDet-B
    with torch.device("meta"):
        large = SimplePyramid(small(patch=16, width=d, heads=12, positions="learned"), c)
    convs = (4 * d * d // 2 + d // 2) + d + (4 * d // 2 * d // 4 + d // 4) + (4 * d * d // 2 + d // 2)
    assert weights(large) == convs + c * (d // 4 + d // 2 + d + d) + 4 * (9 * c * c + 2 * 2 * c)


@pytest.mark.parametrize(("patch", "fix"), [(14, 16), (12, 8), (2, 4)])
def test_patches_that_give_no_strides_of_boxes_are_refused(patch, fix):
    with pytest.raises(UserError, match=f"--encoder.patch {fix}$"):
        SimplePyramid(small(size=(patch * 4,) * 2, patch=patch))


def test_tapped_pyramid_takes_the_published_blocks():
    for depth, blocks in ((12, [3, 5, 7, 11]), (24, [7, 11, 15, 23]), (4, [0, 1, 2, 3]), (1, [0, 0, 0, 0])):
        encoder = small(depth=depth)
        assert TappedPyramid(encoder).blocks == blocks
    encoder = small(depth=12)
    pyramid, images = TappedPyramid(encoder), torch.randn(2, 3, 64, 64)
    maps = pyramid(encoder, images)
    assert [tuple(x.shape) for x in maps] == [(2, 32, side, side) for side in (32, 16, 8, 4)]
    assert pyramid.strides == (2, 4, 8, 16) and pyramid.widths == (32,) * 4
    # timm's own way to the same tokens, without the final norm.
    theirs = encoder.timm.forward_intermediates(images, indices=[3, 5, 7, 11], intermediates_only=True)
    torch.testing.assert_close(maps[2], theirs[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(maps[3], torch.nn.functional.max_pool2d(theirs[3], 2), rtol=0, atol=1e-5)
    with torch.device("meta"):
        assert weights(TappedPyramid(small(width=768, heads=12, positions="learned"))) == 3 * (4 * 768**2 + 768) + 1536
    assert TappedPyramid(small(size=(56, 56), patch=14)).strides == (3.5, 7, 14, 28)


@pytest.mark.parametrize("kind", ["swin", "swinv2", "resnet"])
def test_stages_come_as_they_are(kind):
    encoder = small(kind)
    for pyramid in (StagePyramid(encoder), FeaturePyramid(encoder, channels=16)):
        maps = pyramid(encoder, torch.randn(2, 3, 64, 64))
        assert len(maps) == len(pyramid.strides) == (4 if isinstance(pyramid, StagePyramid) else 5)
        shapes = [(2, w, *(2 * [int(64 / s)])) for w, s in zip(pyramid.widths, pyramid.strides, strict=True)]
        assert [tuple(x.shape) for x in maps] == shapes
        assert pyramid.strides[:4] == (4, 8, 16, 32)
    if kind != "resnet":
        last = StagePyramid(encoder)(encoder, torch.randn(2, 3, 64, 64))[3]  # its own norm, over channels
        torch.testing.assert_close(last.mean(dim=1), torch.zeros(2, 2, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_last_maps_are_the_tokens_of_the_encoder(kind):
    encoder, images = small(kind).eval(), torch.randn(2, 3, 64, 64)
    pyramid = LastMaps(encoder)
    (x,) = pyramid(encoder, images)
    tokens = encoder(images).patches
    torch.testing.assert_close(x.flatten(2).transpose(1, 2), tokens, rtol=0, atol=1e-5)
    assert x.shape[1:2] == pyramid.widths and 64 / x.shape[2] == pyramid.strides[0]
    with pytest.raises(UserError, match="blocks 9: this encoder"):
        LastMaps(encoder, 9)


def test_last_maps_carry_the_class_token():
    encoder, images = small(), torch.randn(2, 3, 64, 64)
    maps = LastMaps(encoder, 2, class_token=True)(encoder, images)
    tokens = encoder(images)
    assert [x.shape[1] for x in maps] == [64, 64]
    torch.testing.assert_close(maps[1][:, 32:, 3, 5], tokens.prefix[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(maps[1][:, :32, 3, 5], tokens.patches[:, 3 * 8 + 5], rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="no class token"):
        LastMaps(small("swin"), class_token=True)


def windowed_attention(block, x, grid, window):
    """A block whose attention alone, and nothing else of it, is in windows."""
    b, (rows, columns) = x.shape[0], grid
    n = block.norm1(x).reshape(b, rows // window, window, columns // window, window, -1)
    y = torch.empty_like(n)
    for r in range(rows // window):
        for c in range(columns // window):
            y[:, r, :, c] = block.attn(n[:, r, :, c].reshape(b, window**2, -1)).reshape(b, window, window, -1)
    x = x + y.reshape(x.shape)
    return x + block.mlp(block.norm2(x))


def test_blocks_in_windows_are_windowed_attention():
    size, window = (32, 64), 2
    encoder, images = small(size=size, depth=8), torch.randn(2, 3, *size)
    ours = [tokens.patches for tokens in block_outputs(encoder, images, range(8), window)]
    x = encoder.embed(patchify(images, encoder.patch)).patches
    for number, block in enumerate(encoder.timm.blocks):
        x = block(x) if number in (1, 3, 5, 7) else windowed_attention(block, x, encoder.grid, window)
        torch.testing.assert_close(ours[number], x, rtol=0, atol=1e-6)


def test_one_window_is_the_whole_picture():
    encoder, images = small(), torch.randn(2, 3, 64, 64)
    encoder.timm.cls_token = None
    encoder.timm.num_prefix_tokens, encoder.timm.pos_embed = 0, torch.nn.Parameter(encoder.timm.pos_embed[:, 1:])
    (whole,), (window,) = (block_outputs(encoder, images, [3], side) for side in (None, 8))
    assert torch.equal(whole.patches, window.patches)


def test_windows_have_to_tile_the_patches():
    assert [global_blocks(depth) for depth in (12, 24, 32, 3)] == [
        (2, 5, 8, 11),
        (5, 11, 17, 23),
        (7, 15, 23, 31),
        (0, 1, 2),
    ]
    for window, fix in ((3, 2), (5, 4), (16, 8), (0, 1)):
        with pytest.raises(UserError, match=f"--method.window {fix},"):
            SimplePyramid(small(), window=window)
    encoder = small()
    pyramid = SimplePyramid(encoder, 8, window=4)
    assert [x.shape[2] for x in pyramid(encoder, torch.randn(1, 3, 96, 96))] == [48, 24, 12, 6, 3]  # other sizes too
    with pytest.raises(UserError, match="do not tile 7x8"):
        pyramid(encoder, torch.randn(1, 3, 56, 64))


def test_drop_path_leaves_out_all_windows_of_a_picture_or_none():
    encoder = small(depth=8).train()
    for block in encoder.timm.blocks:
        block.drop_path1 = DropPath(0.5)
    drop_whole_pictures(encoder, 4)
    paths = [block.drop_path1 for block in encoder.timm.blocks]
    assert [type(path).__name__ for path in paths] == ["WindowedDropPath", "DropPath"] * 4
    x = torch.ones(64 * 4, 16, 3)
    dropped = rearrange(paths[0](x), "(b w) n d -> b (w n d)", w=4)
    assert (dropped == dropped[:, :1]).all() and set(dropped.unique().tolist()) == {0.0, 2.0}
    assert paths[0].eval()(x) is x


def test_groups_of_a_norm_have_16_channels_or_more():
    assert [norm_of("group", width).num_groups for width in (8, 16, 48, 64, 250, 512)] == [1, 1, 3, 4, 10, 32]
