# `make demo` and `make test` need nothing but Python 3.10-3.12 with its venv module: the environment is made on first use.

PYTHON ?= python3
DEMO_ARGS ?=
PRETRAIN_ARGS ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2
LOCK_ARGS ?=

UV_VERSION := 0.13.8
VENV := .venv
DEMO_DIR ?= experiments/demo
BIN := $(VENV)/bin
UV := $(BIN)/uv
INSTALLED := $(VENV)/.installed
CREATED := $(VENV)/.created-by-make

# Seconds without an answer before uv gives up on a download: the largest file has several hundred megabytes.
export UV_HTTP_TIMEOUT ?= 180

CHECK_VERSION := import sys; v = tuple(sys.version_info[:2]); \
	(3, 10) <= v <= (3, 12) or sys.exit("error: Python 3.10, 3.11 or 3.12 is needed, but %s is %d.%d." % ((sys.executable,) + v))

.DEFAULT_GOAL := help
.PHONY: help install browser demo test lint format lock bench pretrain docs clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED)  ## make the environment .venv (every other command does so when needed)

demo: $(INSTALLED)  ## NPBG++, NPBG and gaussians on the scene in example/, side by side (DEMO_ARGS="key=value ...")
	$(BIN)/python -m npbgpp demo out=$(DEMO_DIR) $(DEMO_ARGS)

test: $(INSTALLED)  ## run the tests in two processes (PYTEST_ARGS="-k name ...", PYTEST_WORKERS=0 for one)
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

browser:  ## install Chromium for the tests of the viewer and of pages (Debian, Ubuntu; as root)
	command -v chromium || { timeout 300 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends chromium; }

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## put the code into the common format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(UV)  ## make requirements.lock from requirements.txt (LOCK_ARGS=--upgrade for the newest indirect ones)
	$(UV) pip compile --quiet --universal --python-version 3.10 --generate-hashes \
		--custom-compile-command "make lock" $(LOCK_ARGS) --output-file requirements.lock requirements.txt

bench: $(INSTALLED)  ## measure the rasterizer, peeling, a training step, view selection, aggregation and loading
	$(BIN)/python benchmarks/rasterizer.py
	$(BIN)/python benchmarks/peeling.py
	$(BIN)/python benchmarks/npbg_step.py
	$(BIN)/python benchmarks/view_selection.py
	$(BIN)/python benchmarks/aggregation.py
	$(BIN)/python benchmarks/loading.py

pretrain: $(INSTALLED)  ## make random scenes and train NPBG++ on them; can be stopped and repeated (PRETRAIN_ARGS="key=value ...")
	$(BIN)/python example/make_pretraining_scenes.py --out data/pretraining --scenes 40
	$(BIN)/python -m npbgpp train experiment=npbgpp_pretrain resume=auto $(PRETRAIN_ARGS)
	$(BIN)/python -m npbgpp export weights run=experiments/npbgpp_pretrain out=experiments/npbgpp_pretrain/npbgpp_small.safetensors overwrite=true

# In an environment of its own. The variable silences a notice about the next version of mkdocs.
docs: $(UV)  ## build the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(UV) tool run --python $(BIN)/python --with-requirements requirements-docs.txt mkdocs build --strict

clean:  ## remove the environment and the caches, never results
	@if [ -e $(CREATED) ]; then rm -rf $(VENV); elif [ -e $(VENV) ]; then echo "$(VENV) is kept: make did not create it"; fi
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis npbgpp.egg-info __pycache__
	find $(wildcard npbgpp tests benchmarks) -type d -name __pycache__ -prune -exec rm -rf {} +

$(UV):
	@command -v $(PYTHON) >/dev/null || { echo 'error: $(PYTHON) is not found; name a Python: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c '$(CHECK_VERSION)' || { echo 'Name another one: make PYTHON=python3.11' >&2; exit 1; }
	@if [ ! -e $(VENV) ]; then mkdir $(VENV) && touch $(CREATED); fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# setuptools comes from the lock as well, so the package itself is built without fetching anything. Compiled once, here: where the system keeps Python from
# writing what it compiled (containers often do), every start of a program would take eight seconds longer.
$(INSTALLED): requirements.txt requirements.lock setup.py | $(UV)
	@$(BIN)/python -c '$(CHECK_VERSION)' || { echo '$(VENV) was made with it: make clean, then make PYTHON=python3.11' >&2; exit 1; }
	$(UV) pip install --python $(BIN)/python --compile-bytecode --require-hashes --build-constraints requirements.lock -r requirements.lock
	$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@
