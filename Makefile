# The commands of this project. `make` lists them.
#
#   make run FEATURE="Add rate limiting" [REPO=PATH] [SLUG=…] [SPEC=…] [PIPELINE=…] [BASE=…] [BUDGET=…] [MODE=…] [ARGS="--json …"]
#
# Make and the shell must not touch what a person writes: the variables are not exported as such (that would expand a `$`),
# but by value, and recipes read them from the environment.
.DEFAULT_GOAL := help
.SUFFIXES:
SHELL := /bin/sh
bin := .venv/bin

unexport FEATURE REPO SLUG SPEC PIPELINE BASE BUDGET MODE ARGS
export ANDON_REQUEST := $(value FEATURE)
export ANDON_MAKE_REPO := $(value REPO)
export ANDON_MAKE_SLUG := $(value SLUG)
export ANDON_MAKE_SPEC := $(value SPEC)
export ANDON_MAKE_PIPELINE := $(value PIPELINE)
export ANDON_MAKE_BASE := $(value BASE)
export ANDON_MAKE_BUDGET := $(value BUDGET)
export ANDON_MAKE_MODE := $(value MODE)
export ANDON_MAKE_ARGS := $(value ARGS)

.PHONY: help
help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

.PHONY: setup
setup: ## environment, container engine, images: all that a run needs
	@images/setup.sh engine images

# ARGS alone is split at blanks; everything else reaches the command as it was written.
.PHONY: run
run: ## drive a feature through the line: make run FEATURE="…" [REPO=PATH]
	@images/setup.sh engine
	@set -f; set -- $$ANDON_MAKE_ARGS; \
	[ -z "$$ANDON_MAKE_REPO" ] || set -- "$$@" --repo "$$ANDON_MAKE_REPO"; \
	[ -z "$$ANDON_MAKE_SLUG" ] || set -- "$$@" --slug "$$ANDON_MAKE_SLUG"; \
	[ -z "$$ANDON_MAKE_SPEC" ] || set -- "$$@" --spec "$$ANDON_MAKE_SPEC"; \
	[ -z "$$ANDON_MAKE_PIPELINE" ] || set -- "$$@" --pipeline "$$ANDON_MAKE_PIPELINE"; \
	[ -z "$$ANDON_MAKE_BASE" ] || set -- "$$@" --base "$$ANDON_MAKE_BASE"; \
	[ -z "$$ANDON_MAKE_BUDGET" ] || set -- "$$@" --budget "$$ANDON_MAKE_BUDGET"; \
	[ -z "$$ANDON_MAKE_MODE" ] || set -- "$$@" --mode "$$ANDON_MAKE_MODE"; \
	[ -z "$$ANDON_REQUEST" ] || set -- "$$@" -- "$$ANDON_REQUEST"; \
	exec $(bin)/andon run "$$@"

# EXECUTORS=N: how many replicas of the executor; ARGS="--volumes": `make down` also forgets runs, keys and traces.
.PHONY: up
up: ## a fleet in containers on this machine: broker, supervisor, EXECUTORS=1, Jaeger
	@images/setup.sh engine images
	@images/fleet.sh up --scale "executor=$${EXECUTORS:-1}"

.PHONY: down
down: ## stop that fleet; its runs and traces stay
	@set -f; exec images/fleet.sh down $$ANDON_MAKE_ARGS

.PHONY: dev
dev:
	@images/setup.sh dev

.PHONY: test
test: ## the tests, with real git, NATS, sockets and containers
	@images/setup.sh dev engine
	@$(bin)/pytest -m "not slow and not smoke" --numprocesses 2 --dist loadfile

.PHONY: check
check: dev ## format, lint, types, import rules, dependencies, architecture
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@$(bin)/lint-imports
	@$(bin)/deptry .
	@$(bin)/pytest -q tests/architecture

.PHONY: servers
servers: ## build the servers tests need and registries do not have; cached outside the tree
	@for recipe in tests/servers/*/build.sh; do "$$recipe"; done

.PHONY: matrix
matrix: servers ## the slow tests, on both container engines
	@images/setup.sh dev engine
	@$(bin)/pytest -m "(slow or docker) and not smoke" --engine both --numprocesses 2 --dist loadfile

.PHONY: smoke
smoke: ## the fleet of compose.yaml with three executors: brought up, worked with, taken down
	@images/setup.sh dev engine images
	@$(bin)/pytest tests/e2e/test_compose.py

.PHONY: bench
bench: ## measure against the goals; fails beyond them
	@images/setup.sh dev engine images
	@$(bin)/python -m benchmarks

.PHONY: chaos
chaos: ## break things at random, 300 times, and look at what became of the runs (ANDON_CHAOS_SEED=… again)
	@images/setup.sh dev engine images
	@$(bin)/python -m tests.chaos

.PHONY: fuzz
fuzz: dev ## search for inputs that break a parser, for ten minutes (ANDON_FUZZ_SEED=… again, ARGS="--keep")
	@set -f; exec $(bin)/python -m tests.fuzz $$ANDON_MAKE_ARGS

.PHONY: cassette
cassette: ## record the shipped sample's cassette anew, from the scripted model
	@images/setup.sh dev engine images
	@$(bin)/python -m tests.e2e.record_cassette

.PHONY: golden
golden: ## replay the shipped sample and keep its span tree anew; look at the diff before you commit it
	@images/setup.sh dev engine images
	@$(bin)/python -m tests.e2e.golden

.PHONY: lock
lock: ## resolve the lock files anew (needs uv)
	@requirements/lock.sh

.PHONY: clean
clean: ## remove what was built in the tree; keeps the engine, its images and the runs
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
