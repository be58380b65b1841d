# Commands for development and CI; `make help` lists them.
#
# The environment .venv is filled in layers: serving, then load tests or training, then development. A stamp file in
# .venv, named after the checksum of the lock files, marks an installed layer; pip runs again only after a lock file
# has changed. `make bench` uses .venv-bench because the servers that meari is compared with need a hundred further
# packages. `make harness` uses .venv-harness for the same reason.

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
.PHONY: help serve test quick drills check format train train-config load bench harness image lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

serve: $(SERVE) ## serve bundles/ over HTTP (HOST, PORT, MEARI_…)
	@MEARI_HOST='$(HOST)' MEARI_PORT='$(PORT)' exec $(BIN)/meari serve

test: $(DEV) ## run all tests (ARGS: arguments for pytest)
	@exec $(BIN)/python -m pytest $(ARGS)

quick: $(DEV) ## run the fast tests in parallel: no long trainings, no browser (ARGS)
	@exec $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile -m 'not slow' $(ARGS)

drills: $(DEV) ## run the long drills, 30 min, and write docs/reliability.md (ARGS: some of tests/drills)
	@exec $(BIN)/python -m pytest --long $(if $(filter tests/%,$(ARGS)),,tests/drills) $(ARGS)

check: $(DEV) ## check lint, format, types and import rules without changing files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV) ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: train-config $(TRAIN) ## train a model (CONFIG: a TOML file)
	@exec $(BIN)/meari train '$(CONFIG)'

train-config: # check the config before anything is installed
	@test -n '$(CONFIG)' || { echo 'make train: no config given; run make train CONFIG=models/configs/NAME.toml' >&2; exit 2; }
	@'$(PYTHON)' -B -m meari.models.check '$(CONFIG)'

load: $(LOAD) ## load-test a running server for 60 s (HOST, PORT, MEARI_LOAD_…)
	@HOST='$(HOST)' PORT='$(PORT)' exec $(BIN)/python -m loadtests

bench: $(BENCH) ## benchmark meari and other servers into docs/benchmarks/, 40 min (ARGS=--quick: 5 min)
	@exec .venv-bench/bin/python -m benchmarks.serving $(ARGS)

harness: $(DEV) $(HARNESS) ## run lm-evaluation-harness from .venv-harness and compare its figures with meari's
	@exec $(BIN)/python -m pytest tests/service/openai/test_harness.py $(ARGS)

image: ## build the container image (IMAGE, DOCKER)
	DOCKER_BUILDKIT=1 $(DOCKER) build --tag '$(IMAGE)' .

lock: $(DEV) ## rewrite requirements/ from pyproject.toml (UPGRADE=1: newest versions)
	sh requirements/lock.sh $(BIN)/uv $(if $(UPGRADE),--upgrade)

clean: ## remove .venv, .venv-bench, .venv-harness, caches and build files; keep runs/
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

# GPU builds of torch declare libraries that the lock file does not list; the second install adds them.
$(TRAIN): $(SERVE)
	@echo 'Installing training into .venv …'
	@$(PIP) $(LOCKED) requirements/train.txt
	@$(PIP) install --no-compile --constraint requirements/train.txt torch
	@rm -f .venv/train-*
	@touch $@

$(DEV): $(TRAIN)
	@echo 'Installing tests and checks into .venv …'
	@$(PIP) $(LOCKED) requirements/dev.txt
	@rm -f .venv/dev-*
	@touch $@

$(BENCH):
	@sh requirements/venv.sh '$(PYTHON)' .venv-bench
	@echo 'Installing meari and the other servers into .venv-bench …'
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
