"""A masker, a method and recipes in a package outside of mimkit work like ours: flags, config, going on."""

import json
import sys
from pathlib import Path

import pytest

from commandline import mimkit, refused
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.run_folder import RunFolder


@pytest.fixture(autouse=True)
def laboratory(tmp_path, monkeypatch):
    """The package lies in the working folder and nowhere else."""
    (tmp_path / "my_lab").symlink_to(Path(__file__).parent / "outside" / "my_lab")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("my_lab")]:
        monkeypatch.delitem(sys.modules, name)
    assert str(tmp_path) not in sys.path
    return tmp_path


@pytest.mark.parametrize("recipe", ["stripes", "absolute"])
def test_an_outside_recipe_trains_and_goes_on(forty, recipe):
    command = f"pretrain my_lab.stripes:{recipe} --method.masker.width 1 --data {forty} --run run $TINY"
    said = mimkit(f"{command} --max-steps 2")
    assert said.status == 0, said.err
    config = json.loads(Path("run/config.json").read_text())
    assert config["recipe"] == f"my_lab.stripes:{recipe}"
    assert config["config"]["method"]["masker"] == {"class": "my_lab.stripes:StripeMasker", "width": 1}
    losses = [record["loss"] for record in RunFolder(Path("run")).metrics()]
    for name in [name for name in sys.modules if name.startswith("my_lab")]:
        del sys.modules[name]  # the next command is another process
    assert mimkit("pretrain --run run").status == 0
    run = RunFolder(Path("run"))
    assert run.finished and run.metrics()[0]["loss"] == losses[0] and run.metrics()[-1]["step"] == 5
    assert mimkit("export run --to timm --out model").status == 0


def test_an_outside_masker_may_look_at_features_and_keep_maps(forty):
    command = f"pretrain my_lab.rare:rare --method.masker.refresh 1 --data {forty} --run run $TINY"
    said = mimkit(f"{command} --max-steps 3")
    assert said.status == 0, said.err
    assert mimkit("pretrain --run run").status == 0  # the cached maps are in the checkpoint
    assert RunFolder(Path("run")).metrics()[-1]["step"] == 5
    said = mimkit(f"masks my_lab.rare:rare --from run --data {forty} --show 2 --seeds 2 --out m.png --json -")
    assert said.status == 0, said.err
    assert json.loads(said.out)["overlap_seeds"] > 0.8  # little noise beside the scores


def test_an_outside_masker_owns_its_trigger_and_remembers(forty):
    command = f"pretrain my_lab.late:late --method.masker.distinct 0.0 --data {forty} --run run $TINY --epochs 3"
    assert mimkit(f"{command} --max-steps 8").status == 0
    saved = load_checkpoint(checkpoints(Path("run"))[-1])["model"]["mask_sampler.memory"]
    assert saved.tolist()[2] == 0.0, "it fired before the first step"
    assert mimkit("pretrain --run run --trust my_lab").status == 0
    records = RunFolder(Path("run")).metrics()
    assert records[-1]["step"] == 15 and records[-1]["trigger_fired"] == 1 and records[0]["distance"] > 0
    command = command.replace("distinct 0.0", "distinct 5").replace("--run run", "--run never")
    assert mimkit(command).status == 0
    fired = [record["trigger_fired"] for record in RunFolder(Path("never")).metrics() if "trigger_fired" in record]
    assert fired and not any(fired)


def test_an_outside_target_of_another_size(forty):
    command = f"pretrain my_lab.moments:moments --method.target.floor 0.1 --data {forty} --run run $TINY"
    said = mimkit(command.replace("--run run", "--run run --machine.evals 1"))
    assert said.status == 0, said.err
    run = RunFolder(Path("run"))
    assert load_checkpoint(checkpoints(Path("run"))[-1])["model"]["decoder.head.weight"].shape[0] == 2
    assert run.finished and (Path("run") / "pictures" / "reconstruction.png").exists()
    assert "predicts something else than pixels" in refused("export run --to huggingface --out hf --trust my_lab")


def test_an_outside_method_has_its_own_settings(forty):
    losses = []
    for scale in (1, 3):
        command = f"pretrain my_lab.stripes:absolute --method.scale {scale} --data {forty} --run run{scale}"
        assert mimkit(f"{command} $TINY --max-steps 1").status == 0
        losses.append(RunFolder(Path(f"run{scale}")).metrics()[0]["loss"])
    assert losses[1] == pytest.approx(3 * losses[0])
    assert "did you mean --method.scale?" in refused(f"pretrain my_lab.stripes:absolute --method.scal 1 --data {forty}")
    assert "--method.masker.ratio" in refused(f"pretrain my_lab.stripes:stripes --method.masker.ratio 1 --data {forty}")


def test_the_default_run_folder_of_an_outside_recipe(forty):
    assert mimkit(f"pretrain my_lab.stripes:stripes --data {forty} $TINY --max-steps 1").status == 0
    assert [path.name for path in Path("runs").iterdir()] == ["my_lab.stripes.stripes-forty"]


def test_masks_of_an_outside_recipe(forty):
    said = mimkit(f"masks my_lab.stripes:stripes --width 1 --data {forty} --show 2 --seeds 3 --out m.png --json -")
    assert said.status == 0, said.err
    result = json.loads(said.out)
    assert result["masker"] == "StripeMasker(width=1)" and result["masks"] == 6 and result["patches"] == 16
    assert result["ratio"] == 0.5
    # Of 28 columns, 7 to 13 are hidden between visible ones (1 2 3 4 3 2 1), 21 to 27 at the edge (1 ... 7).
    assert result["average_distance"] == pytest.approx((16 / 7 + 4) / 2)
    assert Path("m.png").exists()


@pytest.mark.parametrize(
    ("recipe", "answer"),
    [
        ("my_lab.nothing:stripes", "No module named 'my_lab.nothing'"),
        ("my_lab.stripes:stripe", "no attribute 'stripe'"),
        ("my_lab.stripes:", "give package.module:function"),
        (":stripes", "give package.module:function"),
        ("my_lab/stripes.py:stripes", "give package.module:function"),
        ("my_lab.stripes", "package.module:function"),
        ("my_lab.stripes:broken", "ZeroDivisionError"),
        ("my_lab.stripes:unfinished", "returns a str"),
        ("my_lab.stripes:StripeMasker", "returns a StripeMasker"),
    ],
)
def test_wrong_recipes_are_answered_in_one_line(forty, recipe, answer):
    assert answer in refused(f"pretrain {recipe} --data {forty} $TINY")
    assert not Path("runs").exists()


def test_a_run_whose_package_is_gone(forty, laboratory):
    assert mimkit(f"pretrain my_lab.stripes:stripes --data {forty} --run run $TINY --max-steps 1").status == 0
    (laboratory / "my_lab").unlink()
    for name in [name for name in sys.modules if name.startswith("my_lab")]:
        del sys.modules[name]
    assert "put its module on PYTHONPATH" in refused("pretrain --run run")
