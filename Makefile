# make demo and make test need nothing but Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test unit lint bench

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: setup
	$(BIN)/sweep run demo
	$(BIN)/sweep report demo -o results/demo/report

test: unit
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

unit: setup
	$(BIN)/python -m pytest -m 'not slow' -n auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/sweep bench --cells 200 --cells 2000
