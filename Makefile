# `make demo` and `make test` do all the set-up themselves: they need python3 with pip, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LAVA_VENV := .venv-lava

.PHONY: demo test lint lava-env clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# Tests that need Lava are skipped where its environment cannot be made.
test: $(VENV)/.installed
	-@$(MAKE) --no-print-directory lava-env
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A system python3 may lack the venv module; virtualenv, put in a folder of its own, does the same.
$(VENV)/.installed: pyproject.toml
	@echo "Installing into $(VENV): torch and its CUDA libraries are several GB, this takes a few minutes."
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && \
	  $(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv && \
	  PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[onnx,nir,plot,test]'
	@touch $@

# Lava is archived and runs on Python 3.10 only: the one in LAVA_PYTHON, on the path, or the newest of pyenv's.
lava-env: $(LAVA_VENV)/.installed

IS_310 := import sys; sys.exit(sys.version_info[:2] != (3, 10))

$(LAVA_VENV)/.installed: pyproject.toml
	@for python in $(or $(LAVA_PYTHON),python3.10 $$(ls -d "$$(pyenv root)"/versions/3.10.*/bin/python | sort -rV)); do \
	  "$$python" -c '$(IS_310)' && found="$$python" && break; \
	done 2>/dev/null; \
	test "$$found" || { echo "Lava needs Python 3.10, and $(or $(LAVA_PYTHON),the path and pyenv) $(if \
	  $(LAVA_PYTHON),is not one,have none): install it (pyenv install 3.10, or uv python install 3.10)" \
	  "and run: make lava-env LAVA_PYTHON=/path/to/python3.10" >&2; exit 1; }; \
	echo "Installing Lava into $(LAVA_VENV) with $$found: several GB, this takes a few minutes."; \
	"$$found" -m venv $(LAVA_VENV) && \
	$(LAVA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[lava]'
	@touch $@

clean:
	rm -rf $(LAVA_VENV) $(VENV) $(VENV)-bootstrap build dist *.egg-info
