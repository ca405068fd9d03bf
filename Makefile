# Everything a fresh clone needs is Python >= 3.11 and make. Nothing here needs root.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do $$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
CHECKING := $(VENV)/.checking
PYTEST_ARGS ?=
# Tests start hundreds of processes, and without byte code each compiles a thousand modules: two of its three seconds.
unexport PYTHONDONTWRITEBYTECODE
# As many processes as the machine has processors, up to four: each starts a Postgres of its own.
PYTEST = python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | while IFS=$$'\t' read -r name what; do printf '  %-10s %s\n' "$$name" "$$what"; done

# ---- installing ------------------------------------------------------------------------------------------------------------

PIP = $(BIN)/python -m pip install --disable-pip-version-check -q

# What running the server and the examples needs: only hashed packages, from whatever index this machine's pip is set to; then this project, built by the
# hatchling of the lock. Byte code is made when a module is first used: most never are.
$(RUNTIME): requirements-runtime.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed and none was found: install one, or name it with PYTHON=…' >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo '$(PYTHON) is older than Python 3.11' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) --no-compile --require-hashes -r requirements-runtime.lock
	$(PIP) --no-deps --no-build-isolation --no-index -e .
	@touch $@

# What checking needs on top, at the same versions.
$(CHECKING): requirements.lock $(RUNTIME)
	$(PIP) --require-hashes -r requirements.lock
	@touch $@

.PHONY: install
install: $(CHECKING)  ## make .venv with every locked package and this project

# ---- using -----------------------------------------------------------------------------------------------------------------

.PHONY: demo dev
demo: $(RUNTIME)  ## a GitHub webhook and a curl event become signed pushes and come back as results
	@$(BIN)/python -m tests.examples.demo

dev: $(RUNTIME)  ## the development server on loopback, with its own Postgres in ./.dispatcher
	@$(BIN)/dispatcher dev

# ---- checking --------------------------------------------------------------------------------------------------------------

.PHONY: test tests lint test-313 jitter
# Both at once: mypy has one processor for half a minute, which leaves the others idle before the tests and is hardly felt beside them.
test: $(CHECKING)  ## lint, types, walls and every test
	@$(MAKE) --no-print-directory --jobs=2 lint tests

tests: $(CHECKING)
	$(BIN)/$(PYTEST) $(PYTEST_ARGS)

lint: $(CHECKING)  ## ruff, mypy --strict and the import walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The same tests on 3.13: asked of PATH first, then of pyenv.
PYTHON313 = $(shell python3.13 -c 'import sys; print(sys.executable)' 2>/dev/null \
	|| { root="$$(pyenv root 2>/dev/null)" && ls -d "$$root"/versions/3.13*/bin/python3.13 2>/dev/null | tail -1; })

test-313:  ## every test on Python 3.13, where there is one
	@if [ -z "$(PYTHON313)" ]; then echo 'no python3.13 on this machine: skipped'; \
	else $(MAKE) PYTHON="$(PYTHON313)" VENV=.venv-313 install && .venv-313/bin/$(PYTEST) $(PYTEST_ARGS); fi

# ---- measuring -------------------------------------------------------------------------------------------------------------

jitter: $(CHECKING)  ## whole-system tests in another order of events, SEED names which
	$(BIN)/$(PYTEST) -p tests.jitter --jitter-seed $(or $(SEED),0) tests/world tests/triggers tests/sdk tests/webhooks_server

.PHONY: bench contract crash chaos storm-limits soak-crons storm-crons
bench: $(CHECKING)  ## runs per second, latency and CPU per run; results in ./bench-results
	$(BIN)/python -m tests.bench

contract: $(CHECKING)  ## everything the API's description allows, asked of a development server at URL
	$(BIN)/python -m tests.contract $(or $(URL),http://127.0.0.1:8400)

crash: $(CHECKING)  ## durable tasks, endpoints killed at every checkpoint, dispatchers before and after every statement, the long form
	$(BIN)/$(PYTEST) tests/sdk/test_durable_crashes.py tests/world/test_durable_crash_sdk.py tests/world/test_durable_crash.py --crash-stride 1

chaos: $(CHECKING)  ## kill -9 of dispatchers and Postgres under load, the long form
	$(BIN)/python -m tests.chaos

storm-limits: $(CHECKING)  ## ten a minute and shared places with three dispatchers, two killed in each of three windows
	$(BIN)/python -m tests.chaos.limits

soak-crons: $(CHECKING)  ## a simulated year of crons with two dispatchers, then three: restarts, outages, wrong clocks
	$(BIN)/python -m tests.triggers.year

storm-crons: $(CHECKING)  ## five real minutes of crons of one second, a dispatcher killed every ten
	$(BIN)/python -m tests.triggers.storm

# ---- keeping ---------------------------------------------------------------------------------------------------------------

COMPILE = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' --quiet

.PHONY: lock reference clean
reference: $(CHECKING)  ## make dispatcher/REFERENCE.md from the code again
	$(BIN)/python -m tests.reference

lock:  ## compile the two lock files again (needs uv)
	$(COMPILE) --all-extras --group build --group dev --group oracles -o requirements.lock
	$(COMPILE) --extra examples --group build --constraint requirements.lock -o requirements-runtime.lock

clean:  ## remove everything that was made, data of `make dev` included
	rm -rf .venv .venv-* .dispatcher bench-results dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
