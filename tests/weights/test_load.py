"""Imports: every layout ends in the same tensors, what does not fit is said, rubbish is refused in a line."""

import argparse
import random
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mimkit.core.errors import UserError
from mimkit.methods.mae import MAE, MAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import sincos_positions
from mimkit.weights.huggingface import export_huggingface
from mimkit.weights.load import load_weights
from mimkit.weights.timm import export_timm

NAME = "vit_small_patch16_224"


def config(**changes) -> EncoderConfig:
    return EncoderConfig(**({"name": NAME, "patch": 8, "width": 32, "depth": 2, "heads": 2} | changes))


def mae(size: tuple[int, int] = (32, 32), channels: int = 3, *, width: int = 16, **changes) -> MAE:
    encoder = config(**changes).build(size, channels)
    return MAEConfig(decoder=DecoderConfig(width=width, depth=1, heads=2)).build(encoder)


@pytest.fixture
def trained() -> MAE:
    """An MAE with random numbers in every tensor."""
    method = mae()
    generator = torch.Generator().manual_seed(0)
    for value in method.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator))
    method.encoder.timm.pos_embed.data[:, 0] = 0
    return method


def official(method: MAE, *, decoder: bool = True) -> dict[str, torch.Tensor]:
    """The layout of facebookresearch/mae, written down independently of the importer."""
    state = dict(method.encoder.timm.state_dict())
    if decoder:
        own = method.decoder
        state["mask_token"] = own.mask_token.data
        state["decoder_pos_embed"] = torch.cat([torch.zeros(1, 1, 16), own.positions], dim=1)
        for part, name in ((own.embed, "embed"), (own.norm, "norm"), (own.head, "pred")):
            state |= {f"decoder_{name}.{key}": value for key, value in part.state_dict().items()}
        state |= {f"decoder_blocks.{key}": value for key, value in own.blocks.state_dict().items()}
    return {key: value.clone() for key, value in state.items()}


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    state = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, state[key]), key


def write_export(method: MAE, folder: Path, **changes) -> str:
    encoder = method.encoder
    args = config(**changes).timm_args(encoder.size, encoder.channels)
    mean = [0.5] * encoder.channels
    export_timm(encoder, folder, name=NAME, model_args=args, mean=mean, std=mean, card="")
    return str(folder)


def layout(kind: str, method: MAE, folder: Path) -> str:
    """Write `method` in one of the layouts; returns what to give to `load_weights`."""
    if kind == "export":
        return write_export(method, folder / "x")
    if kind == "run folder":
        write_export(method, folder / "run" / "export")
        return str(folder / "run")
    if kind == "safetensors file":
        return write_export(method, folder / "x") + "/model.safetensors"
    if kind.startswith("hugging face"):
        export_huggingface(method, folder / "hf", mean=[0.5] * 3, std=[0.5] * 3, card="")
        if kind.endswith(".bin"):
            file = folder / "hf" / "model.safetensors"
            torch.save(load_file(file), folder / "hf" / "pytorch_model.bin")
            file.unlink()
        if kind.endswith("encoder"):  # a ViTMAEModel without its pre-training head
            state = load_file(folder / "hf" / "model.safetensors")
            state = {key[4:]: value for key, value in state.items() if key.startswith("vit.")}
            save_file(state, folder / "hf" / "model.safetensors")
            (folder / "hf" / "identity.json").unlink()
        if kind.endswith("rewritten"):  # by transformers itself, in whatever names it has today
            transformers = pytest.importorskip("transformers")
            model = transformers.ViTMAEForPreTraining.from_pretrained(folder / "hf")
            model.save_pretrained(folder / "again")
            return str(folder / "again")
        if kind.endswith("in memory"):
            transformers = pytest.importorskip("transformers")
            model = transformers.ViTMAEForPreTraining.from_pretrained(folder / "hf")
            save_file(model.state_dict(), folder / "x.safetensors")
            return str(folder / "x.safetensors")
        return str(folder / "hf")
    state = official(method, decoder="decoder" in kind)
    if "flat" not in kind:
        # as released: an argparse.Namespace beside the weights
        state = {"model": state, "epoch": 1, "args": argparse.Namespace(lr=0.1)}
    torch.save(state, folder / "mae.pth")
    return str(folder / "mae.pth")


ENCODER_ONLY = [
    "export",
    "run folder",
    "safetensors file",
    "official",
    "official flat",
    "hugging face encoder",
]
WITH_DECODER = [
    "official decoder",
    "official flat decoder",
    "hugging face",
    "hugging face .bin",
    "hugging face rewritten",
    "hugging face in memory",
]


@pytest.mark.parametrize("kind", ENCODER_ONLY + WITH_DECODER)
def test_every_layout_gives_back_every_tensor(kind, trained, tmp_path):
    source = layout(kind, trained, tmp_path)
    fresh = mae()
    report = load_weights(source, fresh.encoder, fresh.decoder)
    assert_equal(trained.encoder, fresh.encoder)
    assert not report.resampled and not report.unexpected
    if kind in WITH_DECODER:
        assert_equal(trained.decoder, fresh.decoder)
        assert not report.missing
    else:
        assert len(report.missing) == len(fresh.decoder.state_dict())
        assert all(name.startswith("decoder.") for name in report.missing)
    assert len(report.matched) + len(report.missing) == len(fresh.state_dict())
    assert str(len(report.matched)) in report.summary() and len(report.summary().splitlines()) <= 2
    assert not fresh.encoder.timm.pos_embed.requires_grad  # fixed positions stay fixed


def test_the_decoder_of_the_source_is_optional(trained, tmp_path):
    fresh = mae()
    report = load_weights(layout("official decoder", trained, tmp_path), fresh.encoder)
    assert_equal(trained.encoder, fresh.encoder)
    assert not report.missing and len(report.unexpected) == len(fresh.decoder.state_dict())


def test_a_decoder_of_another_size_is_left_out_and_said(trained, tmp_path):
    fresh = mae(width=24)
    before = {key: value.clone() for key, value in fresh.decoder.state_dict().items()}
    report = load_weights(layout("official decoder", trained, tmp_path), fresh.encoder, fresh.decoder)
    assert_equal(trained.encoder, fresh.encoder)
    assert torch.equal(before["embed.weight"], fresh.decoder.embed.weight)
    assert "decoder.embed.weight" in report.missing
    assert "decoder.embed.weight ([16, 32] there)" in report.unexpected


def test_a_fine_tuned_model_is_tolerated(trained, tmp_path):
    state = official(trained, decoder=False)
    state["fc_norm.weight"], state["fc_norm.bias"] = state.pop("norm.weight"), state.pop("norm.bias")
    state["head.weight"], state["head.bias"] = torch.ones(10, 32), torch.ones(10)
    torch.save({"model": state}, tmp_path / "x.pth")
    fresh = mae()
    report = load_weights(str(tmp_path / "x.pth"), fresh.encoder)
    assert set(report.missing) == {"vit.norm.weight", "vit.norm.bias"}
    assert set(report.unexpected) == {
        "vit.fc_norm.weight",
        "vit.fc_norm.bias",
        "vit.head.weight",
        "vit.head.bias",
    }
    assert "norm.weight" in report.summary() and "fc_norm.weight" in report.summary()


@pytest.mark.parametrize("kind", ["export", "official decoder", "hugging face"])
def test_positions_of_another_grid_are_resampled(kind, trained, tmp_path):
    source = layout(kind, trained, tmp_path)
    fresh = mae((48, 24))
    report = load_weights(source, fresh.encoder, fresh.decoder)
    assert "pos_embed 4x4 -> 6x3" in report.resampled and "4x4 -> 6x3" in report.summary()
    table = trained.encoder.timm.pos_embed[:, 1:].detach().reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(table, (6, 3), mode="bicubic", antialias=True)
    torch.testing.assert_close(fresh.encoder.timm.pos_embed[0, 1:], expected[0].permute(1, 2, 0).flatten(0, 1))
    assert ("decoder.positions 4x4 -> 6x3" in report.resampled) == (kind != "export")


def test_the_grid_of_a_rectangular_export_is_known(tmp_path):
    wide = mae((16, 64))  # 2 x 8 patches: as many as 4 x 4
    source = write_export(wide, tmp_path / "x")
    square = mae((32, 32))
    report = load_weights(source, square.encoder)
    assert report.resampled == ["pos_embed 2x8 -> 4x4"]
    assert not torch.equal(square.encoder.timm.pos_embed, wide.encoder.timm.pos_embed)
    same = mae((16, 64))
    assert not load_weights(source, same.encoder).resampled
    assert_equal(wide.encoder, same.encoder)


def test_a_source_without_a_config_is_square_and_otherwise_like_ours(trained, tmp_path):
    torch.save(official(trained), tmp_path / "x.pth")
    wide = mae((16, 64))
    assert "pos_embed 4x4 -> 2x8" in load_weights(str(tmp_path / "x.pth"), wide.encoder).resampled
    oblong = mae((16, 24))
    torch.save(official(oblong), tmp_path / "y.pth")
    same = mae((16, 24))
    assert not load_weights(str(tmp_path / "y.pth"), same.encoder, same.decoder).resampled
    assert_equal(oblong, same)
    with pytest.raises(UserError, match="pos_embed"):
        load_weights(str(tmp_path / "y.pth"), mae((24, 24)).encoder)


def test_other_channels_and_patches_are_adapted_and_said(trained, tmp_path):
    source = layout("export", trained, tmp_path)
    gray = mae(channels=1)
    report = load_weights(source, gray.encoder)
    assert report.resampled == ["patch_embed.proj.weight 3 -> 1 channels"]
    total = trained.encoder.timm.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(gray.encoder.timm.patch_embed.proj.weight, total)
    five = mae(channels=5)
    load_weights(source, five.encoder)
    repeated = trained.encoder.timm.patch_embed.proj.weight[:, [0, 1, 2, 0, 1]] * 3 / 5
    torch.testing.assert_close(five.encoder.timm.patch_embed.proj.weight, repeated)
    large = mae((64, 64), patch=16)
    assert load_weights(source, large.encoder).resampled == ["patch_embed.proj.weight 8x8 -> 16x16"]
    flat = torch.full((1, 3, 64, 64), 0.7)  # FlexiViT: an enlarged picture gives the same tokens
    with torch.no_grad():
        before = trained.encoder.timm.patch_embed(flat[..., :32, :32])
        torch.testing.assert_close(large.encoder.timm.patch_embed(flat), before, rtol=1e-3, atol=1e-3)


def test_models_with_other_prefix_tokens(trained, tmp_path):
    source = layout("official", trained, tmp_path)
    bare = config(name="vit_base_patch16_siglip_224").build((32, 32), 3)  # no class token
    report = load_weights(source, bare)
    assert torch.equal(bare.timm.pos_embed, trained.encoder.timm.pos_embed[:, 1:])
    assert report.unexpected == ["vit.cls_token"]
    back = config(name=NAME).build((32, 32), 3)
    folder = tmp_path / "bare.safetensors"
    save_file({key: value.contiguous() for key, value in bare.timm.state_dict().items()}, folder)
    report = load_weights(str(folder), back)
    assert report.missing == ["vit.cls_token"]
    assert torch.equal(back.timm.pos_embed[:, 1:], bare.timm.pos_embed) and not back.timm.pos_embed[:, 0].any()


def test_non_zero_class_rows_that_cannot_be_kept_are_refused(trained, tmp_path):
    state = official(trained)
    state["decoder_pos_embed"][:, 0] = 1
    torch.save(state, tmp_path / "x.pth")
    fresh = mae()
    with pytest.raises(UserError, match=r"decoder\.positions has 1 non-zero rows"):
        load_weights(str(tmp_path / "x.pth"), fresh.encoder, fresh.decoder)
    load_weights(str(tmp_path / "x.pth"), fresh.encoder)  # the encoder alone is fine
    state["pos_embed"][:, 0] = 1
    torch.save(state, tmp_path / "x.pth")
    shared = config(model_args={"no_embed_class": True}).build((32, 32), 3)
    with pytest.raises(UserError, match="pos_embed has 1 non-zero rows"):
        load_weights(str(tmp_path / "x.pth"), shared)


def test_timm_releases(monkeypatch):
    released = timm.create_model(NAME, patch_size=8, img_size=32, embed_dim=32, depth=2, num_heads=2)
    asked = []

    def create(name, **settings):
        asked.append((name, settings["pretrained"]))
        return released

    fresh = mae((48, 48), positions="learned")
    monkeypatch.setattr(timm, "create_model", create)
    report = load_weights("timm", fresh.encoder, name="vit_x.tag")
    assert asked == [("vit_x.tag", True)]
    assert report.resampled == ["pos_embed 4x4 -> 6x6"] and not report.missing
    assert torch.equal(fresh.encoder.timm.blocks[1].attn.qkv.weight, released.blocks[1].attn.qkv.weight)
    assert fresh.encoder.timm.pos_embed.requires_grad


def test_timm_weights_that_do_not_exist():
    with pytest.raises(UserError, match="could not be fetched") as caught:
        load_weights("timm", mae().encoder, name="vit_tiny_patch16_384.no_such_tag")
    assert "\n" not in str(caught.value)


def rubbish(folder: Path) -> dict[str, Path]:
    noise = random.Random(0).randbytes(4096)
    files = {name: folder / name for name in ("text.pth", "noise.pth", "noise.safetensors", "empty.pth", "list.pth")}
    files["text.pth"].write_text("no weights\n" * 100)
    files["noise.pth"].write_bytes(noise)
    files["noise.safetensors"].write_bytes(noise)
    files["empty.pth"].write_bytes(b"")
    torch.save([1, 2, 3], files["list.pth"])
    files["missing"] = folder / "missing"
    files["folder"] = folder / "folder"
    files["folder"].mkdir()
    return files


@pytest.mark.parametrize(
    "kind", ["text.pth", "noise.pth", "noise.safetensors", "empty.pth", "list.pth", "missing", "folder"]
)
def test_rubbish_is_refused_in_one_line(kind, tmp_path):
    fresh = mae()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(str(rubbish(tmp_path)[kind]), fresh.encoder, fresh.decoder)
    assert kind in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


class Attack:
    """What a hostile checkpoint would hold."""

    def __reduce__(self):
        return (Path.touch, (Path("attacked"),))


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Attack()}, "x.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_weights("x.pth", mae().encoder)
    assert not Path("attacked").exists()


def test_another_architecture_is_refused(trained, tmp_path):
    source = layout("export", trained, tmp_path)
    with pytest.raises(UserError, match=r"another architecture: .* is \[.*32.*\] there and \[.*48.*\] here") as caught:
        load_weights(source, config(width=48).build((32, 32), 3))
    assert "\n" not in str(caught.value)
    save_file({"layer1.0.conv1.weight": torch.zeros(4, 4)}, tmp_path / "resnet.safetensors")
    with pytest.raises(UserError) as caught:
        load_weights(str(tmp_path / "resnet.safetensors"), trained.encoder)
    assert "layer1.0.conv1.weight" in str(caught.value) and "cls_token" in str(caught.value)


def test_less_than_half_of_the_encoder_is_refused(trained, tmp_path):
    torch.save(official(trained), tmp_path / "x.pth")  # two blocks
    fresh = config(depth=3).build((32, 32), 3)
    report = load_weights(str(tmp_path / "x.pth"), fresh)
    assert any("blocks.2" in name for name in report.missing)
    with pytest.raises(UserError, match="% of its numbers"):
        load_weights(str(tmp_path / "x.pth"), config(depth=6).build((32, 32), 3))


def test_released_positions_are_ours(tmp_path):
    """The official files hold sine-cosine tables: loading them into a fixed table changes nothing."""
    method = mae()
    state = official(method)
    assert torch.equal(state["decoder_pos_embed"][0, 1:], sincos_positions((4, 4), 16))
    torch.save({"model": state}, tmp_path / "x.pth")
    fresh = mae()
    load_weights(str(tmp_path / "x.pth"), fresh.encoder, fresh.decoder)
    assert torch.equal(fresh.encoder.timm.pos_embed[0, 1:], sincos_positions((4, 4), 32))
