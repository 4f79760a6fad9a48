# Every target makes the virtual environment it needs. VENV=dir puts it elsewhere; PYTHON names the interpreter.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
ONLY ?=

.PHONY: help quickstart test check bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

# OpenMP's threads spin at barriers, whatever the environment says: docs/profile.md.
quickstart: $(VENV)/.all  ## real PubMed in, an adapted model out: about ten minutes on two cores
	OMP_WAIT_POLICY=active GOMP_SPINCOUNT=infinity $(BIN)/meditron run recipes/quickstart.toml

test: $(VENV)/.dev  ## all tests, the smoke recipe among them
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

check: $(VENV)/.dev  ## lint, formatting, strict types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.bench  ## measure against peers: all benchmarks, or ONLY=NAME; lines go to benchmarks/results/
	@set -e; for file in $(if $(ONLY),benchmarks/$(ONLY).py,$(filter-out benchmarks/common.py,$(wildcard benchmarks/[a-z]*.py))); do \
	  name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

clean:  ## remove the virtual environment; runs and downloads stay
	rm -rf $(VENV)

# torch goes in first and alone: a resolver that meets it later may choose another build of it.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	@touch $@

$(VENV)/.all $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	@touch $@
