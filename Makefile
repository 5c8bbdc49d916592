# `make help` lists the commands. All files that they create are under .local/, except generated and formatted sources.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.14 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
endif
ifeq ($(PYTHON),)
$(error No Python 3.11 to 3.14 found: install one, or state its path: make PYTHON=/path/to/python3.13)
endif

LOCAL := @$(PYTHON) -m local $(if $(STATE),--state "$(STATE)")
DEV := $(LOCAL) exec dev
SUBJECT ?= alice
SCOPE ?=
TTL ?=
AUDIENCE ?=
ARGS ?=

export QUITTANCE_PORT

.DEFAULT_GOAL := help
.PHONY: help up down status proofs fuzz fuzz-ledger mutants bench audit recompute-reputation openapi dashboard release docs screens logs demo sam-local \
	sam-smoke token test unit e2e check lint format types build lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## start the local cloud, deploy template.yaml, print example calls (QUITTANCE_PORT=4700 sets the port)
	$(LOCAL) up

down: ## stop the local cloud; no process remains
	$(LOCAL) down

status: ## print whether the local cloud is running, and its URL
	$(LOCAL) status

logs: ## print the functions' log lines
	$(LOCAL) logs

demo: ## publish an agent, pay for a task, verify the receipt
	$(LOCAL) demo

sam-local: ## run the functions in containers with `sam local start-api` (ARGS="invoke HealthFunction -e FILE": one event)
	$(LOCAL) sam-local $(ARGS)

sam-smoke: ## test every file in events/ with `sam local invoke`, and a paid task with `sam local start-api`
	$(DEV) env QUITTANCE_SAM_LOCAL=1 pytest tests/sam_local $(ARGS)

token: ## print a bearer token: SUBJECT=alice SCOPE="ledger:deposit" TTL=3600
	$(LOCAL) token "$(SUBJECT)" --scope "$(SCOPE)" $(if $(TTL),--ttl $(TTL)) $(if $(AUDIENCE),--audience "$(AUDIENCE)")

test: ## run all tests, in minutes (ARGS="-k word" selects, ARGS=-v prints pytest's usual output)
	$(DEV) python -m pytest -n auto $(ARGS)

proofs: ## run the long form of the tests and more, for hours; continues where it stopped (ARGS="fuzz", "--short", "--again")
	$(DEV) env PYTHONPATH=.:layers/runtime python -m tests.long_form $(ARGS)

fuzz: ## run 20,000 mutated and generated modules in the sandbox
	$(DEV) env PYTHONPATH=.:layers/runtime python tests/fuzz/fuzz.py --modules 20000 $(ARGS)

fuzz-ledger: ## run 20,000 escrows under faults on a real database engine (ARGS="--engine dynoxide" for the other)
	$(DEV) env PYTHONPATH=.:layers/runtime python tests/proofs/fuzz.py --seeds 20 --escrows 1000 $(ARGS)

mutants: ## remove each guard of the ledger in turn: the tests must catch every removal
	$(DEV) env PYTHONPATH=.:layers/runtime python tests/proofs/mutants.py $(ARGS)

bench: ## write docs/performance.md; measure cold starts, metering, a hot wallet, channels, receipts, traces, acceptance, attacks, a sweep and the audit
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/report.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/cold_start.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/imports.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/metering.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/hot_wallet.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/channels.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/receipts.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/tracing.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/acceptance.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/contract.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/wash_trading.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/attacks.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/sweep.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/backlog.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/audit.py

audit: ## recompute the ledger's invariants from the running cloud's table
	$(LOCAL) audit

openapi: ## regenerate the API's description and the events' schemas from the code
	$(DEV) env PYTHONPATH=layers/runtime python -m local.openapi

dashboard: ## regenerate the CloudWatch dashboard in template.yaml from the metrics in the code
	$(DEV) env PYTHONPATH=layers/runtime python -m local.dashboard

release: ## name the layer's sources in template.yaml, so that an update publishes every function
	$(LOCAL) exec dev python -m local.release

docs: ## build the documentation site into .local/site/html
	$(DEV) env PYTHONPATH=layers/runtime:client:cli python -m local.site

screens: ## draw the command line's pictures in docs/screens, with the running cloud (make up)
	$(DEV) env PYTHONPATH=.:layers/runtime:client:cli python -m local.screens

recompute-reputation: ## recompute every agent's scores from its receipts and compare them with the stored ones
	$(LOCAL) reputation

unit: ## run the fast tests
	$(DEV) pytest tests/ledger tests/acceptance tests/proof tests/api $(ARGS)

e2e: ## run the tests against the deployed template (QUITTANCE_STACK=.local/stack.json uses the running cloud)
	$(DEV) pytest tests/e2e $(ARGS)

check: lint types ## run all static checks: style, types, imports, template, policies
	$(DEV) env PYTHONPATH=layers/runtime:client:cli lint-imports
	$(DEV) cfn-lint -a cfn_lint_serverless.rules -- template.yaml
	$(LOCAL) exec sam sam validate --lint --region us-east-1
	$(LOCAL) exec policy python local/policies.py

lint: ## check the style
	$(DEV) ruff check .
	$(DEV) ruff format --check .

format: ## format the sources
	$(DEV) ruff check --fix .
	$(DEV) ruff format .

types: ## check the types
	$(DEV) mypy

build: ## run sam build for both processors, and check the layer's size
	$(LOCAL) build --python 3.13 x86_64 arm64

lock: ## regenerate the pinned requirement files from requirements/*.in
	$(LOCAL) exec uv requirements/lock.sh

clean: ## stop what runs and remove .local
	$(LOCAL) clean
