# `make demo` and `make test` set up what they need in .venv; everything else assumes one of them has run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test lint bench clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.ready
	rm -rf $(DEMO)
	$(BIN)/bitgolf run demo --out $(DEMO)

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile=ci

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/timing.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
