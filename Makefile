PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test lint check-slow check-gpu benchmarks clean

# `make serve ARGS="--prompt 2 --token 1"` passes arguments on.
serve: $(VENV)/.installed
	$(BIN)/splitwise serve $(ARGS)

test: $(VENV)/.installed lint
	$(BIN)/pytest -m "not slow and not gpu"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

check-gpu: $(VENV)/.installed
	$(BIN)/pytest -m gpu

benchmarks: $(VENV)/.installed
	$(BIN)/python benchmarks/engine_throughput.py
	$(BIN)/python benchmarks/split_overhead.py
	$(BIN)/python benchmarks/interference.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
