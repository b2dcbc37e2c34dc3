PYTHON ?= python3
BIN := .venv/bin
# What pip installs for each of the other backends.
jax ?= jax
torch ?= torch==2.13.0

.PHONY: bench demo test test-backends test-jax test-torch

demo: .venv/ready
	$(BIN)/python benchmarks/demo.py

bench: .venv/ready
	$(BIN)/python benchmarks/bench.py

test: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest --nbmake --nbmake-timeout=600

# The core properties without TensorFlow, on each of the other backends.
test-backends: test-jax test-torch

test-jax test-torch: test-%: .venv-%/ready
	KERAS_BACKEND=$* HYPOTHESIS_PROFILE=backends .venv-$*/bin/pytest tests

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[benchmarks,notebooks,test]'
	touch $@

.venv-jax/ready .venv-torch/ready: .venv-%/ready: pyproject.toml .venv-%/bin/python
	.venv-$*/bin/pip install --quiet --editable '.[test-core]' '$($*)'
	touch $@

.venv-jax/bin/python .venv-torch/bin/python: .venv-%/bin/python:
	$(PYTHON) -m venv .venv-$*
