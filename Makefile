# One word a task. `make` alone lists them.
PYTHON ?= python3
# A pinned torch: an open range takes a CUDA build of several gigabytes. On a GPU machine: make TORCH=torch …
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
# The latest TRL stack that the tests were run on; the packages themselves set no upper bounds.
STACK := trl==1.16.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 datasets==5.2.0 bitsandbytes==0.50.2

# Axolotl pins its stack exactly, so each of its releases has an environment of its own.
AXOLOTL := 0.19.0
AXOLOTL_NEXT := 0.21.0
# The first Python that is recent enough and really starts: pyenv has names on the PATH that do not. 3.12 comes first, since what
# Axolotl 0.21.0 pins (zstandard 0.22.0) has no wheel for 3.13 and could not be built there.
PYENV := $(HOME)/.pyenv/versions
PYTHONS_NEXT := python3.12 $(wildcard $(PYENV)/3.12.*/bin/python3) python3.13 python3.14 $(PYTHON) \
	$(wildcard $(PYENV)/3.1[3-9].*/bin/python3)
PYTHON_NEXT ?= $(or $(firstword $(foreach python,$(PYTHONS_NEXT),$(shell $(python) -c \
	'import sys; sys.version_info >= (3, 12) and print(sys.executable)' 2>/dev/null))),$(error \
	Axolotl $(AXOLOTL_NEXT) needs Python 3.12 or later and none was found: make axolotl-next PYTHON_NEXT=/path/to/python))
AXOLOTL_PACKAGE := plugins/layercard-axolotl
AXOLOTL_STAMP := .venv-axolotl/.installed-$(AXOLOTL)
NEXT_STAMP := .venv-axolotl-next/.installed-$(AXOLOTL_NEXT)

# The part of the suite that meets other packages most; the rest tests layercard's own arithmetic, or names of newer releases.
LOWEST_TESTS ?= tests/test_settings.py tests/anatomy/test_narrow.py tests/anatomy/test_gradient_entry.py \
	tests/pipeline/test_session.py tests/pipeline/test_guard.py tests/hosts/test_plain.py tests/prefix/test_cache.py \
	tests/report/test_model_card.py tests/cli/test_commands.py $(addprefix plugins/layercard-trl/tests/, \
	test_sft.py test_host.py test_dataset_file.py)
LOWEST_STAMP := .venv-lowest/.installed

.PHONY: axolotl axolotl-next deepspeed help install demo test test-lowest fuzz lint format types bench clean

help:
	@echo "make demo     train SmolLM2-135M on docstrings, placed and all-layer, and show the speedup and its cost"
	@echo "make test     run all tests"
	@echo "make test-lowest  the part of the tests that meets other packages most, on the lowest releases that we ask for"
	@echo "make axolotl  test the Axolotl plugin in an environment of its own (axolotl-next: its newest release, Python 3.12 or later)"
	@echo "make deepspeed  test DeepSpeed's ZeRO-2 and ZeRO-3 on CPU, in a folder of its own (needs a C++ compiler)"
	@echo "make fuzz     look for what breaks, with other examples each time: 10,000 card files, and as many times more of the others"
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

test test-lowest fuzz: export OMP_NUM_THREADS = 1
test test-lowest fuzz: export HF_HUB_OFFLINE = 1
test test-lowest fuzz: export TOKENIZERS_PARALLELISM = false
test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Old releases warn of one another and of torch, so warnings are no errors here.
test-lowest: $(LOWEST_STAMP)
	.venv-lowest/bin/python -m pytest --numprocesses 2 --dist worksteal --override-ini filterwarnings=default $(LOWEST_TESTS)

$(LOWEST_STAMP): pyproject.toml plugins/layercard-trl/pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(PYTHON) .ci/lowest.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --constraint .venv-lowest/lowest.txt \
		-e ".[cli,study]" -e "plugins/layercard-trl[qlora]" -e plugins/layercard-example \
		"pytest>=8" "pytest-timeout>=2.3" "pytest-xdist>=3.6" "hypothesis>=6.100" "tensorboard>=2.17"
	@touch $@

fuzz: install
	HYPOTHESIS_PROFILE=search FUZZ_TIMES=40 $(BIN)/python -m pytest --numprocesses 2 --timeout 7200 tests/fuzz

DEEPSPEED := $(CURDIR)/.venv-deepspeed
deepspeed: export PATH := $(DEEPSPEED)/bin:$(PATH)
deepspeed: export PYTHONPATH := $(DEEPSPEED)
deepspeed: $(DEEPSPEED)/.installed
	$(BIN)/python -m pytest tests/ranks/test_deepspeed.py

$(DEEPSPEED)/.installed: $(STAMP)
	$(PIP) setuptools wheel
	DS_BUILD_OPS=0 $(PIP) --no-deps --no-build-isolation --target $(DEEPSPEED) \
		deepspeed==0.19.8 hjson ninja py-cpuinfo msgpack einops
	@touch $@

axolotl axolotl-next: export OMP_NUM_THREADS = 1
axolotl: $(AXOLOTL_STAMP)
	cd $(AXOLOTL_PACKAGE) && $(CURDIR)/.venv-axolotl/bin/python -m pytest

axolotl-next: $(NEXT_STAMP)
	cd $(AXOLOTL_PACKAGE) && $(CURDIR)/.venv-axolotl-next/bin/python -m pytest

$(AXOLOTL_STAMP): pyproject.toml $(AXOLOTL_PACKAGE)/pyproject.toml
	$(call axolotl_environment,$(PYTHON),.venv-axolotl,$(AXOLOTL),$@)

$(NEXT_STAMP): pyproject.toml $(AXOLOTL_PACKAGE)/pyproject.toml
	$(call axolotl_environment,$(PYTHON_NEXT),.venv-axolotl-next,$(AXOLOTL_NEXT),$@)

# Python, folder, release, stamp. What stands there before layercard is kept in a file, and as constraints: nothing of it
# may change.
define axolotl_environment
	test -e $(2)/axolotl-as-installed.txt || { \
		$(1) -m venv $(2) && \
		$(2)/bin/pip install --quiet --disable-pip-version-check $(TORCH) && \
		$(2)/bin/pip install --quiet --disable-pip-version-check axolotl==$(3) && \
		$(2)/bin/pip freeze > $(2)/axolotl-as-installed.txt; }
	$(2)/bin/pip install --quiet --disable-pip-version-check --constraint $(2)/axolotl-as-installed.txt \
		-e . -e $(AXOLOTL_PACKAGE) "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100"
	@touch $(4)
endef

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

bench: install $(AXOLOTL_STAMP)
	for script in $(filter-out benchmarks/axolotl/%,$(wildcard benchmarks/*/run.py)); do $(BIN)/python $$script --quick || exit 1; done
	.venv-axolotl/bin/python benchmarks/axolotl/run.py --quick

clean:
	rm -rf $(VENV) .venv-lowest .venv-axolotl .venv-axolotl-next .venv-deepspeed .pytest_cache .mypy_cache .ruff_cache
