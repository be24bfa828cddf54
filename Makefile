# One word a task. `make` alone lists them.
PYTHON ?= python3
# A pinned torch: an open range takes a CUDA build of several gigabytes. On a GPU machine: make TORCH=torch …
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
# The latest TRL stack that the tests were run on; the packages themselves set no upper bounds.
STACK := trl==1.16.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 datasets==5.2.0 bitsandbytes==0.50.2

.PHONY: help install demo test lint format types bench clean

help:
	@echo "make demo     train SmolLM2-135M on docstrings, placed and all-layer, and show the speedup and its cost"
	@echo "make test     run all tests"
	@echo "make lint     check style and formatting      make format   apply them"
	@echo "make types    check types                     make bench    run every benchmark in its quick form"
	@echo "make clean    remove environments and caches"

install: $(STAMP)

$(STAMP): pyproject.toml plugins/layercard-trl/pyproject.toml plugins/layercard-example/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) $(STACK)
	$(PIP) -e ".[dev]" -e plugins/layercard-trl -e plugins/layercard-example
	@touch $(STAMP)

demo: install
	$(BIN)/layercard demo

test: export OMP_NUM_THREADS = 1
test: export HF_HUB_OFFLINE = 1
test: export TOKENIZERS_PARALLELISM = false
test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

bench: install
	for script in benchmarks/*/run.py; do $(BIN)/python $$script --quick || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
