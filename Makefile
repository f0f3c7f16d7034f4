# Two commands for a newcomer: `make demo` and `make test`. What they install goes into .venv: for the demo what using
# the models needs, which has no PyTorch; for the tests, lint and types the rest.

PYTHON ?= python3
# On Linux the package index has PyTorch with NVIDIA's libraries (2.7 GB); PyTorch's own index has CPU builds (0.2 GB).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
EXAMPLE := examples/inventory.py
INSTALL := $(VENV)/bin/python -m pip install -q -c constraints.txt
SOURCES_OF_INSTALL := pyproject.toml constraints.txt codegen2/_version.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint types format native wheel clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed native ## install, then fill the holes of a real file with the model in the box
	@echo "--- $(EXAMPLE), its holes filled; the new text is marked"
	@$(VENV)/bin/codegen2 infill $(EXAMPLE) --mark --max-new-tokens 32
	@echo "--- next: $(VENV)/bin/codegen2 infill YOUR_FILE.py --at LINE:COL, or $(VENV)/bin/codegen2 complete --help;"
	@echo "--- for a model that is worth asking: --model 1B (a download of 4 GB)"

# Both halves run whatever comes of the first. The first one has PyTorch hidden, also from the programs that it starts.
# Bytecode is kept even where the environment says otherwise: each program that a test starts would compile it anew.
test test-slow: export PYTHONDONTWRITEBYTECODE :=

test: $(VENV)/.installed-test native ## install what tests need, then run them: those without PyTorch, those with it
	@without=failed; with=failed; \
	PYTHONPATH=$(CURDIR)/tests/without_torch $(VENV)/bin/python -m pytest -q -m "not torch and not slow" && without=passed; \
	$(VENV)/bin/python -m pytest -q -m "torch and not slow" && with=passed; \
	echo "tests without PyTorch: $$without; tests with PyTorch: $$with"; \
	[ $$without$$with = passedpassed ]

test-slow: $(VENV)/.installed-test native ## run all tests, slow ones and many random examples included
	@$(VENV)/bin/python -m pytest -q -m "slow or not slow" --hypothesis-profile=thorough

lint: $(VENV)/.installed-test ## ruff: rules and format
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-test ## mypy, strict
	@$(VENV)/bin/mypy

format: $(VENV)/.installed-test ## put all files into the common format
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

native: | $(VENV)/bin/python ## compile what changed of the native engine
	@$(VENV)/bin/python scripts/build_native.py

wheel: $(VENV)/.installed-test ## build an sdist and from it a wheel into dist/, then check both
	@rm -rf dist
	@CODEGEN2_REQUIRE_NATIVE=1 $(VENV)/bin/python -m build
	@$(VENV)/bin/python scripts/check_dist.py dist

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis codegen2/native/libcodegen2.*
	find codegen2 tests examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A broken interpreter link (python was updated or moved) counts as missing, so the file is asked for, not the folder.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "codegen2: no $(PYTHON) here; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("codegen2: needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name a newer one: make PYTHON=python3.12")'
	@echo "installing into $(VENV) (the first time: half a minute, for the tests a few minutes)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "codegen2: $(PYTHON) could not make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }

# The library is compiled before pip asks for it: make shows what a compiler says, which pip hides.
$(VENV)/.installed: $(SOURCES_OF_INSTALL) | $(VENV)/bin/python native
	@$(INSTALL) -e .
	@touch $@

# PyTorch first and by itself, so that only it is looked up in its index. Where that index cannot be reached, pip says so
# and takes the build of the usual one.
$(VENV)/.installed-test: $(SOURCES_OF_INSTALL) | $(VENV)/bin/python native
	@$(INSTALL) --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) torch
	@$(INSTALL) -e '.[test,dev]'
	@touch $@ $(VENV)/.installed
