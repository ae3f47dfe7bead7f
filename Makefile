# Dynaurora. `make` alone lists the targets. Needs Python 3.11 or newer, make and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help setup check test test-ui stress bench exam lambda demo ui clean lock format docs

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.ready  ## set up the environment, from locked and hashed requirements

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
# Every file that could be in it, so that none is forgotten; only importing the handler shows which ones are.
ZIP_SOURCES := $(shell find pipeline lambda_replicator -name '*.py' -not -path 'pipeline/local/*') $(wildcard tables/*.y*ml) requirements/lambda.txt
$(LOCAL_ZIP): $(ZIP_SOURCES) .venv-local/.ready
	@$(BIN)/python -m lambda_replicator.package --python $(LOCAL_PYTHON) --output $@ | head -1

demo: setup $(LOCAL_ZIP)  ## load a table, follow live writes, prove source and replica equal (under three minutes)
	@$(BIN)/python -m pipeline.local.demo $(DEMO)

UI_PORT ?= 3000
ui: setup $(LOCAL_ZIP)  ## run the local stack, a writer, and Dagster's UI on http://127.0.0.1:3000 (UI_PORT=…)
	@$(BIN)/python -m pipeline.local.ui --port $(UI_PORT)

docs: setup  ## generate the docs of the types, and the mapping's JSON Schema, from the code
	$(BIN)/python -m tests.type_table
	$(BIN)/python -m tests.mapping_schema

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One zip serves one Python minor version: its database driver is compiled for it. Set the template's
# PythonRuntime to the same version, or leave both at their default.
LAMBDA_PYTHON ?= 3.13
lambda: setup  ## build build/lambda_replicator.zip (LAMBDA_PYTHON=3.12 for another runtime)
	@$(BIN)/python -m lambda_replicator.package --python $(LAMBDA_PYTHON)

test: setup .venv-local/.ready .venv-rie/.ready  ## all tests except the long ones, against real PostgreSQL and the local AWS stack
	$(BIN)/pytest -n 2 --dist worksteal

test-ui: setup $(LOCAL_ZIP)  ## drive Dagster's UI with a headless Chromium, over the local stack (IMAGES=1: take the screenshots of docs/images)
	@$(MAKE) --no-print-directory .venv-ui/.ready
	@$(BIN)/python -m tests.ui $(if $(IMAGES),--images)

stress: setup  ## run thousands of generated histories of writes and of failing operations, and every mutation of both
	$(BIN)/python -m tests.stress $(STRESS)

exam: setup .venv-local/.ready  ## does reconciliation find exactly the planted faults? (QUIET=1: half an hour with none; OPERATIONS=1: do the printed commands repair restores, streams, clocks?)
	@$(if $(OPERATIONS),$(MAKE) --no-print-directory .venv-exam/.ready)
	$(BIN)/python -m tests.exam $(if $(QUIET),--quiet) $(if $(OPERATIONS),--operations) $(EXAM)

bench: setup .venv-rie/.ready  ## measure the speed against other tools for docs/benchmarks.md, about 20 minutes (QUICK=1: two; BENCH="--only apply")
	@$(MAKE) --no-print-directory .venv-bench/.ready || echo "the rivals' environment could not be set up: the benchmark continues without them, and says so"
	$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(BENCH)

lock: setup  ## lock the requirements again, with hashes and without addresses
	@for name in main local rie bench exam; do $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  requirements/$$name.in -o requirements/$$name.txt; done
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -c requirements/main.txt \
	  requirements/lambda.in -o requirements/lambda.txt
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -c requirements/main.txt \
	  requirements/ui.in -o requirements/ui.txt

clean:  ## remove everything that was built or set up
	rm -rf build dist .venv .venv-* .pytest_cache .ruff_cache .hypothesis
