# `make demo` and `make test` work on a fresh machine with Python 3.11 or later and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= scale-detection

.PHONY: demo test test-all test-guests lint types short-run long-run bench docs clean help

help:
	@echo "make demo [DATA=scale-detection|cifar10|mnist]   train a small CNN, probe it, print the table, draw the figure"
	@echo "make test       lint, types and tests"
	@echo "make test-all   the same with the long tests"
	@echo "make test-guests  networks and loaders of other libraries (installs torch, keras, haiku)"
	@echo "make bench      times against peers (installs torch)"
	@echo "make docs       the pages and the reference, into build/docs"

# Bytecode is written when a module is first imported, which is one in five of what is installed.
export PYTHONDONTWRITEBYTECODE :=

# Each target installs all it needs in one go: called twice, pip resolves the common packages twice.
define install
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '$(1)'
	@touch $(VENV)/.core $@
endef

$(VENV)/.core: pyproject.toml constraints.txt
	$(call install,.)

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,.[dev])

$(VENV)/.guests: pyproject.toml constraints.txt
	$(call install,.[dev$(comma)guests])

$(VENV)/.bench: pyproject.toml constraints.txt
	$(call install,.[bench])

# A comma by itself would separate the arguments of `call`.
comma := ,

demo: $(VENV)/.core
	$(BIN)/stabjax demo --data $(DATA)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .

types: $(VENV)/.dev
	$(BIN)/basedpyright --level error

# Types are checked beside the tests: they take one core for half a minute.
test: lint
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=none types short-run

test-all: lint
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=none types long-run

short-run: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m 'not slow'

long-run: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-guests: $(VENV)/.guests
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -rs -m 'not slow' tests/guests

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

docs: $(VENV)/.dev
	rm -rf build/docs
	$(BIN)/python docs/generate.py build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) build dist .hypothesis .pytest_cache .ruff_cache
