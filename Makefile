# meari: the commands of a newcomer and of CI. `make help` lists them.
#
# One environment, .venv, filled in layers: the serving side, then the load tests' or training, then all of development.
# A stamp in .venv named after the checksum of what was installed says that a layer is there, so that pip
# runs only where a lock file has changed. `make bench` has .venv-bench: the servers that it measures beside meari bring
# a hundred packages along. `make harness` has .venv-harness for the same reason.

PYTHON ?= python3
HOST ?= $(or $(MEARI_HOST),127.0.0.1)
PORT ?= $(or $(MEARI_PORT),8000)
IMAGE ?= meari:latest
DOCKER ?= docker

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
LOCKED := install --no-deps --no-compile --requirement

sum = $(shell { pwd; cat $(1) | cksum; } | cksum | cut -d ' ' -f 1)
SERVE := .venv/serve-$(call sum,pyproject.toml requirements/serve.txt)
LOAD := .venv/load-$(call sum,requirements/serve.txt requirements/load.txt)
TRAIN := .venv/train-$(call sum,requirements/serve.txt requirements/train.txt)
DEV := .venv/dev-$(call sum,requirements/serve.txt requirements/dev.txt)
BENCH := .venv-bench/bench-$(call sum,pyproject.toml requirements/bench.txt)
HARNESS := .venv-harness/harness-$(call sum,requirements/harness.txt)

.DEFAULT_GOAL := help
.PHONY: help serve test quick check format train train-config load bench harness image lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

serve: $(SERVE) ## serve bundles/ over HTTP (HOST, PORT, MEARI_…)
	@MEARI_HOST='$(HOST)' MEARI_PORT='$(PORT)' exec $(BIN)/meari serve

test: $(DEV) ## run all tests (ARGS: arguments for pytest)
	@exec $(BIN)/python -m pytest $(ARGS)

quick: $(DEV) ## run the tests that need neither long trainings nor a browser, in parallel (ARGS)
	@exec $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile -m 'not slow' $(ARGS)

check: $(DEV) ## lint, format, strict types, import rules: changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV) ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: train-config $(TRAIN) ## train a model (CONFIG: a TOML file)
	@exec $(BIN)/meari train '$(CONFIG)'

train-config: # before anything is installed
	@test -n '$(CONFIG)' || { echo 'make train: say which: make train CONFIG=models/configs/NAME.toml' >&2; exit 2; }
	@'$(PYTHON)' -B -m meari.models.check '$(CONFIG)'

load: $(LOAD) ## load-test a running server for 60 s (HOST, PORT, MEARI_LOAD_…)
	@HOST='$(HOST)' PORT='$(PORT)' exec $(BIN)/python -m loadtests

bench: $(BENCH) ## measure meari beside other servers into docs/benchmarks/, 40 min (ARGS=--quick: 5 min)
	@exec .venv-bench/bin/python -m benchmarks.serving $(ARGS)

harness: $(DEV) $(HARNESS) ## install lm-evaluation-harness into .venv-harness and compare its figures with ours
	@exec $(BIN)/python -m pytest tests/service/openai/test_harness.py $(ARGS)

image: ## build the container image (IMAGE, DOCKER)
	DOCKER_BUILDKIT=1 $(DOCKER) build --tag '$(IMAGE)' .

lock: $(DEV) ## write requirements/ anew from pyproject.toml (UPGRADE=1: newest versions)
	sh requirements/lock.sh $(BIN)/uv $(if $(UPGRADE),--upgrade)

clean: ## remove .venv, .venv-bench, .venv-harness and what tools leave behind; runs/ stays
	rm -rf .venv .venv-bench .venv-harness build dist meari.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf loadtests/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the layers of .venv --------------------------------------------------------------------------

$(SERVE):
	@sh requirements/venv.sh '$(PYTHON)'
	@echo 'Installing the serving side into .venv …'
	@$(PIP) $(LOCKED) requirements/serve.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@rm -f .venv/serve-*
	@touch $@

$(LOAD): $(SERVE)
	@echo 'Installing the load tests into .venv …'
	@$(PIP) $(LOCKED) requirements/load.txt
	@rm -f .venv/load-*
	@touch $@

# torch's GPU builds declare libraries that the lock does not name: the last line adds those, if any.
$(TRAIN): $(SERVE)
	@echo 'Installing what training needs into .venv …'
	@$(PIP) $(LOCKED) requirements/train.txt
	@$(PIP) install --no-compile --constraint requirements/train.txt torch
	@rm -f .venv/train-*
	@touch $@

$(DEV): $(TRAIN)
	@echo 'Installing everything for tests and checks into .venv …'
	@$(PIP) $(LOCKED) requirements/dev.txt
	@rm -f .venv/dev-*
	@touch $@

$(BENCH):
	@sh requirements/venv.sh '$(PYTHON)' .venv-bench
	@echo 'Installing meari and the servers that it is measured beside into .venv-bench …'
	@.venv-bench/bin/python -m pip --disable-pip-version-check -qq $(LOCKED) requirements/bench.txt
	@.venv-bench/bin/python -m pip --disable-pip-version-check -qq install --no-compile --constraint requirements/bench.txt torch
	@.venv-bench/bin/python -m pip --disable-pip-version-check -qq install --no-deps --no-build-isolation --editable .
	@rm -f .venv-bench/bench-*
	@touch $@

$(HARNESS):
	@sh requirements/venv.sh '$(PYTHON)' .venv-harness
	@echo 'Installing lm-evaluation-harness into .venv-harness …'
	@.venv-harness/bin/python -m pip --disable-pip-version-check -qq $(LOCKED) requirements/harness.txt
	@rm -f .venv-harness/harness-*
	@touch $@
