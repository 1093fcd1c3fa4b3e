# Two commands do everything: `make demo` and `make test`. They install what they need into .venv themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export BUS_HOME     ?= $(CURDIR)/.bus
export DAGSTER_HOME ?= $(BUS_HOME)/dagster
# What Python compiles is kept: else each of the many processes of the demo and the tests compiles the project anew.
unexport PYTHONDONTWRITEBYTECODE
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt

.PHONY: demo ui up test test-long lint crash bench constraints clean

demo: $(VENV)/.demo ## start everything, let a year of flights land in a bucket, print the account, end everything
	$(BIN)/python -m bus_assets.demo drive

up: $(VENV)/.demo ## the Dagster UI on http://127.0.0.1:3000, daemon, warm workers, an embedded cloud and the demo's systems, until Ctrl-C
	$(BIN)/python -m bus_assets.demo up

ui: $(VENV)/.demo ## the same without workers: each run is a process of its own
	$(BIN)/python -m bus_assets.demo up --workers 0

test: $(VENV)/.test lint ## all tests that end in minutes
	$(BIN)/python -m pytest -n 3 --dist loadgroup -q -m "not long"

test-long: $(VENV)/.test ## the others
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q -m long --timeout 1800

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/basedpyright

crash: $(VENV)/.test ## hundreds of kills of unmodified processes (files, messages, a whole `bus up`), reported per window; then two daemons at once
	$(BIN)/python -m tests.crash.campaign

bench: $(VENV)/.test ## speed and memory, side by side with the bare tools
	$(BIN)/python -m bench

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[demo,test,lint]'
	@touch $@ $(VENV)/.demo

constraints: $(VENV)/.test ## pin what is installed now, by name and version
	$(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable | grep -v " @ " > constraints.txt

clean: ## forget the environment and all embedded state
	rm -rf $(VENV) $(BUS_HOME)
