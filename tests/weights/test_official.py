"""Files of weights as authors release them: what is read off their shapes, and what is refused."""

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from builders import structured
from commandline import refused
from mimkit.core.errors import UserError
from mimkit.evaluate.finetune import start_of
from mimkit.evaluate.run import evaluate
from mimkit.evaluate.target import open_target
from mimkit.weights.load import load_weights
from mimkit.weights.official import official
from mimkit.weights.statistics import IMAGENET


def small_vit(size: int = 64, **args: object) -> torch.nn.Module:
    """A ViT-Ti of two blocks with weights of its own."""
    torch.manual_seed(0)
    settings = dict(img_size=size, depth=2, num_classes=0, global_pool="avg", fc_norm=False) | args
    return timm.create_model("vit_tiny_patch16_224", **settings).eval()


@pytest.fixture(scope="module")
def mae_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of mae_pretrain_vit_base.pth with a part of the decoder that the longer files hold."""
    tensors = dict(small_vit().state_dict())
    tensors |= {"mask_token": torch.zeros(1, 1, 32), "decoder_embed.weight": torch.zeros(32, 192)}
    file = tmp_path_factory.mktemp("official") / "mae_pretrain_vit_tiny.pth"
    torch.save({"model": tensors}, file)
    return file


def test_the_architecture_follows_from_the_shapes(mae_file):
    weights = official(mae_file)
    config = weights.config
    assert (config.width, config.depth, config.heads, config.patch) == (192, 2, 3, 16)
    assert (weights.size, weights.channels) == ((64, 64), 3)
    assert "192 wide, with 3 heads" in weights.assumed and "ImageNet" in weights.assumed


def test_the_model_is_timms_number_for_number(mae_file):
    extractor = open_target(str(mae_file), size=None, channels=3)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = small_vit().forward_features(images)
        assert torch.equal(extractor.model.forward_features(images), expected)
        assert torch.equal(extractor.tokens(images), expected)
    assert (extractor.mean, extractor.std) == IMAGENET


@pytest.mark.parametrize("args", [{"fc_norm": True}, {"init_values": 0.1, "qkv_bias": False}, {"class_token": False}])
def test_further_tensors_tell_further_settings(args, tmp_path):
    vit = small_vit(**args)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    images = torch.randn(2, 3, 64, 64)
    built = official(tmp_path / "vit.pth").build((64, 64))
    with torch.inference_mode():
        assert torch.equal(built.eval()(images), vit(images))


def test_positions_are_resampled_to_the_size_of_the_data(mae_file):
    extractor = open_target(str(mae_file), size=(40, 90), channels=3)
    assert extractor.size == (48, 96)
    with torch.inference_mode():
        assert extractor.tokens(torch.zeros(1, 3, 48, 96)).shape == (1, 1 + 3 * 6, 192)


def test_a_file_is_evaluated_and_says_what_was_assumed(mae_file, tmp_path):
    for number in range(20):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(structured(number, 32)).save(folder / f"{number}.png")
    result = evaluate("knn", str(mae_file), [str(tmp_path / "data")], k=3)
    assert result["test"] == 4 and result["settings"]["size"] == [32, 32]
    assert "heads" in result["settings"]["assumed"]


def test_fine_tuning_starts_from_a_file(mae_file):
    start = start_of(str(mae_file))
    assert (start.size, start.width, start.channels, start.mean) == ((64, 64), 192, 3, IMAGENET[0])
    encoder = start.encoder.build(start.size, 3)
    load_weights(start.encoder.weights, encoder)
    assert torch.equal(encoder.timm.pos_embed, small_vit().pos_embed)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"conv1.weight": torch.zeros(2, 3, 7, 7)}, "a layout that mimkit does not know (conv1.weight"),
        ({"blocks.0.attn.relative_position_index": torch.zeros(4)}, "also holds blocks.0.attn.relative_position_index"),
        ({"norm.bias": None}, "lacks norm.bias"),
    ],
)
def test_other_layouts_are_refused_in_a_line(tensors, reason, tmp_path):
    state = {} if "conv1.weight" in tensors else dict(small_vit().state_dict())
    state = {key: value for key, value in (state | tensors).items() if value is not None}
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(UserError) as error:
        open_target(str(tmp_path / "other.pth"), size=(64, 64), channels=3)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"hello")
    assert "cannot be read as weights" in refused(f"evaluate knn {tmp_path}/broken.pth --data photos")
    assert "there is no folder" in refused(f"evaluate knn {tmp_path}/absent.pth --data photos")
