# Dynaurora. `make` alone lists what there is. Needs Python 3.11 or newer, make and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help setup check test test-ui stress bench exam lambda demo ui clean lock format docs

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.ready  ## make the environment, from locked and hashed requirements

python-ok:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "dynaurora: needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo absent); name another: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "dynaurora: $(PYTHON) lacks the venv module; install it (Debian: apt install python3-venv) and run again"; exit 2; }
.PHONY: python-ok

# One rule for each environment: requirements/NAME.txt makes .venv (main) or .venv-NAME.
$(VENV)/.ready: requirements/main.txt pyproject.toml | python-ok
	@echo "setting up $(VENV) (first time: about a minute, mostly download)"
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION) 2>&1 | grep -v '^WARNING' || true; }
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/main.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

.venv-%/.ready: requirements/%.txt $(VENV)/.ready
	@echo "setting up .venv-$*"
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv --without-pip .venv-$*
	@$(BIN)/uv pip install -q --python .venv-$*/bin/python --require-hashes -r $<
	@touch $@

check: setup  ## format, lint, types, import directions, templates
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	@if [ -f lambda_replicator/template.yaml ]; then $(BIN)/cfn-lint lambda_replicator/*.yaml; fi

# The replicator's zip for the Python that the local emulator runs functions with.
LOCAL_ZIP := build/local/lambda_replicator.zip
LOCAL_PYTHON = $$(.venv-local/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# All that could be in it, so that no file is forgotten; what is in it, only importing the handler can tell.
ZIP_SOURCES := $(shell find pipeline lambda_replicator -name '*.py' -not -path 'pipeline/local/*') $(wildcard tables/*.y*ml) requirements/lambda.txt
$(LOCAL_ZIP): $(ZIP_SOURCES) .venv-local/.ready
	@$(BIN)/python -m lambda_replicator.package --python $(LOCAL_PYTHON) --output $@ | head -1

demo: setup $(LOCAL_ZIP)  ## watch a table load, follow live writes and be proven equal (under three minutes)
	@$(BIN)/python -m pipeline.local.demo $(DEMO)

UI_PORT ?= 3000
ui: setup $(LOCAL_ZIP)  ## the stack with its writer ticking and Dagster's UI on http://127.0.0.1:3000 (UI_PORT=…)
	@$(BIN)/python -m pipeline.local.ui --port $(UI_PORT)

docs: setup  ## write what docs say of types, and the mapping's JSON Schema, from the code
	$(BIN)/python -m tests.type_table
	$(BIN)/python -m tests.mapping_schema

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One zip serves one Python minor version: its database driver is compiled for it. Deploy with the template's
# PythonRuntime set to the same, or leave both at their default.
LAMBDA_PYTHON ?= 3.13
lambda: setup  ## build build/lambda_replicator.zip (LAMBDA_PYTHON=3.12 for another runtime)
	@$(BIN)/python -m lambda_replicator.package --python $(LAMBDA_PYTHON)

test: setup .venv-local/.ready .venv-rie/.ready  ## all tests but the long ones, against real PostgreSQL and the local AWS stack
	$(BIN)/pytest -n 2 --dist worksteal

test-ui: setup $(LOCAL_ZIP)  ## a headless Chromium through Dagster's UI over the local stack (IMAGES=1: take the pictures of docs/images)
	@$(MAKE) --no-print-directory .venv-ui/.ready
	@$(BIN)/python -m tests.ui $(if $(IMAGES),--images)

stress: setup  ## thousands of generated histories, of the ordering contract and of operations that go wrong, and every mutation of both
	$(BIN)/python -m tests.stress $(STRESS)

exam: setup .venv-local/.ready  ## does reconciliation find every fault and call nothing else one? (QUIET=1: half an hour without any; OPERATIONS=1: does what is printed repair restores, streams, clocks?)
	@$(if $(OPERATIONS),$(MAKE) --no-print-directory .venv-exam/.ready)
	$(BIN)/python -m tests.exam $(if $(QUIET),--quiet) $(if $(OPERATIONS),--operations) $(EXAM)

bench: setup .venv-rie/.ready  ## how fast it is, beside others: docs/benchmarks.md, some 20 minutes (QUICK=1: two; BENCH="--only apply")
	@$(MAKE) --no-print-directory .venv-bench/.ready || echo "the rivals' environment could not be set up: the benchmark goes on without them, and says so"
	$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(BENCH)

lock: setup  ## lock requirements again: hashes, no addresses
	@for name in main local rie bench exam; do $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  requirements/$$name.in -o requirements/$$name.txt; done
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -c requirements/main.txt \
	  requirements/lambda.in -o requirements/lambda.txt
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -c requirements/main.txt \
	  requirements/ui.in -o requirements/ui.txt

clean:  ## remove everything that was built or set up
	rm -rf build dist .venv .venv-* .pytest_cache .ruff_cache .hypothesis
