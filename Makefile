# make demo [TASK=lm|classify] [POLICY=ppo]   the whole path on a real model: coordinator, broker, five devices
# make test [ARGS=...]           every test, a process for each core, with a real MQTT broker where one can be had
# make lint                      ruff, mypy, import rules
#
# All of them work in .venv, made here when it is missing and brought up to date when pyproject.toml changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format broker clean

PYTHON ?= python3
TASK ?= lm
POLICY ?= largest-that-fits
ARGS ?=
BIN := .venv/bin

# Debian keeps mosquitto in /usr/sbin, which is not on an ordinary user's PATH.
export PATH := $(PATH):/usr/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

demo: .venv/.demo
	@$(BIN)/python -m benchmarks.demo --task $(TASK) --policy $(POLICY) $(ARGS)

test: .venv/.dev broker
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup $(ARGS)

lint: .venv/.dev
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ------------------------------------------------------------------------------------------------ the virtual environment

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "fedpeat needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 2; }
	echo "Making .venv ..."
	$(PYTHON) -m venv .venv
	touch $@

# pip says too much or nothing: show what is fetched, and drop the lists of what is there already. Its errors go to
# stderr and are not filtered. torch is pinned in pyproject.toml; where the package index carries only its CUDA build, point
# PIP_EXTRA_INDEX_URL at PyTorch's own index of CPU builds first.
define install
	@echo "Installing fedpeat[$(1)] into .venv ..."
	started=$$SECONDS
	$(BIN)/python -m pip install --progress-bar off --editable '.[$(1)]' \
		| sed -un -e 's/^ *Downloading \([^ ]*\)-\([0-9][^-]*\)-.*(\(.*\))/  \1 \2 (\3)/p' -e 's/^Installing collected.*/  installing/p'
	echo "Installed in $$((SECONDS - started)) s."
	touch $@
endef

.venv/.demo: pyproject.toml | .venv/.made
	$(call install,coordinator$(comma)demo)

.venv/.dev: pyproject.toml | .venv/.made
	$(call install,coordinator$(comma)controller$(comma)vision$(comma)demo$(comma)test$(comma)lint)

comma := ,

# ------------------------------------------------------------------------------------------------ a real broker for the tests

broker:
	@command -v mosquitto > /dev/null && exit 0
	skipped="tests marked 'broker' will be skipped. To run them: apt-get install mosquitto"
	if ! command -v apt-get > /dev/null; then
		echo "No mosquitto on PATH and no apt-get here: $$skipped"
		exit 0
	fi
	if [ "$$(id -u)" = 0 ]; then
		root=
	elif sudo -n true 2> /dev/null; then
		root="sudo -n"
	else
		echo "No mosquitto on PATH and no right to install it: $$skipped"
		exit 0
	fi
	echo "Installing mosquitto ..."
	export DEBIAN_FRONTEND=noninteractive
	{ $$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends mosquitto; } > /dev/null \
		|| echo "apt-get could not install mosquitto: $$skipped"

clean:
	@rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
