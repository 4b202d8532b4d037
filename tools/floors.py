"""The lowest versions that pyproject.toml allows, as constraints for pip; --installed: beside what is installed."""

import argparse
import re
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path


def floors() -> dict[str, str]:
    """Name and lowest version of each dependency, of extras too; pinned tools and our own extras are left out."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        if "==" in line or line.startswith(project["name"] + "["):
            continue
        floor = re.match(r"([\w.-]+)>=([\w.]+)(,|$)", line)
        if floor is None:
            raise SystemExit(f"pyproject.toml: {line!r} has no floor: write NAME>=VERSION")
        found[floor[1]] = floor[2]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--installed", action="store_true", help="what this environment has, not constraints")
    if parser.parse_args().installed:
        print(", ".join(f"{name} {version(name)} (>={floor})" for name, floor in floors().items()))
    else:
        print("\n".join(f"{name}=={floor}" for name, floor in floors().items()))
