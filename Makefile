# Needs Python 3.11 or newer and make. `PYTHON=python3.12 make test` chooses the interpreter.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two processes, one thread each: torch's threads would wait for one another on a small machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
# Where the GPU is, the packages are that machine's own: nothing is installed, and another version's warnings are no failure.
GPU_LIMIT := timeout --kill-after=10 500
INSTALL_PEERS := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'

.DEFAULT_GOAL := help
.PHONY: help demo test test-full lint test-gpu bench bench-cpu bench-gpu clean

help: ## list the targets
	@echo "Targets (PYTHON=$(PYTHON)):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 - \2/p' Makefile

demo: $(STAMP) ## optimize a small network and show what was done
	$(BIN)/python examples/demo.py

test: lint ## lint, then the tests with a fixed set of drawn examples
	HYPOTHESIS_PROFILE=ci $(PYTEST) -m "not slow"

test-full: lint ## lint, then all tests with many random examples
	HYPOTHESIS_PROFILE=thorough $(PYTEST)

lint: $(STAMP) ## style, formatting, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test-gpu: ## the GPU tests with the packages that are there; installs nothing
	$(GPU_LIMIT) $(PYTHON) -m pytest tests/gpu -q -W default -p no:cacheprovider

bench: $(STAMP) ## measurements on this machine
	$(INSTALL_PEERS)
	$(BIN)/python -m benchmarks

bench-cpu: $(STAMP) ## inference against Inductor, ONNX Runtime and OpenVINO, within half an hour: benchmarks/results/cpu.md
	$(INSTALL_PEERS)
	$(BIN)/python -m benchmarks.cpu

bench-gpu: ## measurements on the GPU with the packages that are there; installs nothing
	$(GPU_LIMIT) $(PYTHON) -m benchmarks.gpu

clean: ## remove .venv, caches and build products
	rm -rf $(VENV) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "torch-rewrite needs Python 3.11 or newer, and '$(PYTHON)' is missing or older: name another with 'PYTHON=python3.12 make ...'." >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@
