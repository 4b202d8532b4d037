"""Every masker under every masked method: it trains with any encoder, leaks nothing, compiles, goes on after a kill,
and divides over processes; or it is refused by name, with the reason, when the method is built."""

import functools
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drills import Child, ranks, tiny
from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import (
    AMTMasker,
    AttMaskMasker,
    BlockMasker,
    ComplementaryMasker,
    GridMasker,
    InverseBlockMasker,
    Mask,
    Masker,
    MixtureMasker,
    MultiBlockMasker,
    MultinomialMasker,
    PartitionMasker,
    RandomMasker,
    SalienceMasker,
    SelfGuidedMasker,
    Signal,
    SimMIMMasker,
    ToppedBlockMasker,
    maskers,
)
from mimkit.masks.informed import InformedMasker
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.bootmae import BootMAE, BootMAEConfig
from mimkit.methods.capi import CAPI, CAPIConfig
from mimkit.methods.cmae import CMAEConfig
from mimkit.methods.data2vec import Data2Vec, Data2VecConfig
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.ibot import IBOTConfig
from mimkit.methods.ijepa import IJEPA, IJEPAConfig
from mimkit.methods.mae import MAEConfig
from mimkit.methods.maskalign import MaskAlign, MaskAlignConfig
from mimkit.methods.masked_dino import MaskedDINO
from mimkit.methods.msn import MSN, MSNConfig
from mimkit.methods.mst import MSTConfig
from mimkit.methods.simmim import SimMIM, SimMIMConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.grid_decoder import GridDecoderConfig
from mimkit.model.latents import LatentTargetConfig
from mimkit.model.patches import patchify
from mimkit.model.predictor import PredictorConfig
from mimkit.model.reader import CrossDecoderConfig
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.machine import Engine
from mimkit.train.prepare import Prepared
from mimkit.train.run_folder import RunFolder
from mimkit.weights.timm import export_timm
from places import SUPPORT

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
    "block, by picture": BlockMasker(ratio=0.5, spread=0.1, exact=False),
    "mixture, curriculum": MixtureMasker(one=GridMasker(), other=SelfGuidedMasker(start=0.3), fraction=(0.2, 0.9)),
    "mixture, attention": MixtureMasker(other=AttMaskMasker(refresh=1, rounded="up")),
    "partition, independent": PartitionMasker(parts=2, mode="independent"),
    "partition, thrown": PartitionMasker(parts=4, throw=0.3),
    "random, thrown": RandomMasker(ratio=0.25, throw=0.5),
}
WITH_CLASS, WITHOUT = "vit_tiny_patch16_224", "vit_base_patch16_siglip_224"
CLASSES = {"class token": WITH_CLASS, "none": WITHOUT, "registers": "vit_small_patch14_reg4_dinov2"}
SIZES = {"square": (16, 16), "rectangle": (16, 24)}


SWIN = EncoderConfig(
    name="swin_tiny_patch4_window7_224",
    model_args={"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4},
)
HEAD = {"prototypes": 12, "hidden": 16, "bottleneck": 8, "freeze_last": 0.0}
TWO_VIEWS = {"ibot": "IBOT", "mst": "MST"}
WITH_SLOW_COPY = TWO_VIEWS | {"cmae": "CMAE", "msn": "MSN"}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def config_of(name: str) -> EncoderConfig:
    return EncoderConfig(name=name, depth=2, width=32, heads=2, patch=4)


@functools.cache
def teacher() -> str:
    """The folder of a model with a class token, for MaskAlign to imitate."""
    torch.manual_seed(9)
    config, folder = config_of(WITH_CLASS), Path(tempfile.mkdtemp(prefix="mimkit-tests-")) / "export"
    args = config.timm_args((16, 16), 3)
    export_timm(config.build((16, 16), 3), folder, model_args=args, mean=MEAN, std=STD, card="", name=WITH_CLASS)
    return str(folder)


def settings_of(method: str, masker: Masker) -> MethodConfig:
    decoder, crossed = DecoderConfig(width=16, depth=1, heads=2), CrossDecoderConfig(width=16, depth=2, heads=2)
    return {
        "mae": lambda: MAEConfig(masker=masker, decoder=decoder),
        "emae": lambda: EMAEConfig(masker=masker, decoder=decoder),
        "crossmae": lambda: MAEConfig(masker=masker, decoder=crossed),
        "cross emae": lambda: EMAEConfig(masker=masker, decoder=crossed),
        "simmim": lambda: SimMIMConfig(masker=masker),
        "maskalign": lambda: MaskAlignConfig(masker=masker, teacher=teacher(), layers=2),
        "ibot": lambda: IBOTConfig(masker=masker, **HEAD),
        "mst": lambda: MSTConfig(masker=masker, decoder=decoder, **HEAD),
        "msn": lambda: MSNConfig(masker=masker, prototypes=12, hidden=16, outputs=8, weight=5.0),
        "cmae": lambda: CMAEConfig(masker=masker, decoder=decoder, feature_decoder=decoder, hidden=8, outputs=4),
        "ijepa": lambda: IJEPAConfig(masker=masker, predictor=PredictorConfig(width=16, depth=1)),
        "bootmae": lambda: BootMAEConfig(masker=masker, width=16, depth=1, ramp=0.0),
        "capi": lambda: CAPIConfig(masker=masker, clusters=12, depth=1, heads=2),
        "data2vec": lambda: Data2VecConfig(masker=masker, target=LatentTargetConfig(layers=1)),
        "data2vec2": lambda: Data2VecConfig(
            masker=masker, target=LatentTargetConfig(layers=1), decoder=GridDecoderConfig(layers=1, groups=4), loss="l2"
        ),
    }[method]()


def method_of(
    masker: Masker, name: str = WITH_CLASS, size: tuple[int, int] = (16, 16), method: str = "mae", **model_args
) -> Method:
    torch.manual_seed(0)
    config = config_of(name)
    config.model_args = model_args
    encoder = config.build(size, 3)
    encoder.mean, encoder.std = MEAN, STD
    return settings_of(method, masker).build(encoder)


def refusal(method: str, masker: Masker, tokens: str) -> str | None:
    """All that does not work, and the reason a person is given."""
    guide, name = masker.guide, type(masker.guide).__name__
    attends = getattr(guide, "signal", None) is Signal.ATTENTION
    if method in WITH_SLOW_COPY and attends and tokens == "none" and guide.scorer in ("online", "ema"):
        return f"{name} reads the class token's attention and this encoder has none"
    if "cross" in method and getattr(guide, "trigger", "") == "exploitation":
        return f"{name} is to start by the exploitation of a decoder and CrossMAE's decoder reads visible tokens alone"
    if method not in ("mae", "emae", "cmae") and getattr(guide, "trigger", "") == "exploitation":
        reason = "is to start by the exploitation of a decoder and"
        return f"{name} {reason} (SimMIM|MaskAlign|IBOT|MST|MSN|data2vec|I-JEPA|CAPI|BootMAE) has no decoder"
    if method in WITH_SLOW_COPY and isinstance(masker, PartitionMasker | ComplementaryMasker):
        return f"{WITH_SLOW_COPY[method]} hides patches of a view once and {name} does so [24] times"
    if method in WITH_SLOW_COPY and (getattr(masker, "throw", 0) or isinstance(masker, InverseBlockMasker)):
        setting = "throw 0" if hasattr(masker, "throw") else "predict 1"
        return f"{name} throws some away: use --method.masker.{setting}"
    if method == "msn" and (getattr(masker, "spread", 0) or not getattr(masker, "exact", True)):
        return f"MSN hides as many patches in each picture and {name} does not"
    if method in TWO_VIEWS and getattr(guide, "refresh", 0):
        return f"{TWO_VIEWS[method]} masks two views and cached maps follow the first alone"
    if "emae" in method and isinstance(masker, ComplementaryMasker):
        return "two views of ComplementaryMasker hide no patch in common, so nothing can agree"
    if attends and tokens == "none" and not (method == "maskalign" and guide.scorer == "online"):  # asks the teacher
        return f"{name} reads the class token's attention and this encoder has none"
    if "emae" in method and not isinstance(masker, PartitionMasker):
        return f"EMAE compares several views of a picture and {type(masker).__name__} makes one"
    return None


def batch_of(size: tuple[int, int], rows: int = 4, progress: float | None = None) -> Batch:
    generator, order = torch.Generator().manual_seed(1), torch.arange(rows)
    images = torch.randn(rows, 3, *size, generator=generator)
    crop = torch.tensor([[0.1, 0.2, 0.8, 0.7]]).repeat(rows, 1)
    moment = None if progress is None else torch.tensor(progress)
    views = (images.flip(3), images[:, :, :8, :8])
    keys = rng_keys("test", order)
    return Batch(images, keys, order, crop=crop, flip=order % 2 == 0, progress=moment, other_views=views)


def dataset_of(images: Tensor) -> DatasetView:
    return DatasetView(len(images), lambda: images, lambda: iter([(images, torch.arange(len(images)))]))


@pytest.mark.parametrize(
    ("name", "tokens", "shape", "precision"),
    [
        ("mae", "class token", "square", "float32"),
        ("mae", "class token", "rectangle", "bfloat16"),
        ("mae", "none", "rectangle", "float32"),
        ("mae", "registers", "rectangle", "bfloat16"),
        ("emae", "class token", "rectangle", "bfloat16"),
        ("emae", "none", "square", "float32"),
        ("crossmae", "class token", "rectangle", "bfloat16"),
        ("crossmae", "none", "square", "float32"),
        ("crossmae", "registers", "rectangle", "float32"),
        ("cross emae", "class token", "rectangle", "bfloat16"),
        ("simmim", "class token", "rectangle", "float32"),
        ("simmim", "none", "square", "bfloat16"),
        ("maskalign", "class token", "rectangle", "bfloat16"),
        ("maskalign", "none", "square", "float32"),
        ("ibot", "class token", "rectangle", "bfloat16"),
        ("ibot", "none", "square", "float32"),
        ("mst", "class token", "square", "bfloat16"),
        ("mst", "none", "rectangle", "float32"),
        ("msn", "class token", "rectangle", "bfloat16"),
        ("msn", "none", "square", "float32"),
        ("cmae", "class token", "square", "bfloat16"),
        ("cmae", "none", "rectangle", "float32"),
        ("bootmae", "class token", "rectangle", "bfloat16"),
        ("bootmae", "none", "square", "float32"),
        ("capi", "class token", "rectangle", "bfloat16"),
        ("capi", "none", "square", "float32"),
        ("capi", "registers", "square", "float32"),
        ("data2vec", "class token", "rectangle", "bfloat16"),
        ("data2vec", "none", "square", "float32"),
        ("ijepa", "class token", "square", "float32"),
        ("ijepa", "none", "rectangle", "bfloat16"),
        ("data2vec2", "class token", "square", "float32"),
        ("data2vec2", "none", "rectangle", "bfloat16"),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_every_masker_trains_or_is_refused(case, name, tokens, shape, precision):
    masker, size = CASES[case], SIZES[shape]
    if reason := refusal(name, masker, tokens):
        with pytest.raises(UserError, match=reason):
            method_of(masker, CLASSES[tokens], size, name)
        return
    method, batch = method_of(masker, CLASSES[tokens], size, name), batch_of(size)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    engine = Engine(device=torch.device("cpu"), precision=precision, attention="fused", compile=False, threads=1)
    for epoch, progress in enumerate([0.0, 0.95]):
        method.before_epoch(epoch, progress, dataset_of(batch.images))
        step = engine.step(method, batch, progress, last=True, fraction=1.0)
        assert step.loss.isfinite() and step.loss.dtype == torch.float32
        assert all(value.isfinite() and value.shape == () for value in step.logs.values())
        assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        assert all(p.grad.isfinite().all() for p in trained.values())
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(progress)
        with torch.no_grad(), engine.autocast():
            leaks_nothing(method, batch, progress)


def seen(method: Method, patches: Tensor, mask: Mask) -> list[Tensor]:
    """What the student makes of a batch: a row for each view; nothing in surplus slots."""
    if isinstance(method, BootMAE):
        return [*method.predict(patches, mask)]
    if isinstance(method, CAPI):
        read, places = method.predict(patches, mask)
        return [read * mask.hidden.gather(1, places).unsqueeze(2)]
    if isinstance(method, SimMIM | Data2Vec):
        return [method.predict(patches, mask)]
    if isinstance(method, MaskedDINO):
        tokens = method.student(patches, mask.hidden)
        return [*tokens, method.embedder.projector(tokens.patches)]
    if isinstance(method, MSN):
        encoder = method.embedder.encoder
        return [*encoder.encode(encoder.embed(patches, mask), mask)]
    if isinstance(method, IJEPA):
        return [method.predict(patches, mask) * mask.at_blocks(mask.hidden).unsqueeze(3)]
    encoder, real = method.encoder, ~mask.padding.unsqueeze(2)
    blocks = encoder.by_block(encoder.embed(patches, mask), mask)
    found = [blocks[-1].prefix, blocks[-1].patches * real]
    if isinstance(method, MaskAlign):
        real = F.pad(real, (0, 0, int(method.with_class), 0), value=True)
        return found + [part * real for part in method.alignment([method.joined(block) for block in blocks])]
    return [*found, method.predict(patches, mask)]


def leaks_nothing(method: Method, batch: Batch, progress: float) -> None:
    """Neither latents of visible patches nor predictions change with the pixels of patches that are not visible."""
    patches = patchify(batch.images, method.encoder.patch)
    mask, _ = method.mask_sampler(method.encoder, patches, batch, progress)
    gone = (mask.hidden | mask.thrown)[:: mask.views]  # one view of each picture is enough to see a leak
    rows = torch.arange(len(gone)) * mask.views
    changed = torch.where(gone.unsqueeze(2), 50 * torch.ones_like(patches), patches)
    visible = torch.where(gone.unsqueeze(2), patches, 50 * torch.ones_like(patches))  # the measure can tell
    assert gone.any(dim=1).all() and not gone.all(dim=1).any()
    before, after, other = (seen(method, x, mask) for x in (patches, changed, visible))
    assert all(torch.equal(a[rows], b[rows]) for a, b in zip(before, after, strict=True))
    assert not torch.equal(before[-1][rows], other[-1][rows])


@pytest.mark.parametrize(
    ("masker", "reason"),
    [
        (SimMIMMasker(), "masker.unit must divide the grid of 3 x 5 patches, got 2"),
        (GridMasker(), "masker.step must divide the grid of 3 x 5 patches, got 2"),
        (PartitionMasker(), "masker.parts must divide the 15 patches of a picture, got 4"),
        (MixtureMasker(one=GridMasker()), "masker.step must divide the grid of 3 x 5"),
        (MixtureMasker(other=AMTMasker()), "do not hide equally many patches"),
        (MixtureMasker(other=SalienceMasker(spread=0.1, start=0.5)), "do not hide equally many patches"),
    ],
)
@pytest.mark.parametrize("name", ["mae", "emae", "crossmae", "simmim", "maskalign"])
def test_what_does_not_fit_is_refused_with_the_reason(masker, reason, name):
    with pytest.raises(UserError, match=f"{type(masker).__name__}: .*{reason}"):
        method_of(masker, size=(12, 20), method=name)


@pytest.mark.parametrize("case", CASES)
def test_windows_take_what_looks_at_nothing(case):
    """SimMIM on a Swin; the other methods leave patches out, which a Swin cannot."""
    encoder, masker = SWIN.build((32, 32), 3), CASES[case]
    if isinstance(masker.guide, InformedMasker):
        name = type(masker.guide).__name__
        with pytest.raises(UserError, match=f"{name} reads a value for each patch .* windows merges its patches"):
            SimMIMConfig(masker=masker).build(encoder)
        return
    method = SimMIMConfig(masker=masker).build(encoder)
    method(batch_of((32, 32)), 0.5).loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["mae", "emae", "maskalign", "bootmae", "capi", "data2vec", "ijepa"])
def test_methods_that_leave_patches_out_take_no_windows(name, forty):
    run = tiny(forty)
    run.encoder, run.images.size, run.method = SWIN, 32, settings_of(name, PartitionMasker())
    with pytest.raises(UserError, match=r"SwinTransformer\) cannot be this encoder: its attention runs in windows"):
        _ = Prepared(run).task


@dataclass(frozen=True, kw_only=True)
class Given(Masker):
    """Always the same mask."""

    mask: Mask

    def __call__(self, score_maps, rng_keys, progress, grid) -> Mask:
        return self.mask


@torch.no_grad()
@pytest.mark.parametrize("name", ["simmim", "maskalign", "data2vec", "data2vec2", "ijepa"])
def test_views_folded_into_the_batch_are_as_good_as_alone(name):
    method, batch = method_of(PartitionMasker(), method=name), batch_of((16, 16))
    mask = PartitionMasker()(batch.images.new_zeros(4, 16, 0), batch.rng_keys, 0.5, (4, 4))
    whole, losses = method(batch, 0.5).loss, []
    for view in range(4):
        method.mask_sampler.masker = Given(mask=Mask(mask.hidden[view::4], mask.visible[view::4]))
        losses.append(method(batch, 0.5).loss)
    torch.testing.assert_close(whole, torch.stack(losses).mean(), rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mae", "crossmae", "simmim", "maskalign", "ijepa"])
def test_a_ragged_batch_is_the_mean_of_its_pictures(name):
    method = method_of(SalienceMasker(spread=0.2, threshold=0.3, pooled=False, scale="cosine"), method=name)
    batch = batch_of((16, 16))
    mask, _ = method.mask_sampler(method.encoder, patchify(batch.images, (4, 4)), batch, 0.5)
    assert mask.ragged and len(mask.hidden.sum(dim=1).unique()) > 1
    alone = [method(Batch(batch.images[[i]], batch.rng_keys[[i]], batch.index[[i]]), 0.5).loss for i in range(4)]
    torch.testing.assert_close(method(batch, 0.5).loss, torch.stack(alone).mean(), rtol=1e-4, atol=1e-6)


FITTING = [name for name in CASES if name.split(",")[0] not in ("simmim", "grid", "partition") and "curr" not in name]


@pytest.mark.parametrize("case", FITTING)
def test_odd_grids_are_no_trouble(case):
    method, batch = method_of(CASES[case], size=(12, 20)), batch_of((12, 20))
    method.before_epoch(0, 0.0, dataset_of(batch.images))
    for progress in (0.0, 0.95):
        assert method(batch, progress).loss.isfinite()


@torch.no_grad()
@pytest.mark.parametrize("pooled", [False, True])
def test_padded_rows_of_an_adaptive_ratio_are_those_of_one_picture_alone(pooled):
    masker = SalienceMasker(spread=0.2, threshold=0.3, pooled=pooled, scale="cosine")
    method, batch = method_of(masker), batch_of((16, 16), rows=6)
    patches = patchify(batch.images, (4, 4))
    mask, said = method.mask_sampler(method.encoder, patches, batch, 0.5)
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


FEW = ["mae/salience", "emae/partition", "crossmae/random, thrown", "simmim/simmim", "maskalign/multinomial"]
FEW += ["bootmae/topped-block", "capi/inverse-block", "data2vec/block", "data2vec2/partition, independent"]
FEW += ["ijepa/multi-block", "ibot/block, by picture", "cmae/adaptive", "msn/random", "mst/attmask"]
COMPILED = [f"mae/{case}" for case in (*maskers(), "adaptive", "self-guided, cached", "attmask, hints")]
COMPILED += ["crossmae/adaptive", "cross emae/partition, thrown", "mae/random, thrown"]
COMPILED += ["mae/mixture, curriculum", "emae/partition, independent", "maskalign/random"]
COMPILED += [f"ibot/{case}" for case in ("random", "salience", "adaptive", "attmask")]
COMPILED += [
    f"{name}/{case}"
    for name in ("simmim", "maskalign", "bootmae", "capi", "data2vec", "data2vec2", "ijepa")
    for case in ("partition", "salience", "adaptive", "self-guided, average", "attmask, hints", "amt, cached")
]

# The import hook that checks shapes cannot be traced, so this runs in a process without it.
COMPILE = """
    import sys
    sys.path.insert(0, {tests!r})
    sys.path.insert(0, {support!r})
    import torch
    torch.set_num_threads(1)
    from torch._dynamo.utils import counters
    from test_mask_product import CASES, batch_of, dataset_of, method_of

    moments = [float(moment) for moment in sys.argv[1].split()]

    def compiled(case, method, same=True):
        torch._dynamo.reset()
        counters.clear()
        step = torch.compile(method, fullgraph=True, backend="aot_eager")
        for epoch, progress in enumerate(moments):
            batch = batch_of((16, 16), progress=progress)
            method.before_epoch(epoch, progress, dataset_of(batch.images))
            eager = method(batch, progress).loss.item()
            found = step(batch, progress).loss
            found.backward()
            assert abs(found.item() - eager) < 1e-5 * eager or not same, (case, progress, found, eager)
            method.after_step(progress)
        graphs = counters["stats"]["unique_graphs"]
        print(case, graphs, flush=True)
        assert graphs <= 5, (case, graphs)  # before and after the start, and what dynamo needs to see that numbers vary

    for word in sys.argv[2:]:
        name, case = word.split("/")
        if name == "dropping":
            compiled(word, method_of(CASES[case], drop_path_rate=0.3), same=False)
        else:
            compiled(word, method_of(CASES[case], method=name))
    print("all compiled")
"""


def compile_all(moments: str, words: list[str]) -> None:
    script = textwrap.dedent(COMPILE.format(tests=str(Path(__file__).parent), support=str(SUPPORT)))
    done = subprocess.run([sys.executable, "-c", script, moments, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "all compiled" in done.stdout, done.stdout + done.stderr


def test_one_masker_for_each_method_compiles_in_one_piece():
    compile_all("0.5", FEW[:4])


@pytest.mark.slow
def test_one_masker_for_each_further_method_compiles_in_one_piece():
    compile_all("0.5", FEW[4:])


@pytest.mark.slow
def test_every_masker_compiles_in_one_piece():
    compile_all("0.01 0.3 0.5 0.7 0.95", [*COMPILED, "dropping/self-guided, average"])


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
        cache, trigger = (state["model"][f"mask_sampler.{name}"] for name in ("cache", "memory"))
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


# A masker for each signal and, of those that look, with something to remember.
NOTHING, PATCHES = RandomMasker(), SalienceMasker(spread=0.1, threshold=0.3, trigger="saturation", start=0.5)
FEATURES = SelfGuidedMasker(refresh=1, start=0.25, scorer="ema", momentum=0.9)
ATTENTION = {"mae": AttMaskMasker(scorer="ema", momentum=0.9), "maskalign": MultinomialMasker(refresh=1)}
RUNS = {
    "emae, nothing": ("emae", PartitionMasker(parts=3)),
    "crossmae, nothing": ("crossmae", RandomMasker(ratio=0.3, throw=0.4)),
    "bootmae, nothing": ("bootmae", ToppedBlockMasker(blocks=0.6)),
    "capi, nothing": ("capi", InverseBlockMasker(predict=0.4)),
    "data2vec, features": ("data2vec", FEATURES),
    "data2vec2, nothing": ("data2vec2", PartitionMasker(parts=3)),
    "ijepa, nothing": ("ijepa", MultiBlockMasker()),
    "ijepa, patches": ("ijepa", PATCHES),
} | {
    f"{name}, {signal}": (name, masker)
    for name in ("mae", "simmim", "maskalign")
    for signal, masker in {
        "nothing": NOTHING,
        "patches": PATCHES,
        "features": FEATURES,
        "attention": ATTENTION.get(name, AMTMasker(refresh=1, scorer="ema")),
    }.items()
}
LAST = 10  # steps: two epochs


@pytest.fixture(scope="module")
def runs(forty, tmp_path_factory) -> dict[str, Path]:
    """Folders of all runs: made alone, stopped within the second epoch and gone on with elsewhere, and by two."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("alone", "resumed", "two")}
    configs = []
    for name, masker in RUNS.values():
        run = informed(forty, masker, log_every=1, evals=0, save_every=LAST)
        run.epochs, run.method = 2, settings_of(name, masker)
        configs.append(run)

    def child(kind: str, **how) -> Child:
        return Child(folders[kind] / f"log{how}", configs, [folders[kind] / name for name in RUNS], **how)

    both = [child("alone"), child("resumed", max_steps=7)]
    for status, said in [one.wait() for one in both]:
        assert status == 0, said
    status, said = child("resumed").wait()
    assert status == 0 and said.count("goes on    after step 7") == len(RUNS), said
    for status, said in ranks(folders["two"] / "log", configs, [folders["two"] / name for name in RUNS]):
        assert status == 0, said
    return folders


def kept(folder: Path) -> dict:
    state = load_checkpoint(checkpoints(folder)[-1])
    assert state["step"] == LAST
    return {part: state[part] for part in ("model", "optimizer")}


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed_equals_straight_bit_for_bit(name, runs):
    one, other = (kept(runs[kind] / name) for kind in ("alone", "resumed"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    remembered = [key for key in one["model"] if "mask_sampler." in key]
    assert bool(remembered) == ("nothing" not in name)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(name, runs):
    alone, two = (RunFolder(runs[kind] / name).metrics() for kind in ("alone", "two"))
    assert len(alone) == len(two) == LAST
    for key, exactness in (("loss", 1e-5), ("gradient_norm", 1e-4)):
        torch.testing.assert_close([r[key] for r in alone], [r[key] for r in two], rtol=exactness, atol=0)
    one, other = (kept(runs[kind] / name)["model"] for kind in ("alone", "two"))
    if "mask_sampler.cache" in one:
        assert one["mask_sampler.cache"].shape[:2] == (40, 9)
        assert (one["mask_sampler.cache"] - other["mask_sampler.cache"]).abs().max() < 2e-3
