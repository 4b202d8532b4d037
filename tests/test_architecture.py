"""The layering of docs/architecture.md: imports go one way, files stay small, names say what is inside."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mimkit"
ORDER = [
    "core",
    "masks",
    "data",
    "model",
    "guidance",
    "methods",
    "weights",
    "train",
    "evaluate",
    "recipes",
    "analysis",
    "report",
    "compare",
    "api",
    "cli",
]  # a file imports from what stands before it, or from its own folder
KNOW_TYRO = {"core/declaration.py", "core/flags.py", "recipes/overrides.py"}  # and the commands
FILES = sorted(SOURCE.rglob("*.py"))
BUDGETS = {
    "methods/base.py": 160,
    "methods/losses.py": 240,
    "methods/targets/": 240,
    "methods/": 130,
    "train/loop.py": 80,
    "": 400,
}  # lines; the first that fits counts


def part(path: Path) -> str:
    """The folder or file right below src/mimkit that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = node.module == "mimkit"  # from mimkit import commands
            names |= {f"mimkit.{alias.name}" for alias in node.names} if whole else {node.module or ""}
    return names


def wrong_imports(path: Path, names: set[str]) -> list[str]:
    """Those that the order forbids."""
    ours = [name.split(".")[1] for name in names if name.startswith("mimkit.") and name != "mimkit.__version__"]
    place = ORDER.index(part(path))
    return [name for name in ours if name != part(path) and ORDER.index(name) >= place]


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_the_order_names_every_part():
    assert {part(path) for path in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", [path for path in FILES if part(path) != "__init__"], ids=named)
def test_imports_go_one_way(path):
    assert not wrong_imports(path, imported(path))


def test_a_wrong_import_is_noticed(tmp_path):
    file = tmp_path / "mask.py"
    file.write_text("def late():\n    from mimkit import train\n    import mimkit.methods.mae\n")
    assert sorted(wrong_imports(SOURCE / "masks" / "mask.py", imported(file))) == ["methods", "train"]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_budgets_and_names(path):
    text = path.read_text()
    budget = next(lines for start, lines in BUDGETS.items() if named(path).startswith(start))
    assert len(text.splitlines()) <= budget
    assert path.stem not in ("utils", "util", "misc", "common", "helpers")
    assert len(ast.get_docstring(ast.parse(text)) or "") >= 20  # says what enters and what leaves
    assert "from __future__" not in text


def test_only_the_command_line_knows_tyro():
    know_tyro = {path for path in FILES if any(name.split(".")[0] == "tyro" for name in imported(path))}
    assert {named(path) for path in know_tyro if part(path) != "cli"} == KNOW_TYRO


def test_evaluation_imports_no_method_and_maskers_no_model():
    for path in (path for path in FILES if part(path) in ("evaluate", "masks")):
        assert not any(name.startswith("mimkit.methods") for name in imported(path)), path
