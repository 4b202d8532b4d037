"""Steps of dense tasks: recipes enter; CPU seconds or pictures a second, and memory, of a whole step of each leave.

Targets are made up (`method.example`). Each recipe goes in turn, round after round, so that a slow phase of a shared
machine hits all alike; what is printed is the median. On a CPU the time is CPU time, which other work hardly disturbs.

    python benchmarks/dense.py segment_mini depth_mini keypoints_mini detect_mini --threads 1
    python benchmarks/dense.py detect_vitdet_b16 segment_upernet_vit_b16 --device cuda --batch 4 --json FILE
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch

from mimkit.core.batch import Batch
from mimkit.core.randomness import rng_keys
from mimkit.model.build import EncoderConfig
from mimkit.recipes import find_recipe
from mimkit.train.machine import keep_freed_memory

SMALL = EncoderConfig(name="vit_tiny_patch16_224", patch=8, width=128, depth=4, heads=4)
LARGE = EncoderConfig(name="vit_base_patch16_224", positions="learned")


class Contender:
    """A recipe on its encoder, ready to step."""

    def __init__(self, name: str, batch: int | None, device: torch.device) -> None:
        run = find_recipe(name, finetuning=True)
        method, size = run.method, run.images.shape()
        for setting, count in (("classes", 80), ("joints", 17)):
            if setting in method.__dataclass_fields__:
                setattr(method, setting, count)
        self.batch = batch or run.batch_size
        encoder = (SMALL if name.endswith("_mini") else LARGE).build(size, 3)
        self.task = method.build(encoder).to(device).train()
        self.optimizer = run.optimizer.build(self.task, run.batch_size)
        images = torch.randn(self.batch, 3, *size, device=device)
        number = torch.arange(self.batch)
        targets = method.example(self.batch, size, device)
        self.inputs = Batch(images, rng_keys("x", number).to(device), number, targets=targets)
        self.device = device

    def step(self) -> float:
        """Seconds of one step: of the CPU, or of the clock on a GPU."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
        clock = time.perf_counter if cuda else time.process_time
        start = clock()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):
            loss = self.task(self.inputs, 0.0).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        return clock() - start


def main() -> None:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--batch", type=int, help="pictures in a step; by default the recipe's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    contenders = {name: Contender(name, options.batch, torch.device(options.device)) for name in options.recipes}
    for contender in contenders.values():
        contender.step()  # allocates
    times = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            times[name].append(contender.step())
    rows = []
    for name, contender in contenders.items():
        seconds = statistics.median(times[name])
        row = {"recipe": name, "batch": contender.batch, "seconds_a_step": round(seconds, 4)}
        row["pictures_a_second"] = round(contender.batch / seconds, 2)
        rows.append(row)
        print(json.dumps(row))
    if options.device.startswith("cuda"):
        print(f"memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on {torch.cuda.get_device_name()}")
    else:
        print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, all together")
    if options.json:
        options.json.write_text(
            json.dumps({"device": options.device, "threads": options.threads, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
