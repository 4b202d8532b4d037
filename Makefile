# Every target sets up what it needs: a virtual environment in .venv, then the package in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART ?= quickstart

export GOMP_SPINCOUNT ?= 1000

.PHONY: quickstart test test-all newest oldest lint format docs benchmark dist clean

# Wheels alone: torch, torchvision and timm are installed as a user would install them.
$(VENV)/user: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

$(VENV)/dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/user

quickstart: $(VENV)/user
	$(BIN)/mimkit pretrain mae_mini_48_quick --data photos --run $(QUICKSTART)
	$(BIN)/mimkit evaluate all pixels untrained:$(QUICKSTART) $(QUICKSTART) --data photos
	@echo "look at $(QUICKSTART)/pictures/reconstruction.png; next, your own pictures:"
	@echo "  $(BIN)/mimkit pretrain --data FOLDER"

# Two processes at once: a test uses one thread.
test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

# The newest versions that are published, whatever is installed already.
newest:
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	.venv-newest/bin/python tools/floors.py --installed
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile

# The lowest versions that pyproject.toml allows.
oldest: .venv-oldest/done
	.venv-oldest/bin/python tools/floors.py --installed
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile

.venv-oldest/done: pyproject.toml tools/floors.py
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python tools/floors.py > .venv-oldest/floors.txt
	.venv-oldest/bin/python -m pip install --quiet --editable '.[test]' --constraint .venv-oldest/floors.txt
	touch $@

# Without a cache: what it keeps of a file does not know that an import has moved since.
lint: $(VENV)/dev
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/pyrefly check

format: $(VENV)/dev
	$(BIN)/ruff check --no-cache --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/dev
	$(BIN)/python benchmarks/step.py --config tiny4
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/indexing.py

# A source distribution and the wheel that is built from it.
dist: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build dist src/*.egg-info
