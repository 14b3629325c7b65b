# `make demo` and `make test` do all the set-up themselves: they need python3 with pip, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed
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

clean:
	rm -rf $(VENV) $(VENV)-bootstrap output build dist *.egg-info
