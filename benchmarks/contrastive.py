"""One SimCLR and one MoCo v3 step against lightly's: configurations enter, a table of ratios of one run leaves.

Both train the same timm encoder, with heads of the same widths, on the same two views, which are made beforehand.
lightly's parts are put together as its documentation shows: a forward pass for each view. Its heads are
`SimCLRProjectionHead` and, with the widths that their documentation has for MoCo v3, `MoCoProjectionHead`; a loss of
MoCo v3 it does not have. Processes take turns as in `step.py`; ratios are lightly's time over the row's.

mimkit lets glibc keep freed memory in its runs; `+malloc` gives lightly the same, which tells how much that is.

    python benchmarks/contrastive.py --config s16 --json benchmarks/results/contrastive-cpu.json
    python benchmarks/contrastive.py --config r50 --device cuda --impl lightly+bf16 mimkit+bf16
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from step import answer, append, compare, cpu_kind, peak, saved_mb, show, take_turns  # beside this file
from torch import nn

from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.methods.moco_v3 import MoCoV3Config
from mimkit.methods.simclr import SimCLRConfig
from mimkit.model.backbone import Backbone
from mimkit.model.build import EncoderConfig
from mimkit.train.machine import keep_freed_memory

CONFIGS = {  # image, encoder, width of MoCo v3's hidden layers, batch
    "mini32": (32, EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=128, depth=4, heads=4), 1024, 128),
    "s16": (224, EncoderConfig(name="vit_small_patch16_224"), 4096, 8),
    "b16": (224, EncoderConfig(name="vit_base_patch16_224"), 4096, 256),
    "r18": (32, EncoderConfig(name="resnet18", model_args={"output_stride": 8}), 4096, 64),
    "r50": (224, EncoderConfig(name="resnet50"), 4096, 128),
}
METHODS = ("simclr", "moco_v3")
TEMPERATURE, MOMENTUM = 0.2, 0.99


class LightlySimCLR(nn.Module):
    """SimCLR from lightly's parts."""

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.backbone = encoder.timm
        self.head = SimCLRProjectionHead(encoder.width, encoder.width, 128)
        self.criterion = NTXentLoss(TEMPERATURE)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.criterion(self.head(self.backbone(first)), self.head(self.backbone(second)))

    def before_step(self) -> None:
        pass


class LightlyMoCoV3(nn.Module):
    """MoCo v3 from lightly's parts, and its loss in three lines."""

    def __init__(self, encoder: Backbone, hidden: int) -> None:
        super().__init__()
        convolutional = not hasattr(encoder.timm, "patch_embed")
        self.backbone = encoder.timm
        self.head = MoCoProjectionHead(encoder.width, hidden, 256, num_layers=3 - convolutional, batch_norm=True)
        self.predictor = MoCoProjectionHead(256, hidden, 256, num_layers=2, batch_norm=True)
        if not convolutional:
            deactivate_requires_grad(self.backbone.patch_embed)
        self.slow_backbone, self.slow_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.slow_backbone)
        deactivate_requires_grad(self.slow_head)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        queries = [self.predictor(self.head(self.backbone(view))) for view in (first, second)]
        rng_keys = [self.slow_head(self.slow_backbone(view)).detach() for view in (first, second)]
        return self.loss(queries[0], rng_keys[1]) + self.loss(queries[1], rng_keys[0])

    def loss(self, queries: torch.Tensor, rng_keys: torch.Tensor) -> torch.Tensor:
        """Cross-entropy times twice the temperature."""
        cosines = F.normalize(queries, dim=1) @ F.normalize(rng_keys, dim=1).T
        return (
            2
            * TEMPERATURE
            * F.cross_entropy(cosines / TEMPERATURE, torch.arange(len(rng_keys), device=rng_keys.device))
        )

    def before_step(self) -> None:
        update_momentum(self.backbone, self.slow_backbone, MOMENTUM)
        update_momentum(self.head, self.slow_head, MOMENTUM)


def build(name: str, method: str, config: tuple) -> nn.Module:
    """The method of one of the two libraries."""
    size, chosen, hidden, _ = config
    encoder = chosen.build((size, size), 3)
    if name == "mimkit":
        if method == "simclr":
            return SimCLRConfig(temperature=TEMPERATURE).build(encoder)
        return MoCoV3Config(temperature=TEMPERATURE, momentum=MOMENTUM, hidden=hidden).build(encoder)
    if hasattr(encoder.timm, "patch_embed"):
        encoder.timm.reset_classifier(0, "token")
    return LightlySimCLR(encoder) if method == "simclr" else LightlyMoCoV3(encoder, hidden)


def worker(arguments: argparse.Namespace) -> None:
    name, *options = arguments.worker.split("+")
    config, device = CONFIGS[arguments.config], arguments.device
    size, batch = config[0], arguments.batch or config[-1]
    if name == "mimkit" or "malloc" in options:
        keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    model = build(name, arguments.method, config).to(device).train()
    for part in model.modules():  # what mimkit chooses; timm's default elsewhere
        if name == "mimkit" and hasattr(part, "fused_attn"):
            part.fused_attn = device == "cuda" or "bf16" not in options
    before = peak(device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.05, fused=True)
    first, second = torch.randn(2, batch, 3, size, size, device=device)
    number = torch.arange(batch)
    inputs = Batch(first, rng_keys("step", number).to(device), number, other_views=(second,))

    def loss_of() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled="bf16" in options):
            return model(inputs, 0.5).loss if name == "mimkit" else model(first, second)

    def step() -> torch.Tensor:
        if name == "lightly":
            model.before_step()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if name == "mimkit":
            model.after_step(0.5)
        return loss

    saved = saved_mb(model, loss_of)
    step()
    millions = sum(p.numel() for p in weights) / 1e6
    answer(step, device, before, saved_mb=saved, millions=millions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mini32", choices=CONFIGS)
    parser.add_argument("--method", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--impl", nargs="+", default=["lightly", "lightly+malloc", "mimkit"], help="NAME[+bf16]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", help="append the tables to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        arguments.method = arguments.method[0]
        worker(arguments)
        return
    batch = arguments.batch or CONFIGS[arguments.config][-1]
    shared = ["--config", arguments.config, "--threads", str(arguments.threads), "--device", arguments.device]
    shared += ["--batch", str(batch), "--method"]
    for method in arguments.method:
        rows, info = take_turns(__file__, arguments.impl, [*shared, method], arguments.rounds, arguments.steps)
        table = compare(rows, info, batch)
        for row in table:
            row["parameters_m"] = round(info[row["implementation"]]["millions"], 1)
        print(f"{method}, {arguments.config}, batch {batch}, {arguments.device}, {arguments.threads} threads")
        show(table)
        if arguments.json:
            about = {"method": method, "config": arguments.config, "batch": batch, "device": arguments.device}
            append(arguments.json, about | {"cpu": cpu_kind(), "rounds": arguments.rounds, "rows": table})


if __name__ == "__main__":
    main()
