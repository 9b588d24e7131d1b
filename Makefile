# Every target makes the machine ready first; when it is ready already, that costs well under a second.
# The end-to-end tests, the demo and the bench build network namespaces, so they run as root (through sudo if need be).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv/bin
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PYTEST_ARGS ?=

.PHONY: help setup demo test test-slow check format bench bench-quick lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 22

setup:  ## install the system packages and the virtual environment, or repair them
	@scripts/setup

demo: setup  ## two hosts in a lab: protect a running VM, kill its host, start the copy
	@$(AS_ROOT) scripts/demo

test: setup  ## the tests (PYTEST_ARGS="tests/unit -k words" to choose some)
	@$(AS_ROOT) scripts/test $(PYTEST_ARGS)

test-slow: setup  ## the tests that `make test` leaves out
	@$(AS_ROOT) $(VENV)/python -m pytest -m slow $(PYTEST_ARGS)

check: setup  ## lint, format, types, import contracts, sizes, reference pages, addresses
	@scripts/check

format: setup  ## format the code and apply the safe fixes
	@$(VENV)/ruff format .
	@$(VENV)/ruff check --fix .

bench: setup  ## measure against the peers, write build/bench.json
	@$(AS_ROOT) $(VENV)/python -m bench

bench-quick: setup  ## the same in under five minutes
	@$(AS_ROOT) $(VENV)/python -m bench --quick

lock: setup  ## resolve the requirements anew from pyproject.toml (needs uv)
	@scripts/lock

clean:  ## remove what was built, keep the virtual environment
	@$(AS_ROOT) rm -rf build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests bench scripts -name __pycache__ -type d -prune -exec $(AS_ROOT) rm -rf {} +
