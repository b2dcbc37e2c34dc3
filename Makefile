PYTHON ?= python3
BIN := .venv/bin
# What pip installs for each of the other backends.
jax ?= jax
torch ?= torch==2.13.0
# The oldest and the newest Python that `make versions` tests with.
FLOOR_PYTHON ?= $(shell sed -n 's/^requires-python = ">=\(.*\)"/python\1/p' pyproject.toml)
NEWEST_PYTHON ?= python3.13

.PHONY: bench demo docs evidence fuzz hammer linkcheck test test-all test-backends test-floor test-jax test-newest test-rest test-torch versions
.PHONY: .venv-newest/ready    # each time, as what is newest changes

demo: .venv/ready
	$(BIN)/python -m benchmarks.demo

bench: .venv/ready .venv-jax/ready .venv-torch/ready
	$(BIN)/python -m benchmarks.speed --output benchmarks/results/bench.png
	KERAS_BACKEND=tensorflow $(BIN)/$(bench-backend)
	KERAS_BACKEND=torch .venv-torch/bin/$(bench-backend)
	KERAS_BACKEND=jax .venv-jax/bin/$(bench-backend)

bench-backend = python -m benchmarks.speed.backends --output benchmarks/results/backends.png

# The site: build/docs/index.html. A warning is an error.
docs: .venv/ready
	$(sphinx) . build/docs

# The links to other sites, which needs the network.
linkcheck: .venv/ready
	$(sphinx) -b linkcheck . build/linkcheck

# Every page is read and written again, so that no warning is missed.
sphinx = TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going \
  --fresh-env --write-all -c docs

# When an initial state helps; continues where it was stopped. `--help` has the options.
evidence: .venv/ready
	$(BIN)/python -m benchmarks.evidence --output benchmarks/results/evidence.png --work out/evidence

# Random cases, compared with Keras's layers. `--help` has the options.
fuzz: .venv/ready
	$(BIN)/python -m benchmarks.fuzz

# The tests of what is left behind by many calls, with all the calls.
hammer: .venv/ready
	HAMMER=full $(BIN)/pytest -n0 -q -s tests/integration/test_hammered.py

# What takes long, and what a change of the package seldom breaks.
REST := notebooks tests/benchmarks tests/integration tests/keras2 \
  tests/callbacks/test_backup.py tests/loops/test_derivatives.py \
  tests/loops/test_precision.py tests/loops/test_second_derivatives.py \
  tests/test_documents.py tests/test_package.py tests/test_plots.py

# What a change of the package can break on TensorFlow, in some minutes.
test: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest tests $(REST:%=--ignore=%)

# The rest, and the other backends.
test-all: test-rest test-backends

test-rest: .venv/ready
	$(BIN)/pytest --dist=loadgroup --nbmake --nbmake-timeout=600 $(REST)

# The core properties without TensorFlow, on each of the other backends.
test-backends: test-jax test-torch

# Most of the time of JAX is compiling, and many tests compile the same.
test-jax: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/.venv-jax/compiled
test-jax: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test-jax: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1

test-jax test-torch: test-%: .venv-%/ready
	KERAS_BACKEND=$* HYPOTHESIS_PROFILE=backends .venv-$*/bin/pytest tests

# With the lowest versions that pyproject.toml names, and with the newest there are.
versions: test-floor test-newest

test-floor test-newest: test-%: .venv-%/ready
	.venv-$*/bin/pip freeze | grep -iE '^(keras|numpy|tensorflow)=='
	.venv-$*/bin/pytest tests

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[benchmarks,docs,notebooks,test]'
	touch $@

.venv-jax/ready .venv-torch/ready: .venv-%/ready: pyproject.toml .venv-%/bin/python
	.venv-$*/bin/pip install --quiet --editable '.[test-$*]' '$($*)'
	touch $@

.venv-jax/bin/python .venv-torch/bin/python: .venv-%/bin/python:
	$(PYTHON) -m venv .venv-$*

.venv-floor/ready: pyproject.toml
	$(FLOOR_PYTHON) -m venv .venv-floor
	$(NEWEST_PYTHON) tests/floors.py > .venv-floor/floors.txt
	.venv-floor/bin/pip install --quiet --editable '.[test]' --constraint .venv-floor/floors.txt
	touch $@

.venv-newest/ready:
	$(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
