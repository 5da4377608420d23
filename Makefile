# `make demo` and `make test` do everything on a machine with git, make and Python >= 3.11.
# PYTHON chooses the interpreter the environment is made from.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
SYNCED := .venv/.synced
# What is pinned: all but HumanoidBench's own pins, which are old.
EXTRAS := experiments slurm language atari humanoid dev
# Tests run in as many processes as there are cores, a file in one of them.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lock

help:
	@echo "make demo       install, fetch CIFAR-10, run FIRE on the laptop-scale warm start (minutes on 2 cores)"
	@echo "make test       lint, types and the fast tests"
	@echo "make test-slow  the heavier tests"
	@echo "make lock       pin the newest dependencies again"

# The environment is made once and again only when the lock file changes.
$(SYNCED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(RUN) -m pip install --quiet --disable-pip-version-check uv
	@echo "installing the pinned dependencies (about 5 GB with PyTorch's CUDA libraries) ..."
	@VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	@touch $@

demo: $(SYNCED)
	@$(RUN) -m scripts.prepare_data cifar10
	@$(RUN) -m experiments.vision method=fire
	@$(RUN) -m scripts.report vision outputs/vision/warm_start-cifar10-resnet18-laptop

test: $(SYNCED)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(RUN) -m pytest -q -m "not slow" $(PARALLEL)

test-slow: $(SYNCED)
	@$(RUN) -m pytest -q -m slow $(PARALLEL)

lock: $(SYNCED)
	$(RUN) -m pip install --quiet --upgrade uv
	$(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 $(EXTRAS:%=--extra %) pyproject.toml \
		-o requirements.lock
