# make demo and make test need nothing but Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup demo test unit slow lint format reference bench wheel clean

help:
	@echo "demo       install, run the shipped study on synthetic data, write its report"
	@echo "test       every test: unit, then slow"
	@echo "unit       tests that start no Ray, no server and no process that is killed"
	@echo "slow       the other tests"
	@echo "lint       ruff and mypy"
	@echo "format     ruff's formatter and safe fixes"
	@echo "reference  rewrite the generated tables of sweeps/README.md"
	@echo "bench      measurements of this machine, as ratios"
	@echo "wheel      build the wheel into dist/"
	@echo "clean      remove .venv, caches, dist/ and results/demo"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[dev]' -c constraints.txt
	$(BIN)/python -W ignore -m compileall -qq -j 0 .venv/lib || true  # pip compiles on one core
	touch $@

demo: setup
	$(BIN)/sweep run demo
	$(BIN)/sweep report demo -o results/demo/report

# The slow tests run although a unit test failed, and the target fails at the end.
test: setup
	@status=0; \
	$(MAKE) --no-print-directory unit || status=1; \
	$(MAKE) --no-print-directory slow || status=1; \
	exit $$status

unit: setup
	$(PYTEST) -m 'not slow' -n auto --dist worksteal --durations=40

slow: setup
	$(PYTEST) -m slow -n 3 --dist loadfile --durations=40

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: setup
	$(BIN)/python -m tests.study_reference

# KERAS=PYTHON also measures the published Keras network, with an interpreter that has TensorFlow.
bench: setup
	$(BIN)/sweep bench --cells 200 --cells 2000 $(if $(KERAS),--keras $(KERAS))

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info results/demo
