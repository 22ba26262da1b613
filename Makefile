# Targets are called by people, by .ci/run and by the README; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
CC ?= cc
BUILD := build
VENV := .venv
BIN := $(VENV)/bin
PYTHON_SOURCES := api controller dra_driver kubeletplugin libvgpu deploy tests hatch_build.py
C_SOURCES = $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h')
# The Kubernetes of new local clusters: 1.34, oldest, newest, ...; empty: the default. And feature gates: NAME=true,...
K8S ?=
GATES ?=
export VGPU_K8S_VERSION ?= $(K8S)
export VGPU_K8S_FEATURE_GATES ?= $(GATES)

# What the locked tools were installed from; installing again only when it changes.
STAMP := $(VENV)/.installed

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: $(STAMP) native ## Install the tools into .venv, and build the library, the stub driver and the program

$(STAMP): requirements/dev.txt pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("$(PYTHON): found Python %d.%d, expected 3.11 or later, such as: make PYTHON=python3.12 build" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON): found no venv with pip, expected one (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "==> Installing the locked Python packages into $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	touch $@

.PHONY: native
native:
	@command -v $(firstword $(CC)) >/dev/null || { echo "found no C compiler $(firstword $(CC)), expected one (Debian: apt-get install build-essential)" >&2; exit 1; }
	@$(MAKE) --no-print-directory -C libvgpu CC="$(CC)" BUILD="$(CURDIR)/$(BUILD)" all
	@$(MAKE) --no-print-directory -C libvgpu/stub CC="$(CC)" BUILD="$(CURDIR)/$(BUILD)" all

# The programs of the local cluster, into the cache: with progress, and outside of any test's time limit.
.PHONY: cluster
cluster: build
	@$(BIN)/python -m deploy.local build

.PHONY: demo
demo: cluster ## Two tenants share a GPU on a real Kubernetes: one is refused, one waits with its reason
	$(BIN)/python -m deploy.demo

.PHONY: demo-down
demo-down: ## Remove everything that the demo left running
	$(BIN)/python -m deploy.demo --down

.PHONY: test
test: cluster ## Unit tests, integration tests with a real API server, end-to-end tests on a real node (the slow ones: make e2e)
	$(BIN)/pytest --numprocesses 3 -m "not slow"

.PHONY: unit
unit: build ## The unit tests only
	$(BIN)/pytest tests/unit

.PHONY: sanitize
sanitize: build ## The tests of the library with ASan, UBSan and TSan
	for sanitizer in address undefined thread; do \
	  echo "==> $$sanitizer"; \
	  VGPU_SANITIZE=$$sanitizer $(BIN)/pytest tests/unit/libvgpu; \
	done

.PHONY: e2e
e2e: cluster ## All end-to-end tests on a real node (for example K8S=1.34 GATES=DRAConsumableCapacity=true TESTS=tests/e2e/test_claims.py)
	$(BIN)/pytest $(or $(TESTS),tests/e2e)

.PHONY: gpu
gpu: build ## The tests on this machine's NVIDIA GPU (GPU=stub runs them against the stub driver)
	VGPU_GPU=$(GPU) $(BIN)/pytest -rs tests/gpu

.PHONY: soak
soak: build ## Kill the node agent at each of its writes, and at random during 1,000 cycles of pods (CYCLES=1000)
	$(BIN)/python -m tests.unit.kubeletplugin.soaking --cycles $(or $(CYCLES),1000)

# Versions, and the gates by which a version has another offer mode: consumable, counters or slots.
# Pods tell the health of their devices by themselves from 1.36 on, in 1.35 with the gate ResourceHealthStatus.
# A third part names the only tests that a row is for.
E2E_ALL := 1.32 \
  1.33 1.33:DRAPartitionableDevices=true \
  1.34 1.34:DRAPartitionableDevices=true 1.34:DRAConsumableCapacity=true \
  1.35:ResourceHealthStatus=true 1.35:DRAPartitionableDevices=true 1.35:DRAConsumableCapacity=true \
  1.36 1.36:DRAConsumableCapacity=false 1.36:DRAConsumableCapacity=false,DRAPartitionableDevices=false \
  1.36:DRADeviceTaints=false:tests/e2e/test_draining.py \
  1.37

.PHONY: e2e-all
e2e-all: build ## The end-to-end tests on each version and in each offer mode, and an upgrade through the versions
	for run in $(E2E_ALL); do \
	  IFS=: read -r version gates tests <<<"$$run"; \
	  echo "==> Kubernetes $$version $$gates"; \
	  $(MAKE) --no-print-directory e2e K8S="$$version" GATES="$$gates" TESTS="$$tests"; \
	done
	$(MAKE) --no-print-directory upgrade

.PHONY: upgrade
upgrade: cluster ## Upgrade a running cluster from 1.32 to the newest with pods that hold shares; also test half-finished upgrades
	for version in 1.32 1.33 1.34 1.35 1.36 newest; do $(BIN)/python -m deploy.local --kubernetes $$version build; done
	$(BIN)/pytest tests/upgrade

.PHONY: bench
bench: cluster bench-library ## All benchmarks: the library, the node agent, pods on a cluster
	$(BIN)/python -m tests.bench

.PHONY: bench-library
bench-library: build ## The benchmarks of the interception library; writes its table in docs/performance.md
	$(BIN)/python -m tests.bench.library

.PHONY: lint
lint: build ## ruff, mypy strict, import-linter, clang-format, generated files, compiler warnings as errors
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	$(BIN)/python -m kubeletplugin.proto.generate --check
	$(BIN)/python -m libvgpu.entrypoints --check
	$(MAKE) --no-print-directory -C libvgpu CC="$(CC)" BUILD="$(CURDIR)/$(BUILD)/lint" CFLAGS_EXTRA=-Werror clean all
	$(MAKE) --no-print-directory -C libvgpu/stub CC="$(CC)" BUILD="$(CURDIR)/$(BUILD)/lint" CFLAGS_EXTRA=-Werror clean all

.PHONY: fmt
fmt: build ## Format Python and C, and fix what ruff can fix
	$(BIN)/ruff check --fix --quiet $(PYTHON_SOURCES) || true
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(C_SOURCES)

.PHONY: generate
generate: build ## Regenerate gRPC modules, the CRD of the chart, and the lists of entry points in docs
	$(BIN)/python -m kubeletplugin.proto.generate
	$(BIN)/python -m libvgpu.entrypoints
	$(BIN)/dra-driver crds > deploy/helm/dra-driver-vgpu/crds/nodeinventories.yaml

# Built on any machine, run on every C library since 2.17. No debug information: it would name the folders of this machine.
ARCHITECTURES := x86_64 aarch64
ZIG := $(CURDIR)/$(BUILD)/release/tools/bin/python -m ziglang cc

.PHONY: release
release: $(STAMP) $(BUILD)/release/tools/.installed ## The library and the wheels for x86-64 and aarch64, reproducible, into dist/
	for architecture in $(ARCHITECTURES); do \
	  echo "==> $$architecture"; \
	  $(MAKE) --silent -C libvgpu CC="$(ZIG) -target $$architecture-linux-gnu.2.17" CFLAGS="-O2 -g0" \
	    BUILD="$(CURDIR)/$(BUILD)/release/$$architecture" all; \
	  VGPU_RELEASE_ARCHITECTURE=$$architecture VGPU_RELEASE_LIBRARY="$(CURDIR)/$(BUILD)/release/$$architecture/libvgpu.so" \
	    $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist .; \
	done
	VGPU_ZIG="$(ZIG)" $(BIN)/pytest tests/release

$(BUILD)/release/tools/.installed: requirements/release.txt
	$(PYTHON) -m venv $(BUILD)/release/tools
	$(BUILD)/release/tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

# Not part of CI: it wants the packages qemu-user and libc6-arm64-cross. The whole library under an emulator (its mappings of the
# stub's cards and the loader's) is not tried: it hung, and took all memory.
.PHONY: aarch64
aarch64: build $(BUILD)/release/tools/.installed ## The tests of the library's core for aarch64, in QEMU
	@command -v qemu-aarch64 >/dev/null || { echo "found no qemu-aarch64, expected the packages qemu-user and libc6-arm64-cross" >&2; exit 1; }
	VGPU_EMULATOR="qemu-aarch64 -L /usr/aarch64-linux-gnu" VGPU_CC="$(ZIG) -target aarch64-linux-gnu.2.31" \
	  $(BIN)/pytest tests/unit/libvgpu/core

.PHONY: lock
lock: ## Resolve the dependencies of pyproject.toml again, into requirements/
	$(PYTHON) -m venv $(BUILD)/lock
	$(BUILD)/lock/bin/pip install --quiet --disable-pip-version-check uv
	for set in "runtime pyproject.toml" "dev pyproject.toml --group dev" "cluster --group pyproject.toml:cluster" \
	  "release --group pyproject.toml:release"; do \
	  read -r name sources <<<"$$set"; \
	  $(BUILD)/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url $$sources -o requirements/$$name.txt; \
	done

.PHONY: clean
clean: ## Remove what was built; the local cluster's cache stays
	rm -rf $(BUILD) dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
