"""Processes that share one model compute what one process computes, and what processes with whole models write."""

import copy
import filecmp
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from drills import ranks, the_line
from encoders import small
from mimkit.core import distributed
from mimkit.core.errors import UserError
from mimkit.data.pictures import Subset
from mimkit.data.sources import open_pictures
from mimkit.methods.mae import MAEConfig
from mimkit.methods.targets.tokens import TokenIds
from mimkit.model.frozen import Frozen
from mimkit.train import dataset_view
from mimkit.train.machine import Engine, Machine
from mimkit.train.prepare import Prepared, Pretrain
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder
from mimkit.train.sharding import Whole, blocks, recompute, resolve, shard
from shards import DENSE, KINDS, VIT, dense, finetune, mae, maskalign, simmim, tokenizer
from transfers import write

QUICK = ("mae", "clip", "lars", "dino", "self_guided", "amt")
CPU = torch.device("cpu")


def machine(run: Pretrain, **settings) -> Pretrain:
    """The same run on a machine with other settings."""
    return replace(copy.deepcopy(run), machine=replace(run.machine, **settings))


def trained(runs: dict[str, Pretrain], folder: Path, *faults: tuple, **env) -> list[str]:
    """Train runs, one behind the other, in processes that share their models; what each process printed."""
    sharded = [run if run.machine.sharding != "none" else machine(run, sharding="full") for run in runs.values()]
    ended = ranks(folder / "log", sharded, [folder / name for name in runs], *faults, **env)
    assert all(status == 0 for status, _ in ended), ended
    return [text for _, text in ended]


def alone(run: Pretrain, folder: Path, **settings) -> Path:
    pretrain(machine(run, sharding="none", **settings), folder, log=lambda line: None)
    return folder


def assert_equal_curves(first: Path, second: Path, rtol: float = 1e-6, norms: float = 1e-4) -> None:
    ours, theirs = ([*RunFolder(run).metrics()] for run in (first, second))
    assert [record["step"] for record in ours] == [record["step"] for record in theirs] and len(ours) > 4
    for name, tolerance in (("loss", rtol), ("gradient_norm", norms)):
        values = [torch.tensor([record[name] for record in records]).double() for records in (ours, theirs)]
        torch.testing.assert_close(*values, rtol=tolerance, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    last = [{k: v for k, v in records[-1].items() if k in ("effective_rank", "knn")} for records in (ours, theirs)]
    assert last[0].keys() == last[1].keys()
    torch.testing.assert_close([*last[0].values()], [*last[1].values()], rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def quick(forty, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    runs = {name: KINDS[name](forty) for name in QUICK} | {"ddp": mae(forty)}
    said = ranks(
        folder / "log",
        [run if name == "ddp" else machine(run, sharding="full") for name, run in runs.items()],
        [folder / name for name in runs],
        ("say_shares",),
    )
    assert all(status == 0 for status, _ in said), said
    return folder


@pytest.mark.parametrize("kind", QUICK)
def test_two_sharded_processes_equal_one(kind, quick, forty, tmp_path):
    assert_equal_curves(alone(KINDS[kind](forty), tmp_path / "alone"), quick / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [name for name in KINDS if name not in QUICK])
def test_two_sharded_processes_equal_one_in_every_other_method(kind, forty, tmp_path):
    run = KINDS[kind](forty)
    trained({"run": run}, tmp_path)
    assert_equal_curves(alone(run, tmp_path / "alone"), tmp_path / "run")


def test_shares_looks_pictures_and_exports_are_those_of_whole_models(quick):
    holds = [re.findall(r"HOLDS (\d+) of (\d+)", (quick / f"log.{rank}").read_text()) for rank in (0, 1)]
    for first, second in zip(*holds, strict=True):
        assert first[1] == second[1]
        shared = int(first[0]) + int(second[0]) == int(first[1])
        assert shared or first[0] == second[0] == first[1]  # the last run is not sharded
    assert len(holds[0]) == 10 * (len(QUICK) + 1) and int(holds[0][0][0]) < 0.6 * int(holds[0][0][1])
    first, second = quick / "mae", quick / "ddp"
    for ours, theirs in zip(RunFolder(first).metrics(), RunFolder(second).metrics(), strict=True):
        timed = {"images_per_second", "data_wait", "seconds", "gradient_norm"}
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}
    names = sorted(path.name for path in (second / "pictures").iterdir())
    assert names and filecmp.cmpfiles(first / "pictures", second / "pictures", names, shallow=False)[0] == names
    exports = [load_file(run / "export" / "model.safetensors") for run in (first, second)]
    assert exports[0].keys() == exports[1].keys()
    assert all(torch.equal(exports[0][name], exports[1][name]) for name in exports[0])


def test_whole_and_shared_models_go_on_from_each_other(forty, tmp_path):
    run, folder = KINDS["clip"](forty), tmp_path / "run"
    pretrain(run, folder, max_steps=3, log=lambda line: None)
    for sharding, until in (("full", 6), ("none", 8)):
        for status, said in ranks(tmp_path / "log", machine(run, sharding=sharding), folder, max_steps=until):
            assert status == 0, said
    said: list[str] = []
    pretrain(machine(run, sharding="full"), folder, log=said.append)
    assert any("sharding full: one process alone holds the whole model" in line for line in said)
    assert_equal_curves(alone(run, tmp_path / "alone"), folder)


def test_a_share_that_is_not_finite_stops_all(forty, tmp_path):
    run = machine(mae(forty), sharding="full", save_every=3)
    line = the_line(ranks(tmp_path / "log", run, tmp_path / "run", ("on_rank", 1, "bad_share", 2)))
    assert "the weights are no longer finite after step 3" in line


@pytest.mark.slow
def test_machines_that_each_share_a_model_equal_one_process(forty, tmp_path):
    said = trained(
        {"run": machine(mae(forty), sharding="hybrid")}, tmp_path, ("say_shares",), world=4, LOCAL_WORLD_SIZE=2
    )
    assert "sharding hybrid" in said[0]
    holds = [[int(number) for number in re.search(r"HOLDS (\d+) of (\d+)", text).groups()] for text in said]
    assert holds[0] == holds[2] and holds[1] == holds[3] and holds[0][0] + holds[1][0] == holds[0][1]
    assert_equal_curves(alone(mae(forty), tmp_path / "alone"), tmp_path / "run")


@pytest.mark.slow
def test_micro_batches_recomputed_blocks_and_bfloat16_are_shared_too(forty, tmp_path):
    half, looking = (
        machine(mae(forty), precision="bfloat16"),
        machine(KINDS["self_guided"](forty), precision="bfloat16"),
    )
    runs = {"micro": machine(mae(forty), micro_batch=2), "recompute": machine(mae(forty), recompute=True)}
    trained(runs | {"half": half, "looking": looking}, tmp_path)
    whole = alone(mae(forty), tmp_path / "alone")
    assert_equal_curves(whole, tmp_path / "micro")
    assert_equal_curves(whole, tmp_path / "recompute")
    assert_equal_curves(alone(half, tmp_path / "alone half"), tmp_path / "half", rtol=2e-3, norms=1e-2)
    assert_equal_curves(alone(looking, tmp_path / "alone looking"), tmp_path / "looking", rtol=2e-3, norms=1e-2)


@pytest.mark.slow
def test_frozen_teachers_and_tokenizers_stay_whole(forty, tmp_path):
    teacher, ids = alone(mae(forty), tmp_path / "teacher"), alone(tokenizer(forty), tmp_path / "ids")
    runs = {"maskalign": maskalign(forty, str(teacher)), "tokens": simmim(forty, target=TokenIds(tokenizer=str(ids)))}
    trained(runs, tmp_path)
    for name, run in runs.items():
        assert_equal_curves(alone(run, tmp_path / f"alone {name}"), tmp_path / name)


@pytest.mark.slow
def test_what_depends_on_ranks_equals_whole_models(forty, tmp_path):
    for number, path in enumerate(sorted(forty.iterdir())):  # two classes
        (tmp_path / "labeled" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labeled" / "ab"[number % 2] / path.name).symlink_to(path)
    runs = {"finetune": finetune(tmp_path / "labeled")}
    for task in DENSE:
        run = dense(task, write(task, tmp_path / task))
        frozen = replace(run, method=replace(run.method, freeze=True))
        frozen.optimizer = replace(run.optimizer, layer_decay=None)
        runs |= {f"{task} run": run, f"{task} frozen": frozen}
    trained(runs, tmp_path)
    folders = [tmp_path / f"ddp {name}" for name in runs]
    for status, said in ranks(tmp_path / "log", [*runs.values()], folders):
        assert status == 0, said
    for name, folder in zip(runs, folders, strict=True):
        ours, theirs = RunFolder(tmp_path / name).metrics(), RunFolder(folder).metrics()
        assert [record["loss"] for record in ours] == [record["loss"] for record in theirs] and len(ours) > 4


def test_recomputed_blocks_give_the_same_losses_and_keep_less(forty, tmp_path):
    run = KINDS["attmask"](forty)
    folders = [alone(run, tmp_path / str(on), recompute=on) for on in (False, True)]
    assert_equal_curves(*folders, rtol=1e-7)
    whole, less = (Prepared(machine(run, recompute=on)).bytes_per_picture() for on in (False, True))
    assert 0.1 * whole < less < 0.8 * whole


@pytest.mark.slow
def test_blocks_compiled_one_by_one_give_the_same_losses(forty, tmp_path):
    run = replace(mae(forty), epochs=1)
    plain, compiled = (alone(run, tmp_path / str(on), compile=on, recompute=True) for on in (False, True))
    assert_equal_curves(plain, compiled)


@pytest.mark.parametrize(("kind", "count"), [("vit", 4), ("swin", 5), ("swinv2", 5), ("resnet", 4)])
def test_blocks_of_every_encoder_are_known(kind, count):
    encoder = small(kind)
    assert len([*blocks(encoder)]) == count
    parameters = sum(p.numel() for p in encoder.parameters())
    assert sum(p.numel() for block in blocks(encoder) for p in block.parameters()) > 0.7 * parameters


@pytest.mark.parametrize(
    ("world", "local", "sharding"),
    [(1, "1", "none"), (4, "4", "full"), (4, "2", "hybrid"), (6, "2", "hybrid")],
)
def test_hybrid_is_what_the_processes_make_of_it(world, local, sharding, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: world)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert resolve("hybrid") == sharding
    assert resolve("full") == ("none" if world == 1 else "full") and resolve("none") == "none"


@pytest.mark.parametrize("count", [8, 9, 13])
def test_processes_see_equally_many_batches_of_their_own_pictures(count, forty, monkeypatch):
    monkeypatch.setattr(dataset_view, "BATCH", 4)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    pictures = Subset(open_pictures((str(forty),), "all"), torch.arange(count))
    settings = {"size": (12, 12), "mean": (0.5,) * 3, "std": (0.5,) * 3, "device": CPU, "workers": 0}
    seen = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        seen.append([*dataset_view.open_dataset_view(pictures, **settings).batches()])
    assert len(seen[0]) == len(seen[1]) == -(-count // 8)
    assert all(len(images) == len(index) and images.shape[1:] == (3, 12, 12) for part in seen for images, index in part)
    assert sorted(torch.cat([index for part in seen for _, index in part]).tolist()) == [*range(count)]


@pytest.mark.parametrize("local", ["1", "3", None])
def test_machines_that_cannot_share_a_model_are_refused(local, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    with pytest.raises(UserError, match=f"LOCAL_WORLD_SIZE is {local or 1} and there are 4 in all"):
        resolve("hybrid")


def test_what_cannot_be_shared_or_recomputed_is_refused():
    task = nn.Module()
    task.scale = nn.Parameter(torch.zeros(()))
    with pytest.raises(UserError, match="cannot cut the single number scale"):
        shard(task, "full", "float32", CPU)
    with pytest.raises(UserError, match="BatchNorm would count its pictures twice"):
        recompute(small("resnet"))
    machine = Machine()
    machine.sharding = "half"
    with pytest.raises(UserError, match="there is no sharding 'half'"):
        machine.check()


def test_a_whole_copy_comes_and_goes_without_what_trains():
    task = MAEConfig().build(VIT.build((16, 16), 3))
    task.teacher = Frozen(nn.Linear(2, 2))
    theirs = Whole(task, "full", CPU).copy
    theirs.to("meta")
    assert theirs.teacher.network.weight.device.type == "meta"
    assert not any(value.is_meta for value in [task.teacher.network.weight, *task.state_dict().values()])


def test_one_process_keeps_plain_classes():
    encoder = VIT.build((16, 16), 3)
    task = MAEConfig().build(encoder)
    engine = Engine(device=CPU, precision="float32", attention="plain", compile=False, threads=1, recompute=True)
    assert engine.wrap(task) is task
    assert {distributed.plain_type(block) for block in blocks(task)} == {type(block) for block in blocks(task)}
