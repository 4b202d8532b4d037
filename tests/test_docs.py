"""What the documents say is true: recipes, commands, files and links."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from mimkit.cli.main import COMMANDS
from mimkit.data.named import NAMES
from mimkit.masks import maskers
from mimkit.recipes import recipes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_recipe_stands_in_its_page_with_its_first_line():
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([a-z][a-z0-9]*_\w+)` \| (.+) \|$", page, flags=re.MULTILINE))
    every = recipes() | recipes(finetuning=True)
    assert listed == {name: doc.splitlines()[0] for name, (_, doc) in every.items()}


def test_every_command_stands_in_the_readme():
    listed = set(re.findall(r"^\| `mimkit (\w+)", README, flags=re.MULTILINE))
    assert listed == set(COMMANDS)


def test_every_named_set_stands_in_the_readme():
    assert all(f"`{name}`" in README for name in NAMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert all((page.parent / link).exists() for link in links), links
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+)`", text)
    assert all((ROOT / name).exists() for name in named), named


@pytest.mark.parametrize(
    ("page", "file"), [("masks.md", "rare.py"), ("masks.md", "late.py"), ("methods.md", "moments.py")]
)
def test_what_the_pages_show_from_outside_is_what_is_tested(page, file):
    text = (ROOT / "docs" / page).read_text()
    code = re.search(rf"```python\n# my_lab/{file}\n(.*?)```", text, flags=re.DOTALL)
    assert code is not None and len(code[1].splitlines()) < 60
    tested = (ROOT / "tests" / "outside" / "my_lab" / file).read_text()
    lines = [[line for line in source.splitlines() if line.strip()] for source in (code[1], tested)]
    assert lines[0] == lines[1][1:]  # but for the docstring of the module


def test_every_masker_stands_on_the_masks_page():
    page = (ROOT / "docs" / "masks.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, flags=re.MULTILINE)) == set(maskers())


def test_the_outside_example_of_the_architecture_page_runs():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(# my_lab/stripes.py.*?)```", text, flags=re.DOTALL)
    assert code is not None
    module = types.ModuleType("stripes_of_the_page")
    sys.modules["stripes_of_the_page"] = module  # dataclasses look their module up
    exec(compile(code[1], "stripes", "exec"), module.__dict__)
    masker = module.stripes().method.masker
    mask = masker(torch.zeros(2, 36, 0), torch.arange(2), 0.0, (6, 6))
    assert mask.hidden.view(2, 6, 6)[0, 0].tolist() == [False, False, True, True, False, False]
