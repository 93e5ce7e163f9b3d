# Two commands for a newcomer: `make demo` and `make test`. Needs Python 3.10+, make and a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test device lint types arrows clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: setup
	@rm -rf runs/demo && mkdir -p runs/demo
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh runs/demo

test: setup
	$(BIN)/python -m pytest -m "not device" -n 2

# Needs the emulators and cross-compilers that .ci/run installs.
device: setup
	$(BIN)/python -m pytest -m device

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types are checked as a user gets them: against the wheel.
types: setup
	rm -rf build/types && mkdir -p build/types
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/types .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/types/site build/types/*.whl
	cd build/types/site && ../../../$(BIN)/mypy --config-file ../../../pyproject.toml -p subbyte

arrows: setup
	$(BIN)/lint-imports

clean:
	rm -rf build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
