"""What masks cost: configurations enter, each masker's share of an MAE step, measured in one run, leaves.

One model, whose observer is exchanged from step to step, so that all masks meet the same weights and the same phase
of a shared machine. On a CPU the clock is the process's CPU time, one thread. `looking` is the observer's call alone
(signal, score and mask) less that of random masks, `step` a whole step; both are medians over rounds, as shares of the
step with random masks in the same round. `target` is what we hold `looking` (or, where said, another ratio) against.

    python benchmarks/masks.py --config s16 --json benchmarks/results/masks-cpu.json
    python benchmarks/masks.py --config s16 --device cuda    # and that no step waits for the device
    python benchmarks/masks.py --trace                       # without a GPU: that no forward pass reads a value
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.guidance.sampler import MaskSampler
from mimkit.guidance.signals import compute_signal
from mimkit.masks import (
    AMTMasker,
    AttMaskMasker,
    Masker,
    MixtureMasker,
    RandomMasker,
    SalienceMasker,
    SelfGuidedMasker,
    Signal,
    ncut,
)
from mimkit.masks.trigger import Trigger
from mimkit.methods.mae import MAEConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.decoder import DecoderConfig
from mimkit.model.patches import patchify
from mimkit.train.machine import keep_freed_memory

CONFIGS = {  # image, patch, width, depth, heads, decoder width, decoder depth, decoder heads, batch
    "mini32": (32, 4, 128, 4, 4, 64, 1, 4, 128),  # mae_mini_32
    "s16": (224, 16, 384, 12, 6, 512, 4, 16, 8),
    "b16": (224, 16, 768, 12, 12, 512, 8, 16, 1024),
}
MASKERS: dict[str, Masker] = {
    "random": RandomMasker(),
    "random again": RandomMasker(),  # what the measurement makes of no difference
    "random 0.65": RandomMasker(ratio=0.65),  # as many visible slots as AMR has
    "salience": SalienceMasker(),
    "salience, AMR": SalienceMasker(spread=0.1),
    "mixture": MixtureMasker(),
    "AttMask, online": AttMaskMasker(),
    "AttMask, ema": AttMaskMasker(hides="hint", scorer="ema"),
    "self-guided, cached": SelfGuidedMasker(start=0.0, refresh=40),
    "self-guided": SelfGuidedMasker(start=0.0),
    "AMT, cached": AMTMasker(refresh=40),
}
HALFWAY = 0.5  # progress: every masker has started
PICTURES = 4096  # in the cache


@dataclass
class Bench:
    """A model, its optimizer and a batch."""

    method: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Batch
    patches: torch.Tensor
    autocast: Callable[[], torch.autocast]
    observers: dict[str, MaskSampler]

    def step(self, name: str) -> None:
        self.method.mask_sampler = self.observers[name]
        with self.autocast():
            loss = self.method(self.batch, HALFWAY).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.mask_sampler.update(self.method.encoder)

    def look(self, name: str) -> None:
        with self.autocast():
            self.observers[name](self.method.encoder, self.patches, self.batch, HALFWAY)

    @torch.no_grad()
    def forward(self, layer: int = -2) -> torch.Tensor:
        """The pass over all patches that self-guided masks cannot do without, written plainly."""
        encoder = self.method.encoder
        with self.autocast():
            return encoder.through(encoder.embed(self.patches), len(encoder.timm.blocks) + 1 + layer).patches


def build(arguments: argparse.Namespace) -> Bench:
    keep_freed_memory()
    torch.manual_seed(0)
    size, patch, width, depth, heads, *decoder, batch = CONFIGS[arguments.config]
    batch, device = arguments.batch or batch, arguments.device
    encoder = EncoderConfig(name="vit_base_patch16_224", patch=patch, width=width, depth=depth, heads=heads)
    parts = DecoderConfig(width=decoder[0], depth=decoder[1], heads=decoder[2])
    method = MAEConfig(decoder=parts).build(encoder.build((size, size), 3)).to(device).train()
    for part in method.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = device == "cuda" or not arguments.bf16  # what mimkit chooses
    weights = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    number = torch.arange(batch)
    corner, side = torch.rand(batch, 2) * 0.4, torch.full((batch, 2), 0.6)
    inputs = Batch(
        smooth(batch, size).to(device),
        rng_keys("masks", number).to(device),
        number,
        crop=torch.cat([corner, side], dim=1).to(device),
        flip=(number % 2 == 0).to(device),
        moment=torch.full((), HALFWAY, device=device),
    )
    observers = {name: MaskSampler(masker, method.encoder).to(device) for name, masker in MASKERS.items()}
    for mask_sampler in observers.values():
        if mask_sampler.cache is not None:
            patches = method.encoder.grid[0] * method.encoder.grid[1]
            columns = 2 if isinstance(mask_sampler.guide, SelfGuidedMasker) else 1
            mask_sampler.cache = torch.rand(PICTURES, patches, columns, device=device).half()
        assert mask_sampler.trigger is None or Trigger.from_tensor(mask_sampler.trigger).fired
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=arguments.bf16)  # noqa: E731
    return Bench(method, optimizer, inputs, patchify(inputs.images, method.encoder.patch), autocast, observers)


def smooth(batch: int, size: int) -> torch.Tensor:
    """Pictures with something in them: noise of few frequencies and a little of all."""
    coarse = nn.functional.interpolate(torch.randn(batch, 3, 6, 6), size=(size, size), mode="bicubic")
    return coarse + 0.2 * torch.randn(batch, 3, size, size)


def seconds(work: Callable[[], object], device: str, times: int = 1) -> float:
    """Seconds of one call: of the process's CPU time, or of a GPU's clock."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / times
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def measure(bench: Bench, arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of each part in each round; forwards and backwards in turn, so that no part follows always the same."""
    features = compute_signal(Signal.FEATURES, bench.method.encoder, bench.patches, -2)
    parts = {
        f"{kind} {name}": lambda k=kind, n=name: getattr(bench, k)(n) for name in MASKERS for kind in ("look", "step")
    }
    parts |= {"forward": bench.forward, "ncut": lambda: ncut(features), "all": lambda: bench.forward(-1)}
    for work in parts.values():
        work()
    rows: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(arguments.rounds):
        for name in sorted(parts, reverse=number % 2 == 1):
            times = 1 if name.startswith("step") else arguments.times
            rows[name].append(seconds(parts[name], arguments.device, times))
    return rows


def flops(config: tuple[int, ...], shown: int, decoded: int | None = None) -> tuple[float, float]:
    """Matrix products for one picture: a training step that shows so many patches, and a pass over all but a block."""
    size, patch, width, depth, _, dec_width, dec_depth, _, _ = config
    n, p = (size // patch) ** 2, 3 * patch * patch

    def block(tokens: int, channels: int) -> float:
        return 24 * tokens * channels**2 + 4 * tokens**2 * channels

    forward = 2 * shown * p * width + depth * block(shown + 1, width) + 2 * (shown + 1) * width * dec_width
    forward += dec_depth * block((decoded or n) + 1, dec_width) + 2 * (decoded or n) * dec_width * p
    return 3 * forward, 2 * n * p * width + (depth - 1) * block(n + 1, width)


def table(rows: dict[str, list[float]], config: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Shares of the step with random masks, medians over rounds, and the ratios that targets speak of."""

    def ratio(one: str, other: str, less: str | None = None) -> float:
        below = rows[less] if less else [0.0] * len(rows[one])
        return round(statistics.median((a - c) / b for a, b, c in zip(rows[one], rows[other], below, strict=True)), 4)

    base, looking = "step random", {}
    for name in MASKERS:
        looking[name] = {"looking": ratio(f"look {name}", base, "look random"), "step": ratio(f"step {name}", base)}
    n = (config[0] // config[1]) ** 2
    step, scoring = flops(config, n // 4)
    looking["the cut alone"] = {"looking": ratio("ncut", base), "target": 0.02}
    looking["forward alone"] = {"looking": ratio("forward", base), "arithmetic": round(scoring / step, 4)}
    looking["salience"]["target"] = 0.02
    looking["self-guided, cached"]["target"] = 0.05
    looking["salience, AMR"]["step_over_equal_slots"] = ratio("step salience, AMR", "step random 0.65")
    looking["self-guided"]["looking_over_forward_alone"] = ratio("look self-guided", "forward", "look random")
    return looking


def waits(bench: Bench) -> None:
    """Steps of every masker on a GPU that may not make the host wait; the first that does raises with its place."""
    from torch.profiler import ProfilerActivity, profile

    waiting = ("Synchronize", "aten::item", "_local_scalar_dense", "aten::nonzero", "DtoH")
    for name in MASKERS:
        for _ in range(3):
            bench.step(name)
        torch.cuda.synchronize()
        with ExitStack() as stack:
            torch.cuda.set_sync_debug_mode("error")
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
            for _ in range(3):
                bench.step(name)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            bench.step(name)
        found = sorted({e.key for e in seen.key_averages() if any(w in e.key for w in waiting)})
        found = [key for key in found if key != "cudaDeviceSynchronize"]  # the profiler's own, when it stops
        print(f"{name}: 3 steps with synchronization forbidden passed; the profile holds {found or 'no waiting call'}")


def traced(arguments: argparse.Namespace) -> None:
    """Without a GPU: forward passes on tensors that have shapes and no values. Reading one raises.

    That is `.item()`, `if tensor` and shapes that depend on values, the usual reasons to wait; copies from the host
    need the GPU to be seen.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    bench = build(arguments)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        tensors = {k: fake.from_tensor(v) for k, v in vars(bench.batch).items() if isinstance(v, torch.Tensor)}
        batch = replace(bench.batch, **tensors)
        for name in MASKERS:
            bench.method.mask_sampler = bench.observers[name]
            with bench.autocast():
                bench.method(batch, HALFWAY)
            print(f"{name}: the forward pass reads no value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="s16", choices=CONFIGS)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=3, help="calls in a row of the parts that are no whole steps")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--trace", action="store_true", help="only look whether a forward pass reads the device")
    parser.add_argument("--json", help="put the table into this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.trace:
        traced(arguments)
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured and no step was watched for waiting (--trace looks without one)")
        return
    bench = build(arguments)
    if arguments.device == "cuda":
        waits(bench)
    rows = measure(bench, arguments)
    shown = table(rows, CONFIGS[arguments.config])
    batch, precision = len(bench.patches), "bfloat16" if arguments.bf16 else "float32"
    title = f"{arguments.config}, batch {batch}, {arguments.device}, {precision}"
    print(f"{title}: step with random masks {statistics.median(rows['step random']) * 1000:.0f} ms")
    print("| masks | looking | step | else |\n|-|-|-|-|")
    for name, row in shown.items():
        rest = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("looking", "step"))
        step = f"{row['step']:.3f}" if "step" in row else ""
        print(f"| {name} | {row['looking']:.2%} | {step} | {rest} |")
    if arguments.json:
        path = Path(arguments.json)
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        kept[title] = {"rounds": arguments.rounds, "rows": shown}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
