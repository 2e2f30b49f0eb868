# deltaspot: everything sets itself up; nothing but Python 3.11+ and make is needed beforehand.

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format weights freeze clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## Set up a virtual environment with everything (server, training, tests)

demo: $(VENV)/.server ## Start a server, stream the sample through it, show what was heard (ONCE=1 stops and checks)
	$(BIN)/deltaspot demo $(if $(ONCE),--once)

PYTEST = $(BIN)/python -m pytest --durations=25

# Tests of the system mostly wait, the others compute: the two halves run side by side, and the one's report follows the
# other's. The kernels are compiled before that, as two who write numba's cache at once may spoil it.
test: $(VENV)/.dev ## Run the tests (TESTS="tests/test_detector.py -x" for some of them)
ifneq ($(TESTS),)
	$(PYTEST) $(TESTS)
else
	env -u DELTASPOT_URL $(BIN)/deltaspot detect client/samples/commands.flac >/dev/null
	@log=$$(mktemp); trap 'kill $$system $$others; wait' INT TERM; \
	$(PYTEST) -m system -o cache_dir=.pytest_cache/system >$$log 2>&1 & system=$$!; \
	$(PYTEST) -m "not system" & others=$$!; \
	wait $$others; failed=$$?; \
	wait $$system || failed=$$?; \
	cat $$log; rm $$log; exit $$failed
endif

lint: $(VENV)/.dev ## Check style, types and the directions of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# A stage that was interrupted goes on, with the steps that it began with and for no other words; one that has ended has
# nothing left to do.
stage = $(BIN)/deltaspot train --data $(DATA) --cache $(RUN)/cache --out $(RUN)/$(1) $(TEACHERS:%=--teacher %) \
	$(3) $(if $(wildcard $(RUN)/$(1)/state.safetensors),--resume,$(STEPS:%=--steps %) $(2))

WORDS = $(if $(KEYWORDS),--keywords "$(KEYWORDS)")
TUTOR = $(if $(CLIP),--tutor $(RUN)/clip/clip.safetensors)
SPEECH = $(shell find -L "$(DATA)" -type d -name running_speech -o -name "running_speech.tar*" -o -name running_speech.tgz 2>/dev/null)

weights: $(VENV)/.dev ## Train, calibrate and judge new weights from nothing, or go on (DATA=recordings RUN=folder TEACHERS=files CLIP=1 STEPS=few KEYWORDS=marvin,sheila)
	@test -n "$(DATA)" -a -n "$(RUN)" || { echo "Name the recordings and a folder for the run: make weights DATA=... RUN=..."; exit 1; }
	@test -n "$(SPEECH)" || echo "$(DATA) has no folder or archive running_speech: sentences will fire more often, and keywords cannot be enrolled. models/make_speech.py makes one."
	$(if $(CLIP),$(call stage,clip,--stage clip,$(WORDS)))
	$(call stage,dense,,$(WORDS) $(TUTOR))
	$(call stage,gated,--stage gated --init $(RUN)/dense/skwt.safetensors,$(TUTOR) --tutor $(RUN)/dense/skwt.safetensors)
	$(BIN)/deltaspot model points --data $(DATA) --model $(RUN)/gated/skwt.safetensors --output $(RUN)/skwt.safetensors
	$(BIN)/deltaspot model balance --data $(DATA) --cache $(RUN)/cache --model $(RUN)/skwt.safetensors --output $(RUN)/skwt.safetensors
	$(BIN)/deltaspot model prune --data $(DATA) --model $(RUN)/skwt.safetensors --output $(RUN)/skwt.safetensors
	$(BIN)/deltaspot model calibrate --streams 54 --data $(DATA) --model $(RUN)/skwt.safetensors --output $(RUN)/skwt.safetensors
	$(if $(SPEECH),$(BIN)/deltaspot model background --data $(DATA) --cache $(RUN)/cache --model $(RUN)/skwt.safetensors)
	$(BIN)/deltaspot evaluate report --data $(DATA) --model $(RUN)/skwt.safetensors --output $(RUN)/report
	$(BIN)/deltaspot model card $(RUN)/report/evaluation.json --log $(RUN)/gated/log.jsonl \
		--model $(RUN)/skwt.safetensors --output $(RUN)/report/README.md
	cp $(RUN)/gated/curves.png $(RUN)/report/training.png

freeze: $(VENV)/.dev ## Write down the versions that the tests ran with
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > $(CONSTRAINTS)

clean: ## Remove the environment and every cache
	rm -rf $(VENV) build dist .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with the venv module was found; name one: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) ".[server]"
	@touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) ".[dev]"
	@touch $@ $(VENV)/.server
