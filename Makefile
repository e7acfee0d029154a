# One verb each. Everything happens in .venv and ./store; nothing needs a GPU, an account or a running server.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test lint docs serve faults readme bench clean

help:            ## list the verbs
	@grep -E '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.installed  ## make .venv and install what was tested together

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11 setup" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable '.[dev,docs]'
	@echo 'export PREFECT_PLUGINS_ENABLED=true  # flows/deployment_names.py, outside the project too' >>.venv/bin/activate
	@touch $@

demo: setup      ## run the whole pipeline on the embedded data set, in minutes
	$(BIN)/hdm run demo
	@echo "for the command hdm in this shell: . $(BIN)/activate"

test: setup      ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: setup      ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup      ## build the documentation site into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

serve: setup     ## Prefect, MLflow and a worker on this machine, stopped together by Ctrl-C
	$(BIN)/hdm serve

KILLS ?= 20
SECONDS_OF_FUZZ ?= 180
faults: setup    ## break pictures, put settings to their edges, take the server away, kill the pipeline at many moments, runs that recover too, and compare every byte (KILLS=200 for more; all go on where they stopped)
	$(BIN)/python -m tests.faults.fuzz_pictures --seconds $(SECONDS_OF_FUZZ)
	$(BIN)/python -m tests.faults.edge_values
	$(BIN)/python -m tests.faults.kill_anywhere --through server --kills $(KILLS)
	$(BIN)/python -m tests.faults.kill_anywhere --through ephemeral --kills 20
	$(BIN)/python -m tests.faults.outage --minutes 10
	$(BIN)/python -m tests.faults.kill_workers --kills 50

readme: setup    ## run every command of the README in a copy of the project and a clean shell
	$(BIN)/python -m tests.faults.walk_readme

bench: setup     ## measure what bench/RESULTS.md reports
	@for script in $(filter-out bench/checkouts.py,$(wildcard bench/*.py)); do $(BIN)/python $$script || exit; done

clean:           ## remove .venv (the store stays)
	rm -rf .venv
