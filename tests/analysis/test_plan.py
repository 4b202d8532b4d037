"""Plans: the published arithmetic of large runs, what fits where, and what cannot be meant."""

from dataclasses import replace

import pytest

from mimkit.analysis.counts import Counts
from mimkit.analysis.plan import (
    GPUS,
    Cluster,
    largest_part,
    layouts,
    plan,
    reduction,
    states,
    step_seconds,
)
from mimkit.analysis.plan_text import rows
from mimkit.core.errors import UserError

# ViTs with MAE's decoder, masked by 75 %: FLOPs of a picture and step, and weights.
B = Counts(
    flops=58e9,
    trained=112_000_000,
    frozen=0,
    teachers=0,
    copies=224_000_000,
    kept=47_000_000,
    recomputed=10_000_000,
    largest_block=7_000_000,
)
L = replace(B, flops=123.7e9, trained=330_000_000, largest_block=12_600_000)
H = replace(B, flops=290e9, trained=657_000_000, kept=136_000_000, recomputed=20_000_000, largest_block=19_700_000)
G = replace(B, flops=439e9, trained=1_036_000_000, largest_block=24_000_000)
BILLIONS = replace(H, flops=3e12, trained=8_000_000_000, kept=300_000_000, largest_block=200_000_000)
FILES = {"count": 64, "size": 110e3, "per_second": 500.0, "small_size": 29e3, "small_per_second": 1800.0}


def planned(taken: Counts, gpus: int, batch: int = 4096, **settings) -> dict:
    cluster = {key: settings.pop(key) for key in ("gpu", "network", "per_host") if key in settings}
    given = {"pictures": 1_281_167, "epochs": 800, "utilization": 0.3} | settings
    return plan(taken, Cluster(gpus=gpus, **cluster), batch_size=batch, **given)


@pytest.mark.parametrize(("taken", "gigabytes"), [(B, 1.8), (L, 5.3), (H, 10.5), (G, 16.6)])
def test_states_are_16_bytes_a_weight(taken, gigabytes):
    assert planned(taken, 1)["state_bytes"] / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(
    ("taken", "third", "two_fifths"), [(B, 5100, 6800), (L, 2400, 3200), (H, 1020, 1360), (G, 675, 900)]
)
def test_images_per_second_and_gpu(taken, third, two_fifths):
    assert planned(taken, 1)["images_per_second"] == pytest.approx(third, rel=0.01)
    assert planned(taken, 1, utilization=0.4)["images_per_second_per_gpu"] == pytest.approx(two_fifths, rel=0.01)


@pytest.mark.parametrize(
    ("gpus", "network", "percents"),
    [(64, None, (81, 90, 95, 97)), (512, None, (24, 25, 33, 34)), (64, 10.0, (13, 10, None, None))],
)
def test_efficiency_of_a_batch_of_4096(gpus, network, percents):
    for taken, percent in zip((B, L, H, G), percents, strict=True):
        if percent is not None:
            result = planned(taken, gpus, network=network)
            assert 100 * result["efficiency"] == pytest.approx(percent, abs=1.0), result["sharding"]
            assert result["images_per_second"] == pytest.approx(4096 / result["step_seconds"])


@pytest.mark.parametrize(("taken", "fast", "slow"), [(B, 3, 90), (L, 9, 264), (H, 18, 526), (G, 28, 829)])
def test_milliseconds_of_an_all_reduce(taken, fast, slow):
    for network, milliseconds in ((None, fast), (10.0, slow)):
        travel = reduction(taken, Cluster(gpus=64, network=network), "none")
        assert 1000 * travel == pytest.approx(milliseconds, abs=0.6)


def test_sharding_moves_as_much_and_hybrid_gathers_within_hosts():
    cluster = Cluster(gpus=64, network=10.0)
    assert reduction(H, cluster, "full") == reduction(H, cluster, "none")
    within_host, across = 8 * 657e6 / 300e9, 8 * 657e6 / 10e9
    assert reduction(H, cluster, "hybrid") == pytest.approx(within_host + across)
    # Weights are gathered and gradients summed for each of three micro batches (FSDP2, which keeps none whole).
    assert reduction(H, cluster, "hybrid", 3) == pytest.approx(3 * (within_host + across))
    assert reduction(H, cluster, "full", 3) == pytest.approx(3 * 8 * 657e6 / 10e9)
    assert reduction(H, cluster, "none", 3) == reduction(H, cluster, "none")
    assert reduction(H, Cluster(gpus=1), "none") == 0


def test_a_step_hides_what_travels_behind_the_last_backward_pass():
    assert step_seconds(0.3, 0.1) == pytest.approx(0.303)
    assert step_seconds(0.3, 0.5) == pytest.approx(0.3 + 0.5 - 0.2 + 0.003)
    assert step_seconds(0.3, 0.5, 4) == pytest.approx(0.3 + 0.5 - 0.05 + 0.003)


def test_what_a_gpu_holds():
    eight = Cluster(gpus=64)
    assert states(H, Cluster(gpus=1), "none") == 16 * 657e6 + H.copies
    assert states(H, eight, "none") == 20 * 657e6 + H.copies
    assert states(H, eight, "full") == pytest.approx(16 * 657e6 / 64 + 12 * 19.7e6)
    assert states(H, eight, "hybrid") == pytest.approx(16 * 657e6 / 8 + 12 * 19.7e6)
    assert states(replace(H, frozen=1000), Cluster(gpus=1), "none") == 16 * 657e6 + 4000 + H.copies
    assert states(replace(H, teachers=10**9), eight, "full") == pytest.approx(4e9 + 16 * 657e6 / 64 + 12 * 19.7e6)


def test_the_cheapest_layout_that_keeps_a_gpu_busy():
    large = planned(B, 8, gpu="h100")
    assert (large["sharding"], large["recompute"], large["micro_batch"]) == ("none", False, 512)
    assert large["why"] == "the whole model fits on each GPU beside 512 pictures"
    large_pictures = replace(H, kept=400_000_000)
    small = planned(large_pictures, 64, gpu="4090", network=10.0)
    assert (small["sharding"], small["recompute"]) == ("hybrid", False) and "only gradients cross" in small["why"]
    one = planned(large_pictures, 1, gpu="4090")
    assert (one["sharding"], one["recompute"]) == ("none", True)
    assert one["images_per_second"] == pytest.approx(0.75 * 0.3 * 165e12 / 290e9)
    huge = planned(BILLIONS, 512)
    assert huge["sharding"] == "hybrid" and planned(BILLIONS, 8, gpu="h200")["sharding"] == "full"
    assert not any(way.recompute for way in layouts(replace(B, recomputed=None), Cluster(gpus=8), 64))


def test_a_batch_that_must_be_whole_is_never_cut():
    alone = {"whole_batch": True, "gpu": "4090"}
    result = planned(replace(B, kept=100_000_000), 8, 1024, **alone)
    assert result["micro_batch"] == result["batch_per_gpu"] == 128 and not result["recompute"]
    result = planned(replace(B, kept=100_000_000), 8, 4096, **alone)
    assert result["micro_batch"] == 512 and result["recompute"]
    with pytest.raises(UserError, match="512 pictures at once take 54 GB on each GPU, of which a 4090 has 22"):
        planned(replace(B, kept=100_000_000, recomputed=None), 8, 4096, **alone)


def test_parts_of_a_batch():
    assert [largest_part(96, fitting) for fitting in (500, 96, 95, 31, 1, 0)] == [96, 96, 48, 24, 1, 0]


def test_hours_and_dollars():
    result = planned(B, 8, dollars=2.5)
    step = 512 / (0.3 * 989e12 / 58e9) + 0.003
    assert result["steps"] == 250_228 and result["hours"] == pytest.approx(250_228 * step / 3600)
    assert result["dollars"] == pytest.approx(result["hours"] * 8 * 2.5) and planned(B, 8)["dollars"] is None


def test_the_text_says_all_of_it():
    text = "\n".join(f"{name}: {line}" for name, line in rows(planned(B, 512, dollars=2.0) | {"files": FILES}))
    for words in (
        "plan: 512 h100 on 64 hosts, 4,096 pictures a step, 8 for each GPU",
        "states of 1.8 GB",
        "--machine.sharding none --machine.recompute False",
        "24 % of the speed remains",
        "larger --batch-size, which changes results",
        "as they are: 110 kB each",
        "re-encoded (shards pack --shorter-side 256 --quality 90): 29 kB each, 37.2 GB in all",
        "dollars",
        "which is an assumption",
    ):
        assert words in text, text
    held = FILES | {"size": None, "small_size": None, "small_per_second": None}
    assert ("files", "none, the pictures lie in memory; 11 cores a GPU read (measured here: 500/s a core)") in rows(
        planned(B, 1) | {"files": held}
    )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"gpu": "v100"}, r"there is no GPU 'v100'.*Valid: a100, h100, h200, b200, l40s, 4090"),
        ({"gpus": 0}, "gpus must be at least 1"),
        ({"gpus": 12}, "12 GPUs are no whole hosts of 8: give --gpus 16"),
        ({"network": 0.0}, "--network is in GB a second and above 0"),
        ({"per_host": 0}, "gpus-per-host must be at least 1"),
        ({"batch": 4095}, "batch_size 4095 does not divide over 8 GPUs: use --batch-size 4096"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, line):
    with pytest.raises(UserError, match=line):
        planned(B, **({"gpus": 8} | settings))


def test_data_sheets():
    assert (GPUS["h100"].teraflops, GPUS["h100"].memory) == (989, 80e9)
    assert GPUS["h200"].teraflops == GPUS["h100"].teraflops and GPUS["h200"].memory == 141e9
