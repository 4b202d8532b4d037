"""The command line: help, one-line answers to wrong inputs, JSON, and going on with a run."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commandline import SMALL, TINY, mimkit, refused
from mimkit.api import pretrain
from mimkit.api.pretrain import free_folder
from mimkit.cli.main import COMMANDS
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, parse
from mimkit.train.checkpoint import checkpoints
from mimkit.train.prepare import Pretrain
from mimkit.train.run_folder import RunFolder

COMMAND_LINES = [
    "recipes",
    "pretrain",
    "pretrain mae_mini_28",
    "evaluate",
    "masks",
    "export",
    "doctor",
    "diff",
    "check",
    "shards",
]


@pytest.fixture(scope="module")
def scene(forty, tmp_path_factory) -> Path:
    """Good and bad inputs, a finished run, an unfinished one, and one with a damaged checkpoint."""
    place = tmp_path_factory.mktemp("scene")
    for number, path in enumerate(sorted(forty.iterdir())):
        folder = place / "good" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    shutil.copytree(forty, place / "flat")
    for name in ("empty", "text", "corrupt", "other"):
        (place / name).mkdir()
    (place / "text" / "notes.md").write_text("no picture")
    (place / "other" / "thesis.doc").write_text("not a run")
    for number in range(4):
        (place / "corrupt" / f"{number}.jpg").write_bytes(b"not a picture")
    (place / "weights.txt").write_text("hello")
    (place / "list.txt").write_text("nowhere/1.png\n")
    (place / "wide.parquet").write_bytes(b"PAR1")
    before = Path.cwd()
    os.chdir(place)
    try:
        assert mimkit("pretrain mae_mini_28 --data good --run done $TINY").status == 0
        for name in ("begun", "damaged"):
            assert mimkit(f"pretrain mae_mini_28 --data good --run {name} $TINY --max-steps 2").status == 0
        checkpoints(Path("damaged"))[-1].write_bytes(b"PK\3\4 half a file")
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def inside(scene, monkeypatch) -> Path:
    monkeypatch.chdir(scene)
    return scene


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_help_is_fast_and_imports_nothing_heavy():
    for command, light in (
        ("--help", ["torch", "numpy", "timm", "tyro", "rich"]),
        ("recipes", ["torch", "numpy", "timm"]),
    ):
        code = (
            "import sys, time; from mimkit.cli.main import main; main(sys.argv[2:]); found = sys.modules; "
            "print([m for m in sys.argv[1].split() if m in found], time.process_time(), file=sys.stderr)"
        )
        times = []
        for _ in range(3):  # other processes only add to the time
            said = subprocess.run(
                [sys.executable, "-c", code, " ".join(light), command], capture_output=True, text=True, check=True
            )
            found, seconds = said.stderr.rsplit(" ", 1)
            assert found == "[]", command
            times.append(float(seconds))
        assert min(times) < 0.5, command
        assert "mae_vit_b16" in said.stdout or all(name in said.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", [*COMMAND_LINES, "evaluate knn", "masks mae_vit_b16", "masks random"])
def test_help_documents_every_option(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # wider ones have options side by side
    said = mimkit(f"{command} --help")
    assert said.status == 0 and not said.err
    text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", "", said.out)
    options = re.split(r"\n\s*(--[a-z][\w.-]*)", text)[1:]
    names, rest = options[::2], options[1::2]
    assert "--json" in names
    for name, words in zip(names, rest, strict=True):
        said_of_it = re.sub(r"\((default|required)[^)]*\)?|\{[^}]*\}", " ", words)
        assert len(re.findall(r"\b[a-zA-Z]*[a-z]+\b", said_of_it)) >= 2, f"{name} has no help: {words!r}"


@pytest.mark.parametrize("command", COMMAND_LINES[1:])
def test_a_command_alone_is_answered_in_one_line(command):
    assert f"mimkit {command.split()[0]} --help" in refused(command)


WRONG = {  # end-condition 8 first
    "unknown recipe": (
        "pretrain mae_mni_28 --data good --run new",
        "did you mean 'mae_mini_28'? 'mimkit recipes'",
    ),
    "recipe of fine-tuning": (
        "pretrain finetune_mini_32 --data good",
        "mimkit evaluate finetune TARGET finetune_mini_32",
    ),
    "unknown flag": ("pretrain mae_mini_28 --epoch 3 --data good", "did you mean --epochs?"),
    "unknown model": (
        "pretrain mae_mini_28 --data good --run new --encoder.name vit_bass_patch16_224",
        "did you mean 'vit_base_patch16_224'?",
    ),
    "empty folder": ("pretrain mae_mini_28 --data empty --run new $TINY", "empty is empty: give a folder"),
    "no pictures": (
        "pretrain mae_mini_28 --data text --run new $TINY",
        "none of them pictures: .md; readable",
    ),
    "unwritable run folder": (
        "pretrain mae_mini_28 --data good --run weights.txt/run $TINY",
        "mend its permissions",
    ),
    "finished run": (
        "pretrain mae_mini_28 --data good --run done $TINY",
        "finished run (5 steps): name another --run",
    ),
    "patch that does not divide": (
        "pretrain mae_mini_28 --data good --run new --images.size 30 $TINY",
        "use --images.size 28 28 or another --encoder.patch",
    ),
    "ratio out of range": (
        "pretrain mae_mini_28 --data good --run new --method.masker.ratio 1.5",
        "must lie between 0 and 1",
    ),
    "checkpoint that is a text": (
        "pretrain mae_mini_28 --data good --run new --encoder.weights weights.txt $TINY",
        "expected a .safetensors file",
    ),
    "checkpoint of another architecture": (
        "pretrain mae_mini_28 --data good --run new --encoder.weights done $TINY --encoder.width 32",
        "are of another architecture",
    ),
    "damaged resume file": ("pretrain --run damaged", "step-000000002.pt cannot be read"),
    # and more
    "unknown command": ("pretrian", "did you mean 'pretrain'?"),
    "run folder that is a file": (
        "pretrain mae_mini_28 --data good --run weights.txt $TINY",
        "is a file: name a folder",
    ),
    "someone's folder": ("pretrain mae_mini_28 --data good --run other $TINY", "holds no run of mimkit"),
    "run with other settings": (
        "pretrain mae_mini_28 --data good --run begun $TINY --seed 7",
        "seed = 0, not 7",
    ),
    "no such data": (
        "pretrain mae_mini_28 --data godo --run new $TINY",
        "there is no folder or data set 'godo'",
    ),
    "list of missing paths": ("pretrain mae_mini_28 --data list.txt --run new $TINY", "list.txt line 1"),
    "data of no kind": (
        "pretrain mae_mini_28 --data weights.doc --run new $TINY",
        "no file or folder weights.doc",
    ),
    "nothing readable": (
        "pretrain mae_mini_28 --data corrupt --run new $TINY",
        "hardly any picture of corrupt",
    ),
    "data given twice": (
        "pretrain mae_mini_28 --data good --data good",
        "several sources go behind one --data",
    ),
    "data without --data": ("pretrain mae_mini_28 good", "mimkit pretrain mae_mini_28 --data good"),
    "recipe behind the flags": ("pretrain --epochs 3 mae_mni_28 --data good", "did you mean 'mae_mini_28'?"),
    "no data": ("pretrain mae_mini_28 --run new", "--data is missing"),
    "json to nowhere": (
        "pretrain mae_mini_28 --data good --run new --json no/x.json",
        "there is no folder no",
    ),
    "json to a folder": ("recipes --json good", "it is a folder"),
    "no whole number": (
        "pretrain mae_mini_28 --data good --epochs 1.5",
        "--epochs takes a whole number, not '1.5'",
    ),
    "no number": ("pretrain mae_mini_28 --data good --optimizer.base-lr x", "takes a number, not 'x'"),
    "wrong choice": ("export done --to keras --out x", "Expected one of"),
    "missing value": ("pretrain mae_mini_28 --data good --optimizer.betas 0.9", "Expected 2 values"),
    "unknown setting": (
        "pretrain mae_mini_28 --data good --method.masker.ration 0.5",
        "--method.masker.ratio?",
    ),
    "resnet": (
        "pretrain mae_mini_28 --data good --run new --encoder.name resnet50",
        "use a vit_* or deit* model",
    ),
    "kind of evaluation": ("evaluate knm done --data good", "did you mean 'knn'?"),
    "target of evaluation": ("evaluate knn doen --data good", "did you mean 'done'?"),
    "evaluation without data": ("evaluate knn done", "--data is missing; 'mimkit evaluate --help'"),
    "evaluation without labels": ("evaluate knn done --data flat", "measuring needs labels"),
    "evaluation with workers": ("evaluate knn done --data good --workers -1", "workers must be at least 0"),
    "masker": ("masks rndom --data good", "did you mean 'random'?"),
    "masker's ratio": ("masks random --ratio 1.5 --data good", "must lie between 0 and 1"),
    "masker's images": ("masks random --data good --size 30", "change --size or --patch"),
    "masker's numbers": ("masks random --data good --show 0", "must be at least 1"),
    "picture of masks is a folder": (
        "masks random --data good --size 32 --out no.png/good",
        "must end in .png",
    ),
    "masks of nothing readable": ("masks random --data corrupt", "see 'mimkit doctor'"),
    "export of no run": ("export good --out x", "give the folder that 'mimkit pretrain' wrote"),
    "export without out": ("export done", "--out is missing"),
    "export into a file": ("export done --out weights.txt", "weights.txt"),
    "export over something": ("export done --out other", "give a new or empty folder"),
    "doctor of nothing": ("doctor godo", "there is no folder or data set 'godo'"),
    "doctor's recipe": ("doctor good mae_mni_28", "did you mean 'mae_mini_28'?"),
    "doctor's limit": ("doctor good --limit 0", "limit must be at least 1"),
    "check of no run": ("check good", "good holds no run"),
    "check of a damaged run": ("check damaged", "files of damaged are bad: checkpoints/step-000000002.pt"),
    "diff of one": ("diff done", "mimkit diff RUN RUN"),
    "diff of no run": ("diff done good", "good holds no run"),
}


@pytest.mark.parametrize(("command", "fix"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_answered_with_the_fix(inside, command, fix):
    before = everything(inside)
    assert fix in refused(command)
    assert everything(inside) == before  # nothing is created or lost


WRONG_SETTINGS = """--epochs 0; --minutes 0; --epochs -1; --batch-size 0; --batch-size -8; --max-steps 0
--images.size 0; --images.size 7; --images.size -28; --images.channels 0; --images.mean 0.5; --images.std 0 1 1
--images.std nan nan nan; --images.value-range 5 1; --images.bad-fraction -1; --images.view.flip 3
--encoder.patch 0; --encoder.heads 3; --encoder.heads 0; --encoder.width 0; --encoder.depth 0
--encoder.width 30 --encoder.heads 2; --encoder.positions rotary; --method.decoder.heads 3
--method.decoder.heads 0; --method.decoder.width 0; --method.decoder.depth -1
--method.masker.ratio nan; --optimizer.base-lr -1; --optimizer.base-lr inf
--optimizer.betas 0.9 1; --optimizer.weight-decay -1; --optimizer.clip 0; --schedule.warmup 1.5
--schedule.warmup -1; --schedule.final 2; --machine.device tpu; --machine.device meta
--machine.precision float16; --machine.attention flash; --machine.workers -1; --machine.threads 0
--machine.log-every 0; --machine.keep 0; --machine.evals -1; --machine.save-minutes 0
--machine.save-every 0; --machine.micro-batch 0; --machine.micro-batch 3; --machine.compile maybe
--machine.tensorboard"""


@pytest.mark.parametrize("flags", re.split(r"[;\n]\s*", WRONG_SETTINGS))
def test_wrong_settings_are_named(inside, flags):
    before = everything(inside)
    line = refused(f"pretrain mae_mini_28 --data good --run new $TINY {flags}")
    word = flags.split()[0].split(".")[-1].lstrip("-").replace("-", "[-_ ]").replace("batch[-_ ]size", "batch[-_ ]size")
    assert re.search(word, line) or "of 3" in line, line
    assert everything(inside) == before


def test_cuda_without_a_gpu(inside, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use --machine.device cpu" in refused("pretrain mae_mini_28 --data good --machine.device cuda")


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("skimage", "pretrain mae_mini_28 --data photos --run new $TINY", "photos"),
        ("pyarrow", "pretrain mae_mini_28 --data wide.parquet --run new $TINY", "parquet"),
    ],
)
def test_a_missing_extra_is_named(inside, monkeypatch, module, command, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    from mimkit.data.photos import photos

    photos.cache_clear()
    before = everything(inside)
    assert f"pip install 'mimkit[{extra}]'" in refused(command)
    assert everything(inside) == before


def test_a_missing_tifffile_is_named(inside, monkeypatch, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for number in range(8):
        bands = np.random.default_rng(number).integers(0, 255, (16, 16, 5), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"{number}.tiff", bands, photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert "pip install 'mimkit[tiff]'" in refused(f"pretrain mae_mini_28 --data {tmp_path} --run new $TINY")


def test_debug_shows_the_traceback(inside):
    with pytest.raises(UserError, match="did you mean 'done'"):
        mimkit("evaluate knn doen --data good --debug")


def test_what_nobody_expected_is_still_one_line(inside, monkeypatch):
    monkeypatch.setattr("mimkit.cli.recipes.run", lambda args: 1 / 0)
    said = mimkit("recipes")
    assert said.status == 1 and said.err.count("\n") == 1 and "--debug" in said.err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_answers_do_not_depend_on_how_frames_are_drawn(encoding):
    with (
        redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding=encoding)),
        pytest.raises(UserError) as caught,
    ):
        parse(Arguments, ["--jsan", "x"], "mimkit diff RUN RUN")
    assert str(caught.value) == (
        "unrecognized options: --jsan, x; did you mean --json? 'mimkit diff --help' lists the options"
    )


JSON = {
    "recipes": ("recipes", lambda found: found[0]["name"] == "mae_vit_b16"),
    "pretrain": (
        "pretrain mae_mini_28 --data good --run {new} $TINY",
        lambda found: found["finished"] and found["steps"] == found["of"] == 5 and found["recipe"] == "mae_mini_28",
    ),
    "evaluate": (
        "evaluate knn pixels done --data good --workers 0 --device cpu",
        lambda found: [one["target"] for one in found["results"]] == ["pixels", "done"],
    ),
    "masks": (
        "masks mae_mini_28 --data good --out {new}.png --show 2 --seeds 2",
        lambda found: found["masks"] == 4 and found["ratio"] == 0.75,
    ),
    "export": ("export done --to huggingface --out {new}", lambda found: found["to"] == "huggingface"),
    "doctor": ("doctor good mae_mini_28", lambda found: found["readable"] == 40 and found["bad"] == {}),
    "analyze": (
        "analyze done --data good --pictures 8 --metrics rank --device cpu --workers 0",
        lambda found: {row["target"] for row in found["rows"]} == {"done"},
    ),
    "embed": (
        "embed done --data good --out {new}.npz --workers 0 --device cpu",
        lambda found: (found["pictures"], found["rows"], found["skipped"]) == (40, 40, 0),
    ),
    **{
        kind: (
            f"{kind} done --data good --out {{new}} --workers 0 --device cpu",
            lambda found: found["pictures"] == 40 and len(found["lead"]) > 20,
        )
        for kind in ("neighbors", "duplicates", "clusters", "outliers", "curate")
    },
    "report": (
        "report done --out {new}.html --metrics none --pictures 2 --device cpu",
        lambda found: found["bytes"] > 20_000 and found["out"].endswith(".html"),
    ),
    "shards": ("shards pack good --out {new} --workers 0", lambda found: found["pictures"] == 40),
    "diff": ("diff done begun", lambda found: found["last.step"] == [5, 2]),
    "check": ("check done", lambda found: len(found) >= 5 and all(file["good"] for file in found)),
}


def test_every_command_is_among_those_with_json():
    assert set(JSON) == set(COMMANDS) - {
        "compare",
        "view",
        "launch",
        "predict",
    }  # runs take long: test_compare.py, test_transfer.py; it serves: test_report.py; processes: test_launch.py


def strict(text: str):
    """JSON without NaN and Infinity, which other readers refuse."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(("command", "right"), JSON.values(), ids=JSON)
def test_json_to_the_standard_output_and_to_a_file(inside, tmp_path, command, right):
    said = mimkit(command.format(new=tmp_path / "one") + " --json -")
    assert said.status == 0, said.err
    assert right(strict(said.out))  # nothing else is on the standard output
    said = mimkit(command.format(new=tmp_path / "two") + f" --json {tmp_path / 'result.json'}")
    assert said.status == 0 and said.out
    assert right(strict((tmp_path / "result.json").read_text()))


def test_minutes_plan_fewer_epochs_and_the_same_command_goes_on(forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "time_step", lambda configs: [0.5])  # 40 pictures: 20 s an epoch
    command = f"pretrain mae_mini_28 --data {forty} --run run {TINY.replace('--epochs 1', '--epochs 9')} --minutes 1.1"
    assert "3 of 9 epochs fit into 1.1 min" in mimkit(f"{command} --max-steps 2").err
    monkeypatch.setattr(pretrain, "time_step", lambda configs: [0.1])  # the machine is quicker now: the plan stays
    assert mimkit(command).status == 0
    assert RunFolder(Path("run")).read_config()["config"].epochs == 3
    assert json.loads(Path("run/result.json").read_text())["steps"] == 15
    much = mimkit(command.replace("--run run", "--run other").replace("1.1", "100"))
    assert "fit into" not in much.err and RunFolder(Path("other")).read_config()["config"].epochs == 9
    looking = command.replace("--run run", "--run looking").replace("evals 0", "evals 1")  # at all 40: an epoch
    monkeypatch.setattr(pretrain, "time_step", lambda configs: [0.5])
    assert "2 of 9 epochs fit" in mimkit(f"{looking} --max-steps 1").err
    monkeypatch.setattr(pretrain.distributed, "world", lambda: 2)
    assert "give --epochs instead" in refused(command.replace("--run run", "--run third"))


def test_max_steps_then_the_same_command_goes_on(forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = f"pretrain mae_mini_28 --data {forty} $TINY --machine.log-every 1"
    part = mimkit(f"{command} --max-steps 2")
    assert part.status == 0 and "2 of 5 steps done" in part.out
    assert mimkit(command).status == 0
    straight = mimkit(f"{command} --run straight")
    assert "done: 5 steps" in straight.out and "mimkit evaluate knn straight" in straight.out
    one, two = (RunFolder(Path(name)) for name in ("runs/mae_mini_28-forty", "straight"))
    assert [record["loss"] for record in one.metrics()] == [record["loss"] for record in two.metrics()]
    weights = [(run.folder / "export" / "model.safetensors").read_bytes() for run in (one, two)]
    assert weights[0] == weights[1]
    assert "1 of 5 steps done" in mimkit(f"{command} --max-steps 1").out  # a finished run stays as it is
    assert Path("runs/mae_mini_28-forty-2/config.json").exists() and one.finished


def test_the_printed_command_goes_on(forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = mimkit(f"pretrain mae_mini_28 --data {forty} --run 'my run' $TINY --max-steps 2")
    command = part.out.splitlines()[1].strip().removeprefix("mimkit ")
    assert command == "pretrain --run 'my run'"
    assert "done: 5 steps" in mimkit(command).out


def test_without_a_recipe_one_is_chosen_and_explained(forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = f"--data {forty} --batch-size 8 {SMALL} {TINY.split(SMALL)[1]}"
    said = mimkit(f"pretrain {flags} --max-steps 1")
    assert said.status == 0, said.err
    assert said.err.startswith("chose the recipe mae_mini_28 since the shorter side of the pictures is about 12 px;")
    config = RunFolder(Path("runs/mae_mini_28-forty")).read_config()
    assert config["recipe"] == "mae_mini_28" and config["config"].epochs == 1600  # 40 pictures: the most it gives
    assert mimkit(f"pretrain {flags} --max-steps 2").status == 0  # goes on
    assert mimkit(f"pretrain {flags} --max-steps 1 --seed 1").status == 0  # another run
    names = sorted(path.name for path in Path("runs").iterdir())
    assert names == ["mae_mini_28-forty", "mae_mini_28-forty-2"]
    assert RunFolder(Path("runs/mae_mini_28-forty")).metrics()[-1]["step"] == 2


def test_run_folders_are_named_after_recipe_and_data(tmp_path, monkeypatch):
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    for data, name in (
        ((".",), "cats"),
        (("../cats/",), "cats"),
        (("photos",), "photos"),
        (("a/b.parquet", "b.txt"), "b-b"),
        (("x" * 99,), "x" * 40),
    ):
        assert free_folder("mae_mini_28", Pretrain(data=data)) == Path(f"runs/mae_mini_28-{name}")
    assert free_folder("lab.one:two", Pretrain(data=("photos",))) == Path("runs/lab.one.two-photos")


def test_few_lines_before_the_first_step(inside, tmp_path):
    said = mimkit(f"pretrain mae_mini_28 --data good --run {tmp_path / 'run'} $TINY --machine.log-every 1")
    lines = said.err.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("step "))
    assert 8 <= first <= 25
    for word in (
        "40 from good",
        "28x28",
        "parameters",
        "5 steps",
        "rate",
        "run folder",
    ):
        assert any(word in line for line in lines[:first]), word


def test_doctor_lists_bad_pictures(tmp_path, forty):
    for path in sorted(forty.iterdir())[:10]:
        shutil.copy(path, tmp_path)
    whole = (tmp_path / "00.png").read_bytes()
    (tmp_path / "half[red].png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "nothing.jpg").write_bytes(b"")
    Image.new("RGB", (30, 20)).save(tmp_path / "large.png")
    said = mimkit(f"doctor {tmp_path} mae_mini_28 --epochs 2 --batch-size 4")
    assert said.status == 0, said.err
    assert "half[red].png" in said.out and "zero bytes" in said.out and "--images.bad-fraction" in said.out
    assert "13 from" in said.out and "2 different; shorter side 12 to 20" in said.out
    assert "11 pictures are smaller" in said.out and "7 (2 epochs, 4 pictures a step)" in said.out


def test_doctor_when_nothing_can_be_read(inside):
    said = mimkit("doctor corrupt")
    assert said.status == 2 and "4 cannot be read" in said.out and said.err.count("\n") == 1


def test_a_recipe_with_another_masker(forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = f"--data {forty} {TINY.replace('--method.decoder.width 8 --method.decoder.heads 2', '')}"
    said = mimkit(f"pretrain simmim_mini_32 --masker salience {flags} --method.masker.start 0.25 --run a")
    assert said.status == 0, said
    masker = RunFolder(Path("a")).read_config()["config"].method.masker
    assert type(masker).__name__ == "SalienceMasker"
    assert (masker.ratio, masker.start) == (0.6, 0.25), "the recipe's ratio, and what was said"
    assert "1 of 5" not in mimkit("pretrain --run a").out  # a finished run stays what it is
    assert "did you mean 'grid'" in refused("pretrain mae_mini_32 --masker=gird --data photos")
    assert "PartitionMasker" in refused(f"pretrain emae_mini_32 --masker grid {flags} --run b")
