"""Room to read: functions that fit a screen, names that say the thing, attributes asked for by their names."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mimkit"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST = 60  # lines of a function, with decorators and docstring
PLACEHOLDERS = frozenset(
    {"found", "made", "said", "one", "chosen", "kept", "how", "part", "given", "wanted", "asked", "what", "other"}
    | {"some", "left", "seen", "told", "taken", "known", "ready"}
)  # names that say a role in a sentence, where a noun would say the thing
FEW = 3.0  # of them in 1,000 lines
FOREIGN = {
    # file: attributes that objects of other libraries may lack
    "api/run.py": {"_inheriting"},  # of multiprocessing's processes
    "analysis/network.py": {"blocks", "num_prefix_tokens", "fc_norm"},  # of timm models
    "core/memory.py": {"sched_getaffinity"},  # of os where it is not Linux
    "data/remote.py": {"response", "status", "status_code"},  # of errors of aiohttp, botocore and httpx
    "core/declaration.py": {"name", "metavar"},  # of what tyro.conf.arg makes
    "evaluate/pools.py": {"fc_norm", "forward_intermediates", "num_prefix_tokens", "cls_token"},  # of timm models
    "evaluate/target.py": {"pos_embed", "patch_embed", "grid_size", "patch_size"},  # of timm models
    "methods/dense.py": {"no_weight_decay"},  # of timm models
    "methods/finetune.py": {"no_weight_decay"},  # of timm models
    "model/attention.py": {"attn"},  # of any block
    "model/projector.py": {"has_class_token"},  # of timm models
    "model/tokenizer.py": {"ids", "classes"},  # of a module that a person's own function builds
    "methods/targets/tokens.py": {"pictures"},  # of the same
    "model/vit.py": {"rope"},  # of timm models
    "report/sections.py": {"cls_token"},  # of timm models
    "train/machine.py": {"fused_attn"},  # of timm's attention
    "weights/folder.py": {"renameat2"},  # of the C library
    "weights/huggingface.py": {"norm"},  # of timm's MLPs
    "weights/load.py": {"patch_embed", "grid_size"},  # of timm models
    "weights/timm.py": {"pool_type", "fc_norm"},  # of timm models
}


def named(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0]


def placeholders(tree: ast.AST) -> list[str]:
    """Variables and arguments that a placeholder names, each as often as it is set."""
    stores = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    arguments = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    return [name for name in stores + arguments if name in PLACEHOLDERS]


def asked_by_name(tree: ast.AST) -> set[str]:
    """Literal names in getattr, hasattr and setattr."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    calls = [call for call in calls if call.func.id in ("getattr", "hasattr", "setattr") and len(call.args) > 1]
    return {str(call.args[1].value) for call in calls if isinstance(call.args[1], ast.Constant)}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_functions_fit_a_screen_and_change_no_variable_of_another(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Nonlocal), f"{named(path)}:{node.lineno} nonlocal"
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = node.end_lineno - first + 1
            assert lines <= LONGEST, f"{named(path)}:{node.lineno} {node.name} has {lines} lines"


ROOMS = sorted({room(path) for path in FILES})


@pytest.mark.parametrize("folder", ["all", *ROOMS])
def test_names_say_the_thing(folder):
    texts = [path.read_text() for path in FILES if folder in ("all", room(path))]
    names = [name for text in texts for name in placeholders(ast.parse(text))]
    lines = sum(len(text.splitlines()) for text in texts)
    assert len(names) <= FEW * lines / 1000, f"{len(names)} in {lines} lines: {sorted(names)}"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_attributes_of_our_own_objects_are_declared(path):
    assert asked_by_name(ast.parse(path.read_text())) <= FOREIGN.get(named(path), set())


def test_each_check_notices():
    tree = ast.parse("def f(one):\n    found, rows = getattr(one, 'rows', 1), 2\n")
    assert sorted(placeholders(tree)) == ["found", "one"] and asked_by_name(tree) == {"rows"}
