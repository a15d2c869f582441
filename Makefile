# Two commands for a fresh clone: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?= examples/people.jpg
OUT ?= demo

.PHONY: help setup demo test lint extension web clean

help:
	@echo "make demo [IMAGE=photo.jpg] [OUT=folder]   recover the people of a picture: a .blend with shape keys and an overlay"
	@echo "make test                                  run the tests (BLENDER=/path/to/blender adds those in a real Blender)"
	@echo "make extension                             build the Blender extension: dist/*.zip"
	@echo "make web                                   build the page that the server shows, after a change in web/"
	@echo "make lint                                  check style and formatting"

setup: $(VENV)/.complete

# torch comes first and exactly: a looser requirement of another package would bring a different build.
$(VENV)/.complete: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[train,test,blender,anny,usd]"
	touch $@

demo: setup
	$(BIN)/python -m tools.demo "$(IMAGE)" "$(OUT)"

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Only after a change in web/: what it builds is part of the repository. Needs Node.js 20.19 or newer.
web:
	cd web && npm ci && npm test && npm run build

extension: setup
	$(BIN)/python -m tools.build_extension

clean:
	rm -rf dist build demo
