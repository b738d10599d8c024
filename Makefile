# One command each; CI runs the same.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test roads check fix bench notebooks install clean

demo: $(VENV)/package  ## Install and run the main job: draw, index, search, show.
	$(BIN)/clip-ext demo --output demo-output

test: $(VENV)/dev  ## Install what the tests need and run them.
	$(BIN)/python -m pytest

roads: $(VENV)/dev  ## Print which roads through LlamaIndex are open to which kinds of nodes.
	$(BIN)/python -m pytest -q tests/roads

check: $(VENV)/dev  ## Lint, format, types, import contracts.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/dev  ## Mend what can be mended by itself.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/dev  ## Measure against sentence-transformers, in one run.
	$(BIN)/python benchmarks/throughput.py

notebooks: $(VENV)/dev  ## Run the notebooks; only their figures stay in them.
	$(BIN)/python notebooks/refresh.py

install: $(VENV)/dev

clean:
	rm -rf $(VENV) build dist demo-output

$(VENV)/package: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit('Python 3.10 or newer is needed' if sys.version_info < (3, 10) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet "pip>=25.1"
	$(PIP) --editable .
	touch $@

# open_clip_torch and cn_clip hold the real vocabularies, and only those files are read; milvus holds
# a real server, where there is a build of it. Nothing that they would need is installed.
TEST_ONLY := open_clip_torch cn_clip
ifeq ($(shell uname -sm),Linux x86_64)
TEST_ONLY += milvus
endif

$(VENV)/dev: $(VENV)/package
	$(PIP) --group dev
	$(PIP) --no-deps $(TEST_ONLY)
	touch $@
