# `make` lists the targets, which are described by what follows ## here. Each does its own set-up.
#
# Tests of a real Slurm need slurm-wlm and munge, those in a browser chromium and chromium-driver; they
# are skipped without.

PYTHON ?= python3
VENV ?= .venv
ifndef LOCK  # what is installed already
LOCK := $(or $(patsubst $(VENV)/.%,%,$(firstword $(wildcard $(VENV)/.requirements*.lock))),requirements.lock)
endif
NEWEST_PYTHON = $(if $(findstring cuda13,$(LOCK)),14,13)

# tests that compute in their own process; those that mostly wait for Slurm or MLflow
COMPUTING = tests/train tests/models tests/evovit tests/baselines tests/bench tests/benchmarks tests/data
WAITING = tests/slurm tests/tracking
ATMOST =
# what two targets at once print: first all of the one, then all of the other, where make can do so (macOS has 3.81)
SYNCHRONISED = $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

INSTALLED = $(VENV)/.$(notdir $(LOCK))
RUN = PATH="$(abspath $(VENV))/bin:$$PATH"

# An environment's scripts name its folder, so in a clone that was moved or copied it is made anew.
MOVED := $(shell test ! -e '$(VENV)/bin/activate' || \
    { . '$(VENV)/bin/activate'; test "$$VIRTUAL_ENV" -ef '$(VENV)'; } || echo moved)

# In a container the user may have no home; Snakemake needs one that it can write.
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export HOME := $(abspath $(VENV))/home
endif

TARGETS = help setup demo demo-full test test-unit test-whole test-computing test-jobs test-waiting ui lint docs locks
.PHONY: moved $(TARGETS)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'With PYTHON=python3.12 the set-up takes another interpreter, and with LOCK=requirements-cuda13.lock'
	@echo 'the current torch, for newer GPUs and Python 3.14: make demo LOCK=requirements-cuda13.lock'

setup: $(VENV)/.device ## the environment in .venv, as on a cluster's login node; the others do it, too

demo: $(VENV)/.device ## Table 1 at a small scale: trainings on digits, speeds of the real models
	@$(RUN) snakemake --profile demo results/demo/table1.csv
	@$(RUN) python -m workflow.paper print results/demo/table1.csv

# Stopped and started again, it goes on.
demo-full: $(VENV)/.device ## every table and figure at that scale, and a report (about 100 minutes)
	@$(RUN) snakemake --profile demo results/demo/whole
	@$(RUN) snakemake --profile demo results/demo/whole --report results/demo/report.html

test: test-unit test-whole ## all tests

# Tests are dealt out one by one, and who is ready takes over from the other: whole files left one core idle at the end.
test-unit: $(INSTALLED) ## the unit tests alone (minutes)
	@$(RUN) python -m pytest -n 2 --dist worksteal -m "not integration" $(TESTS)

# The jobs' tests start jobs on this machine, so one after another: two at once starved each other's jobs on two cores.
# Beside them run those that mostly wait, three files at once, and then those that compute; CI ends the waiting ones
# after half an hour (ATMOST).
test-whole: $(INSTALLED) ## the tests that start jobs, Slurm or a browser
	@$(MAKE) --no-print-directory -j 2 $(SYNCHRONISED) test-jobs test-others

test-others: test-waiting
	@$(MAKE) --no-print-directory test-computing

test-computing: $(INSTALLED)
	@$(RUN) python -m pytest -n 2 --dist worksteal --durations 10 -m integration $(COMPUTING)

test-jobs: $(INSTALLED)
	@$(RUN) python -m pytest --durations 10 -m integration $(addprefix --ignore ,$(COMPUTING) $(WAITING)) $(TESTS)

test-waiting: $(INSTALLED)
	@$(RUN) $(ATMOST) python -m pytest -n 3 --dist loadfile --durations 10 -m integration $(WAITING) $(TESTS)

ui: $(INSTALLED) ## every run in MLflow, at http://127.0.0.1:5000
	@$(RUN) python -m workflow.tracking --ui

lint: $(INSTALLED) ## style, types and rules
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy
	@$(RUN) snakefmt --check Snakefile workflow/rules
	@$(RUN) snakemake --lint

# In an environment of its own, whose lock has no torch: the site is made from the sources, and imports none of them.
docs: $(VENV)-docs/.requirements.lock ## the documents and the API as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --strict
	@echo 'Open site/index.html in a browser; served by python3 -m http.server -d site, it has a search, too.'

$(VENV)-docs/.requirements.lock: docs/requirements.lock
	@$(PYTHON) -m venv --clear $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.lock
	@touch $@

# The locks name no host, so that any package index serves. 2.7.1 is the last torch whose common wheel
# carries kernels for the paper's V100.
locks: $(INSTALLED) ## the lists of pinned packages anew, from pyproject.toml
	echo 'torch==2.7.1' | $(RUN) uv pip compile --universal --python-version 3.11 --extra dev \
	    --no-header --no-annotate --upgrade --constraint - pyproject.toml -o requirements.lock
	$(RUN) uv pip compile --universal --python-version 3.11 --extra dev \
	    --no-header --no-annotate --upgrade pyproject.toml -o requirements-cuda13.lock
	$(RUN) uv pip compile --universal --python-version 3.11 --group docs \
	    --no-header --no-annotate --upgrade -o docs/requirements.lock

# A changed lock makes the environment anew: nothing of the old one stays behind. Compiled here, once:
# under PYTHONDONTWRITEBYTECODE, which containers often set, each job spent 8 seconds more on imports.
$(INSTALLED): $(LOCK) $(MOVED)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, $(NEWEST_PYTHON)) \
	    else "$(LOCK) needs Python 3.11 to 3.$(NEWEST_PYTHON), and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % v)'
	@echo "Setting up $(VENV) from $(LOCK) (torch with CUDA: about 6 GB) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	@$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python --requirement $(LOCK)
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	@touch $@

# Whatever has no rule and is no file was mistyped: a target or a lock.
.DEFAULT:
	@test -e '$@' || $(PYTHON) -c 'import difflib, sys; name, *known = sys.argv[1:]; \
	    near = difflib.get_close_matches(name, known, 1); \
	    sys.exit(f"make: no {name} here; " + (f"did you mean {near[0]}?" if near else "make lists the targets."))' \
	    '$@' $(TARGETS) $(wildcard *.lock)

moved:
	@echo "$(VENV) was set up in another folder, where this clone was moved or copied from."

# Says which device is used, and stops here if the installed torch can't serve the GPU.
$(VENV)/.device: $(INSTALLED)
	@$(RUN) python -m workflow.runtime.device
	@touch $@
