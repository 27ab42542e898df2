# `make` lists the verbs.  Each makes the environment it needs in .venv; nothing is installed outside this folder.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
# Where to take torch from, when not from pip's usual index: https://download.pytorch.org/whl/cpu has the small CPU build.
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := QUAMBA_SKIP_NATIVE=1 $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
REFERENCE := $(BIN)/python -c 'from quamba_edge.cli import reference_markdown; print(reference_markdown(), end="")'

.PHONY: help demo test test-all test-browser test-arm64 test-arm64-root lint native wheels offline-kit cubin-report gpu-check bench docs clean

help:  ## list these verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.pack native  ## pack the embedded story teller to 4 bits, compare with the original, hear a story
	$(BIN)/python demos/make_demo.py

test: lint native  ## style, types, command reference, and every quick test
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not arm64"

test-all: lint native $(VENV)/.browser  ## the same, with the slow tests, the page test, and test-arm64-root where that can run
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not arm64"
	@! $(BIN)/python -m tests.arm64root.root --check || $(MAKE) --no-print-directory test-arm64-root

test-browser: native $(VENV)/.browser  ## the page of the chat demo, where there is a Chromium
	$(BIN)/python -m pytest -q -rs tests/demos/test_chat_page.py

test-arm64: $(VENV)/.test  ## the kernels compiled for aarch64 and run in an emulator: every op, both golden bundles
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null || { echo "needs a cross-compiler and an emulator: apt install g++-aarch64-linux-gnu qemu-user-static"; exit 1; }
	$(BIN)/python -m pytest -q -m arm64 tests/native

test-arm64-root: $(VENV)/.test  ## an arm64 Debian with only Python: the kit installs offline, a bundle talks, setup.sh, the board's tests
	@$(BIN)/python -m tests.arm64root.root --check
	@$(MAKE) --no-print-directory offline-kit
	$(BIN)/python -m pytest -q -rs -m arm64 tests/arm64root

lint: $(VENV)/.test  ## ruff, mypy, docs/cli.md against the parser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy quamba_edge
	@$(REFERENCE) | diff docs/cli.md - || { echo "docs/cli.md is not what the command line says of itself: make docs"; exit 1; }

native: $(VENV)/.pack  ## compile csrc/ where there is a compiler, and the board's kernels; one line and a slower run where there is none
	@$(BIN)/python setup.py -q build_native --build-lib=.

wheels: $(VENV)/.wheels  ## write dist/*.whl for this kind of workstation and for a board: libraries and GPU kernels inside
	$(BIN)/python jetson/wheels.py --out dist

offline-kit: $(VENV)/.wheels $(if $(BUNDLE),,$(VENV)/.pack)  ## write build/kit and its tar: all that a board needs without a network (BUNDLE=FILE.qedge, KIT_EXTRAS=demo)
	$(BIN)/python jetson/kit.py --out build/kit --extras '$(KIT_EXTRAS)' $(if $(BUNDLE),--bundle '$(BUNDLE)')

cubin-report: native  ## write docs/cubins.md: registers, spills, instructions, launches and bytes of the board's kernels
	$(PIP) nvidia-cuda-nvdisasm
	@mkdir -p build && $(BIN)/python csrc/cubin_report.py quamba_edge/_native/sm_87 > build/cubins.md && mv build/cubins.md docs/cubins.md

gpu-check: $(VENV)/.test native  ## where there is a GPU: everything that only one can show, written to docs/gpu.md
	@$(BIN)/python -m tests.gpu.check $(GPU_CHECK)

bench: $(VENV)/.test  ## run every script in tests/bench; the last line of each is JSON
	@for script in tests/bench/*.py; do echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.pack  ## write docs/cli.md from the parser
	@mkdir -p build && $(REFERENCE) > build/cli.md && mv build/cli.md docs/cli.md

clean:  ## remove what was built here, the environment too
	rm -rf $(VENV) build dist *.egg-info quamba_edge/_native .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find quamba_edge tests demos -name __pycache__ -type d -exec rm -rf {} +

# Absent Python, old Python and a Python without ensurepip (Debian without python3-venv) each get one line that says what to do.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.10 or later (apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$($(PYTHON) -V), quamba_edge needs 3.10 or later: make PYTHON=/path/to/python3.10"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt install python3-venv, then again"; exit 1; }
	@echo "making $(VENV), once: a few minutes.  Much less to load on a machine without a GPU: make TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.pack: $(VENV)/.made pyproject.toml setup.py constraints.txt
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch)
	$(PIP) 'setuptools>=77' -e '.[pack,cubins]'
	@touch $@

# What builds wheels: no torch, so that a machine which only does that is ready in a minute.
$(VENV)/.wheels: $(VENV)/.made pyproject.toml setup.py constraints.txt
	$(PIP) 'setuptools>=77' packaging -e '.[cubins]'
	@touch $@

$(VENV)/.test: $(VENV)/.pack
	$(PIP) -e '.[pack,cubins,test]'
	@touch $@

$(VENV)/.browser: $(VENV)/.test
	$(PIP) -e '.[pack,cubins,test,browser]'
	@touch $@
