# `make quickstart` and `make test` need nothing but Python 3.11 or newer with pip.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= quickstart
MINUTES ?= 5.5
BIN := $(VENV)/bin

.PHONY: quickstart test test-all lint wheel clean

quickstart: $(VENV)/ready
	$(BIN)/contourdiff quickstart --workdir=$(WORKDIR) --minutes=$(MINUTES)

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-all: lint
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: $(VENV)/ready
	$(BIN)/python -m build --wheel

# constraints.txt holds the versions that were tested.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
