"""Every masker under MAE: it trains with any encoder, leaks nothing, compiles, goes on after a kill, and divides."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drills import Child, ranks, tiny
from mimkit.errors import UserError
from mimkit.masks import (
    AMTMasker,
    AttMaskMasker,
    GridMasker,
    MixtureMasker,
    PartitionMasker,
    RandomMasker,
    SalienceMasker,
    SelfGuidedMasker,
    SimMIMMasker,
    maskers,
)
from mimkit.methods.mae import MAE, MAEConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.encoder import EncoderConfig
from mimkit.model.patches import patchify
from mimkit.randomness import keys
from mimkit.task import Batch, Gallery
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.machine import Engine
from mimkit.train.pretrain import pretrain
from mimkit.train.run import RunFolder

CASES = {name: kind() for name, kind in maskers().items()} | {
    "ramp": RandomMasker(ratio=(0.5, 0.8)),
    "adaptive": SalienceMasker(spread=0.1),
    "adaptive, by number": SalienceMasker(spread=0.1, threshold=0.3, trigger="saturation", start=0.9),
    "salience, ramp": SalienceMasker(ratio=(0.5, 0.8), noise=(0.5, 0.1), scale="cosine"),
    "self-guided, average": SelfGuidedMasker(scorer="ema", start=0.0, hint_by="score"),
    "self-guided, cached": SelfGuidedMasker(refresh=1, start=0.0, trigger="exploitation"),
    "attmask, hints": AttMaskMasker(hides="hint", shown=0.1, top=0.3, scorer="ema", refresh=1),
    "amt, cached": AMTMasker(refresh=2),
    "amt, throws nothing": AMTMasker(throw=0.0, ratio=0.75),
    "mixture, curriculum": MixtureMasker(one=GridMasker(), other=SelfGuidedMasker(start=0.3), share=(0.2, 0.9)),
    "mixture, attention": MixtureMasker(other=AttMaskMasker(refresh=1)),
    "partition, independent": PartitionMasker(parts=2, mode="independent"),
}
WITH_CLASS, WITHOUT = "vit_tiny_patch16_224", "vit_base_patch16_siglip_224"
CLASSES = {"class token": WITH_CLASS, "none": WITHOUT, "registers": "vit_small_patch14_reg4_dinov2"}
SIZES = {"square": (16, 16), "rectangle": (16, 24)}


def method_of(masker, name: str = WITH_CLASS, size: tuple[int, int] = (16, 16), **model_args) -> MAE:
    torch.manual_seed(0)
    config = EncoderConfig(name=name, depth=2, width=32, heads=2, patch=4, model_args=model_args)
    encoder = config.build(size, 3)
    return MAEConfig(masker=masker, decoder=DecoderConfig(width=16, depth=1, heads=2)).build(encoder)


def batch_of(size: tuple[int, int], rows: int = 4, progress: float | None = None) -> Batch:
    generator, order = torch.Generator().manual_seed(1), torch.arange(rows)
    images = torch.randn(rows, 3, *size, generator=generator)
    crop = torch.tensor([[0.1, 0.2, 0.8, 0.7]]).repeat(rows, 1)
    moment = None if progress is None else torch.tensor(progress)
    return Batch(images, keys("test", order), order, crop=crop, flip=order % 2 == 0, moment=moment)


def gallery_of(images: Tensor) -> Gallery:
    return Gallery(len(images), lambda: images, lambda: iter([(images, torch.arange(len(images)))]))


@pytest.mark.parametrize(
    ("tokens", "shape", "precision"),
    [
        ("class token", "square", "float32"),
        ("class token", "rectangle", "bfloat16"),
        ("none", "square", "bfloat16"),
        ("none", "rectangle", "float32"),
        ("registers", "rectangle", "bfloat16"),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_every_masker_trains(case, tokens, shape, precision):
    masker, size = CASES[case], SIZES[shape]
    attends = "ATTENTION" in str(getattr(masker.guide, "signal", ""))
    if attends and tokens == "none":
        with pytest.raises(UserError, match="reads the class token's attention and this encoder has none"):
            method_of(masker, CLASSES[tokens], size)
        return
    method, batch = method_of(masker, CLASSES[tokens], size), batch_of(size)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    engine = Engine(device=torch.device("cpu"), precision=precision, attention="fused", compile=False, threads=1)
    for epoch, progress in enumerate([0.0, 0.4, 0.95]):
        method.before_epoch(epoch, progress, gallery_of(batch.images))
        step = engine.step(method, batch, progress, last=True, share=1.0)
        assert step.loss.isfinite() and step.loss.dtype == torch.float32
        assert all(value.isfinite() and value.shape == () for value in step.logs.values())
        assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        assert all(p.grad.isfinite().all() for p in trained.values())
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(progress)
        with torch.no_grad(), engine.autocast():
            leaks_nothing(method, batch, progress)


def leaks_nothing(method: MAE, batch: Batch, progress: float) -> None:
    """Neither latents of visible patches nor predictions change with the pixels of patches that are not visible."""
    patches = patchify(batch.images, method.encoder.patch)
    mask, _ = method.observer(method.encoder, patches, batch, progress)
    gone = (mask.hidden | mask.thrown)[:: mask.views]  # one view of each picture is enough to see a leak
    rows = torch.arange(len(gone)) * mask.views
    changed = torch.where(gone.unsqueeze(2), 50 * torch.ones_like(patches), patches)
    assert gone.any(dim=1).all() and not gone.all(dim=1).any()
    before, after = (method.encoder.encode(method.encoder.embed(x, mask), mask) for x in (patches, changed))
    seen = ~mask.padding[rows]
    assert torch.equal(before.patches[rows][seen], after.patches[rows][seen])
    assert torch.equal(before.prefix[rows], after.prefix[rows])
    assert torch.equal(method.predict(patches, mask)[rows], method.predict(changed, mask)[rows])
    visible = torch.where(gone.unsqueeze(2), patches, 50 * torch.ones_like(patches))  # the measure can tell
    assert not torch.equal(method.predict(visible, mask)[rows], method.predict(patches, mask)[rows])


@pytest.mark.parametrize(
    ("masker", "reason"),
    [
        (SimMIMMasker(), "masker.unit must divide the grid of 3 x 5 patches, got 2"),
        (GridMasker(), "masker.step must divide the grid of 3 x 5 patches, got 2"),
        (PartitionMasker(), "masker.parts must divide the 15 patches of a picture, got 4"),
        (MixtureMasker(one=GridMasker()), "masker.step must divide the grid of 3 x 5"),
        (MixtureMasker(other=AMTMasker()), "do not hide equally many patches"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(masker, reason):
    with pytest.raises(UserError, match=reason):
        method_of(masker, size=(12, 20))(batch_of((12, 20)), 0.5)


FITTING = [name for name in CASES if name.split(",")[0] not in ("simmim", "grid", "partition") and "curr" not in name]


@pytest.mark.parametrize("case", FITTING)
def test_odd_grids_are_no_trouble(case):
    method, batch = method_of(CASES[case], size=(12, 20)), batch_of((12, 20))
    method.before_epoch(0, 0.0, gallery_of(batch.images))
    for progress in (0.0, 0.95):
        assert method(batch, progress).loss.isfinite()


@torch.no_grad()
@pytest.mark.parametrize("pooled", [False, True])
def test_padded_rows_of_an_adaptive_ratio_are_those_of_one_picture_alone(pooled):
    masker = SalienceMasker(spread=0.2, threshold=0.3, pooled=pooled, scale="cosine")
    method, batch = method_of(masker), batch_of((16, 16), rows=6)
    patches = patchify(batch.images, (4, 4))
    mask, said = method.observer(method.encoder, patches, batch, 0.5)
    counts = mask.hidden.sum(dim=1)
    assert mask.ragged and (len(counts.unique()) > 1) == (not pooled)
    assert float(said["hidden_least"]) == pytest.approx(float(counts.min()) / 16)
    latents = method.encoder.encode(method.encoder.embed(patches, mask), mask)
    predictions = method.predict(patches, mask)
    losses = []
    for row in range(6):
        one = type(mask).from_scores(mask.hidden[row : row + 1].float(), int(counts[row]))
        alone = method.encoder.encode(method.encoder.embed(patches[row : row + 1], one), one)
        found = latents.patches[row][~mask.padding[row]][mask.visible[row][~mask.padding[row]].argsort()]
        torch.testing.assert_close(found, alone.patches[0][one.visible[0].argsort()], rtol=1e-4, atol=1e-5)
        prediction = method.predict(patches[row : row + 1], one)
        torch.testing.assert_close(predictions[row], prediction[0], rtol=1e-4, atol=1e-5)
        error = (prediction - method.target(patches[row : row + 1])).square().mean(dim=2)
        losses.append(error[one.hidden].mean())
    # a picture that hides more does not weigh more
    assert float(method(batch, 0.5).loss) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


@pytest.mark.parametrize("case", ["ramp", "salience, ramp"])
def test_changing_shapes_are_not_compiled(case):
    engine = Engine(device=torch.device("cpu"), precision="float32", attention="fused", compile=True, threads=1)
    with pytest.raises(UserError, match=r"changes with training.*--machine.compile False"):
        engine.wrap(method_of(CASES[case]))


COMPILED = [*maskers(), "adaptive", "self-guided, cached", "attmask, hints", "mixture, curriculum"]

# The import hook that checks shapes cannot be traced, so this runs in a process without it.
COMPILE = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from torch._dynamo.utils import counters
    from test_mask_product import CASES, batch_of, gallery_of, method_of

    def compiled(case, method, same=True):
        torch._dynamo.reset()
        counters.clear()
        step = torch.compile(method, fullgraph=True, backend="aot_eager")
        for epoch, progress in enumerate([0.01, 0.3, 0.5, 0.7, 0.95]):
            batch = batch_of((16, 16), progress=progress)
            method.before_epoch(epoch, progress, gallery_of(batch.images))
            eager = method(batch, progress).loss.item()
            found = step(batch, progress).loss
            found.backward()
            assert abs(found.item() - eager) < 1e-5 * eager or not same, (case, progress, found, eager)
            method.after_step(progress)
        graphs = counters["stats"]["unique_graphs"]
        print(case, graphs, flush=True)
        assert graphs <= 5, (case, graphs)  # before and after the start, and what dynamo needs to see that numbers vary

    for case in sys.argv[1:]:
        compiled(case, method_of(CASES[case]))
    compiled("dropping", method_of(CASES["self-guided, average"], drop_path_rate=0.3), same=False)
    print("all compiled")
"""


@pytest.mark.slow
def test_every_masker_compiles_in_one_piece():
    script = textwrap.dedent(COMPILE.format(tests=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, "-c", script, *COMPILED], capture_output=True, text=True)
    assert done.returncode == 0 and "all compiled" in done.stdout, done.stdout + done.stderr


# Whole runs ------------------------------------------------------------------------------------------------


def informed(data: Path, masker, **machine):
    run = tiny(data, **machine)
    run.encoder.depth = 2
    run.method.masker = masker
    return run


def test_killed_in_the_middle_of_epochs_equals_straight(forty, tmp_path):
    """Killed once when the trigger is armed, once when it has fired and the maps are cached."""
    config = informed(forty, SelfGuidedMasker(refresh=1, trigger="exploitation", start=0.9, scorer="ema", momentum=0.9))
    by_epoch = ("exploited", [0.4, 0.6, 0.6, 0.6])  # four epochs of five steps: it starts with the third
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    status, said = Child(tmp_path / "log", config, straight, by_epoch).wait()
    assert status == 0, said
    for step, last in ((7, 6), (13, 12)):
        status, said = Child(tmp_path / "log", config, killed, by_epoch, ("kill_in_step", step)).wait()
        assert status == 128 + 9, said
        state = load_checkpoint(checkpoints(killed)[-1])
        assert state["step"] == last
        cache, trigger = (state["model"][f"observer.{name}"] for name in ("cache", "trigger"))
        assert (trigger[2] == 0.5, cache.shape == (40, 9, 2)) == (last == 12, last == 12)
    status, said = Child(tmp_path / "log", config, killed, by_epoch).wait()
    assert status == 0 and "goes on    after step 12" in said, said
    one, other = (load_checkpoint(checkpoints(folder)[-1]) for folder in (straight, killed))
    for part in ("model", "optimizer"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
    for path in sorted((straight / "export").iterdir()):
        assert path.read_bytes() == (killed / "export" / path.name).read_bytes(), path.name
    lasts = [RunFolder(folder).metrics()[-1] for folder in (straight, killed)]
    assert lasts[0]["object_hidden"] > 0 and lasts[0]["loss"] == lasts[1]["loss"]


MASKERS = {
    "cached": SelfGuidedMasker(refresh=1, start=0.25),
    "salience": SalienceMasker(spread=0.1, threshold=0.3, trigger="saturation", start=0.5),
}


@pytest.mark.parametrize("name", MASKERS)
def test_two_processes_equal_one(name, forty, tmp_path):
    config = informed(forty, MASKERS[name], log_every=1, looks=0)
    config.epochs = 2
    pretrain(config, tmp_path / "alone", say=lambda line: None)
    for status, said in ranks(tmp_path / "log", config, tmp_path / "two"):
        assert status == 0, said
    alone, two = (RunFolder(tmp_path / folder).metrics() for folder in ("alone", "two"))
    for key, exactness in (("loss", 1e-5), ("gradient_norm", 1e-4)):
        torch.testing.assert_close([r[key] for r in alone], [r[key] for r in two], rtol=exactness, atol=0)
    assert len(alone) == len(two) == 10
    one, other = (load_checkpoint(checkpoints(tmp_path / folder)[-1])["model"] for folder in ("alone", "two"))
    if name == "cached":
        assert one["observer.cache"].shape == (40, 9, 2)
        assert (one["observer.cache"] - other["observer.cache"]).abs().max() < 2e-3
