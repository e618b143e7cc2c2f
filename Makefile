# Lighterman. On a fresh Debian or Ubuntu machine with git, make and Python 3.11 to 3.13:
#
#   make demo     the whole loop on this machine        make test     everything that proves it
#
# Variables: PYTHON (an interpreter, 3.11 to 3.13), VENV (a folder), DEMO_ARGS, TEST_ARGS, TEST_JOBS, CRASH_ARGS, BENCH, BENCH_ARGS.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
# An interpreter of one's own gets an environment of its own beside the usual one.
VENV ?= .venv$(if $(PYTHON),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
TEST_JOBS ?= 2
CRASH_ARGS ?=
BENCH ?= loop
BENCH_ARGS ?= --json

export PYTHON VENV

# Stamps: an environment is made again when its lock, or what the project asks for, has changed.
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev

# Folders whose Python is formatted, linted and typed; those that do not exist are left out.
SOURCES := $(wildcard edge_contract edge_delta edge_agent packager cloud_registry device_sim benchmarks tests examples scripts)

.PHONY: help demo test test-fast test-arm crash check format lock bench venv venv-dev clean clean-venv

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUN_STAMP) ## train, package, ship, swap and watch, all on this machine (DEMO_ARGS="--keep")
	$(BIN)/device-sim demo $(DEMO_ARGS)

test: $(DEV_STAMP) ## every test; installs the Debian packages that they use where it may
	scripts/install-test-needs.sh
	$(BIN)/python -m pytest -n $(TEST_JOBS) $(TEST_ARGS)

test-fast: $(DEV_STAMP) ## the tests that need nothing of the machine and take no time
	$(BIN)/python -m pytest -n $(TEST_JOBS) -m "not slow and not system and not e2e" $(TEST_ARGS)

test-arm: $(DEV_STAMP) ## a device's whole life on emulated arm64 and armv7; as root, some minutes, downloads Debian for them
	LIGHTERMAN_TRY_ARM=1 $(BIN)/python -m pytest tests/integration/test_arm.py tests/integration/test_arm_image.py $(TEST_ARGS)

crash: $(DEV_STAMP) ## the agent killed, failed or cut off power at every change of its disk; an hour (CRASH_ARGS="--kinds kill")
	scripts/install-test-needs.sh
	$(BIN)/python -m tests.crash $(CRASH_ARGS)

check: $(DEV_STAMP) ## format, lint, strict types, the laws of the architecture
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture

format: $(DEV_STAMP) ## put the sources into the one form
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lock: $(DEV_STAMP) ## write both lock files anew from pyproject.toml, keeping versions that still fit
	scripts/lock.sh

bench: $(DEV_STAMP) ## one benchmark (BENCH=loop BENCH_ARGS=--json)
	$(BIN)/python -m benchmarks $(BENCH) $(BENCH_ARGS)

venv: $(RUN_STAMP) ## only the environment that make demo uses

venv-dev: $(DEV_STAMP) ## only the environment that make test uses

$(RUN_STAMP): requirements.lock pyproject.toml scripts/make-venv.sh
	@scripts/make-venv.sh $(VENV) requirements.lock
	@touch $@

# The second lock holds all of the first, so both are done.
$(DEV_STAMP): requirements-dev.lock requirements.lock pyproject.toml scripts/make-venv.sh
	@scripts/make-venv.sh $(VENV) requirements-dev.lock
	@touch $(RUN_STAMP) $@

clean: ## remove build leftovers and caches; keeps environments
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .demo
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

clean-venv: ## remove the environment
	rm -rf $(VENV)
