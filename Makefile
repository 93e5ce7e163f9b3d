# Two commands for a newcomer: `make demo` and `make test`. Needs Python 3.10+, make and a C compiler.
# `make test PYTHON=python3.12` takes another Python, with an environment of its own: .venv-3.12.
PYTHON ?= python3
ifndef VENV
VENV := .venv$(if $(filter file,$(origin PYTHON)),,-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null))
endif
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo tasks test lesser fuzz soak learning device generate lint wheel types arrows release clean

setup: $(VENV)/.installed

# .installed is touched last: an interrupted install is begun again, in a fresh venv if the old one has no working pip.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make setup: $(PYTHON) is missing or older than Python 3.10; name another: make setup PYTHON=python3.11"; exit 1; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make setup: $(PYTHON) cannot make a venv; install its venv module (Debian: apt install python3-venv)"; exit 1; } >&2
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]' || \
	  { echo "make setup: pip, above, cannot install the versions of constraints.txt for $$($(BIN)/python -V): take a Python" \
	    "that they are built for (make setup PYTHON=python3.11) or an index that has them (PIP_EXTRA_INDEX_URL)"; exit 1; } >&2
	@touch $@

demo: setup
	@rm -rf runs/demo && mkdir -p runs/demo
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh runs/demo

test: setup
	$(BIN)/python -m pytest -m "not device" -n 2

# The tests of kernels and of compiled bundles again, as on a CPU with AVX2 and nothing after it.
lesser: setup
	$(BIN)/python -m pytest -m "not device" -n 2 --without avx512,avxvnni,amx tests/kernels tests/compile tests/test_pipeline.py

# Drawn files, right and wrong, for every reader: hours; what is finished is kept, and the next call goes on there.
# FUZZ="bundle npy --seconds 600" names kinds, or ends sooner; SAMPLE=N draws other cases.
SAMPLE ?= 0
fuzz: setup
	ORT_DISABLE_TELEMETRY=1 nice $(BIN)/python tests/fuzz/pieces.py --sample $(SAMPLE) $(FUZZ)

# Sessions, threads and signals, bundles that change under them: CALLS runs, all compared, and nothing may grow.
CALLS ?= 1000000
soak: setup
	nice $(BIN)/python tests/runtime/soak.py --calls $(CALLS)

# Accuracy and overhead of learning: hours; what is made is kept, and the next call goes on there. LEARNING="--list" and so on.
learning: setup
	ORT_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 nice $(BIN)/python benchmarks/learning.py $(LEARNING)

# Every task at int8 and ternary, from training to the verdict: some minutes.
tasks: setup
	ORT_DISABLE_TELEMETRY=1 nice $(BIN)/python benchmarks/tasks.py

# Needs the emulators and cross-compilers that .ci/run installs.
device: setup
	$(BIN)/python -m pytest -m device -n 2

# Files that programs write: runtime/c/cpu_features.h from runtime/features.py, tables of measured figures from their JSON.
generate: setup
	@$(BIN)/python generate
	@$(BIN)/python benchmarks/tables.py

lint: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

# Types and import arrows are checked as a user gets the package: against the wheel. All of build/ goes first: setuptools
# would pack modules that were deleted since.
wheel: setup
	@rm -rf build && mkdir -p build/wheel
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/wheel .
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/wheel/site build/wheel/*.whl

types: wheel
	@cd build/wheel/site && ../../../$(BIN)/mypy --config-file ../../../pyproject.toml -p subbyte

arrows: wheel
	@cd build/wheel/site && PYTHONPATH=. ../../../$(BIN)/lint-imports --config ../../../.importlinter

# Wheel and source distribution in dist/, each installed into empty environments and used from another folder. The wheel
# again, without torch, by other Pythons: make release PYTHONS="python3.10 python3.13".
PYTHONS ?=
release: setup
	@rm -rf dist build
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python .ci/try_release.py dist $(PYTHONS)

clean:
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
