"""Tiny runs of every kind for sharded training: a name and pictures enter, a Pretrain of a few steps leaves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrastive_ranks import RESNET
from drills import tiny
from mimkit.masks import AMTMasker, AttMaskMasker, MultinomialMasker, RandomMasker, SalienceMasker, SelfGuidedMasker
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.finetune import FineTuneConfig
from mimkit.methods.mae import MAEConfig
from mimkit.methods.maskalign import MaskAlignConfig
from mimkit.methods.simmim import SimMIMConfig
from mimkit.methods.targets.color import ColorClusters
from mimkit.methods.tokenizer import VQVAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.grid_decoder import GridDecoderConfig
from mimkit.model.latents import LatentTargetConfig
from mimkit.model.predictor import PredictorConfig
from mimkit.model.tokenizer import TokenizerConfig
from mimkit.recipes import find_recipe
from mimkit.train.optimizer import AdamWConfig, LarsConfig, SGDConfig
from mimkit.train.prepare import Pretrain
from transfers import settings

VIT = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=2, heads=2)
SWIN = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2}
DECODER = DecoderConfig(width=16, depth=1, heads=2)


def mae(data: Any, **masker: Any) -> Pretrain:
    """Eight steps in two epochs."""
    run = tiny(data, log_every=1, evals=2, save_every=None)
    run.encoder, run.images.size, run.epochs = VIT, 16, 2
    run.method = MAEConfig(decoder=DECODER, **masker)
    run.optimizer = AdamWConfig(base_lr=0.05)
    return run


def of_recipe(name: str, data: Any, encoder: EncoderConfig = VIT, **settings: Any) -> Pretrain:
    """Method and views of a recipe for 32 px, in the size of `mae`."""
    run, recipe = mae(data), find_recipe(name)
    run.method, run.images = replace(recipe.method, **settings), recipe.images
    run.images.size, run.encoder = 16, encoder
    run.optimizer = AdamWConfig(base_lr=0.005)  # BatchNorm over few pictures makes more of the last digits
    return run


def with_optimizer(run: Pretrain, optimizer: Any) -> Pretrain:
    run.optimizer = optimizer
    return run


def with_encoder(run: Pretrain, encoder: EncoderConfig) -> Pretrain:
    run.encoder = encoder
    return run


def maskalign(data: Any, teacher: str) -> Pretrain:
    run = mae(data)
    run.method = MaskAlignConfig(teacher=teacher, layers=2, masker=MultinomialMasker())
    return run


def simmim(data: Any, **settings: Any) -> Pretrain:
    run = mae(data)
    run.method = SimMIMConfig(**settings)
    return run


def finetune(data: Any) -> Pretrain:
    run = mae(data)
    run.method = FineTuneConfig(classes=2, drop_path=0.0)
    run.optimizer = AdamWConfig(base_lr=0.01, layer_decay=0.75)
    return run


def tokenizer(data: Any) -> Pretrain:
    run = mae(data)
    run.method = VQVAEConfig(tokenizer=TokenizerConfig(classes=16, code=4, width=8, depth=1))
    return run


RESNET18 = EncoderConfig(name="resnet18", model_args=RESNET)
WINDOWS = EncoderConfig(name="swin_tiny_patch4_window7_224", patch=2, model_args=SWIN)
BEIT = EncoderConfig(
    name="beit_base_patch16_224",
    patch=4,
    width=32,
    depth=2,
    heads=2,
    model_args={"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
)
ONE_BLOCK = {"target": LatentTargetConfig(standardize="both")}
KINDS: dict[str, Callable[[Any], Pretrain]] = {
    "mae": mae,
    "clip": lambda data: with_optimizer(mae(data), AdamWConfig(base_lr=0.05, clip=0.3)),
    "clip_each": lambda data: with_optimizer(mae(data), AdamWConfig(base_lr=0.05, clip_each=0.05)),
    "lars": lambda data: with_optimizer(mae(data), LarsConfig(base_lr=10.0)),
    "sgd": lambda data: with_optimizer(mae(data), SGDConfig(base_lr=0.5)),
    "emae": lambda data: replace(mae(data), method=EMAEConfig(decoder=DECODER)),
    "simmim": simmim,
    "simmim_swin": lambda data: with_encoder(simmim(data), WINDOWS),
    "clusters": lambda data: simmim(data, target=ColorClusters(clusters=8)),
    "simclr": lambda data: of_recipe("simclr_mini_32", data),
    "simclr_resnet": lambda data: of_recipe("simclr_mini_32", data, RESNET18),
    "moco_v2": lambda data: of_recipe("moco_v2_mini_32", data, queue=32),
    "moco_v3": lambda data: of_recipe("moco_v3_mini_32", data, hidden=16, outputs=8),
    "dino": lambda data: of_recipe("dino_mini_32", data, prototypes=24, hidden=16, bottleneck=8),
    "ibot": lambda data: of_recipe("ibot_mini_32", data, prototypes=24, hidden=16, bottleneck=8),
    "cmae": lambda data: of_recipe(
        "cmae_mini_32", data, decoder=DECODER, feature_decoder=DECODER, hidden=16, outputs=8
    ),
    "msn": lambda data: of_recipe("msn_mini_32", data, masker=RandomMasker(), prototypes=24, hidden=16, outputs=8),
    "mst": lambda data: of_recipe("mst_mini_32", data, decoder=DECODER, prototypes=24, hidden=16, bottleneck=8),
    "data2vec": lambda data: of_recipe("data2vec_mini_32", data, **ONE_BLOCK, masker=RandomMasker(ratio=0.6)),
    "data2vec2": lambda data: of_recipe("data2vec2_mini_32", data, **ONE_BLOCK, decoder=GridDecoderConfig(groups=4)),
    "ijepa": lambda data: of_recipe("ijepa_mini_32", data, predictor=PredictorConfig(width=16, depth=1)),
    "beit": lambda data: with_encoder(simmim(data), BEIT),
    "tokenizer": tokenizer,
    "sbam": lambda data: mae(data, masker=SalienceMasker(start=0.25)),
    "amr": lambda data: mae(data, masker=SalienceMasker(start=0.25, spread=0.1)),
    "self_guided": lambda data: mae(data, masker=SelfGuidedMasker(trigger="exploitation", start=0.25)),
    "attmask": lambda data: mae(data, masker=AttMaskMasker(hides="hint", scorer="ema", start=0.1)),
    "amt": lambda data: mae(data, masker=AMTMasker(start=0.0, refresh=1)),
}
DENSE = ("segment", "depth", "detect")


def dense(task: str, data: Path) -> Pretrain:
    run = settings(task, data, epochs=3, batch_size=2)
    run.method.drop_path = 0.0
    return run
