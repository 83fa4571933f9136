# make demo and make test need nothing but Python 3.11 or later.
PYTHON ?= python3
# Another environment: make unit VENV=.venv/py3.13 PYTHON=python3.13
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

# Without its bytecode, each of the hundreds of processes of the tests would compile the project's code again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test unit slow lint oldest newest audit format reference bench wheel clean

help:
	@echo "demo       install, run the shipped study on synthetic data, write its report and a map"
	@echo "test       every test: unit, then slow"
	@echo "unit       tests that start no Ray, no server and no process that is killed"
	@echo "slow       the other tests"
	@echo "lint       ruff and mypy"
	@echo "oldest     unit tests with the lowest versions that pyproject.toml allows"
	@echo "newest     unit tests with the newest versions that pyproject.toml allows"
	@echo "audit      known vulnerabilities of the versions in constraints.txt"
	@echo "format     ruff's formatter and safe fixes"
	@echo "reference  rewrite the generated tables of sweeps/README.md"
	@echo "bench      measurements of this machine, as ratios"
	@echo "wheel      build the wheel into dist/"
	@echo "clean      remove .venv, caches, dist/ and the results of demo"

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[dev]' $(CONSTRAINTS:%=-c %)
	@# pip compiles on one core, and also what nothing imports: GeoCLIP's image tower and the packages' tests.
	$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/(tests?|transformers)/' $(VENV)/lib || true
	touch $@

demo: setup
	$(BIN)/sweep run smoke >/dev/null
	$(BIN)/sweep run demo
	$(BIN)/sweep report demo -o results/demo/report
	$(BIN)/sweep map smoke --arm geoclip-hadamard --against none --date 2021-08-17 --grid 0.5 \
	    -o results/demo/report/smoke.png

# The slow tests run although a unit test failed, and the target fails at the end.
test: setup
	@status=0; \
	$(MAKE) --no-print-directory unit || status=1; \
	$(MAKE) --no-print-directory slow || status=1; \
	exit $$status

# A process for each core, so each has one thread.
unit: export OMP_NUM_THREADS = 1
unit: setup
	$(PYTEST) -m 'not slow' -n auto --dist worksteal --durations=40

slow: setup
	$(PYTEST) -m slow -n 3 --dist loadgroup --durations=40

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# These environments are inside .venv, which git, Ray and the tests leave out.
oldest:
	$(MAKE) --no-print-directory unit VENV=.venv/oldest CONSTRAINTS=constraints-oldest.txt

# Installed anew each time, because a newer version may have been released.
newest:
	rm -rf .venv/newest
	$(MAKE) --no-print-directory unit VENV=.venv/newest CONSTRAINTS=

# --strict: a package that could not be looked up fails the audit.
audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip-audit
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: setup
	$(BIN)/python -m tests.study_reference

# KERAS=PYTHON also measures the published Keras network, with an interpreter that has TensorFlow.
bench: setup
	$(BIN)/sweep bench --cells 200 $(if $(KERAS),--keras $(KERAS))

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info results/demo results/smoke
