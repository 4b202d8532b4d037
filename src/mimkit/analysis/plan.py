"""Plan: what a step takes and which GPUs there are enter; memory, settings, speed, traffic, time and dollars leave.

All of it is arithmetic on numbers that are counted (`analysis.counts`) or given. Times are in seconds, rates a
second, sizes in bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimkit.analysis.counts import Counts
from mimkit.core.errors import UserError, at_least, unknown, within
from mimkit.train.sharding import Sharding

STATE = 16  # bytes of a trained weight: itself, its gradient and AdamW's two averages, in float32
_BUCKET = 4  # bytes more of each under DDP: gradients are copied into buckets to be summed
_GATHERED = 2 * (2 + 4)  # bytes of a weight of a gathered block, of two at once: in bfloat16, its gradient in float32
_USABLE = 0.9  # share of a GPU's memory; the rest is the driver's, NCCL's and lost between allocations
_ENOUGH = 32  # pictures at once with which a GPU is busy; more would make it no faster
_HIDDEN = 2 / 3  # of computing is the backward pass, during which gradients travel
_SLACK = 3e-3  # seconds of a step on several GPUs that nothing hides: starts of kernels and collectives, waiting
_RECOMPUTING = 4 / 3  # of computing: the forward pass of the blocks a second time
_BY_BLOCKS = 8  # bytes of a weight that cross the network in a step, in all of these: twice 4 in float32


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its vendor's data sheet."""

    teraflops: float
    """10^12 operations a second in bfloat16, summed in float32, dense."""
    memory: float
    """Bytes."""
    link: float
    """Bytes a second that an all-reduce moves among the GPUs of a host (bus bandwidth): a cautious round number, as
    measured by nobody here."""


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(312, 80e9, 200e9),
    "h100": Gpu(989, 80e9, 300e9),
    "h200": Gpu(989, 141e9, 300e9),
    "b200": Gpu(2250, 180e9, 600e9),
    "l40s": Gpu(362, 48e9, 15e9),
    "4090": Gpu(165, 24e9, 15e9),
}  # SXM with NVLink; L40S and RTX 4090 have PCIe alone


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """GPUs, and what is between them. Raises UserError for a name or numbers that cannot be meant."""

    gpus: int
    gpu: str = "h100"
    per_host: int = 8
    """GPUs of a host."""
    network: float | None = None
    """GB a second of an all-reduce across hosts; by default as fast as within one: a 400 Gb/s card for each GPU."""

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise unknown("GPU", self.gpu, GPUS)
        within(1, 1 << 20, gpus=self.gpus)
        at_least(1, **{"gpus-per-host": self.per_host})
        if self.network is not None and not 0 < self.network < math.inf:
            raise UserError(f"--network is in GB a second and above 0, got {self.network:g}")
        if self.gpus > self.per_host and self.gpus % self.per_host:
            near = max(1, round(self.gpus / self.per_host)) * self.per_host
            raise UserError(
                f"{self.gpus} GPUs are no whole hosts of {self.per_host}: give --gpus {near}, or --gpus-per-host"
            )

    @property
    def kind(self) -> Gpu:
        """What the data sheet says."""
        return GPUS[self.gpu]

    @property
    def hosts(self) -> int:
        """Machines."""
        return -(-self.gpus // self.per_host)

    @property
    def across(self) -> float:
        """Bytes a second of an all-reduce over all GPUs: of the slowest way between two of them."""
        if self.hosts == 1:
            return self.kind.link
        return self.kind.link if self.network is None else min(self.kind.link, 1e9 * self.network)


def states(taken: Counts, cluster: Cluster, sharding: Sharding) -> float:
    """Bytes that a GPU holds whatever pictures it sees: weights, gradients, averages, and what moves them."""
    shared, whole = STATE * taken.trained + 4 * taken.frozen, 4 * taken.teachers
    if sharding == "none":
        return shared + whole + taken.copies + (_BUCKET * taken.trained if cluster.gpus > 1 else 0)
    holders = cluster.gpus if sharding == "full" else min(cluster.gpus, cluster.per_host)
    return shared / holders + whole + _GATHERED * taken.largest_block


def reduction(taken: Counts, cluster: Cluster, sharding: Sharding, micro_batches: int = 1) -> float:
    """Seconds that weights and gradients travel in a step, if nothing else is in their way.

    Sharded weights and gradients travel with each micro batch; without shares gradients do with the last one alone.
    """
    if cluster.gpus == 1:
        return 0.0
    times = micro_batches if sharding != "none" else 1
    if sharding == "hybrid" and cluster.hosts > 1:
        # Each GPU sums its share of the gradients across hosts, but all GPUs of a host do so over the same cards.
        return times * taken.trained * (_BY_BLOCKS / cluster.kind.link + _BY_BLOCKS / cluster.across)
    return times * taken.trained * _BY_BLOCKS / cluster.across


def step_seconds(compute: float, travel: float, micro_batches: int = 1) -> float:
    """Seconds of a step on several GPUs: what travels hides behind the backward pass of the last micro batch."""
    return compute + max(0.0, travel - _HIDDEN * compute / micro_batches) + _SLACK


def largest_part(batch: int, fitting: int) -> int:
    """The largest number of pictures up to `fitting` that divides a GPU's batch; 0: there is none."""
    return max((size for size in range(1, min(batch, fitting) + 1) if batch % size == 0), default=0)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is laid over GPUs."""

    sharding: Sharding
    recompute: bool
    micro_batch: int
    """Pictures at once on a GPU: the largest part of its batch that fits; 0: not one picture does."""
    fitting: int
    """Pictures that would fit at once."""
    states: float
    activations: float
    """Bytes of one picture."""


def layouts(taken: Counts, cluster: Cluster, per_gpu: int) -> list[Layout]:
    """All ways to lay a run over GPUs, the cheapest first: sharding waits for the network, recomputing for itself."""
    shardings: list[Sharding] = ["none"] if cluster.gpus == 1 else ["none", "full"]
    if cluster.hosts > 1:
        shardings.insert(1, "hybrid")
    usable, ways = _USABLE * cluster.kind.memory, []
    for recompute, each in ((False, taken.kept), (True, taken.recomputed)):
        if each is None:
            continue
        for sharding in shardings:
            held = states(taken, cluster, sharding)
            fitting = int(max(0.0, usable - held) / each)
            way = Layout(
                sharding=sharding,
                recompute=recompute,
                micro_batch=largest_part(per_gpu, fitting),
                fitting=fitting,
                states=held,
                activations=each,
            )
            ways.append(way)
    return ways


def choose(taken: Counts, cluster: Cluster, per_gpu: int, *, whole_batch: bool) -> tuple[Layout, str]:
    """The cheapest layout with which a GPU is busy, and why; raises UserError where nothing fits.

    Args:
        per_gpu: pictures of a step that each GPU has.
        whole_batch: they have to be there at once.
    """
    ways = layouts(taken, cluster, per_gpu)
    enough = per_gpu if whole_batch else min(per_gpu, _ENOUGH)
    plain = ways[0]
    for way in ways:
        if way.micro_batch >= enough:
            return way, _why(way, plain, enough, cluster)
    way = max(ways, key=lambda way: way.micro_batch)
    if not way.micro_batch or whole_batch:
        need = (way.states + enough * way.activations) / 1e9
        raise UserError(
            f"{enough} pictures at once take {need:.0f} GB on each GPU, of which a {cluster.gpu} has "
            f"{_USABLE * cluster.kind.memory / 1e9:.0f} for them: use more GPUs, a lower --batch-size or smaller images"
        )
    return way, f"no layout holds {enough} pictures at once; this one holds the most"


def _why(way: Layout, plain: Layout, enough: int, cluster: Cluster) -> str:
    if way is plain:
        return f"the whole model fits on each GPU beside {way.micro_batch:,} pictures"
    lack = (
        f"a whole model on each GPU leaves room for {plain.micro_batch:,} pictures of the {enough:,} that keep it busy"
    )
    if way.sharding == "hybrid":
        return f"{lack}; shares within each host suffice, and only gradients cross the network"
    return lack


def plan(
    taken: Counts,
    cluster: Cluster,
    *,
    batch_size: int,
    pictures: int,
    epochs: int,
    whole_batch: bool = False,
    utilization: float = 0.35,
    dollars: float | None = None,
) -> dict[str, Any]:
    """Everything but the files: what a run takes on these GPUs, as JSON.

    Args:
        batch_size: of a step, over all GPUs.
        utilization: share of `teraflops` that useful products reach; what is computed again does not count.
        dollars: a GPU and hour.

    Raises:
        UserError: a batch that does not divide over the GPUs, or a model that does not fit.
    """
    if batch_size % cluster.gpus:
        near = max(1, round(batch_size / cluster.gpus)) * cluster.gpus
        raise UserError(f"batch_size {batch_size} does not divide over {cluster.gpus} GPUs: use --batch-size {near}")
    per_gpu = batch_size // cluster.gpus
    layout, why = choose(taken, cluster, per_gpu, whole_batch=whole_batch)
    micro_batches = per_gpu // layout.micro_batch
    rate = utilization * cluster.kind.teraflops * 1e12 / (taken.flops * (_RECOMPUTING if layout.recompute else 1))
    compute = per_gpu / rate
    travel = reduction(taken, cluster, layout.sharding, micro_batches)
    step = compute if cluster.gpus == 1 else step_seconds(compute, travel, micro_batches)
    steps = max(1, math.ceil(epochs * pictures / batch_size))
    hours = steps * step / 3600
    result = {
        "utilization": utilization,
        "why": why,
        "batch_size": batch_size,
        "batch_per_gpu": per_gpu,
        "images_per_second_per_gpu": rate,
        "compute_seconds": compute,
        "network_seconds": travel,
        "step_seconds": step,
        "efficiency": compute / step,
        "images_per_second": batch_size / step,
        "pictures": pictures,
        "epochs": epochs,
        "steps": steps,
        "hours": hours,
        "gpu_hours": hours * cluster.gpus,
        "dollars": None if dollars is None else hours * cluster.gpus * dollars,
    }
    return _about(taken, cluster) | _laid(layout, layouts(taken, cluster, per_gpu)) | result


def _about(taken: Counts, cluster: Cluster) -> dict[str, Any]:
    """What is known before any choice."""
    return {
        "gpu": cluster.gpu,
        "gpus": cluster.gpus,
        "hosts": cluster.hosts,
        "teraflops": cluster.kind.teraflops,
        "memory_bytes": cluster.kind.memory,
        "network_bytes_per_second": cluster.across,
        "flops_per_picture": taken.flops,
        "trained": taken.trained,
        "frozen": taken.frozen,
        "teachers": taken.teachers,
        "state_bytes": STATE * taken.trained + 4 * (taken.frozen + taken.teachers),
        "kept_bytes_per_picture": taken.kept,
        "recomputed_bytes_per_picture": taken.recomputed,
    }


def _laid(layout: Layout, ways: Sequence[Layout]) -> dict[str, Any]:
    """The layout, and what others would hold."""
    return {
        "layouts": [vars(way) for way in ways],
        "sharding": layout.sharding,
        "recompute": layout.recompute,
        "micro_batch": layout.micro_batch,
        "held_bytes": layout.states,
    }
