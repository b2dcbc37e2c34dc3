PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench demo test

demo: .venv/ready
	$(BIN)/python benchmarks/demo.py

bench: .venv/ready
	$(BIN)/python benchmarks/bench.py

test: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[benchmarks,notebooks,test]'
	touch $@
