# Two commands do everything: `make quickstart` and `make test`. The environment is .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test lint types docs benchmark clean

quickstart: .venv/.installed
	@test -e runs/zoo/study.yaml || $(BIN)/evomerge zoo runs/zoo
	@if test -e runs/quickstart/study.db; then $(BIN)/evomerge resume quickstart; \
	else $(BIN)/evomerge search runs/zoo/study.yaml --name quickstart; fi

test: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.installed-dev
	$(BIN)/mypy

docs: .venv/.installed-dev
	$(BIN)/python docs/generate.py
	$(BIN)/python -m tests.tour
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . build/docs
	@echo "the site begins at build/docs/docs/index.html"

benchmark: .venv/.installed-dev
	$(BIN)/python benchmarks/quickstart.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "evomerge needs Python 3.11 or later; try: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing the packages into .venv"
	$(PIP) --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing the packages into .venv"
	$(PIP) --editable ".[dev]"
	@touch $@ .venv/.installed
