# Every target makes its own environment on a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile # many tests wait for processes of their own

.PHONY: demo demo-deployment test check bench clean
.DEFAULT_GOAL := help

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fedrec needs Python 3.11 or newer; give one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP) ## a whole federation on the built-in marketplace, then where its report is
	$(BIN)/fedrec simulate simulations/scenarios/demo.toml

demo-deployment: $(STAMP) ## a coordinator and five shops as processes, two of them killed on the way
	$(BIN)/python server/demo_deployment.py

test: $(STAMP) ## all tests
	$(PYTEST)

check: $(STAMP) ## format, lint, types, then all tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST)

bench: $(STAMP) ## the benchmarks, each beside its reference
	@for script in simulations/benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## remove the environment and caches, keep runs
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
