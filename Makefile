# Every target sets up what it needs: Python 3.11 or later, git and make are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

# Stamps are made one after another, whatever -j says.
.NOTPARALLEL:
.PHONY: help demo test test-python lint simulate lock clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/run ## Run the gateway in front of a pretend upstream, and print lines to paste
	@$(BIN)/bff demo

test: lint test-python ## Run lint, format check, types, import contracts and tests

test-python: $(VENV)/dev ## Run the tests alone, on the Python of VENV
	$(BIN)/python -m pytest

lint: $(VENV)/dev ## Run lint, format check, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>&1 | tail -n 20

simulate: $(VENV)/dev ## Check the formulae of docs/FLEET.md against every poll of ten million sessions
	$(BIN)/python tests/capacity.py

lock: ## Pin what is installed, with hashes (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -o requirements/run.txt --group build pyproject.toml
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -c requirements/run.txt -o requirements/dev.txt \
	  --group dev pyproject.toml

clean: ## Remove what the targets made
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# One stamp a set of packages: rerun when the pins change.
$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run: $(VENV)/python requirements/run.txt pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev: $(VENV)/run requirements/dev.txt
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@
