"""Words in any order: flags before or behind positionals, what a list flag takes, parts by import path, old names."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from commandline import SMALL, TINY, mimkit, refused
from mimkit.cli.masks import take_name
from mimkit.core.declaration import declarations
from mimkit.core.errors import UserError
from mimkit.core.flags import split_words
from mimkit.core.names import renamed_flag
from mimkit.masks import maskers
from mimkit.methods.targets import targets
from mimkit.recipes import find_recipe
from mimkit.recipes.overrides import PretrainArguments, configured, take_recipe
from mimkit.train.run_folder import RunFolder

KINDS = {"--k": "one", "--data": "words", "--size": "numbers"}
LATER = TINY.split(SMALL)[1]  # flags of the machine

OUTSIDE = '''"""A masker, a function that makes one, and targets from outside: nothing enters, parts leave."""

from dataclasses import dataclass

from mimkit.masks import RandomMasker
from mimkit.methods.targets.color import RawPixels
from mimkit.methods.targets.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class MyMasker(RandomMasker):
    """Like the random one, with a setting."""

    spread: int = 1
    """Of nothing."""


@dataclass(frozen=True, kw_only=True)
class MyPixels(Pixels):
    """Like pixels, with a setting."""

    scale: float = 1.0
    """Of the target."""

    def __call__(self, patches):
        return self.scale * super().__call__(patches)


@dataclass(frozen=True, kw_only=True)
class MyColors(RawPixels):
    """What SimMIM could predict."""


def sparse():
    """A masker with a ratio of its own."""
    return MyMasker(ratio=0.5)


def number():
    """No part at all."""
    return 7


def broken():
    """A function with a mistake in it."""
    return 1 / 0
'''


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """A module in the working folder and nowhere else."""
    (tmp_path / "my_parts.py").write_text(OUTSIDE)
    (tmp_path / "my_slip.py").write_text("def half(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "positionals"),
    [
        ("knn run --data d", "knn run"),
        ("--k 5 knn run --data d", "knn run"),
        ("--k=5 knn run --data d", "knn run"),
        ("knn --k 5 run --data d e", "knn run"),
        ("--data d e --k 5 knn 7", "knn 7"),
        ("--data d knn run", ""),
        ("--size 30 40 knn --data d", "knn"),
        ("--size -1 -2 knn", "knn"),
        ("--json - knn run", "knn run"),
        ("--unknown 3 4 knn", "knn"),
        ("-h knn", "knn"),
        ("--data --k 5 knn", "knn"),
    ],
)
def test_positionals_are_told_from_values(words, positionals):
    args = words.split()
    found, flags = split_words(args, KINDS)
    assert found == positionals.split()
    assert sorted(found + flags) == sorted(args)


@pytest.mark.parametrize(
    ("words", "recipe", "rest"),
    [
        ("mae_mini_28 --data d", "mae_mini_28", "--data d"),
        ("--epochs 3 mae_mini_28 --data d", "mae_mini_28", "--epochs 3 --data d"),
        ("--data d e mae_mini_28 --epochs 3", "mae_mini_28", "--data d e --epochs 3"),
        ("--data photos --run mae_mini_32", None, "--data photos --run mae_mini_32"),
        ("--data mae_mini_32", None, "--data mae_mini_32"),
        ("--data d my_lab.one:two", "my_lab.one:two", "--data d"),
        ("mae_mini_28 --data d mae_mini_32", "mae_mini_28", "--data d mae_mini_32"),
        ("--optimizer.betas 0.9 0.95 mae_mini_28", "mae_mini_28", "--optimizer.betas 0.9 0.95"),
        ("--images.mean 0.5 0.5 0.5 --data d", None, "--images.mean 0.5 0.5 0.5 --data d"),
        ("--masker grid mae_mini_28 --data d", "mae_mini_28", "--masker grid --data d"),
    ],
)
def test_the_recipe_is_found_wherever_it_stands(words, recipe, rest):
    assert take_recipe(words.split()) == (recipe, rest.split())


def test_a_folder_that_is_called_like_a_recipe_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mae_mini_28").mkdir()
    assert take_recipe(["--data", "d", "mae_mini_28"])[0] is None
    assert take_recipe(["--data", "d", "mae_mini_32"])[0] == "mae_mini_32"


def test_a_wrong_recipe_behind_flags_is_named():
    with pytest.raises(UserError, match="did you mean 'mae_mini_28'"):
        take_recipe(["--epochs", "3", "mae_mni_28", "--data", "d"])
    with pytest.raises(UserError, match="pictures go behind --data: mimkit pretrain mae_mini_28 --data d e"):
        take_recipe(["--epochs", "3", "mae_mini_28", "d", "e"])


@pytest.mark.parametrize(
    ("words", "name", "rest"),
    [
        ("--show 2 self-guided --data d", "self-guided", "--show 2 --data d"),
        ("--data d e self-guided", "self-guided", "--data d e"),
        ("--ratio 0.5 --size 24 12 random", "random", "--ratio 0.5 --size 24 12"),
        ("--from run --objects masks", None, "--from run --objects masks"),
    ],
)
def test_the_masker_s_name_is_found_wherever_it_stands(words, name, rest):
    assert take_name(words.split()) == (name, rest.split())


def test_flags_may_stand_before_the_words(forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(sorted(forty.iterdir())):
        folder = Path("labeled", "cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    commands = (
        "pretrain --data labeled --run mae_mini_32 $TINY mae_mini_28",  # a value that is a recipe's name
        "evaluate --k 5 knn --data labeled --workers 0 --device cpu pixels mae_mini_32 --json knn.json",
        f"evaluate --epochs 1 --run tuned finetune mae_mini_32 {LATER} finetune_mini_32 --data labeled",
        "export --to timm mae_mini_32 --out model",
        "masks --show 2 random --data labeled --out m.png",
        "report --metrics none --pictures 2 mae_mini_32 --device cpu --out page.html",
        "analyze --metrics rank --pictures 8 mae_mini_32 --data labeled --workers 0 --device cpu",
        "doctor --limit 5 labeled mae_mini_28",
        "diff --json - mae_mini_32 mae_mini_32",
    )
    for command in commands:
        said = mimkit(command)
        assert said.status == 0, (command, said)
    assert RunFolder(Path("mae_mini_32")).read_config()["recipe"] == "mae_mini_28"
    results = json.loads(Path("knn.json").read_text())["results"]
    assert [row["target"] for row in results] == ["pixels", "mae_mini_32"]
    assert RunFolder(Path("tuned")).finished and Path("model/model.safetensors").exists()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("evaluate --data d knn run", "--data takes all words behind it, also 'knn run': put other words first"),
        ("analyze --metrics rank run --data d", "--metrics takes all words behind it, also 'run': put other words"),
        ("analyze --data=d run", "--data takes all words behind it, also 'run': put other words first"),
        ("report --data d run", "wanted: mimkit report RUN ...; --data takes all words behind it, also 'run'"),
        ("compare --measure knn one two --data d", "--measure takes all words behind it, also 'one two'"),
        ("compare --finetune a one two --data d", "--finetune takes all words behind it, also 'one two'"),
        ("compare one --data d", "wanted: mimkit compare RECIPE RECIPE ... --data DATA; 'mimkit compare --help'"),
        ("evaluate finetune --data d run", "wanted: mimkit evaluate"),
        ("evaluate --k 5 knm run --data d", "did you mean 'knn'?"),
        ("masks random --ratios 0.5 --ratios 0.6", "--ratios is given twice: several values go behind one --ratios"),
        ("evaluate knn run --data d --data=e", "several sources go behind one --data"),
        ("diff one two three", "'three' is a word too many for mimkit diff RUN RUN: leave it out"),
        ("masks random photos", "pictures go behind --data: mimkit masks random --data photos"),
        ("export one two --out x", "'two' is a word too many for mimkit export RUN --out DIR"),
        ("pretrain --data photos --run new --method.masker.ratio 0.5 0.6 0.7", "method.masker.ratio"),
        ("pretrain --data photos --run new --seed 1 2", "there is no recipe '2'"),
        ("evaluate finetune run finetune_mini_32 other --data d", "one target and one recipe at a time"),
    ],
)
def test_words_that_cannot_be_meant_are_answered_in_one_line(command, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert answer in refused(command)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["mae_mini_28", "simclr_mini_32", "simmim_mini_32", "dino_mini_32"])
def test_declarations_are_the_flags_of_the_help(recipe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", "", mimkit(f"pretrain {recipe} --help").out)
    listed = re.findall(r"^\s*(--[a-z][\w.-]*)", text, flags=re.MULTILINE)
    arguments = PretrainArguments(config=find_recipe(recipe))
    declared = {entry.flag for entry in declarations(PretrainArguments, arguments) if entry.flag}
    assert set(listed) - {"--help"} == declared
    assert "[RECIPE]" in text.upper()


def pretraining(line: str):
    """The config that a contender's line means."""
    words = shlex.split(line)
    return configured(words, [*words, "--data", "photos"])


def test_a_masker_by_import_path(outside):
    masker = pretraining("mae_mini_28 --masker my_parts:MyMasker --method.masker.spread 3").method.masker
    assert (type(masker).__name__, masker.ratio, masker.spread) == ("MyMasker", 0.75, 3), "with the recipe's ratio"
    masker = pretraining("--masker=my_parts:sparse mae_mini_28 --method.masker.spread 2").method.masker
    assert (type(masker).__name__, masker.ratio, masker.spread) == ("MyMasker", 0.5, 2), "a function decides itself"


def test_a_target_by_name_and_by_import_path(outside):
    assert pretraining("mae_mini_28 --target pixels --method.target.norm False").method.target.norm is False
    target = pretraining("simmim_mini_32 --target color-bins --method.target.bins 4").method.target
    assert (type(target).__name__, target.bins) == ("ColorBins", 4)
    target = pretraining("emae_mini_32 --target my_parts:MyPixels --method.target.scale 3").method.target
    assert (type(target).__name__, target.scale) == ("MyPixels", 3)
    assert type(pretraining("simmim_mini_32 --target my_parts:MyColors").method.target).__name__ == "MyColors"
    assert all(isinstance(cls(), cls) for cls in targets().values())


def test_parts_from_outside_train_and_are_drawn(outside, forty):
    flags = f"--masker my_parts:MyMasker --target my_parts:MyPixels --method.target.scale 3 --data {forty} $TINY"
    said = mimkit(f"pretrain mae_mini_28 {flags} --run run --max-steps 1")
    assert said.status == 0, said
    method = json.loads(Path("run/config.json").read_text())["config"]["method"]
    assert method["masker"]["class"] == "my_parts:MyMasker" and method["target"]["class"] == "my_parts:MyPixels"
    assert mimkit(f"pretrain mae_mini_28 --data {forty} $TINY --run plain --max-steps 1").status == 0
    losses = [RunFolder(Path(name)).metrics()[0]["loss"] for name in ("run", "plain")]
    assert losses[0] != losses[1]
    for name, ratio in (("MyMasker", 0.75), ("sparse", 0.5)):
        said = mimkit(f"masks --show 2 my_parts:{name} --spread 3 --data {forty} --out m.png --json -")
        assert said.status == 0, said
        result = json.loads(said.out)
        assert "spread=3" in result["masker"] and result["ratio"] == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("pretrain mae_mini_28 --masker my_parts:MyMaskr --data photos", "has no attribute 'MyMaskr'"),
        ("pretrain mae_mini_28 --masker my_part:MyMasker --data photos", "No module named 'my_part'"),
        ("pretrain mae_mini_28 --masker my_slip:half --data photos", "SyntaxError"),
        ("pretrain mae_mini_28 --masker my_parts:number --data photos", "makes a int"),
        ("pretrain mae_mini_28 --masker my_parts:broken --data photos", "fails (ZeroDivisionError"),
        ("pretrain mae_mini_28 --masker my_parts:MyPixels --data photos", "makes a MyPixels"),
        ("pretrain mae_mini_28 --masker my_parts: --data photos", "give package.module:Class"),
        ("pretrain simclr_mini_32 --masker my_parts:MyMasker --data photos", "hides no patches"),
        ("pretrain mae_mini_28 --masker my_parts:MyMasker --method.masker.spred 1 --data photos", "masker.spread?"),
        ("pretrain mae_mini_28 --target color-bin --data photos", "did you mean 'color-bins'?"),
        (
            "pretrain mae_mini_28 --target color-bins --data photos",
            "MAE cannot predict 'color-bins', a ColorBins: use pix",
        ),
        (
            "pretrain simmim_mini_32 --target pixels --data photos",
            "use raw-pixels, color-bins, color-clusters, token-ids",
        ),
        ("pretrain mae_mini_28 --target my_parts:MyColors --data photos", "use pixels, or your own PatchTarget"),
        ("pretrain simclr_mini_32 --target pixels --data photos", "SimCLR predicts no target"),
        ("masks my_parts:number --data photos", "makes a int: name a Masker, or a recipe"),
        ("masks my_parts:MyMaskr --data photos", "has no attribute 'MyMaskr'"),
        ("compare mae_mini_28 'mae_mini_28 --target color-bins' --data photos", "MAE cannot predict 'color-bins'"),
        ("compare mae_mini_28 'mae_mini_28 --masker my_parts:number' --data photos", "makes a int"),
    ],
)
def test_parts_that_are_none_are_refused_in_one_line(outside, command, answer):
    before = sorted(outside.iterdir())
    assert answer in refused(command)
    assert [path for path in sorted(outside.iterdir()) if path.name != "__pycache__"] == before


def test_every_masker_of_ours_can_be_put_into_a_recipe():
    exchangeable = {name: cls for name, cls in maskers().items() if name != "amt"}  # which throws patches besides
    for name, cls in exchangeable.items():
        assert type(pretraining(f"mae_mini_28 --masker {name}").method.masker) is cls


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--machine.looks", "--machine.evals"),
        ("--optimizer.base-rate=1e-3", "--optimizer.base-lr=1e-3"),
        ("--share", "--label-fraction"),
        ("--images.view.colours.grey", "--images.view.color.gray"),
        ("--images.others.0.flip", "--images.other-views.0.flip"),
        ("--images.bad-share", "--images.bad-fraction"),
        ("looks", "looks"),
    ],
)
def test_flags_of_version_0_1_are_called_as_they_are_now(old, new):
    assert renamed_flag(old) == new


def test_flags_of_version_0_1_still_work(forty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = TINY.replace("machine.evals", "machine.looks")
    said = mimkit(f"pretrain mae_mini_28 --data {forty} --run run {old} --optimizer.base-rate 0.25 --machine.looks 3")
    assert said.status == 0, said
    config = RunFolder(Path("run")).read_config()["config"]
    assert config.machine.evals == 3 and config.optimizer.base_lr == 0.25
    answer = refused(f"evaluate finetune run finetune_mini_32 --data {forty} --share 2")
    assert "label" in answer
