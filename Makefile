# make demo    generate data, train a small PaliGemma from scratch, evaluate it, write a report
# make test    the default test suite
# make check   what a commit must pass: format, lint, types, tests
# make lint    the first three of these alone
# make test-slow   the tests that the default suite leaves out; adds torch, transformers, peft, libtpu, mkdocs
# make clean   remove caches and what the demo wrote; .venv stays
#
# Each does its own set-up: a virtual environment in .venv, from nothing but Python 3.11 to 3.13.
# To choose the interpreter: make test PYTHON=/path/to/python3.12
# More arguments for pytest: make test PYTEST_ARGS='tests/models --durations=20'

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check lint clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3.11 python3.12 python3.13 python3 python
# The stamp is newer than what it depends on as long as everything declared there is installed.
INSTALLED := $(VENV)/installed
# The oracles change no version of what is there, so they join the same environment. They come only
# when they are asked for: where they are not, the default suite shows that nothing needs them.
ORACLES := $(VENV)/installed-oracles
# Compiling keeps one core busy, so a process per core runs the files of tests: each needs 1 to 2 GB.
WORKERS := -n auto --maxprocesses=4 --dist=loadfile

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

test: $(INSTALLED)
	@$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

test-slow: $(ORACLES)
	@$(BIN)/python -m pytest -m slow $(WORKERS) $(PYTEST_ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/basedpyright

check: lint test

# A run's folder is not written twice, so the demo removes its own first.
demo: $(INSTALLED)
	@rm -rf data/demo runs/demo
	@set -eu; \
	evaluate="$(BIN)/python -m paligemma_jax.evaluate --run runs/demo --data"; \
	start=$$SECONDS; \
	$(BIN)/python experiments/demo/make_data.py --out data/demo; \
	made=$$SECONDS; \
	$(BIN)/python -m paligemma_jax.train --config configs/demo.py --workdir runs/demo; \
	trained=$$SECONDS; \
	echo "The same model, untrained, on 200 images that it never sees:"; \
	$$evaluate data/demo/_annotations.test.jsonl --weights none --name untrained; \
	echo "After training, on the same images:"; \
	$$evaluate data/demo/_annotations.test.jsonl; \
	echo "data $$((made - start)) s, training $$((trained - made)) s," \
	    "evaluation $$((SECONDS - trained)) s"; \
	echo "Pictures and curves: runs/demo/report.html, runs/demo/evaluation-test/report.html"

clean:
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis *.egg-info data/demo runs/demo

# pip prints some 300 lines; the large files, and what follows them, are enough to see that it moves.
LARGE := awk -F '[-() ]+' '/(Downloading|Using cached).*\.whl .* [MG]B/ \
    && ($$(NF-2) >= 10 || $$(NF-1) == "GB") { \
        i = $$2 == "Using" ? 4 : 3; \
        print "  " $$i " " $$(i+1) ", " $$(NF-2) " " $$(NF-1); fflush() } \
    /^Installing collected packages/ { \
        print "  unpacking " gsub(/,/, "") + 1 " packages: a minute or so"; fflush() }'

INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV): 2.7 GB, some minutes the first time"
	@set -o pipefail; $(INSTALL) -e '.[test]' | $(LARGE)
	@touch $@

$(ORACLES): $(INSTALLED)
	@echo "Adding torch, transformers, peft, libtpu and mkdocs to $(VENV)"
	@set -o pipefail; $(INSTALL) -e '.[test,oracles,tpu,docs]' | $(LARGE)
	@touch $@

# pip is the last thing that venv writes, so its absence also shows one that was interrupted.
$(BIN)/pip:
	@for python in $(PYTHON); do \
	    if "$$python" -c 'import ensurepip, sys, venv; \
	        sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$("$$python" --version) ($$(command -v "$$python"))"; \
	        exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo "No Python 3.11, 3.12 or 3.13 that has the venv module among: $(PYTHON)." \
	    "Install one (Debian, Ubuntu: apt install python3.11-venv)" \
	    "or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1
