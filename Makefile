# `make quickstart` and `make test` need nothing but Python 3.11 or newer with pip.
PYTHON ?= python3
VENV ?= .venv
PARITY ?= .venv-parity
DOCS ?= .venv-docs
WORKDIR ?= quickstart
MINUTES ?= 5.5
BIN := $(VENV)/bin
# A file's tests share fixtures, and so a process.
PARALLEL := -n auto --maxprocesses=8 --dist=loadfile

.PHONY: quickstart test test-all test-parity lint docs wheel clean

quickstart: $(VENV)/ready
	$(BIN)/contourdiff quickstart --workdir=$(WORKDIR) --minutes=$(MINUTES)

# Most programs are compiled for longer than they run in these: optimising them takes more than it saves.
test: lint
	XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/python -m pytest $(PARALLEL) -m "not slow and not parity"

test-all: lint
	$(BIN)/python -m pytest $(PARALLEL) -m "not parity"

# Agreement with PyTorch, diffusers, MONAI and the packages of FID, in an environment of their own.
# FID's ask for torchvision, which is not on PyPI for a torch without CUDA; the tests stand in.
test-parity: $(PARITY)/ready
	$(PARITY)/bin/python -m pytest -m parity

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The documentation as a site, build/docs/index.html, in an environment of its own.
docs: $(DOCS)/ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict --config-file docs/site/mkdocs.yml

wheel: $(VENV)/ready
	$(BIN)/python -m build --wheel

# constraints.txt holds the versions that were tested.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(PARITY)/ready: pyproject.toml constraints.txt constraints-parity.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -c constraints-parity.txt -e ".[test,parity]"
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints-parity.txt --no-deps pytorch-fid torch-fidelity clean-fid monai
	touch $@

$(DOCS)/ready: pyproject.toml constraints.txt constraints-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -c constraints-docs.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(PARITY) $(DOCS) build dist *.egg-info
