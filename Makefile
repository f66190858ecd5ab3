# `make demo` runs both phases on the toy dataset, `make test` the tests; see CONTRIBUTING.md.
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
WHEEL := .venv-wheel
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Variables of the installation, `make demo`, `make study` and `make test-lowest`.
TORCH ?= auto
SPLIT ?= ua
SEED ?= 0
CEILING ?= 0
MODELS ?= shipped
SEEDS ?= 0,1,2
RERUN ?= 0
TESTS ?= tests

# Without the bytecode files of torch and of the libraries, which uv does not write at the installation, each
# of the many processes that tests start compiles them, which takes longer than everything else in its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo study test test-slow test-all test-gpu test-lowest test-wheel coverage docs lint clean

# $(call INSTALL,ENVIRONMENT,PACKAGES). Without an NVIDIA driver, torch's CPU build is installed, which is
# much smaller than PyPI's CUDA build. TORCH=cpu, cu126 and so on choose a build of torch's own package
# index, TORCH=pypi that of PyPI.
UV_INSTALL = $(BIN)/uv pip install --quiet --python $(1)/bin/python $(2)
define INSTALL
@if [ "$(TORCH)" = pypi ]; then $(UV_INSTALL); \
elif $(UV_INSTALL) --torch-backend=$(TORCH) 2>$(1)/uv.log; then :; \
elif [ "$(TORCH)" = auto ]; then \
    echo "torch's package index cannot be used, installing PyPI's build of torch"; $(UV_INSTALL); \
else cat $(1)/uv.log >&2; exit 2; fi
@$(1)/bin/python -c "import torch; print('installed torch', torch.__version__)"
endef

$(INSTALLED): setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip uv
	$(call INSTALL,$(VENV),--editable '.[dev]')
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m benchmarks.demo --split "$(SPLIT)" --seed $(SEED) --models $(MODELS) \
	    $(if $(filter 1,$(CEILING)),--ceiling)

study: $(INSTALLED)
	$(BIN)/python -m benchmarks.study --seeds $(SEEDS) $(ONLY:%=--only %) $(BUDGET:%=--budget %) \
	    $(JOBS:%=--jobs %) $(if $(filter 1,$(RERUN)),--rerun)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

# Each test process computes with one thread. The tests of a file run in one process, because they share
# fixtures that are slow to make.
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not gpu"

# Tests of SLURM jobs and killed processes mostly wait, so that more processes than cores shorten it.
test-slow: $(INSTALLED)
	$(PYTEST) -n 3 -m "slow and not gpu"

test-all: test test-slow

# One process, because each GPU test uses the whole GPU. -rsP prints what the tests measured.
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu -rsP

# The lowest versions that setup.cfg allows, in a separate environment. They support Python 3.10 to 3.12.
# `make test-lowest TESTS=tests/student` runs a part.
$(LOWEST)/.installed: setup.cfg pyproject.toml
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	    --editable '.[test]'
	@touch $@

test-lowest: BIN = $(LOWEST)/bin
test-lowest: $(LOWEST)/.installed
	$(PYTEST) -m "not slow and not gpu" $(TESTS)

# Both phases with the wheel in a new environment. `uv build` builds the sdist, and the wheel from the sdist,
# so that this tests both. A list of files that an earlier build left in *.egg-info would be built in again.
test-wheel: $(INSTALLED)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(WHEEL)
	rm -rf *.egg-info
	$(BIN)/uv build --quiet --out-dir $(WHEEL)/dist
	$(call INSTALL,$(WHEEL),"$$(ls $(WHEEL)/dist/*.whl)[report]")
	tests/wheel.sh $(WHEEL)/dist/*.whl $(WHEEL)

coverage: $(INSTALLED)
	$(PYTEST) -m "not gpu" --cov --cov-report term

# Commands of the environment are called to print their settings.
docs: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html

clean:
	rm -rf docs/_build $(VENV) $(LOWEST) $(WHEEL) demo build dist *.egg-info
