# Commands for development and CI; `make help` lists them.
#
# The environment .venv is filled in layers: serving, then load tests or training, then development. A stamp file in
# .venv, named after the checksum of the lock files, marks an installed layer; pip runs again only after a lock file
# has changed. `make bench` uses .venv-bench because the servers that meari is compared with need a hundred further
# packages. `make harness` uses .venv-harness for the same reason.

PYTHON ?= python3
HOST ?= $(or $(MEARI_HOST),127.0.0.1)
PORT ?= $(or $(MEARI_PORT),8000)
CORPORA ?= ../shared/corpora
IMAGE ?= meari:latest
DOCKER ?= docker
# The base image's tag without its digest, if the engine has it from no registry: then somebody made a stand-in.
TAG := $(shell sed -n 's/^ARG BASE=\(.*\)@.*/\1/p' Dockerfile)
BASE ?= $(if $(filter 0,$(shell $(DOCKER) image inspect --format '{{len .RepoDigests}}' $(TAG) 2>/dev/null)),$(TAG))

# Bytecode is kept, whatever the environment says: most of what a process needs to start would be to compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# Every file is compared with its hash, and nothing is built: building would run tools that no lock file names. torch is
# apart (requirements/lock.sh says why); builds for GPUs declare libraries that no lock file lists.
LOCKED := install --no-deps --no-compile --require-hashes --only-binary :all: --requirement
TORCH := install --no-compile --requirement requirements/torch.txt

sum = $(shell { pwd; cat $(1) | cksum; } | cksum | cut -d ' ' -f 1)
SERVE := .venv/serve-$(call sum,pyproject.toml requirements/serve.txt)
LOAD := .venv/load-$(call sum,requirements/serve.txt requirements/load.txt)
TRAIN := .venv/train-$(call sum,requirements/serve.txt requirements/train.txt requirements/torch.txt)
DEV := .venv/dev-$(call sum,requirements/serve.txt requirements/dev.txt)
BENCH := .venv-bench/bench-$(call sum,pyproject.toml requirements/build.txt requirements/bench.txt requirements/torch.txt)
HARNESS := .venv-harness/harness-$(call sum,requirements/build.txt requirements/harness.txt)

.DEFAULT_GOAL := help
.PHONY: help serve test quick drills check format train demo train-config load knee bench corpora harness image reference sbom audit lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

serve: $(SERVE) ## serve bundles/ over HTTP (HOST, PORT, MEARI_…)
	@MEARI_HOST='$(HOST)' MEARI_PORT='$(PORT)' exec $(BIN)/meari serve

test: $(DEV) ## run all tests in parallel, files apart (ARGS: arguments for pytest; -n 0: one after the other)
	@exec $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

quick: $(DEV) ## run the fast tests in parallel: no long trainings, no browser (ARGS)
	@exec $(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(ARGS)

drills: $(DEV) ## run the long drills, 70 min, and write docs/reliability.md (ARGS: some of tests/drills)
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

demo: $(TRAIN) ## train on a text, export and serve it (TEXT: a file or folder, MINUTES: 5)
	@exec $(BIN)/meari demo '$(TEXT)' --minutes '$(or $(MINUTES),5)'

train-config: # check the config before anything is installed
	@test -n '$(CONFIG)' || { echo 'make train: no config given; run make train CONFIG=models/configs/NAME.toml' >&2; exit 2; }
	@'$(PYTHON)' -B -m meari.models.check '$(CONFIG)'

load: $(LOAD) ## load-test a running server for 60 s (HOST, PORT, MEARI_LOAD_…)
	@HOST='$(HOST)' PORT='$(PORT)' exec $(BIN)/python -m loadtests

knee: $(LOAD) ## find the largest load within a p95 of 1 s; report and plot into loadtests/results/ (HOST, PORT, MEARI_LOAD_…)
	@HOST='$(HOST)' PORT='$(PORT)' exec $(BIN)/python -m loadtests.knee

bench: $(BENCH) ## benchmark meari and other servers into docs/benchmarks/, 40 min (ARGS=--quick: 5 min)
	@exec .venv-bench/bin/python -m benchmarks.serving $(ARGS)

corpora: ## fetch, compare and split the corpora of the released configs (CORPORA: their folder, MIRROR: a URL)
	@'$(PYTHON)' -B -m benchmarks.corpora '$(CORPORA)' $(if $(MIRROR),--mirror '$(MIRROR)')

harness: $(DEV) $(HARNESS) ## run lm-evaluation-harness from .venv-harness and compare its figures with meari's
	@exec $(BIN)/python -m pytest tests/service/openai/test_harness.py $(ARGS)

image: ## build the container image (IMAGE, DOCKER, BASE; ARGS: --target train, …)
	DOCKER_BUILDKIT=1 $(DOCKER) build $(if $(BASE),--build-arg 'BASE=$(BASE)') --tag '$(IMAGE)' $(ARGS) .

sbom: $(DEV) ## write the wheel and the bill of materials of what it needs (CycloneDX) into dist/
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@for wheel in dist/meari-*.whl; do $(BIN)/python requirements/sbom.py wheel "$$wheel" requirements/serve.txt >"$${wheel%%-py3*}.cdx.json"; done

reference: $(DEV) ## write the pages of the Python API, for reading offline, into reference/
	@$(BIN)/python -m pdoc -o reference -t docs/reference meari '!meari\.(?!errors$$).*'

audit: $(DEV) ## look for known vulnerabilities of the locked packages; asks the package index
	@sh requirements/audit.sh $(BIN)/pip-audit

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

$(TRAIN): $(SERVE)
	@echo 'Installing training into .venv …'
	@$(PIP) $(LOCKED) requirements/train.txt
	@$(PIP) $(TORCH)
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
	@sh requirements/install.sh .venv-bench requirements/bench.txt
	@.venv-bench/bin/python -m pip --disable-pip-version-check -qq $(TORCH)
	@.venv-bench/bin/python -m pip --disable-pip-version-check -qq install --no-deps --no-build-isolation --editable .
	@rm -f .venv-bench/bench-*
	@touch $@

$(HARNESS):
	@sh requirements/venv.sh '$(PYTHON)' .venv-harness
	@echo 'Installing lm-evaluation-harness into .venv-harness …'
	@sh requirements/install.sh .venv-harness requirements/harness.txt
	@rm -f .venv-harness/harness-*
	@touch $@
