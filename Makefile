PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
STACK := $(BIN)/python -m deploy.native

.DEFAULT_GOAL := help
.PHONY: help venv up down status demo test faults soak lint bench clean

help:  ## List the commands
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(STAMP)  ## Install everything into .venv (PYTHON=python3.12 chooses another Python)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedq needs Python 3.11 or later: make venv PYTHON=python3.11")'
	@$(PYTHON) -m deploy.native.bootstrap .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all,dev]'
	@touch $@

up: venv  ## Start RabbitMQ, Redis, S3 and fedq's services here, without Docker
	@$(STACK) up

down: venv  ## Stop them; their data stays
	@$(STACK) down

status: venv  ## Show what runs and where to look
	@$(STACK) status

demo: venv  ## Train once, watch it, and leave nothing behind
	@$(STACK) demo

test: venv  ## Run all tests
	$(BIN)/pytest

faults: venv  ## Hurt processes and servers in every way, and write the table of docs/guide/faults.md (50 min)
	$(BIN)/pytest tests/faults --faults=all
	$(BIN)/python -m tests.faults.table

soak: venv  ## Run small jobs under chaos for 30 minutes, and print what grows
	$(BIN)/python -m tests.faults.soak --minutes 30

lint: venv  ## Check style, types and the import graph
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv  ## Measure rounds
	$(BIN)/python -m benchmarks.rounds

clean:  ## Stop the stack, remove its data, .venv and caches
	@[ ! -x $(BIN)/python ] || $(STACK) down
	rm -rf .fedq .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
