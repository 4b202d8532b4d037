"""What is made from the declarations: the overview, docs/commands.md, and completion in a real shell."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from commandline import mimkit, refused
from mimkit.cli.overview import COMMANDS, overview
from mimkit.cli.reference import declared, page, usages
from mimkit.core.declaration import declarations
from mimkit.data.named import NAMES
from mimkit.masks import maskers
from mimkit.recipes import recipes

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
WITHOUT_DECLARED_DATA = ("pretrain", "evaluate")  # --data, or --run or --sets instead: none is required alone


def test_every_command_is_a_module_with_one_declaration():
    for name in COMMANDS:
        module = importlib.import_module(f"mimkit.cli.{name}")
        assert callable(module.run) and callable(module.declaration)


def test_the_overview_says_what_is_declared():
    forms = usages()
    flags = {name: {entry.flag for entry in declarations(cls, default)} for name, cls, default in declared()}
    for name, (form, summary) in COMMANDS.items():
        assert form.startswith(forms[name]), (form, forms[name])
        rest = form.removeprefix(forms[name])
        required = re.findall(r"(?<!\[)(--[\w-]+)", rest)
        assert not required or (name in WITHOUT_DECLARED_DATA and required == ["--data"]), name
        assert set(re.findall(r"--[\w-]+", form)) <= flags[name], name
        assert f"  {name:<10} {form:<57} {summary}" in overview()


def test_every_positional_and_flag_stands_in_the_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for name, cls, default in declared():
        said = mimkit(f"{name} --help")
        assert said.status == 0, name
        text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", "", said.out)
        for entry in declarations(cls, default):
            assert re.search(rf"^\s*{re.escape(entry.flag)}\b", text, flags=re.MULTILINE), (name, entry.flag)
        assert "--trust" in text and "--json" in text
        assert ("positional arguments" in text) == any(not entry.flag for entry in declarations(cls, default))


def test_the_page_of_commands_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m mimkit.cli.reference > docs/commands.md"


def test_everything_on_the_page_is_explained():
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", page(), flags=re.MULTILINE)
    assert len(rows) > 150
    assert not [name for name, text in rows if len(text.split()) < 2]


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "mimkit.bash"
    said = mimkit("--print-completion bash")
    assert said.status == 0, said
    file.write_text(said.out)
    return file


def complete(script: Path, *words: str) -> list[str]:
    """What a bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in ("mimkit", *words))
    code = (
        f'source "{script}"; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _mimkit; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    said = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True, cwd=script.parent)
    assert not said.stderr
    return said.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert complete(script, "ev") == ["evaluate"]
    assert set(COMMANDS) <= set(complete(script, ""))
    assert complete(script, "evaluate", "kn") == ["knn"]
    assert complete(script, "shards", "p") == ["pack"]
    assert complete(script, "evaluate", "knn", "run", "--li") == ["--limit-test", "--limit-train"]
    assert complete(script, "evaluate", "knn", "run", "--pool", "b") == ["both", "blocks"]
    assert complete(script, "evaluate", "knn", "run", "--pool", "=", "b") == ["both", "blocks"]
    assert complete(script, "evaluate", "finetune", "run", "finetune_mi") == ["finetune_mini_32"]
    assert complete(script, "evaluate", "finetune", "run", "--label-f") == ["--label-fraction"]
    assert complete(script, "evaluate", "segment", "run", "--mem") == ["--memory"]
    assert complete(script, "evaluate", "depth", "run", "--measure", "kn") == ["knn"]
    assert set(complete(script, "pretrain", "")) >= set(recipes())
    assert set(complete(script, "masks", "")) >= {*maskers(), *recipes()}
    assert complete(script, "pretrain", "mae_mini_28", "--masker", "self") == ["self-guided"]
    assert complete(script, "pretrain", "simmim_mini_32", "--target", "color-b") == ["color-bins"]
    assert "--method.temperature" in complete(script, "pretrain", "simclr_mini_32", "--method.t"), "of all recipes"
    assert complete(script, "pretrain", "mae_mini_28", "--data", "phot") == ["photos"]
    assert set(complete(script, "export", "run", "--to", "")) == {"timm", "huggingface", "torchvision", "onnx"}
    assert complete(script, "report", "mimkit.b") == ["mimkit.bash"]  # a file
    assert set(complete(script, "diff", "--")) == {"--debug", "--help", "--json", "--trust"}
    assert set(NAMES) <= set(complete(script, "doctor", ""))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_itself_asks_for_the_completion(script):
    code = f'source "{script}"; complete -p mimkit'
    said = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert "-F _mimkit mimkit" in said.stdout


def test_other_shells(script):
    text = mimkit("--print-completion zsh").out
    assert "bashcompinit" in text
    assert text.partition("_mimkit() {")[2] == script.read_text().partition("_mimkit() {")[2] != ""
    assert "Ask for bash or zsh" in refused("--print-completion fish")
    assert "Ask for bash or zsh" in refused("--print-completion=fish")
    assert "Ask for bash or zsh" in refused("--print-completion")
