# One command each; CI runs the same.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PIP := $(PIP_INSTALL) --constraint constraints.txt

.PHONY: demo test faults roads check fix bench notebooks lock audit install clean

demo: $(VENV)/package  ## Install and run the main job: draw, index, search, show.
	$(BIN)/clip-ext demo --output demo-output

test: $(VENV)/dev  ## Install what the tests need and run them.
	$(BIN)/python -m pytest --benchmark-disable

faults: $(VENV)/dev  ## Kill, starve, flood and deceive it; print what was tried, lost and let in.
	CLIP_EXT_FAULTS=full $(BIN)/python -m pytest --benchmark-disable -q tests/faults
	CLIP_EXT_FAULTS=full $(BIN)/python -m pytest --benchmark-disable -q -m long --ignore=tests/faults

roads: $(VENV)/dev  ## Print which roads through LlamaIndex are open to which kinds of nodes.
	$(BIN)/python -m pytest --benchmark-disable -q tests/roads

check: $(VENV)/dev  ## Lint, format, types, import contracts.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/dev  ## Mend what can be mended by itself.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# On two cores in about a quarter of an hour; benchmarks/RESULTS.md has the commands of the long runs.
# Where INFINITY_PYTHON names a Python that has infinity_emb, infinity takes part, too.
BENCH := build/bench
BENCH_RUN = $(BIN)/python benchmarks/$(1).py --work $(BENCH)
bench: $(VENV)/bench  ## Measure us and the others on the same files and weights, taking turns.
	$(call BENCH_RUN,throughput) --images 48 --json $(BENCH)/throughput-1-jpeg-640.json
	$(call BENCH_RUN,throughput) --corpus jpeg-12mp --images 12 --json $(BENCH)/throughput-2-jpeg-12mp.json
	$(call BENCH_RUN,throughput) --corpus png-640 --images 24 --json $(BENCH)/throughput-3-png-640.json
	$(call BENCH_RUN,throughput) --model-kind chinese-clip-b16 --images 16 --peers transformers,sentence-transformers --json $(BENCH)/throughput-4-chinese.json
	$(call BENCH_RUN,texts) --texts 1000 --json $(BENCH)/texts.json
	$(call BENCH_RUN,forward) --model-kinds clip-b32,clip-b16 --json $(BENCH)/forward.json
	$(call BENCH_RUN,fidelity) --images 8 --json $(BENCH)/fidelity.json
	$(BIN)/python benchmarks/search.py --rows 10000
	$(call BENCH_RUN,growth) --counts 1000,5000 --json $(BENCH)/growth.json
	$(call BENCH_RUN,sync) --images 1000 --json $(BENCH)/sync.json
	$(BIN)/python benchmarks/plot.py $(BENCH)/throughput-*.json --output $(BENCH)/throughput.svg

notebooks: $(VENV)/dev  ## Run the notebooks; only their figures stay in them.
	$(BIN)/python notebooks/refresh.py

lock: $(VENV)/made  ## Write requirements-dev.txt anew, from pyproject.toml and constraints.txt.
	$(PIP) uv
	PATH="$(abspath $(BIN)):$$PATH" .ci/lock

audit: $(VENV)/made  ## Ask whether anything that CI installs has a known weakness.
	$(PIP) pip-audit
	$(BIN)/python .ci/audit

install: $(VENV)/dev

clean:
	rm -rf $(VENV) build dist demo-output

$(VENV)/made:
	@$(PYTHON) -c "import sys; sys.exit('Python 3.10 or newer is needed' if sys.version_info < (3, 10) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "pip>=25.1"
	touch $@

$(VENV)/package: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

# What the tests need, each file by its hash; torch by its version, for machines have builds of their
# own of it, and the package itself.
$(VENV)/dev: $(VENV)/made pyproject.toml constraints.txt requirements-dev.txt
	$(PIP_INSTALL) --no-deps --require-hashes --requirement requirements-dev.txt
	$(PIP) torch
	$(PIP) --no-deps --editable .
	touch $@ $(VENV)/package

# fastembed asks for an older huggingface-hub, of which it needs nothing here: without its needs, and
# those that are left by name.
$(VENV)/bench: $(VENV)/dev
	$(PIP) --group bench
	$(PIP) --no-deps fastembed
	touch $@
