# Every target sets up what it needs: a virtual environment in .venv, then the package in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART ?= quickstart

export GOMP_SPINCOUNT ?= 1000

.PHONY: quickstart test test-all lint format docs benchmark clean

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

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/dev
	$(BIN)/python benchmarks/step.py --config tiny4
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/indexing.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info
