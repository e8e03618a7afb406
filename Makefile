# Two commands to begin with: `make demo` and `make test`. The rest is for development; `make help` lists it.
SHELL := /bin/sh
PY := .venv/bin/python
REPO ?= .
WORKERS ?= 2

.PHONY: help setup demo test soak run lint types imports check fuzz sim sim-nightly bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

setup:  ## make the virtual environment
	@tools/bootstrap

demo: setup  ## push a real git history in and clone it back, verified (REPO=path-or-bundle for another one, STORE=s3)
	@$(PY) tools/demo.py "$(REPO)" $(if $(STORE),--store $(STORE))

test: setup  ## run the test suite
	@$(PY) -m pytest -n $(WORKERS) --dist loadgroup -m "not soak" tests

soak: setup  ## run the tests that take long for what they prove beyond those of make test
	@$(PY) -m pytest -n $(WORKERS) --dist loadgroup -m soak tests

run: setup  ## serve on 127.0.0.1:1337 with data under var/, until Ctrl-C
	@.venv/bin/museworkd serve --data-dir var

lint: setup  ## style
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .

types: setup  ## strict types
	@.venv/bin/mypy && .venv/bin/pyright

imports: setup  ## the floors: imports run down only
	@.venv/bin/lint-imports --no-cache

check: lint types imports test  ## everything a change has to pass

fuzz: setup  ## fuzz the decoders for SECONDS each (default 60), starting from the corpus
	@$(PY) -m tests.fuzz.run $(or $(SECONDS),60)

sim: setup  ## simulate SEEDS=2000 histories under faults, or replay one (SEED=17; docs/how-to/simulate.md)
	@$(PY) -m tests.simulation.run $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000))

sim-nightly: setup  ## simulate 100,000 seeds beyond those of make test (FIRST=2000)
	@$(PY) -m tests.simulation.run --first $(or $(FIRST),2000) --seeds $(or $(SEEDS),100000) --failures 20

bench: setup  ## measure against git (WORKLOADS="L XL-random" RUNS=3; more in docs/how-to/bench.md)
	@$(PY) -m bench $(if $(WORKLOADS),--workloads $(WORKLOADS)) $(if $(BUNDLES),--real $(BUNDLES)) \
	    $(if $(OPERATIONS),--operations $(OPERATIONS)) $(if $(RUNS),--runs $(RUNS)) \
	    $(if $(INCREMENTS),--increments $(INCREMENTS)) $(if $(PUSH_OPTIONS),--push-options="$(PUSH_OPTIONS)") \
	    $(if $(GIT_SOURCE),--git-source $(GIT_SOURCE)) $(if $(NO_GIT),--no-git)

clean:  ## remove what the targets made, data included
	rm -rf .venv var build dist ./*.egg-info .mypy_cache .ruff_cache .hypothesis
