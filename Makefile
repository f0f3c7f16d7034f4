# Two commands for a newcomer: `make demo` and `make test`. Everything they install goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXAMPLE := examples/inventory.py
INSTALL := $(BIN)/python scripts/choose_torch.py $(VENV)/constraints.txt && $(BIN)/python -m pip install -q -c $(VENV)/constraints.txt
SOURCES_OF_INSTALL := pyproject.toml constraints.txt scripts/choose_torch.py codegen2/_version.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types format clean

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## install, then fill the holes of a real file with the model in the box
	@echo "--- $(EXAMPLE), its holes filled; the new text is marked"
	@$(BIN)/codegen2 infill $(EXAMPLE) --mark --max-new-tokens 32

test: $(VENV)/.installed-test ## install what tests need, then run them
	@$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy, strict
	@$(BIN)/mypy

format: $(VENV)/.installed-dev ## put all files into the common format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find codegen2 tests examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A broken interpreter link (python was updated or moved) counts as missing, so the file is asked for, not the folder.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "codegen2: no $(PYTHON) here; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("codegen2: needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name a newer one: make PYTHON=python3.12")'
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "codegen2: $(PYTHON) could not make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(SOURCES_OF_INSTALL) | $(BIN)/python
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(SOURCES_OF_INSTALL) | $(BIN)/python
	@$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(SOURCES_OF_INSTALL) | $(BIN)/python
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed
