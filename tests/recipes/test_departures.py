"""docs/departures.md against the recipes: what the table says of ours is what a recipe has."""

import ast
import re
from pathlib import Path

import pytest

from mimkit.recipes import LABELED, find_recipe, recipes

TEXT = (Path(__file__).parents[2] / "docs" / "departures.md").read_text()
ROWS = [[cell.strip() for cell in line[1:-1].split("|")] for line in TEXT.splitlines() if line.startswith("| ")]
SETTING = re.compile(r"`([a-z_]+(\.[a-z_]+)*)`")
CASES = [
    (name, match[1], cells[4])
    for cells in ROWS
    if (match := SETTING.fullmatch(cells[1]))
    for name in re.findall(r"`(\w+)`", cells[0])
]


def test_the_table_is_whole():
    assert ROWS[0] == ["recipe", "item", "paper", "code", "ours", "why"]
    assert all(len(cells) == 6 and cells[0] and cells[1] and cells[4] and cells[5] for cells in ROWS)
    assert len({(cells[0], cells[1]) for cells in ROWS}) == len(ROWS)
    assert len(CASES) >= 50
    methods = "mae|emae|crossmae|simmim|beit|maskalign|simclr|moco|dino|ibot|cmae|data2vec|ijepa|capi|bootmae|cae"
    papers = {name for name in recipes() if re.match(rf"({methods})_", name)}
    papers = {name for name in papers if re.search(r"_(b16|l16|l14|h14|resnet50|swin_b|swinv2_b)$", name)}
    assert papers <= {name for name, _, _ in CASES}, papers - {name for name, _, _ in CASES}


@pytest.mark.parametrize(("name", "setting", "ours"), CASES, ids=lambda value: str(value).strip("`"))
def test_ours_is_what_the_recipe_has(name, setting, ours):
    value = find_recipe(name, finetuning=name.startswith(LABELED))
    for field in setting.split("."):
        value = getattr(value, field)
    assert re.fullmatch(r"`.+`", ours), f"the value of {setting} stands between backticks"
    assert ast.literal_eval(ours.strip("`")) == value
