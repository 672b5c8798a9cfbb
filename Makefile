# Two commands are enough: `make demo` and `make test`. Everything they need is installed below the checkout.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo dev test lint bench soak clean help

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

# Written last, so that an interrupted installation is done again.
$(READY): requirements.lock pyproject.toml
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@# Not compiled here: Python compiles what is used when it is first imported, which is much less.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## Run the whole product once, end to end, on this machine
	@exec $(BIN)/flexpay demo

dev: $(READY) ## Open the Dagster UI
	@exec $(BIN)/flexpay dev

test: $(READY) ## Run the tests
	@$(BIN)/pytest -m "not soak" -n 2 --dist worksteal

soak: $(READY) ## Thousands of random histories and kills
	@$(BIN)/pytest -m soak -n 2

lint: $(READY) ## Format, lint, types, imports, SQL
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/sqlfluff lint --disable-progress-bar --processes 2 sql/queries
	@$(BIN)/squawk sql/migrations/*/*.sql

bench: $(READY) ## Measure against floors of the same run
	@exec $(BIN)/python -m tests.bench

clean: ## Remove everything that was installed or made here
	rm -rf $(VENV) .flexpay
