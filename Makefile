# make train   the quickstart, from nothing
# make test    lint, types, the import contract and all tests, from nothing
# make train TORCH=cpu   with torch's CPU wheel where the default one is CUDA's

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test setup setup-dev clean

train: setup
	$(BIN)/python train.py

test: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist loadfile -m ""

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt scripts/setup.sh
	sh scripts/setup.sh "$(PYTHON)" "$(VENV)" "." "$(TORCH)"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt scripts/setup.sh
	sh scripts/setup.sh "$(PYTHON)" "$(VENV)" ".[dev]" "$(TORCH)"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info
