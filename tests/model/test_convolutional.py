"""ResNets as encoders: tokens that pool to what timm pools, a way in and out of the run folder, and what is refused."""

import json
from dataclasses import replace

import pytest
import timm
import torch

from drills import tiny
from mimkit.core.errors import UserError
from mimkit.evaluate.target import open_target
from mimkit.methods.simclr import SimCLRConfig
from mimkit.methods.simmim import SimMIMConfig
from mimkit.model.build import EncoderConfig, is_convolutional
from mimkit.model.convolutional import ConvolutionalEncoder
from mimkit.train.prepare import Prepared
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder

torch.set_num_threads(1)
SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}


@pytest.mark.parametrize(
    ("name", "model_args", "size", "patch", "grid"),
    [
        ("resnet18", SMALL, (64, 96), 32, (2, 3)),
        ("resnet18", SMALL | {"output_stride": 8}, (32, 32), 8, (4, 4)),
        ("resnet18", SMALL, (50, 33), 32, (2, 2)),  # which the stride does not divide
        ("resnet50", SMALL, (32, 32), 32, (1, 1)),
    ],
)
def test_the_mean_of_tokens_is_what_timm_pools(name, model_args, size, patch, grid):
    encoder = EncoderConfig(name=name, model_args=model_args).build(size, 4)
    assert isinstance(encoder, ConvolutionalEncoder)
    assert (encoder.size, encoder.patch, encoder.grid, encoder.out_grid) == (size, (patch, patch), grid, grid)
    images = torch.randn(3, 4, *size)
    prefix, patches = encoder.eval()(images)
    assert prefix.shape == (3, 0, encoder.width) and patches.shape == (3, grid[0] * grid[1], encoder.width)
    assert (encoder.channels, encoder.width) == (4, encoder.timm.num_features)
    torch.testing.assert_close(patches.mean(dim=1), encoder.timm(images), rtol=1e-6, atol=1e-6)
    places = patches.transpose(1, 2).unflatten(2, grid)
    assert torch.equal(places, encoder.timm.forward_features(images))  # row-major


def test_which_names_are_resnets():
    assert all(map(is_convolutional, ("resnet50", "resnet18d", "resnext50_32x4d", "wide_resnet50_2")))
    assert not any(map(is_convolutional, ("resnetv2_50", "resnet32ts", "vit_base_patch16_224", "none")))
    for name in [*filter(is_convolutional, timm.list_models())][::12]:
        with torch.device("meta"):
            assert isinstance(timm.create_model(name), timm.models.ResNet), name


def test_what_a_resnet_has_not_is_refused_by_name():
    for name in ("patch", "width", "depth", "heads"):
        config = replace(EncoderConfig(name="resnet18"), **{name: 4})
        with pytest.raises(UserError, match=f"'resnet18' has no {name} to set: leave --encoder.{name} away"):
            config.build((32, 32), 3)
    with pytest.raises(UserError, match=r"timm cannot build 'resnet18' .*change model_args"):
        EncoderConfig(name="resnet18", model_args={"img_size": 3}).build((32, 32), 3)
    with pytest.raises(UserError, match=r"'convnext_tiny' \(ConvNeXt\) cannot be this encoder"):
        EncoderConfig(name="convnext_tiny").build((32, 32), 3)


@pytest.mark.parametrize("method", [None, SimMIMConfig()])
def test_masked_methods_refuse_it_with_the_reason(method, forty):
    run = tiny(forty)
    run.encoder, run.method = EncoderConfig(name="resnet18", model_args=SMALL), method or run.method
    with pytest.raises(UserError, match=r"'resnet18' \(ResNet\) cannot be this encoder: a convolution sees the full"):
        _ = Prepared(run).task


def test_a_run_is_measured_and_leaves_for_timm(forty, tmp_path):
    run = tiny(forty, evals=1)
    run.encoder = EncoderConfig(name="resnet18", model_args=SMALL | {"output_stride": 8})
    run.method, run.epochs = SimCLRConfig(outputs=8), 1
    run.images = replace(run.images, size=16, other_views=(run.images.view,))
    pretrain(run, tmp_path / "run", recipe="simclr_tiny", log=lambda line: None)
    last = RunFolder(tmp_path / "run").metrics()[-1]
    assert last["effective_rank"] > 1 and 0 < last["spread"] < 2 and -1 <= last["negative"] < last["positive"] <= 1
    export = tmp_path / "run" / "export"
    assert json.loads((export / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 16, 16]
    found = open_target(str(export), size=(16, 16), channels=3)
    assert "masked" not in (export / "README.md").read_text()
    images = torch.randn(2, 3, 16, 16)
    ready = Prepared(run)
    state = torch.load(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1], weights_only=True)["model"]
    ready.task.load_state_dict(state)
    mean = ready.encoder.eval()(images).patches.mean(dim=1)
    torch.testing.assert_close(found(images)["mean"], mean.detach(), rtol=1e-5, atol=1e-6)
    # and back in, as the start of another run
    again = Prepared(replace(run, encoder=replace(run.encoder, weights=str(export))))
    loaded = again.task.encoder.state_dict()
    assert loaded and all(torch.equal(value, state[f"embedder.encoder.{name}"]) for name, value in loaded.items())
