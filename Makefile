# make demo and make test need only Python 3.10+ and a C++ compiler: they set up .venv themselves.
# Variables: PYTHON (which interpreter), TORCH and TRITON (which versions), VENV (where), ARGS (passed on);
# MODELS= leaves out the tests on other people's models, for a torch that no torchvision was made for.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
NUMPY := numpy<2.4
MODELS ?= models
ARGS ?=

SHELL := /bin/bash
BIN := $(VENV)/bin
PY := $(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(PY) -m pip install
STEP := build_tools/step.sh
comma := ,
STAMPS := $(VENV)/stamps
CONSTRAINTS := $(STAMPS)/constraints.txt
# After the torch stamp: whatever is asked of pip, it keeps the torch that is there.
PINNED := $(PIP) -c $(CONSTRAINTS)

BUILD_FILES := setup.py pyproject.toml fastnorm/_version.py $(wildcard build_tools/*.py)
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test bench docs gpu sanitize lint format clean distclean force
.DELETE_ON_ERROR:

demo: $(STAMPS)/demo $(STAMPS)/extension
	$(PY) -m fastnorm demo $(ARGS)

# One process per core, of two threads each: more threads than cores, so that those that wait must sleep and not spin.
# The slow half keeps each file's tests in one process: some need gigabytes.
PYTEST := OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(PY) -m pytest --durations=10 -n auto
MEANT := not gpu and not sanitizer$(if $(MODELS),, and not models)
test: $(STAMPS)/test $(STAMPS)/extension
	$(PYTEST) --dist worksteal -m "not slow and $(MEANT)" $(ARGS)
	$(PYTEST) --dist loadfile -m "slow and $(MEANT)" $(ARGS) || [ $$? -eq 5 ]  # 5: none

bench: $(STAMPS)/bench $(STAMPS)/extension
	$(PY) -m pytest benchmarks --benchmark-only $(ARGS)

# Into build/site. The theme warns of mkdocs 2, which pyproject.toml shuts out.
docs: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

# On the bare GPU machine: the system's Python with its torch and triton, nothing installed.
gpu:
	$(PYTHON) -m benchmarks.gpu $(ARGS)

# A second build by g++, in build/sanitized, which the package loads in place of its own. The sanitizer's runtime
# must be the first library of the process, and needs libstdc++ there to find __cxa_throw. Reports go to files: pytest
# keeps what a test prints to itself, and a test that is aborted never gives it back.
SANITIZED := $(CURDIR)/build/sanitized/fastnorm/_C.abi3.so
SANITIZE_CXX ?= g++
# Every kernel on every instruction set of this CPU comes in test_memory.py and test_isa.py.
SANITIZE_TESTS ?= $(addprefix tests/conformance/test_,memory.py isa.py short_list.py activation_stats.py \
  determinism.py random.py optim_layouts.py optim_device.py row_regressions.py) \
  $(addprefix tests/unit/test_,bad_op_calls.py optim_half.py optim_functional.py optim_regressions.py)
REPORT := $(CURDIR)/build/sanitized/report
sanitize: $(STAMPS)/test $(STAMPS)/extension
	CXX=$(SANITIZE_CXX) FASTNORM_BUILD=cpu FASTNORM_SANITIZE=1 $(PY) setup.py -q build_ext --build-lib build/sanitized
	rm -f $(REPORT).*
	FASTNORM_EXTENSION=$(SANITIZED) FASTNORM_TEST_BACKENDS=cpu UBSAN_OPTIONS=print_stacktrace=1:log_path=$(REPORT) \
	  ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0:log_path=$(REPORT) \
	  LD_PRELOAD="$$($(SANITIZE_CXX) -print-file-name=libasan.so) $$($(SANITIZE_CXX) -print-file-name=libstdc++.so.6)" \
	  $(PYTEST) --dist worksteal -m "not slow" $(SANITIZE_TESTS) $(ARGS); \
	  status=$$?; cat $(REPORT).* 2>/dev/null; exit $$status

lint: $(STAMPS)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f fastnorm/*.so $(STAMPS)/extension
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# The environment: each stamp says that one step is done; a .want file changes when its variable does.

define remember
	@mkdir -p $(STAMPS)
	@[ "$$(cat $@ 2>/dev/null)" = "$(1)" ] || echo "$(1)" > $@
endef

$(STAMPS)/python.want: force
	$(call remember,$(shell $(PYTHON) -c 'import platform; print(*platform.python_version_tuple()[:2], sep=".")'))

$(STAMPS)/torch.want: force
	$(call remember,$(TORCH))

$(STAMPS)/models.want: force
	$(call remember,[$(MODELS)])

$(STAMPS)/venv: $(STAMPS)/python.want
	@$(STEP) "preparing $(VENV)" $(PYTHON) build_tools/make_venv.py $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/torch.want $(STAMPS)/venv
	@$(STEP) "installing $(TORCH) (a large download)" $(PIP) "$(TORCH)" "$(NUMPY)"
	@$(PY) -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > $(CONSTRAINTS)
	@echo "$(NUMPY)" >> $(CONSTRAINTS)
	@touch $@

$(STAMPS)/tools: $(STAMPS)/torch
	@$(STEP) "installing setuptools, wheel, ninja, pybind11" $(PINNED) -q "setuptools>=77" wheel ninja pybind11
	@touch $@

$(STAMPS)/extension: $(STAMPS)/tools $(BUILD_FILES) $(CSRC)
	@$(STEP) "building the C++ kernels" $(PY) setup.py -q build_ext --inplace
	@touch $@

# The installs below build the extension too, but hide the compiler's progress: hence after the rule above.
$(STAMPS)/demo: $(STAMPS)/torch $(BUILD_FILES) | $(STAMPS)/extension
	@$(STEP) "installing fastnorm and what the demo needs" $(PINNED) -q --no-build-isolation -e ".[demo]"
	@touch $@

$(STAMPS)/bench: $(STAMPS)/torch $(BUILD_FILES) | $(STAMPS)/extension
	@$(STEP) "installing fastnorm and what the benchmarks need" $(PINNED) -q --no-build-isolation -e ".[bench]"
	@touch $@

# The reference is read out of the sources: nothing is compiled for it.
$(STAMPS)/docs: $(STAMPS)/tools $(BUILD_FILES)
	@$(STEP) "installing fastnorm and what the documentation needs" \
	  env FASTNORM_BUILD=none $(PINNED) -q --no-build-isolation -e ".[docs]"
	@touch $@

$(STAMPS)/lint: pyproject.toml | $(STAMPS)/test
	@$(STEP) "installing ruff and mypy" $(PINNED) -q --no-build-isolation -e ".[dev]"
	@touch $@

# torch's CUDA builds for Linux bring their own triton; only where none came along is one chosen here.
$(STAMPS)/test: $(STAMPS)/torch $(STAMPS)/models.want $(BUILD_FILES) | $(STAMPS)/extension
	@$(STEP) "installing fastnorm and what the tests need" \
	  $(PINNED) -q --no-build-isolation -e ".[test,demo,bench,docs$(addprefix $(comma),$(MODELS))]"
	@[ "$$(uname -sm)" != "Linux x86_64" ] || $(PY) -c "import triton" 2>/dev/null || \
	  $(STEP) "installing $(TRITON)" $(PINNED) -q "$(TRITON)"
	@touch $@
