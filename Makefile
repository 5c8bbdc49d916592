# One command per wish; `make help` lists them. All that they make is under .local/.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.14 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
endif
ifeq ($(PYTHON),)
$(error No Python 3.11 to 3.14 found: install one, or name it: make PYTHON=/path/to/python3.13)
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
.PHONY: help up down status proofs fuzz fuzz-ledger mutants bench audit recompute-reputation openapi dashboard logs demo sam-local \
	sam-smoke token test unit e2e check lint format types build lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## start the local cloud, deploy template.yaml, print ready calls (QUITTANCE_PORT=4700 to choose)
	$(LOCAL) up

down: ## end the local cloud; nothing stays running
	$(LOCAL) down

status: ## does the local cloud run, and where
	$(LOCAL) status

logs: ## what the functions wrote to their logs
	$(LOCAL) logs

demo: ## the story: publish an agent, pay for a task, verify the receipt
	$(LOCAL) demo

sam-local: ## the functions in containers, behind `sam local start-api` (ARGS="invoke HealthFunction -e FILE": one event)
	$(LOCAL) sam-local $(ARGS)

sam-smoke: ## every file in events/ by `sam local invoke`, and a paid task by `sam local start-api`
	$(DEV) env QUITTANCE_SAM_LOCAL=1 pytest tests/sam_local $(ARGS)

token: ## print a bearer token: SUBJECT=alice SCOPE="ledger:deposit" TTL=3600
	$(LOCAL) token "$(SUBJECT)" --scope "$(SCOPE)" $(if $(TTL),--ttl $(TTL)) $(if $(AUDIENCE),--audience "$(AUDIENCE)")

test: ## everything that a change can break, in minutes (ARGS="-k word" to choose, ARGS=-v for pytest's own output)
	$(DEV) python -m pytest -n auto $(ARGS)

proofs: ## the same and more in the long form, for hours; goes on where it was (ARGS="fuzz", "--short", "--again")
	$(DEV) env PYTHONPATH=.:layers/runtime python -m tests.long_form $(ARGS)

fuzz: ## 20,000 mutated modules through the sandbox
	$(DEV) env PYTHONPATH=.:layers/runtime python tests/fuzz/fuzz.py --modules 20000 $(ARGS)

fuzz-ledger: ## 20,000 escrows under faults on a real engine (ARGS="--engine dynoxide" for the other)
	$(DEV) env PYTHONPATH=.:layers/runtime python tests/proofs/fuzz.py --seeds 20 --escrows 1000 $(ARGS)

mutants: ## remove each guard of the ledger in turn: the tests must catch every removal
	$(DEV) env PYTHONPATH=.:layers/runtime python tests/proofs/mutants.py $(ARGS)

bench: ## what cold starts, traces, the sandbox, receipts, acceptance and a sweep cost; what a wallet bears and an attacker gets
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/cold_start.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/imports.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/sandbox.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/metering.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/hot_wallet.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/receipts.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/tracing.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/acceptance.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/wash_trading.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/attacks.py
	$(DEV) env PYTHONPATH=.:layers/runtime python benchmarks/sweep.py

audit: ## recompute the ledger's invariants from the running cloud's table
	$(LOCAL) audit

openapi: ## write the API's description and the events' schemas anew from the code
	$(DEV) env PYTHONPATH=layers/runtime python -m local.openapi

dashboard: ## write the CloudWatch dashboard into template.yaml anew from the metrics in the code
	$(DEV) env PYTHONPATH=layers/runtime python -m local.dashboard

recompute-reputation: ## every agent's scores, made anew from its receipts, and whether the kept ones are the same
	$(LOCAL) reputation

unit: ## the fast tests
	$(DEV) pytest tests/ledger tests/acceptance tests/proof tests/api $(ARGS)

e2e: ## the tests against the deployed template (QUITTANCE_STACK=.local/stack.json: the running one)
	$(DEV) pytest tests/e2e $(ARGS)

check: lint types ## all that is checked without running: style, types, imports, template, policies
	$(DEV) env PYTHONPATH=layers/runtime lint-imports
	$(DEV) cfn-lint -a cfn_lint_serverless.rules -- template.yaml
	$(LOCAL) exec sam sam validate --lint --region us-east-1
	$(LOCAL) exec policy python local/policies.py

lint: ## style
	$(DEV) ruff check .
	$(DEV) ruff format --check .

format: ## put the sources into form
	$(DEV) ruff check --fix .
	$(DEV) ruff format .

types: ## types
	$(DEV) mypy

build: ## sam build for both processors, with the layer's size checked
	$(LOCAL) build --python 3.13 x86_64 arm64

lock: ## pin the requirement files anew from requirements/*.in
	$(LOCAL) exec uv requirements/lock.sh

clean: ## end what runs and remove .local
	$(LOCAL) clean
