# `make demo` and `make test` set up what they need in .venv; everything else assumes one of them has run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test lowest lint bench clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.ready
	rm -rf $(DEMO)
	$(BIN)/bitgolf run demo --out $(DEMO)

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile=ci

# The fast tests with the lowest versions that pyproject.toml allows (gigabytes of PyTorch on Linux).
lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet -c constraints-lowest.txt ".[hub]" pytest pytest-timeout hypothesis psutil
	.venv-lowest/bin/python -m pytest tests/config tests/data tests/model tests/artifact tests/evaluate tests/quantize \
		tests/report tests/codec tests/audit/test_documents.py tests/test_cli.py tests/test_language_model.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/timing.py

clean:
	rm -rf $(VENV) .venv-lowest runs .pytest_cache .ruff_cache .mypy_cache
