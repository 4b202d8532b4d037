"""Contrastive methods in several processes: a method's kind enters, what two steps computed leaves."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from drills import processes
from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.masks import AttMaskMasker, BlockMasker, RandomMasker
from mimkit.methods.base import Method
from mimkit.methods.cmae import CMAEConfig
from mimkit.methods.dino import DINOConfig
from mimkit.methods.ibot import IBOTConfig
from mimkit.methods.moco import MoCoConfig
from mimkit.methods.moco_v3 import MoCoV3Config
from mimkit.methods.msn import MSNConfig
from mimkit.methods.mst import MSTConfig
from mimkit.methods.simclr import SimCLRConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig

RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False, "output_stride": 8}
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=16, depth=2, heads=2)
CONFIGS = {
    "simclr": SimCLRConfig(temperature=0.5, outputs=8),
    "moco": MoCoConfig(queue=32, outputs=8, momentum=0.5),
    "moco_v3": MoCoV3Config(hidden=16, outputs=8, momentum=0.5),
    "dino": DINOConfig(prototypes=24, hidden=16, bottleneck=8, momentum=0.5, freeze_last=0.3),
    "cmae": CMAEConfig(
        decoder=DecoderConfig(width=16, depth=1, heads=2),
        feature_decoder=DecoderConfig(width=16, depth=1, heads=2),
        hidden=16,
        outputs=8,
        momentum=0.5,
    ),
    "msn": MSNConfig(masker=RandomMasker(ratio=0.3), prototypes=12, hidden=16, outputs=8, momentum=0.5),
    "mst": MSTConfig(
        masker=AttMaskMasker(hides="low", among=0.5, ratio=0.25, scorer="ema"),
        decoder=DecoderConfig(width=16, depth=1, heads=2),
        prototypes=24,
        hidden=16,
        bottleneck=8,
        momentum=0.5,
        freeze_last=0.3,
    ),
    "ibot": IBOTConfig(
        masker=BlockMasker(ratio=0.3, spread=0.2, none=0.4, exact=False),
        prototypes=24,
        hidden=16,
        bottleneck=8,
        momentum=0.5,
        freeze_last=0.3,
    ),
}
BATCH, SIZE, DIFFERENT = 8, 16, 4


def small(kind: str) -> Method:
    """A tiny method `NAME-vit` or `NAME-resnet` with the same weights at every call."""
    name, _, encoder = kind.partition("-")
    torch.manual_seed(0)
    config = VIT if encoder == "vit" else EncoderConfig(name="resnet18", model_args=RESNET)
    return CONFIGS[name].build(config.build((SIZE, SIZE), 3))


def batch(step: int = 0, part: slice = slice(0, BATCH)) -> Batch:
    """Two views of each picture, noise in common and some of their own, and a crop of the second."""
    noise = torch.randn(3, BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(step))
    number = torch.arange(BATCH)[part]
    one, two = ((noise[0] + 0.3 * noise[view])[part] for view in (1, 2))
    return Batch(one, rng_keys("contrast", step, number), number, other_views=(two, two[:, :, 4:12, 4:12]))


def two_steps(kind: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Losses and logs of both steps, gradients and what is in the state after them; every picture occurs twice."""
    method = small(kind)
    task = DistributedDataParallel(method, broadcast_buffers=False) if world > 1 else method
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    found: dict[str, Any] = {}
    size = BATCH // world
    for step in range(2):
        optimizer.zero_grad()
        mine = batch(step, slice(rank * size, rank * size + size))
        result = task(replace(mine, index=mine.index % DIFFERENT), step / 2)
        result.loss.backward()
        means = [value for name, value in sorted(result.logs.items()) if name != "spread"]
        numbers = torch.stack([result.loss.detach(), *means])
        if world > 1:
            dist.all_reduce(numbers)
        found[f"numbers {step}"] = numbers / world
        for name, parameter in method.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {step} {name}"] = parameter.grad.clone()
        method.before_step(step / 2)
        optimizer.step()
        method.after_step(step / 2)
    return found | {f"state {name}": value.clone() for name, value in method.state_dict().items()}


def _child(rank: int, world: int, port: int, kinds: list[str], file: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = {kind: two_steps(kind, rank, world) for kind in kinds}
    if rank == 0:
        torch.save(found, file)
    dist.destroy_process_group()


def in_ranks(kinds: list[str], world: int, folder: Path) -> dict[str, dict[str, Any]]:
    """`two_steps` of each kind in several processes that meet over gloo; what the first of them has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = folder / f"{world}.pt"
    children = [processes.Process(target=_child, args=(n, world, port, kinds, str(file))) for n in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    return torch.load(file)
