# `make demo` and `make test` do all their set-up on a fresh clone; nothing else is needed before either.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The lowest transformers that the published code is promised for (see README, "Supported versions").
MIN_TRANSFORMERS := 5.0.0

.PHONY: demo test test-min clean

demo: $(VENV)/.plain
	$(BIN)/shortv-export demo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

# The published code alone, on the oldest transformers that it supports.
test-min: .venv-min/.installed
	PYTHONPATH=. .venv-min/bin/pytest -n 2 $(addprefix tests/test_,frozen_layer.py generation.py loading.py training.py families.py)

# $(VENV)/.plain has the tool installed, $(VENV)/.dev the extra `dev`, too.
$(VENV)/.%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.$(EXTRA)'
	touch $@
$(VENV)/.dev: EXTRA = [dev]

.venv-min/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/pip install --quiet --constraint constraints.txt torch transformers==$(MIN_TRANSFORMERS) \
	  accelerate peft pillow pytest pytest-timeout pytest-xdist scikit-image
	touch $@

clean:
	rm -rf .venv .venv-min shortv-demo
