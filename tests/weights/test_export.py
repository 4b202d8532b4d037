"""Exports: what timm and transformers load equals what was trained, and a folder is never half written."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.methods.mae import MAE, MAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.vit import Encoder
from mimkit.weights import folder as export_folder
from mimkit.weights.card import model_card, with_library, with_scores
from mimkit.weights.folder import MARK, replaced
from mimkit.weights.huggingface import export_huggingface
from mimkit.weights.timm import export_timm

NAME = "vit_small_patch16_224"
# What can go wrong: sides, channels, prefix tokens, a tag in the name, CLIP's norms, DeiT-III's scales.
SHAPES = {
    "plain": (EncoderConfig(name=NAME, patch=8, width=48, depth=2, heads=3), (32, 32), 3),
    "rectangle": (EncoderConfig(name=NAME, patch=4, width=48, depth=2, heads=3), (16, 24), 1),
    "five channels": (EncoderConfig(name=NAME, patch=4, width=48, depth=2, heads=3), (16, 16), 5),
    "oblong patches": (
        EncoderConfig(name=NAME, width=48, depth=2, heads=3, model_args={"patch_size": [4, 8]}),
        (16, 24),
        3,
    ),
    "registers": (
        EncoderConfig(name="vit_small_patch14_reg4_dinov2", patch=4, width=48, depth=2, heads=3),
        (16, 16),
        3,
    ),
    "no class token": (
        EncoderConfig(name="vit_base_patch16_siglip_224", patch=4, width=48, depth=2, heads=3),
        (16, 16),
        3,
    ),
    "tag": (EncoderConfig(name="vit_base_patch16_224.mae", patch=8, width=48, depth=2, heads=3), (16, 16), 3),
    "clip": (
        EncoderConfig(name="vit_base_patch16_clip_224", patch=4, width=48, depth=2, heads=3),
        (16, 16),
        3,
    ),
    "token pooling asked for": (
        EncoderConfig(name=NAME, patch=8, width=48, depth=2, heads=3, model_args={"global_pool": "token"}),
        (16, 16),
        3,
    ),
    "any size": (
        EncoderConfig(name=NAME, patch=4, width=48, depth=2, heads=3, model_args={"dynamic_img_size": True}),
        (16, 24),
        1,
    ),
    "learned": (
        EncoderConfig(name="deit3_small_patch16_224", patch=4, width=48, depth=2, heads=3, positions="learned"),
        (16, 16),
        3,
    ),
}


def scrambled(module: torch.nn.Module) -> None:
    """Random values in every tensor, so that nothing is equal by being zero or one."""
    generator = torch.Generator().manual_seed(0)
    for value in module.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.2)


def small_encoder(shape: str = "plain") -> tuple[Encoder, dict, str]:
    config, size, channels = SHAPES[shape]
    encoder = config.build(size, channels)
    scrambled(encoder)
    return encoder.eval(), config.timm_args(size, channels), config.name


def small_mae(config: EncoderConfig | None = None, size: tuple[int, int] = (32, 32), **settings) -> MAE:
    config = config or SHAPES["plain"][0]
    method = MAEConfig(decoder=DecoderConfig(width=32, depth=1, heads=2), **settings).build(config.build(size, 3))
    scrambled(method)
    return method.eval()


def write(encoder: Encoder, folder: Path, args: dict, name: str, card: str = "card", **settings) -> None:
    mean = [0.1 * (i + 1) for i in range(encoder.channels)]
    std = [0.2] * encoder.channels
    export_timm(encoder, folder, name=name, model_args=args, mean=mean, std=std, card=card, **settings)


@pytest.mark.parametrize("shape", SHAPES)
def test_timm_gives_equal_outputs(shape, tmp_path):
    encoder, args, name = small_encoder(shape)
    write(encoder, tmp_path / "export", args, name)
    source = f"local-dir:{tmp_path / 'export'}"
    images = torch.randn(2, encoder.channels, *encoder.size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loaded = timm.create_model(source, pretrained=True).eval()
        assert torch.equal(loaded(images), encoder.timm(images))
        headed = timm.create_model(source, pretrained=True, num_classes=10).eval()
        assert headed(images).shape == (2, 10)
        assert torch.equal(headed.forward_features(images), encoder.timm.forward_features(images))
        if encoder.timm.has_class_token:
            token = timm.create_model(source, pretrained=True, global_pool="token").eval()
            assert torch.equal(token(images), encoder.timm.forward_features(images)[:, 0])


def classifier(classes: int = 3) -> tuple[Encoder, dict, str]:
    """As a fine-tuning leaves it: built without outputs, which were put on top."""
    encoder, args, name = small_encoder()
    encoder.timm.reset_classifier(classes)
    scrambled(encoder)
    return encoder.eval(), args, name


@pytest.mark.parametrize("classes", [(), ("cat", "dog & [b]", "10")], ids=["encoder", "classifier"])
def test_transformers_and_timm_open_the_same_folder(classes, tmp_path):
    transformers = pytest.importorskip("transformers")
    encoder, args, name = classifier() if classes else small_encoder()
    write(encoder, tmp_path / "export", args, name, classes=classes)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = transformers.AutoModel.from_pretrained(tmp_path / "export").eval()
    with torch.no_grad():
        headless = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True, num_classes=0).eval()
        assert torch.equal(model.timm_model(images), headless(images))
        loaded = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
        assert loaded.num_classes == len(classes) and torch.equal(loaded(images), encoder.timm(images))
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config.get("label_names", []) == list(classes) == list(loaded.pretrained_cfg.get("label_names") or ())
    if not classes:
        return
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "export").eval()
    with torch.no_grad():
        assert torch.equal(model(images).logits, loaded(images))
    picture = Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy())
    answers = transformers.pipeline("image-classification", model=str(tmp_path / "export"))(picture)
    data = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    with torch.no_grad():
        chances = loaded(data(picture)[None]).softmax(dim=1)[0]
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
        dict(zip(classes, chances.tolist(), strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("classes", [0, 3])
def test_exports_of_version_0_2_build_the_outputs_that_they_have(classes, tmp_path):
    encoder, args, name = classifier(classes) if classes else small_encoder()
    write(encoder, tmp_path / "export", args, name)
    file = tmp_path / "export" / "config.json"
    config = json.loads(file.read_text())
    assert "num_classes" not in config["model_args"] and config["num_classes"] == classes
    config["model_args"]["num_classes"] = classes
    file.write_text(json.dumps(config))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        loaded = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
        assert torch.equal(loaded(images), encoder.timm(images)) and loaded.num_classes == classes


@pytest.mark.parametrize("shape", ["rectangle", "any size"])
def test_timm_folder_says_how_pictures_were_prepared(shape, tmp_path):
    encoder, args, name = small_encoder(shape)
    write(encoder, tmp_path / "export", args, name, interpolation="bilinear", crop_pct=1.0)
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True)
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (1, 16, 24)
    assert tuple(data["mean"]) == (0.1,) and tuple(data["std"]) == (0.2,)
    assert (data["interpolation"], data["crop_pct"]) == ("bilinear", 1.0)


def test_timm_folder_claims_nothing_of_the_released_weights(tmp_path):
    encoder, args, name = small_encoder("tag")
    assert encoder.timm.pretrained_cfg["license"]  # MAE's released weights have one, which is not ours to give
    write(encoder, tmp_path / "export", args, name)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["architecture"] == "vit_base_patch16_224"
    assert not config["pretrained_cfg"]["license"] and not config["pretrained_cfg"]["tag"]
    assert not {"url", "hf_hub_id", "origin_url"} & {k for k, v in config["pretrained_cfg"].items() if v}


@pytest.mark.parametrize("norm", [True, False])
def test_huggingface_gives_equal_outputs(norm, tmp_path):
    transformers = pytest.importorskip("transformers")
    from mimkit.masks import RandomMasker
    from mimkit.methods.targets.pixels import Pixels

    method = small_mae(masker=RandomMasker(ratio=0.5), target=Pixels(norm=norm))
    export_huggingface(method, tmp_path / "hf", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], card="card")
    model, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    assert (model.config.norm_pix_loss, model.config.mask_ratio) == (norm, 0.5)
    assert (model.config.layer_norm_eps, model.config.num_channels, model.config.patch_size) == (1e-6, 3, 8)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.config.mask_ratio = 0.0  # every patch visible: the same order on both sides
    noise = torch.arange(16.0).expand(2, -1)
    with torch.no_grad():
        theirs = model.eval().vit(images, noise=noise).last_hidden_state
        ours = torch.cat(method.encoder(images), dim=1)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and processor.size["height"] == 32


HEAD = {"width": 48, "depth": 1, "heads": 3, "patch": 8}
INEXPRESSIBLE = {
    "no class token": EncoderConfig(name="vit_base_patch16_siglip_224", **HEAD),
    "register tokens": EncoderConfig(name="vit_small_patch14_reg4_dinov2", **HEAD),
    "no squares (32x40)": EncoderConfig(name=NAME, **HEAD),
    "patches are no squares": EncoderConfig(name=NAME, model_args={"patch_size": [4, 8]}, **HEAD),
    "LayerScale": EncoderConfig(name="deit3_small_patch16_224", **HEAD),
    "queries and keys": EncoderConfig(name=NAME, model_args={"qk_norm": True}, **HEAD),
    "before the blocks": EncoderConfig(name="vit_base_patch16_clip_224", **HEAD),
    "one eps": EncoderConfig(name="vit_base_patch16_clip_224", **HEAD),
    "no bias": EncoderConfig(name=NAME, model_args={"qkv_bias": False}, **HEAD),
    "linear-GELU-linear": EncoderConfig(name="vit_base_patch16_clip_quickgelu_224", **HEAD),
    "another kind": EncoderConfig(name="vit_small_patch16_18x2_224", **HEAD),
}


@pytest.mark.parametrize("reason", INEXPRESSIBLE)
def test_huggingface_refuses_what_it_cannot_express(reason, tmp_path):
    method = small_mae(INEXPRESSIBLE[reason], (32, 40) if "32x40" in reason else (32, 32))
    with pytest.raises(UserError) as caught:
        export_huggingface(method, tmp_path / "hf", mean=[0.5] * 3, std=[0.2] * 3, card="")
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_an_export_replaces_the_old_one_and_leaves_nothing_beside(tmp_path):
    encoder, args, name = small_encoder()
    folder = tmp_path / "run" / "export"
    write(encoder, folder, args, name, "first")
    (folder.with_name(".export.partial")).mkdir()  # what a killed process left
    (folder.with_name(".export.partial") / "preprocessor_config.json").write_text("x")
    write(encoder, folder, args, name, "second")
    assert (folder / "README.md").read_text() == "second"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["export"]
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "identity.json", "model.safetensors"]
    modes = {(folder / file).stat().st_mode for file in os.listdir(folder)}
    assert len(modes) == 1  # safetensors would be readable for the owner alone


@pytest.mark.parametrize("swap", [True, False])
def test_a_failing_export_leaves_the_old_one(swap, tmp_path, monkeypatch):
    if not swap:  # systems without an exchange of folders
        monkeypatch.setattr(export_folder, "_exchange", lambda one, other: False)
    encoder, args, name = small_encoder()
    folder = tmp_path / "export"
    write(encoder, folder, args, name, "first")
    write(encoder, folder, args, name, "second")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_folder, "_flush", full)
    with pytest.raises(UserError, match="No space left"):
        write(encoder, folder, args, name, "third")
    assert (folder / "README.md").read_text() == "second"
    timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_folder_is_swapped_in_only_when_complete(tmp_path):
    folder = tmp_path / "export"
    for turn, before in (("first", None), ("second", "first")):
        with replaced(folder) as partial:
            (partial / "config.json").write_text(MARK)
            (partial / "README.md").write_text(turn)
            assert before is None or (folder / "README.md").read_text() == before
            assert folder.exists() == (before is not None)
        assert (folder / "README.md").read_text() == turn


def test_everything_is_on_the_disk_before_it_is_swapped_in(tmp_path, monkeypatch):
    encoder, args, name = small_encoder()
    folder = tmp_path / "export"
    write(encoder, folder, args, name, "first")
    flushed = []
    monkeypatch.setattr(
        export_folder, "_flush", lambda path: flushed.append((path, (folder / "README.md").read_text()))
    )
    write(encoder, folder, args, name, "second")
    before = {path.name for path, readme in flushed if readme == "first"}
    assert before == {"README.md", "config.json", "identity.json", "model.safetensors", ".export.partial"}
    assert (tmp_path, "second") in flushed


@pytest.mark.parametrize("files", [["thesis.tex"], ["config.json", "model.safetensors"]])
def test_other_peoples_folders_are_never_replaced(files, tmp_path):
    encoder, args, name = small_encoder()
    for file in files:
        (tmp_path / file).write_text("years of work")
    with pytest.raises(UserError, match="new or empty folder"):
        write(encoder, tmp_path, args, name)
    with pytest.raises(UserError, match="new or empty folder"):
        write(encoder, tmp_path / files[0], args, name)
    assert sorted(os.listdir(tmp_path)) == files
    assert {(tmp_path / file).read_text() for file in files} == {"years of work"}


@pytest.mark.parametrize("swap", [True, False])
def test_other_files_in_an_export_move_along(swap, tmp_path, monkeypatch):
    if not swap:
        monkeypatch.setattr(export_folder, "_exchange", lambda one, other: False)
    encoder, args, name = small_encoder()
    folder = tmp_path / "export"
    folder.mkdir()
    write(encoder, folder, args, name, "first")
    (folder / "notes.txt").write_text("mine")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    for turn in ("second", "third"):
        write(encoder, folder, args, name, turn)
        assert sorted(os.listdir(folder)) == [
            ".git",
            "README.md",
            "config.json",
            "identity.json",
            "model.safetensors",
            "notes.txt",
        ]
        assert (folder / "README.md").read_text() == turn and (folder / ".git" / "HEAD").read_text() == "ref"
        assert os.listdir(tmp_path) == ["export"]


def card(**changes) -> str:
    facts = {
        "architecture": "vit_x",
        "recipe": "mae_vit_x",
        "data": "photos",
        "pictures": 1200,
        "steps": 3000,
        "epochs": 80.5,
        "size": (32, 48),
        "mean": [0.5],
        "std": [0.25],
        "measured": {"kNN accuracy": (0.71, 0.69, 0.73), "RankMe": 41.0},
    }
    return model_card(**(facts | changes))


def test_the_card_says_what_was_run_and_measured():
    text = card()
    for fact in ("1,200", "3,000", "80.5", "32 x 48", "0.2500", "0.71 (0.69 to 0.73)", "41", "mimkit"):
        assert fact in text
    assert 'timm.create_model("local-dir:' in text and "belong to the person who trained" in text
    assert "ViTMAEForPreTraining" in card(library="transformers")
    assert "Nothing yet" in card(measured={})


def test_the_card_of_a_classifier_lists_its_outputs():
    text = card(supervised=True, classes=["cat", "a|b", *map(str, range(58))])
    assert "| 0 | cat |" in text and "| 1 | a\\|b |" in text and "| 49 | 47 |" in text and "| 50 |" not in text
    assert "and 10 more in config.json" in text and "more in" not in card(classes=["a"] * 50)
    assert "outputs" not in card()


def test_the_card_escapes_what_a_person_named():
    text = card(data="<script>x</script>\n---\n# Title | *a*", recipe="a`b`[c](d)")
    assert "<script>" not in text and "\n# Title" not in text
    assert text.count("\n---\n") == card().count("\n---\n") == 1
    rows = [line for line in text.splitlines() if line.startswith("| Data")]
    assert rows[0].replace("\\|", "").count("|") == 3
    assert r"a\`b\`\[c\]\(d\)" in text


TAGS = {
    "segment": "image-segmentation",
    "depth": "depth-estimation",
    "detect": "object-detection",
    "keypoints": "keypoint-detection",
}


@pytest.mark.parametrize("task", TAGS)
def test_the_card_of_a_dense_task(task):
    names = [] if task == "depth" else ["cat", "a|b", *map(str, range(58))]
    text = card(supervised=True, masked=False, task=task, classes=names, measured={})
    assert f"\npipeline_tag: {TAGS[task]}\n" in text and "image-classification" not in text
    assert "with annotations" in text and "fine-tuned" in text and ("| 1 | a\\|b |" in text) == (task != "depth")
    assert ("joint" in text.partition("## What it names")[2]) == (task == "keypoints")
    assert "mimkit predict FOLDER" in text and 'mimkit.load("FOLDER").predict' in text and "timm.create_model(" in text
    again = with_scores(with_scores(text, {"mIoU": "0.1 (0 to 1)"}), {"mIoU": "0.512 (0.4 to 0.6)", "pixels": 0.25})
    assert (
        "0.512 \\(0.4 to 0.6\\)" in again
        and "| pixels | 0.25 |" in again
        and "| pixels | 0.25 |" not in text
        and "0.1 \\(0 to" not in again
    )
    assert (
        again.endswith(text[-80:]) and again.partition("## What was measured")[0] == text.partition("## What was m")[0]
    )
    assert with_library(text, "onnx").startswith("---\nlibrary_name: onnx\n")
