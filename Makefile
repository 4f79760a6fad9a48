# Every target installs what it needs first. VENV=dir puts the environment elsewhere; PYTHON names the interpreter.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
ONLY ?=

.PHONY: help quickstart test check docs reference bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

# Idle OpenMP threads spin instead of sleeping, whatever the environment says: docs/explanation/profile.md.
quickstart: $(VENV)/.all  ## run recipes/quickstart.toml: about ten minutes on two cores
	OMP_WAIT_POLICY=active GOMP_SPINCOUNT=infinity $(BIN)/meditron run recipes/quickstart.toml

test: $(VENV)/.dev  ## run all tests
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

check: $(VENV)/.dev  ## check lint, formatting, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.docs  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reference: $(VENV)/.dev  ## rewrite the generated pages of docs/reference/
	$(BIN)/python docs/generate_reference.py

bench: $(VENV)/.bench  ## run all benchmarks, or ONLY=NAME; results are appended to benchmarks/results/
	@set -e; for file in $(if $(ONLY),benchmarks/$(ONLY).py,$(filter-out benchmarks/common.py,$(wildcard benchmarks/[a-z]*.py))); do \
	  name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

clean:  ## remove the environment and the built site; runs and downloads stay
	rm -rf $(VENV) site

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	@touch $@

# torch is installed first and alone: a later resolution could choose another build of it.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	@touch $@

# Building the documentation needs no torch: the Python API is read from the source.
$(VENV)/.docs: $(VENV)/.created constraints.txt pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.all $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	@touch $@
