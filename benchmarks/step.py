"""One MAE training step against the peers: configurations enter, a table of ratios measured in one run leaves.

Each implementation lives in a process of its own; one at a time works, and the parent goes round all of them (A B C
A B C ...), so that a slow phase of a shared machine hits all alike. The ratio is the median over rounds of the first
implementation's time over this one's. Same shapes, mask ratio 0.75, standardized patches, AdamW.

    python benchmarks/step.py --config tiny4 --threads 1
    python benchmarks/step.py --config b16 --device cuda --impl mimkit mimkit+bf16 --json benchmarks/results/step.json
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

CONFIGS = {  # image, patch, width, depth, heads, decoder width, decoder depth, decoder heads, batch
    "tiny4": (32, 4, 192, 6, 3, 128, 2, 4, 64),
    "ti16": (224, 16, 192, 12, 3, 192, 4, 3, 16),
    "s16": (224, 16, 384, 12, 6, 512, 8, 16, 8),
    "b16": (224, 16, 768, 12, 12, 512, 8, 16, 1024),
    "l16": (224, 16, 1024, 24, 16, 512, 8, 16, 512),
    "h14": (224, 14, 1280, 32, 16, 512, 8, 16, 256),
}
DEFAULT = ["transformers", "lightly", "mimkit", "transformers+bf16", "lightly+bf16", "mimkit+bf16"]
PEAK = {"cuda": 989e12}  # dense bf16 of an H100 or H200, for the share of peak


def build_mimkit(config, options):
    from mimkit.methods.mae import MAEConfig
    from mimkit.model.build import EncoderConfig
    from mimkit.model.decoder import DecoderConfig
    from mimkit.train.machine import keep_freed_memory

    keep_freed_memory()
    size, patch, width, depth, heads, *decoder, _ = config
    encoder = EncoderConfig(name="vit_base_patch16_224", patch=patch, width=width, depth=depth, heads=heads)
    task = MAEConfig(decoder=DecoderConfig(width=decoder[0], depth=decoder[1], heads=decoder[2])).build(
        encoder.build((size, size), 3)
    )
    plain = "bf16" in options and "cuda" not in options and "fused" not in options
    for part in task.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = not plain
    return task


def build_transformers(config, options):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size, patch, width, depth, heads, *decoder, _ = config
    settings = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=size,
        patch_size=patch,
        decoder_hidden_size=decoder[0],
        decoder_num_hidden_layers=decoder[1],
        decoder_num_attention_heads=decoder[2],
        decoder_intermediate_size=4 * decoder[0],
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    settings._attn_implementation = "sdpa"
    return ViTMAEForPreTraining(settings)


def build_lightly(config, options):
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    size, patch, width, depth, heads, *decoder, _ = config

    class Lightly(nn.Module):
        """MAE from lightly's parts, put together as its documentation shows, with standardized patches."""

        def __init__(self):
            super().__init__()
            vit = VisionTransformer(
                img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
            )
            self.encoder = MaskedVisionTransformerTIMM(vit=vit)
            self.embed = nn.Linear(width, decoder[0])
            self.decoder = MaskedVisionTransformerDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                embed_dim=decoder[0],
                depth=decoder[1],
                num_heads=decoder[2],
                num_prefix_tokens=vit.num_prefix_tokens,
                mlp_ratio=4.0,
            )
            self.head = nn.Linear(decoder[0], patch * patch * 3)

        def forward(self, images):
            shape = (images.shape[0], self.encoder.sequence_length)
            keep, hide = utils.random_token_mask(size=shape, mask_ratio=0.75, device=images.device)
            latents = self.embed(self.encoder.encode(images=images, idx_keep=keep))
            full = utils.set_at_index(latents.new_zeros(*shape, latents.shape[-1]), keep, latents)
            predicted = self.head(utils.get_at_index(self.decoder(full, idx_mask=hide), hide))
            target = utils.get_at_index(utils.patchify(images, patch), hide - 1)
            variance = target.var(-1, keepdim=True)
            target = (target - target.mean(-1, keepdim=True)) / (variance + 1e-6) ** 0.5
            return nn.functional.mse_loss(predicted, target)

    return Lightly()


def flops(config) -> float:
    """Matrix products of one picture's training step: three times the forward pass."""
    size, patch, width, depth, _, dec_width, dec_depth, _, _ = config
    n, p = (size // patch) ** 2, 3 * patch * patch
    seen = n // 4 + 1

    def block(tokens: int, channels: int) -> float:
        return 24 * tokens * channels**2 + 4 * tokens**2 * channels

    forward = 2 * seen * p * width + depth * block(seen, width) + 2 * seen * width * dec_width
    return 3 * (forward + dec_depth * block(n + 1, dec_width) + 2 * n * dec_width * p)


def worker(arguments) -> None:
    import torch

    name, *options = arguments.worker.split("+")
    config = CONFIGS[arguments.config]
    batch, device = arguments.batch or config[-1], arguments.device
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    builders = {"mimkit": build_mimkit, "transformers": build_transformers, "lightly": build_lightly}
    model = builders[name](config, [*options, device]).to(device).train()
    before = peak(device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=name == "mimkit")
    images = torch.randn(batch, 3, config[0], config[0], device=device)
    if name == "mimkit":
        from mimkit.core.batch import Batch
        from mimkit.core.randomness import rng_keys

        number = torch.arange(batch)
        inputs = Batch(images, rng_keys("step", number).to(device), number)

    def loss_of():
        with torch.autocast(device, torch.bfloat16, enabled="bf16" in options):
            if name == "mimkit":
                return model(inputs, 0.0).loss
            return model(images) if name == "lightly" else model(pixel_values=images).loss

    if "compile" in options:
        model.compile()
        saved = 0.0
    else:
        saved = saved_mb(model, loss_of)

    def step():
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for _ in range(3):
        step()
    answer(step, device, before, saved_mb=saved)


def saved_mb(model, loss_of) -> float:
    """What autograd keeps of one forward pass for the backward pass, besides the parameters."""
    import torch

    saved, own = {}, {p.data_ptr() for p in model.parameters()}

    def note(tensor):
        if tensor.data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = loss_of()  # the graph stays alive, so that no storage address is counted twice
    del held
    return sum(saved.values()) / 2**20


def answer(step, device: str, before: float, **about: float) -> None:
    """A worker's part of `take_turns`: say what is known, then take as many steps as each line asks for."""
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = step()
        last = loss.item()  # waits for the device
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        row = {"wall": wall / int(line), "cpu": cpu / int(line), "loss": last, "peak_mb": peak(device) - before}
        print(json.dumps(row), flush=True)


def peak(device: str) -> float:
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def take_turns(script: str, names: list[str], shared: list[str], rounds: int, steps: int) -> tuple[dict, dict]:
    """Run a worker of `script` for each name and let them step in turns: each one's rounds, and what each is like."""
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELIZM="false", GOMP_SPINCOUNT="1000")
    children, info = {}, {}
    for name in names:
        child = subprocess.Popen(
            [sys.executable, script, "--worker", name, *shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        line = next((line for line in child.stdout if line.startswith("{")), None)
        if line is None:
            sys.exit(f"{name} did not start, see above")
        children[name], info[name] = child, json.loads(line)
    rows = {name: [] for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            child.stdin.write(f"{steps}\n")
            child.stdin.flush()
            rows[name].append(json.loads(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    return rows, info


def compare(rows: dict, info: dict, batch: int) -> list[dict]:
    """A row for each implementation, with medians over rounds of the first one's time over its own.

    `least` and `most` are those of the rounds' CPU ratios.
    """
    first, table = next(iter(rows.values())), []
    for name, mine in rows.items():
        speed = batch / statistics.median(row["wall"] for row in mine)
        row = {"implementation": name, "images_per_second": round(speed, 1)}
        for time_step in ("wall", "cpu"):
            ratios = [a[time_step] / b[time_step] for a, b in zip(first, mine, strict=True)]
            row[f"ratio_{clock}"] = round(statistics.median(ratios), 3)
        row |= {"least": round(min(ratios), 3), "most": round(max(ratios), 3)}
        row |= {"peak_mb": round(mine[-1]["peak_mb"]), "saved_mb": round(info[name]["saved_mb"], 1)}
        table.append(row)
    return table


def show(table: list[dict]) -> None:
    """Print it as Markdown."""
    print("| " + " | ".join(table[0]) + " |\n|" + "-|" * len(table[0]))
    for row in table:
        print("| " + " | ".join(map(str, row.values())) + " |")


def append(path: str, row: dict) -> None:
    """Add a line of JSON to a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def cpu_kind() -> str:
    """Which kind of processor this is, not which machine: family and model, and the instructions torch uses."""
    import torch

    kind = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            said = dict(map(str.strip, line.split(":", 1)) for line in file if ":" in line)
        wanted = ("vendor_id", "cpu family", "model")
        kind = " ".join([kind, *(said[name] for name in wanted if name in said)])
    return f"{kind} {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny4", choices=CONFIGS)
    parser.add_argument("--impl", nargs="+", default=DEFAULT, help="NAME[+bf16][+compile][+fused]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", help="append the table to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    shared = ["--config", arguments.config, "--threads", str(arguments.threads), "--device", arguments.device]
    shared += ["--batch", str(arguments.batch)] if arguments.batch else []
    rows, info = take_turns(__file__, arguments.impl, shared, arguments.rounds, arguments.steps)
    config = CONFIGS[arguments.config]
    batch = arguments.batch or config[-1]
    work, table = flops(config), compare(rows, info, batch)
    if arguments.device in PEAK:
        for row in table:
            row["share_of_peak"] = round(row["images_per_second"] * work / PEAK[arguments.device], 3)
    work_each = f"{work / 1e9:.1f} GFLOP a picture"
    print(f"{arguments.config}, batch {batch}, {arguments.device}, {arguments.threads} threads, {work_each}")
    show(table)
    if arguments.json:
        shown = {"config": arguments.config, "batch": batch, "device": arguments.device, "cpu": cpu_kind()}
        append(arguments.json, shown | {"rounds": arguments.rounds, "rows": table})


if __name__ == "__main__":
    main()
