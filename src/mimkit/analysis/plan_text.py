"""The text of a plan: a plan and what was measured of files enter, rows for a terminal leave."""

import math
from collections.abc import Mapping
from typing import Any

from mimkit.analysis.files import QUALITY, SHORTER_SIDE
from mimkit.train.recorder import duration

_WASTED = 0.7  # efficiency below which a hint is due


def rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each thing that a plan says."""
    hosts = f" on {plan['hosts']:,} hosts" if plan["hosts"] > 1 else ""
    batch = f"{plan['batch_size']:,} pictures a step, {plan['batch_per_gpu']:,} for each GPU"
    lines = [("plan", f"{plan['gpus']:,} {plan['gpu']}{hosts}, {batch}"), *_memory_rows(plan), *_speed_rows(plan)]
    return [*lines, *_file_rows(plan), *_time_rows(plan)]


def _memory_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    again = plan["recomputed_bytes_per_picture"]
    states = f"states of {_gb(plan['state_bytes'])}, 16 bytes a weight; {_gb(plan['held_bytes'])} on each GPU"
    kept = f"{plan['kept_bytes_per_picture'] / 1e6:,.1f} MB of each picture are kept for the backward pass"
    kept += f", {again / 1e6:,.1f} with --machine.recompute True" if again else "; BatchNorm cannot be computed again"
    room = [
        f"{way['fitting']:,} ({way['sharding']}{', recomputing' if way['recompute'] else ''})"
        for way in plan["layouts"]
    ]
    fit = f"{plan['memory_bytes'] / 1e9:g} GB hold so many pictures at once: {', '.join(room)}"
    settings = f"--machine.sharding {plan['sharding']} --machine.recompute {plan['recompute']}"
    weights = f"{plan['trained'] / 1e6:,.1f} M trained weights"
    return [
        ("counted", f"{plan['flops_per_picture'] / 1e9:,.1f} GFLOP a picture and step, {weights}"),
        ("memory", states),
        ("", f"{kept} (counted in bfloat16, not compiled, which keeps less)"),
        ("", fit),
        ("settings", f"{settings} --machine.micro-batch {plan['micro_batch']}"),
        ("", f"because {plan['why']}"),
    ]


def _speed_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    share = f"{100 * plan['utilization']:g} % of {plan['teraflops']:,g} TFLOP/s, which is an assumption"
    recomputing = ", a third more of which computes again" if plan["recompute"] else ""
    lines = [("speed", f"{plan['images_per_second_per_gpu']:,.0f} images/s a GPU at {share}{recomputing}")]
    if plan["gpus"] > 1:
        travel = f"{1000 * plan['network_seconds']:,.1f} ms of weights and gradients"
        travel += f" at {plan['network_bytes_per_second'] / 1e9:g} GB/s"
        compute = f"{1000 * plan['compute_seconds']:,.1f} ms of computing"
        lines.append(("network", f"{travel} beside {compute}: {100 * plan['efficiency']:.0f} % of the speed remains"))
        if plan["efficiency"] < _WASTED:
            lines.append(("", "fewer GPUs, or a larger --batch-size, which changes results, would use them better"))
    return [*lines, ("in all", f"{plan['images_per_second']:,.0f} images/s")]


def _file_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Traffic of files, and readers; of the files as they are, and re-encoded."""
    files, lines = plan["files"], []
    for name, size, per_second in (
        ("as they are", files["size"], files["per_second"]),
        (
            f"re-encoded (shards pack --shorter-side {SHORTER_SIDE} --quality {QUALITY})",
            files["small_size"],
            files["small_per_second"],
        ),
    ):
        if per_second is None:
            continue
        wanted = plan["images_per_second"] / plan["gpus"]
        readers = f"{math.ceil(wanted / per_second):,} cores a GPU read (measured here: {per_second:,.0f}/s a core)"
        if size is None:
            lines.append(("files", f"none, the pictures lie in memory; {readers}"))
            continue
        rate, total = plan["images_per_second"] * size, plan["pictures"] * size
        volume = f"{size / 1000:,.0f} kB each, {_gb(total)} in all, {_gb(rate)}/s"
        lines.append(("files" if not lines else "", f"{name}: {volume}; {readers}"))
    return lines


def _time_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    run = f"{plan['epochs']:,} epochs of {plan['pictures']:,} pictures, {plan['steps']:,} steps"
    hours = f"{duration(3600 * plan['hours'])}, {plan['gpu_hours']:,.0f} GPU hours"
    lines = [("time", f"{run}: {hours}, if reading keeps up")]
    if plan["dollars"] is not None:
        lines.append(("cost", f"{plan['dollars']:,.0f} dollars"))
    basis = "counted: FLOPs, weights, bytes kept; measured: files; arithmetic on data sheets and assumptions: all else"
    return [*lines, ("", basis)]


def _gb(size: float) -> str:
    """Bytes in words: 0.02 GB, 1.8 GB, 120 GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e9:.2g} GB"
