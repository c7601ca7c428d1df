# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
DATA ?= ../shared/data
PROFILE ?= sample
BIN := .venv/bin
RUN := $(BIN)/python -m
export DVC_NO_ANALYTICS := 1
export PYTHONUTF8 := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup data demo real pico retrain repro base pull profile test test-all style lint audit bench check ui up down status serve s3-up s3-down

help:  ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/.installed: requirements.lock
	$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

setup: .venv/.installed  ## Create .venv with the pinned dependencies

data: setup  ## Generate the bundled sample corpus; data of your own are never touched
	$(RUN) infra.sample.place

demo: data  ## Run the whole chain on the bundled sample corpus
	$(RUN) flows.retrain --profile sample

pico: data  ## The same chain with a toy model, in about two minutes
	$(RUN) flows.retrain --profile pico

real: setup  ## The chain on real texts: make real DATA=folder with train/ and rumteb/
	$(RUN) infra.sample.place --if-free
	$(RUN) flows.retrain --profile rumteb-scratch --data $(DATA)

retrain: setup  ## Run params.yaml as it stands
	$(RUN) flows.retrain

repro: setup  ## The same stages without Prefect
	dvc repro

base: setup  ## A decoder to begin from, into models/: make base NAME=gemma-3-270m
	$(RUN) infra.base $(or $(NAME),gemma-3-270m)

pull: setup  ## Fetch data and outputs of this commit from the store
	$(RUN) flows.pull

profile: setup  ## Install a profile: make profile PROFILE=qwen3-0.6b
	$(RUN) flows.profile $(PROFILE)

# the type checker takes a minute and the audit waits: they run beside the tests and speak after them
define tested
	mkdir -p .samovar
	{ basedpyright && $(RUN) infra.audit --where-possible; } >.samovar/lint.log 2>&1 & lint=$$!; \
	trap 'kill $$lint 2>/dev/null' INT TERM; \
	$(1); tests=$$?; \
	wait $$lint; lint=$$?; cat .samovar/lint.log; exit $$((tests ? tests : lint))
endef

test: style  ## Lint, then what a change must pass in minutes: every test but those marked slow
	$(call tested,$(RUN) pytest -n 2 --dist loadfile -m "not slow and not s3")

# whole chains come first by name and last longest: a reordering would leave them to one worker;
# servers and sleeping processes leave room on two cores for a third worker, not for a fourth
test-all: style  ## Lint, then everything: whole chains, services, S3, PostgreSQL, kills, teams
	$(call tested,$(RUN) pytest -n 3 --dist loadfile --no-loadscope-reorder)

style: setup
	ruff check .
	ruff format --check .
	lint-imports

lint: style  ## ruff, import-linter, basedpyright, and pip-audit where it can ask
	basedpyright
	$(RUN) infra.audit --where-possible

audit: setup  ## Known vulnerabilities of the pinned packages (pip-audit, in an environment of its own)
	$(RUN) infra.audit

bench: setup  ## Speed and memory against the peers, as ratios of one run
	for script in tests/benchmark/bench_*.py; do PYTHONPATH=. $(BIN)/python $$script || exit 1; done

check: setup  ## Whether a run could start and end here: packages, data, disk, server, GPUs, store
	$(RUN) flows.check

ui: setup  ## Open the Prefect UI of the local runs
	$(RUN) flows.ui

up: setup  ## Server, worker and schedule in the background: make up CRON="0 3 1 * *"
	$(RUN) flows.services up $(if $(CRON),--cron "$(CRON)")

down: setup  ## Stop them; FORCE=1 also when a run goes on
	$(RUN) flows.services down $(if $(FORCE),--force)

status: setup  ## What of them is healthy
	$(RUN) flows.services status

serve: setup  ## Retrain on a schedule: make serve CRON="0 3 1 * *"
	$(RUN) flows.serve --cron "$(or $(CRON),0 3 1 * *)"

s3-up s3-down: s3-%:  ## Start or stop the S3 server of infra/s3
	infra/s3/server.sh .samovar/s3 $(if $(filter up,$*),start,stop)
