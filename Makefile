# Two commands for a newcomer: `make demo` and `make test`. What they install goes into .venv, which has no PyTorch, and
# into .venv-torch, which has it, for the tests that need it and for lint and types.

PYTHON ?= python3
VENV := .venv
TORCH := .venv-torch
EXAMPLE := examples/inventory.py
INSTALL := $(VENV)/bin/python -m pip install -q -c constraints.txt
INSTALL_TORCH := $(TORCH)/bin/python scripts/choose_torch.py $(TORCH)/constraints.txt && $(TORCH)/bin/python -m pip install -q -c $(TORCH)/constraints.txt
SOURCES_OF_INSTALL := pyproject.toml constraints.txt codegen2/_version.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-plain test-torch lint types format native wheel clean

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed native ## install, then fill the holes of a real file with the model in the box
	@echo "--- $(EXAMPLE), its holes filled; the new text is marked"
	@$(VENV)/bin/codegen2 infill $(EXAMPLE) --mark --max-new-tokens 32

test: test-plain test-torch ## install what tests need, then run them: without PyTorch, and those that need it

test-plain: $(VENV)/.installed-test native
	@$(VENV)/bin/python -m pytest -q -m "not torch and not slow"

test-torch: $(TORCH)/.installed native
	@$(TORCH)/bin/python -m pytest -q -m "torch and not slow"

lint: $(TORCH)/.installed ## ruff: rules and format
	@$(TORCH)/bin/ruff check .
	@$(TORCH)/bin/ruff format --check .

types: $(TORCH)/.installed ## mypy, strict
	@$(TORCH)/bin/mypy

format: $(TORCH)/.installed ## put all files into the common format
	@$(TORCH)/bin/ruff check --fix .
	@$(TORCH)/bin/ruff format .

native: | $(VENV)/bin/python ## compile what changed of the native engine
	@$(VENV)/bin/python scripts/build_native.py

wheel: $(TORCH)/.installed ## build an sdist and from it a wheel into dist/, then check both
	@rm -rf dist
	@CODEGEN2_REQUIRE_NATIVE=1 $(TORCH)/bin/python -m build
	@$(TORCH)/bin/python scripts/check_dist.py dist

clean: ## remove what make made
	rm -rf $(VENV) $(TORCH) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis codegen2/native/libcodegen2.*
	find codegen2 tests examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A broken interpreter link (python was updated or moved) counts as missing, so the file is asked for, not the folder.
$(VENV)/bin/python $(TORCH)/bin/python: %/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "codegen2: no $(PYTHON) here; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("codegen2: needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name a newer one: make PYTHON=python3.12")'
	@echo "installing into $* (the first time: half a minute, with PyTorch a few minutes)"
	@$(PYTHON) -m venv $* || { rm -rf $*; echo "codegen2: $(PYTHON) could not make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }

# The library is compiled before pip asks for it: make shows what a compiler says, which pip hides.
$(VENV)/.installed: $(SOURCES_OF_INSTALL) | $(VENV)/bin/python native
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(SOURCES_OF_INSTALL) | $(VENV)/bin/python native
	@$(INSTALL) -e '.[test,test-clients]'
	@touch $@ $(VENV)/.installed

$(TORCH)/.installed: $(SOURCES_OF_INSTALL) scripts/choose_torch.py | $(TORCH)/bin/python native
	@$(INSTALL_TORCH) -e '.[test-torch,dev]'
	@touch $@
