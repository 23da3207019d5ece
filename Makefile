# Each target sets up .venv first if necessary. Only Python 3.11 or newer and make are needed.
PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
BENCHMARKS ?= full_scale loader cache step
CORES ?= 2
SEED ?= 0
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-cluster lint format bench clean-demo

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("ffnrepro needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; name a newer one, such as make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing all dependencies into $(VENV): a few minutes and about 7 GB, without output"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)  ## make the built-in data set and run the whole workflow on it (ARGS=... goes to snakemake)
	@$(BIN)/ffnrepro make-demo-data demo/data
	@$(BIN)/snakemake --directory demo --configfile config/demo.yaml --config 'seeds=[$(SEED)]' --cores $(CORES) --quiet host --rerun-incomplete $(ARGS)
	$(if $(strip $(ARGS)),,@echo && cat demo/results/table1.md && echo && cat demo/results/diagnosis.txt && echo && echo "demo/results: table1.csv, table1.md, figures/table1.png and report.html are up to date. Open report.html in a browser.")

test: $(READY)  ## run all tests that do not need SLURM (TESTS=tests/unit runs those alone)
	$(BIN)/pytest -n $(CORES) $(TESTS)

test-cluster: $(READY)  ## run the workflow on temporary SLURM clusters here (apt-get install slurm-wlm munge)
	$(BIN)/pytest -n 4 -m cluster tests/cluster

lint: $(READY)  ## check style and types, and run Snakemake's linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(READY)  ## reformat all files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

bench: $(READY)  ## run all benchmarks, compare with the goals, write benchmarks/RESULTS.md (BENCHMARKS=step runs that one alone)
	@failed=; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || failed="$$failed $$name"; done; \
	if [ -n "$$failed" ]; then echo "failed, or missed a goal:$$failed"; exit 1; fi

clean-demo:  ## delete the demo's data and results
	rm -rf demo
