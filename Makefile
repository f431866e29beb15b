# SPDX-License-Identifier: BSD-2-Clause
# make demo, make test: all a newcomer needs. Each makes .venv when it is missing.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# The first interpreter of these that is new enough, unless PYTHON says which.
CANDIDATES := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11

.PHONY: help demo test lint soak bench goldens grammar conformance fairness clean

help:
	@echo "make demo     run the main job on samples/ and show it"
	@echo "make test     lint and run the tests (under 5 minutes on 2 cores)"
	@echo "make lint     ruff and mypy --strict"
	@echo "make soak     the fuzzers at their full counts"
	@echo "make bench    benchmarks, ratios in one run"
	@echo "make goldens  rewrite tests/golden from the present output"
	@echo "make grammar  compile xl_configs/xlcfg.lark to xl_configs/tables.py"
	@echo "make conformance  write docs/conformance.md from the code"
	@echo "make fairness  measure floods and draw docs/fairness.svg"
	@echo "make clean    remove .venv and caches"

$(READY): pyproject.toml
	@set -e; \
	for python in $(CANDIDATES); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "missing: Python 3.11 or newer (apt install python3)" >&2; exit 1; fi; \
	if ! $$found -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "missing: the venv module of $$found (apt install python3-venv)" >&2; exit 1; fi; \
	echo "making $(VENV) with $$found"; \
	$$found -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' || { \
	  echo "missing: the Python packages of pyproject.toml could not be installed (see above)" >&2; exit 1; }; \
	touch $@

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh samples/demo.sh

test: lint
	@$(BIN)/python -m pytest -q -n auto --dist worksteal $(PYTEST_ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

soak: $(READY)
	@VSMMU_SOAK=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "soak or sliced" $(PYTEST_ARGS)

bench: $(READY)
	@$(BIN)/python -m pytest -q benchmarks $(PYTEST_ARGS)

goldens: $(READY)
	@$(BIN)/python -m pytest -q tests/cli --update-goldens $(PYTEST_ARGS)

grammar: $(READY)
	@$(BIN)/python -m xl_configs.grammar

conformance: $(READY)
	@$(BIN)/python -m vsmmu.conformance

fairness: $(READY)
	@$(BIN)/python -m tests.vsmmu.hypervisor.floods

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
