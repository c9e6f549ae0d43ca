# `make toy` trains the toy cascade, `make test` checks everything; CONTRIBUTING.md tells of the rest.
# Needs git, make and Python >= 3.11. Choose another one with `make toy PYTHON=...`;
# choose another build of torch with `make toy TORCH_FLAGS="--index-url ..."`;
# on a slow or busy machine `make test BUDGET=warn` only warns where a step takes too long.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/toy
SEED ?= 0
JOBS ?= 2
BUDGET ?= fail
STEPS ?=
TORCH_FLAGS ?=

BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check
NEEDS := settings.ini setup.py constraints.txt
# NAME SECONDS -- COMMAND, seconds on two quiet cores; the network's speed is nobody's fault.
TIMED := BUDGET=$(BUDGET) $(PYTHON) tools/checks/timed.py
TIMED_INSTALL := BUDGET=warn $(PYTHON) tools/checks/timed.py

# Compiling every module of every library takes a minute; each is compiled when first used.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: toy test gates form types slow soak prove gpu docs clean

toy: $(VENV)/.installed
	$(BIN)/imagen-nb train toy --out $(OUT) --seed $(SEED)

test: $(VENV)/.installed-dev
	$(TIMED) gates 60 -- $(MAKE) --no-print-directory gates
	$(TIMED) notebooks 540 -- $(BIN)/python tools/checks/run_nbs.py --check -j $(JOBS)
	$(TIMED) tests 420 -- $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

gates: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory -j 2 form types

form:
	$(BIN)/ruff check -q
	$(BIN)/ruff format -q --check
	$(BIN)/python tools/checks/check_export.py

types:
	$(BIN)/mypy --no-error-summary

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "slow and not gpu and not net"

# kills runs, cuts files and counts processes for half an hour, into data/runs/soak-*.json
soak: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m soak

# what cards and documents claim, measured again: slow tests, a short soak, parity, planted faults
prove: $(VENV)/.installed-dev
	$(BIN)/python tools/checks/prove.py $(STEPS)

# what nobody has measured yet, worthiest first, into data/runs/gpu-*.json; eight minutes
gpu: $(VENV)/.installed
	PYTHONPATH=tools/measure:. $(BIN)/python tools/measure/first_gpu.py

docs: $(VENV)/.installed-docs
	$(BIN)/python tools/site/build_docs.py
	$(BIN)/python tools/site/check_site.py docs/_build/html
	$(BIN)/python tools/site/ask_site.py docs/_build/html
	@echo "Open docs/_build/html/index.html"

$(VENV)/.created: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python >= 3.11 is needed, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	@echo "Installing pinned packages into $(VENV); this takes a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(TIMED_INSTALL) torch 120 -- $(PIP) $(TORCH) $(TORCH_FLAGS)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(NEEDS)
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created $(NEEDS)
	$(TIMED_INSTALL) packages 120 -- $(PIP) -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(VENV)/.created $(NEEDS)
	$(PIP) -c constraints.txt -e ".[docs]"
	@touch $(VENV)/.installed $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache docs/_build _docs_src _proc _doctrees jupyter_execute
