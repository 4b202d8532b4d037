"""What methods cost: a configuration enters, each method's step against MAE's of the same encoder leaves.

Each method lives in a process of its own; one at a time works, and the parent goes round all of them, so that a slow
phase of a shared machine hits all alike. `step` is the median over rounds of this method's time over MAE's, for as many
pictures; `peak_mb` what the process gained in memory while it stepped, `saved_mb` what the forward pass keeps for the
backward pass. On CPUs the clock is the process's CPU time.

    python benchmarks/methods.py --config s16 --json benchmarks/results/methods-cpu.json
    python benchmarks/methods.py --config b16 --device cuda --bf16
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from step import peak  # beside this file
from timm.layers import set_fused_attn

from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.masks import PartitionMasker, RandomMasker, SimMIMMasker
from mimkit.methods.base import MethodConfig
from mimkit.methods.emae import EMAEConfig
from mimkit.methods.mae import MAEConfig
from mimkit.methods.maskalign import MaskAlignConfig
from mimkit.methods.simmim import SimMIMConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.reader import CrossDecoderConfig
from mimkit.train.machine import keep_freed_memory
from mimkit.weights.timm import export_timm

CONFIGS = {  # image, ViT (patch, width, depth, heads), decoder (width, depth, heads), Swin, mask unit on it, batch
    "mini32": (
        32,
        (4, 128, 4, 4),
        (64, 1, 4),
        {"embed_dim": 64, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        2,
        64,
    ),
    "s16": (192, (16, 384, 12, 6), (512, 4, 16), {"window_size": 6}, 8, 4),
    "b16": (192, (16, 768, 12, 12), (512, 8, 16), {"window_size": 6, "embed_dim": 128}, 8, 256),
}
HEADS = ("linear", "mlp", "inverse_swin_t", "inverse_swin_b")


def methods(config: tuple, teacher: str) -> dict[str, tuple[str, MethodConfig]]:
    """Names to the kind of encoder and the method."""
    decoder = DecoderConfig(width=config[2][0], depth=config[2][1], heads=config[2][2])

    def emae(parts: int, weight: float = 1.0) -> MethodConfig:
        return EMAEConfig(masker=PartitionMasker(parts=parts), decoder=decoder, weight=weight)

    crossed = CrossDecoderConfig(width=decoder.width, depth=decoder.depth, heads=decoder.heads)
    quarter, parts = RandomMasker(ratio=0.25, throw=0.5), PartitionMasker(throw=0.5)
    found: dict[str, tuple[str, MethodConfig]] = {
        "mae": ("vit", MAEConfig(decoder=decoder)),
        "mae again": ("vit", MAEConfig(decoder=decoder)),  # what the measurement makes of no difference
        "emae, 2 parts, no consistency": ("vit", emae(2, 0.0)),
        "emae, 4 parts": ("vit", emae(4)),
        "emae, 4 parts, no consistency": ("vit", emae(4, 0.0)),
        "emae, 8 parts": ("vit", emae(8)),
        "crossmae, a quarter": ("vit", MAEConfig(masker=quarter, decoder=crossed)),
        "crossmae, all": ("vit", MAEConfig(decoder=crossed)),
        "emae, 4 parts, crossmae, a quarter": ("vit", EMAEConfig(masker=parts, decoder=crossed)),
        "emae, 4 parts, crossmae, all": ("vit", EMAEConfig(decoder=crossed)),
        "maskalign": ("vit", MaskAlignConfig(teacher=teacher, layers=min(5, config[1][2]))),
        "simmim": ("vit", SimMIMConfig(masker=SimMIMMasker(unit=2))),
    }
    for head in HEADS if len(config[3].get("depths", "four")) == 4 else HEADS[:2]:  # the others undo four stages
        found[f"simmim, swin, {head}"] = ("swin", SimMIMConfig(masker=SimMIMMasker(unit=config[4]), head=head))
    return found


def encoder_of(kind: str, config: tuple):
    size, (patch, width, depth, heads), _, swin, *_ = config
    chosen = EncoderConfig(name="vit_base_patch16_224", patch=patch, width=width, depth=depth, heads=heads)
    if kind == "swin":
        chosen = EncoderConfig(name="swin_tiny_patch4_window7_224", model_args=swin)
    encoder = chosen.build((size, size), 3)
    encoder.mean, encoder.std = (0.5,) * 3, (0.25,) * 3
    return chosen, encoder


def worker(arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    config, device = CONFIGS[arguments.config], arguments.device
    size, batch = config[0], arguments.batch or config[-1]
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    set_fused_attn(device == "cuda" or not arguments.bf16)  # what mimkit chooses
    kind, method = methods(config, arguments.teacher)[arguments.worker]
    task = method.build(encoder_of(kind, config)[1]).to(device).train()
    before = peak(device)
    weights = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    number = torch.arange(batch)
    inputs = Batch(torch.randn(batch, 3, size, size, device=device), rng_keys("step", number).to(device), number)
    saved: dict[int, int] = {}
    own = {p.data_ptr() for p in task.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def loss_of() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=arguments.bf16):
            return task(inputs, 0.5).loss

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = loss_of()  # the graph stays alive, so that no storage address is counted twice
    del held

    def step() -> torch.Tensor:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    step()
    millions = sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6
    print(json.dumps({"saved_mb": sum(saved.values()) / 2**20, "millions": millions}), flush=True)
    time_step: Callable[[], float] = time.perf_counter if device == "cuda" else time.process_time
    for line in sys.stdin:
        start = time_step()
        for _ in range(int(line)):
            loss = step()
        loss.item()  # waits for the device
        print(json.dumps({"seconds": (time_step() - start) / int(line), "peak_mb": peak(device) - before}), flush=True)


def export_teacher(config: tuple, folder: str) -> None:
    """An untrained ViT of the same size: what a teacher knows does not change what it costs."""
    chosen, encoder = encoder_of("vit", config)
    args = chosen.timm_args((config[0], config[0]), 3)
    values = dict(mean=encoder.mean, std=encoder.std)
    export_timm(encoder, Path(folder), model_args=args, card="", name=chosen.name, **values)


def measure(names: list[str], shared: list[str], rounds: int, steps: int) -> tuple[dict, dict]:
    """Seconds and memory of each in each round, and what each said of itself at the start."""
    children, about = {}, {}
    for name in names:
        child = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, *shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, HF_HUB_OFFLINE="1", GOMP_SPINCOUNT="1000"),
        )
        line = next((line for line in child.stdout if line.startswith("{")), None)
        if line is None:
            sys.exit(f"{name} did not start, see above")
        children[name], about[name] = child, json.loads(line)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, child in children.items():
            child.stdin.write(f"{steps}\n")
            child.stdin.flush()
            rows[name].append(json.loads(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    return rows, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="s16", choices=CONFIGS)
    parser.add_argument("--only", nargs="+", help="names of methods; MAE is always there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--at-once", type=int, default=3, help="methods in memory beside MAE")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", help="append the table to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--teacher", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    config = CONFIGS[arguments.config]
    with tempfile.TemporaryDirectory() as folder:
        teacher = str(Path(folder) / "teacher")
        export_teacher(config, teacher)
        shared = ["--config", arguments.config, "--threads", str(arguments.threads), "--device", arguments.device]
        shared += ["--teacher", teacher] + ["--bf16"] * arguments.bf16
        shared += ["--batch", str(arguments.batch)] if arguments.batch else []
        names = [name for name in methods(config, teacher) if not arguments.only or name in ("mae", *arguments.only)]
        about: dict[str, dict[str, float]] = {}
        rows: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
        other_views = [name for name in names if name != "mae"]
        for first in range(0, len(other_views), arguments.at_once):  # with MAE each time: memory holds only so many
            group = ["mae", *other_views[first : first + arguments.at_once]]
            measured, said = measure(group, shared, arguments.rounds, arguments.steps)
            about |= said
            rows |= {name: list(zip(measured[name], measured["mae"], strict=True)) for name in group}
    table = []
    for name in names:
        ratios = [mine["seconds"] / mae["seconds"] for mine, mae in rows[name]]
        row = {
            "method": name,
            "parameters_m": round(about[name]["millions"], 1),
            "step": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
            "peak_mb": round(rows[name][-1][0]["peak_mb"]),
            "saved_mb": round(about[name]["saved_mb"], 1),
        }
        table.append(row)
    batch = arguments.batch or config[-1]
    kind = "bfloat16" if arguments.bf16 else "float32"
    print(f"{arguments.config}, batch {batch}, {arguments.device}, {kind}, {arguments.threads} threads")
    print("| " + " | ".join(table[0]) + " |\n|" + "-|" * len(table[0]))
    for row in table:
        print("| " + " | ".join(map(str, row.values())) + " |")
    if arguments.json:
        shown = {"config": arguments.config, "batch": batch, "device": arguments.device, "precision": kind}
        with open(arguments.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(shown | {"rows": table}) + "\n")


if __name__ == "__main__":
    main()
