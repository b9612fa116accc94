# make demo, make test: each sets up everything it needs. Everything else: make help.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

REQUIREMENTS := $(wildcard requirements/*.txt)
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')
DEPS_STAMP := $(VENV)/.deps
EXT_STAMP := $(VENV)/.ext

.PHONY: help setup test test-slow lint format bench clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(DEPS_STAMP): $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c requirements/constraints.txt "$(TORCH)" -r requirements/build.txt
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -r requirements/runtime.txt -r requirements/tests.txt
	$(BIN)/python -m pip install -q --no-deps -r requirements/mminstall.txt
	touch $@

$(EXT_STAMP): $(DEPS_STAMP) setup.py pyproject.toml $(CSRC)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

setup: $(EXT_STAMP) ## environment in .venv, pinned requirements, compiled operators

test: setup ## the whole test suite (CPU)
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: setup ## tests that take long
	$(BIN)/python -m pytest -q -m slow

lint: setup ## ruff, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

format: setup ## let ruff and clang-format rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

bench: setup ## operator benchmarks
	$(BIN)/python tools/benchmarks/ops.py

clean: ## build products (not data/ nor work_dirs/)
	rm -rf build dist projects/*.egg-info projects/occforge/_C*.so $(EXT_STAMP)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
