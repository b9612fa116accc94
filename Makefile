# make demo, make test: each sets up everything it needs. Everything else: make help.
PYTHON ?= python3
VENV ?= .venv
# the tested version; another one, or a CUDA build from pytorch.org: make setup TORCH=torch==2.8.0 TORCH_INDEX=https://...
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=
# processes of make test, one thread each
WORKERS ?= 2
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

REQUIREMENTS := $(wildcard requirements/*.txt)
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')
DEPS_STAMP := $(VENV)/.deps
EXT_STAMP := $(VENV)/.ext
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check

.PHONY: help setup doctor demo ablation test test-slow test-asan lint format bench bench-table wheel clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(DEPS_STAMP): $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) -c requirements/constraints.txt -r requirements/build.txt -r requirements/runtime.txt -r requirements/tests.txt
	$(PIP) --no-deps -r requirements/mminstall.txt
	touch $@

# --no-build-isolation: compiled against the torch of this environment, not against a fresh one
$(EXT_STAMP): $(DEPS_STAMP) setup.py pyproject.toml $(CSRC)
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

setup: $(EXT_STAMP) ## environment in .venv, pinned requirements, compiled operators

doctor: setup ## what is installed, what is missing, how to fix it
	$(BIN)/python tools/doctor.py

demo: setup ## synthetic city -> training -> test -> pictures (ARGS="--help" lists the options)
	$(BIN)/python tools/demo.py $(ARGS)

ablation: setup ## fusion against camera only and LiDAR only, two seeds each
	$(BIN)/python tools/ablation.py $(ARGS)

test: setup ## the whole test suite (CPU; WORKERS=8 with more cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

test-slow: setup ## tests that take long
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# Sources and library go to build/asan, which then is in front of the development install. The runtimes of the
# sanitizers and of C++ have to be there before Python's own libraries; Python itself leaks on purpose.
SANITIZER_RUNTIMES = $(shell for lib in libasan.so libubsan.so libstdc++.so; do $(or $(CXX),g++) -print-file-name=$$lib; done)
test-asan: setup ## the operator tests under AddressSanitizer and UBSan (CPU)
	OCCFORGE_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/asan --build-lib build/asan/lib
	LD_PRELOAD="$(SANITIZER_RUNTIMES)" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 \
	    UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/asan/lib OCCFORGE_SANITIZE=1 \
	    $(BIN)/python -m pytest -q -p no:cacheprovider tests/ops --ignore tests/ops/test_cuda_compiles.py $(ARGS)

lint: setup ## ruff, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

format: setup ## let ruff and clang-format rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

BENCH := build/benchmarks
bench: setup ## operator benchmarks, numbers also in build/benchmarks/*.json (ARGS go to the first)
	mkdir -p $(BENCH)
	$(BIN)/python tools/benchmarks/ops.py --out $(BENCH)/ops.json $(ARGS)
	$(BIN)/python tools/benchmarks/occupancy_loss.py --out $(BENCH)/occupancy_loss.json

bench-table: ## the figures of csrc/README.md from the last make bench
	$(BIN)/python tools/benchmarks/table.py $(BENCH)/ops.json $(BENCH)/occupancy_loss.json --into csrc/README.md

wheel: setup ## dist/occforge-*.whl for this Python and this torch
	rm -rf build/lib*
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .

clean: ## build products (not .venv, data/ nor work_dirs/)
	rm -rf build dist projects/*.egg-info projects/occforge/_C*.so $(EXT_STAMP)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
