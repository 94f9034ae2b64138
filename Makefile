# `make demo` and `make test` do everything; `make help` lists the rest.
PYTHON ?= python3
TORCH  ?= 2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test sanitize docs wheel wheel-check lint format bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(STAMP)  ## make .venv: torch at the pin first, then the package, editable

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: any later request for it is then already met, and nothing fetches another build.
$(STAMP): pyproject.toml CMakeLists.txt constraints.txt $(shell find voxelpool/csrc -type f 2>/dev/null) | $(BIN)/python
	$(BIN)/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$(TORCH)')" 2>/dev/null \
		|| $(BIN)/pip install --disable-pip-version-check -q torch==$(TORCH)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[test,dev]"
	$(BIN)/python -m voxelpool
	@touch $@

demo: install  ## simulate, train, evaluate, detect, draw: the whole job in about a quarter of an hour
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

test: install  ## run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

sanitize: install  ## run the op tests under the address, undefined and thread sanitizers
	.ci/sanitize

docs: install  ## build the manual into docs/_build; a dead link fails
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt sphinx myst-parser furo
	$(BIN)/python docs/_config_page.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build
	@echo docs/_build/index.html

wheel: install  ## build the wheel for every GPU into dist/, and check that its code stays under 5 MB
	.ci/wheel

wheel-check:  ## install the newest wheel of dist/ into a clean environment, and run the quick start
	.ci/wheel-check

lint: install  ## formatting, lint, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find voxelpool/csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

format: install  ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find voxelpool/csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

bench: install  ## time everything against its peers, in under ten minutes
	$(BIN)/python benchmarks/run_all.py

clean:  ## remove what can be built again; data and runs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
