PYTHON ?= python3
BIN := .venv/bin
# A test waits for servers and timers more than half its time, so that two at a time are worth it on two cores.
WORKERS ?= 2
STAMP := .venv/.installed
RECENT = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
  "fedq needs Python 3.11 or later: make $(MAKECMDGOALS) PYTHON=python3.11")'
# In containers if Docker answers, as ordinary processes if not: STACK=compose or STACK=native decides.
RUN = @$(RECENT) && STACK=$(STACK) exec $(PYTHON) -m deploy $@
# The other defaults are in deploy/images/build.py.
TORCH_INDEX_CUDA ?= $(TORCH_INDEX)
export IMAGES IMAGE_PREFIX IMAGE_TAG PYTHON_IMAGE TORCH_INDEX TORCH_INDEX_CUDA WHEELS PIP_CONF DOCKER_BUILD_FLAGS REGISTRY

.DEFAULT_GOAL := help
.PHONY: help venv up down demo logs status unit test test-compose faults soak lint bench clean images push

help:  ## List the commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

venv: $(STAMP)  ## Install everything into .venv (PYTHON=python3.12 chooses another Python)

$(STAMP): pyproject.toml constraints.txt
	@$(RECENT)
	@$(PYTHON) -m deploy.native.bootstrap .venv all,dev
	@touch .venv/.runs $(STAMP)

up:  ## Start RabbitMQ, Redis, S3 and fedq's services, in containers or without (STACK=compose, STACK=native)
	$(RUN)

down:  ## Stop them; their data stays
	$(RUN)

demo:  ## Train once, watch it, and leave nothing behind
	$(RUN)

logs:  ## Follow what all of them say, until Ctrl-C
	$(RUN)

status:  ## Show what runs and where to look
	$(RUN)

unit: venv  ## Run the tests that need no server and start nothing (1 min)
	$(BIN)/pytest tests/unit --numprocesses $(WORKERS) --dist loadfile

test: venv  ## Run all tests (WORKERS=1 for less at a time)
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test-compose: venv  ## Run the tests of the stack in containers, which need a Docker Engine (10 min, and the images)
	$(BIN)/pytest tests/compose

faults: venv  ## Hurt processes and servers in every way, and write the table of docs/guide/faults.md (50 min)
	$(BIN)/pytest tests/faults --faults=all
	$(BIN)/python -m tests.faults.table

soak: venv  ## Run small jobs under chaos for 30 minutes, and print what grows
	$(BIN)/python -m tests.faults.soak --minutes 30

lint: venv  ## Check style, types and the import graph
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

images:  ## Build the container images (IMAGES=registry for one; docs/guide/images.md)
	@$(RECENT)
	@$(PYTHON) deploy/images/build.py build

push:  ## Push them: make push REGISTRY=host/name
	@$(RECENT)
	@$(PYTHON) deploy/images/build.py push

bench: venv  ## Measure rounds
	$(BIN)/python -m benchmarks.rounds

clean:  ## Stop the stack, remove its data, .venv and caches
	@[ ! -x $(BIN)/python ] || $(BIN)/python -m deploy.native down
	@[ ! -e deploy/compose/.env ] || $(PYTHON) -m deploy.compose down --purge
	rm -rf .fedq .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
