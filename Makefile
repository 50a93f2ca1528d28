# One command each: setup, test, lint, demo, example, bench, lock. Each works on a fresh machine.
#   STACK=latest|compat picks the pinned dependency set; PYTHON picks the interpreter of a new environment.
STACK ?= latest
PYTHON ?= python3
VENV ?= $(if $(filter compat,$(STACK)),.venv-compat,.venv)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
INSTALLED = $(VENV)/.installed-$(STACK)

.PHONY: setup test lint format demo example bench mutants lock clean

setup: $(INSTALLED)

# torch is installed first, with its dependencies, so that a CUDA machine gets the CUDA libraries that torch needs.
# Everything else is pinned, including transitive packages, and installed without dependency resolution.
$(INSTALLED): requirements/$(STACK).txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint requirements/$(STACK).txt torch
	$(PIP) --no-deps -r requirements/$(STACK).txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

test: setup
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright
	$(VENV)/bin/lint-imports --no-cache

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Trains an SAE on the phantom, scores it on held-out studies, and makes the gallery of its features. A second run reuses
# the first run's SAE.
demo: setup
	$(VENV)/bin/sae-lens-maira train --config configs/phantom.yaml --out out/demo --resume
	$(VENV)/bin/sae-lens-maira dashboard out/demo --out out/demo-gallery --n-studies 500 --title "The phantom's features"

# Makes the gallery in dashboards/example, of a dozen studies, from the SAE of `make demo`.
example: setup
	$(VENV)/bin/sae-lens-maira dashboard out/demo --out out/example --n-studies 12 --pages 3 --title "The phantom's features"
	$(VENV)/bin/python dashboards/example.py out/example

# Plants bugs, one at a time, in a copy of the repository, and tells which of them the tests catch. Slow.
mutants: setup
	$(VENV)/bin/python -m tests.planted_bugs

bench: setup
	$(VENV)/bin/python -m benchmarks

# Rewrites both pin lists from pyproject.toml, requirements/peers.in and requirements/*.overrides.txt. A pin that still
# fits is kept; `make lock LOCK_ARGS=--upgrade` takes the newest versions.
# The CUDA libraries are left out: torch pins them itself, and machines without a GPU do not need them.
lock:
	test -x .venv-lock/bin/uv || ($(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv)
	for stack in latest:3.11 compat:3.10; do \
	  name=$${stack%%:*}; \
	  cp requirements/$$name.txt requirements/$$name.tmp; \
	  .venv-lock/bin/uv pip compile pyproject.toml requirements/peers.in --all-extras --universal --python-version $${stack##*:} \
	    --override requirements/$$name.overrides.txt --no-annotate --no-header --quiet -o requirements/$$name.tmp $(LOCK_ARGS) || exit 1; \
	  { echo "# Written by 'make lock'. Install: make setup STACK=$$name"; \
	    grep -vE '^(nvidia-|cuda-|triton==)' requirements/$$name.tmp; } > requirements/$$name.txt; \
	  rm requirements/$$name.tmp; \
	done

clean:
	rm -rf .venv .venv-compat .venv-lock
