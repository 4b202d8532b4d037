"""The notebook and the page about Python run top to bottom, as a person would run them."""

import ast
import json
import re

import pytest

from places import ROOT

NOTEBOOK = ROOT / "docs" / "first-steps.ipynb"
PAGE = ROOT / "docs" / "python.md"


def run_cell(source: str, names: dict[str, object]) -> object:
    """Run a cell; the value of its last expression, which Jupyter would show."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A working folder of its own, and no packages that not everybody has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    return tmp_path


def test_the_notebook_runs_top_to_bottom(alone):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    names: dict[str, object] = {}
    shown = [run_cell("".join(cell["source"]), names) for cell in cells]
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert sum("data:image/png;base64" in page for page in pages) >= 4  # run, masks, embeddings, neighbors
    assert any(page.startswith("<svg") for page in pages) and pages[-1].startswith("<iframe")
    assert {"photos.npz", "report.html", "runs"} <= {path.name for path in alone.iterdir()}


def test_every_example_of_the_page_runs(alone):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 8
    names: dict[str, object] = {}
    for block in blocks:
        run_cell(block, names)
    assert {"masks.png", "report.html", "photos.npz", "photos.csv", "patches.npz"} <= {p.name for p in alone.iterdir()}
