# rung: every target that a person types. `make` lists them.

PYTHON ?= python3
BIN := .venv/bin
# Wheels only, quietly, at the versions that were tested.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test check measured tutorials bench-simulator bench-device bench-gateway bench-queue bench-sweep bench-plan bench-split chaos-queue clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready  ## make .venv with what running needs
	@echo "Ready: $(BIN)/rung --help"

# A quarter of the stage's pace, so that the load generator's lag stays small beside it on a laptop that does other things
# as well. Void runs are told, and are no reason to stop.
demo: .venv/ready  ## load a real service, predict it, compare the two: about a minute, after the first time
	@$(BIN)/rung compare micro-batched --short --loads 0.2,0.5,0.8,0.95,1.2 --repeat 2 --out runs/demo \
		--set device.slowdown=4 --set traffic.rate.rate_rps=110 --set batching.batch_wait_timeout_s=0.02 --set slo.latency_s=0.4 || [ $$? -eq 3 ]

# The tests start some three hundred processes of ours, each of which would compile the same modules anew, were nothing
# kept: the environment may say so, and what is changed is compiled once before.
unexport PYTHONDONTWRITEBYTECODE

# A host that is shared can take the processor away for seconds from tests that run the real stack, three at a time. What
# failed so is told, and runs once more with nothing beside it; what is broken fails there too.
TESTS := $(BIN)/python -m compileall -q stages simulator reference_apps loadtests rung.py; \
	$(BIN)/python -m pytest -q -n 3 --dist loadfile || { [ $$? -eq 1 ] && echo "Once more, one at a time, what failed:" && \
	$(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none; }

test: .venv/ready-dev  ## run the tests, as CI does: within 10 minutes on 2 cores
	@$(TESTS)

check: .venv/ready-dev  ## style, types, tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(TESTS)

measured: .venv/ready-dev  ## make the results under stages/*/measured anew: some five hours on a quiet machine
	@$(BIN)/python -m loadtests.measured

tutorials: .venv/ready-dev  ## write outputs, numbers and figures of the tutorials anew: about a quarter of an hour on a quiet machine
	@$(BIN)/python -m tutorials.making.refresh

bench-simulator: .venv/ready-dev  ## simulated requests per second, as a ratio to plain SimPy
	@$(BIN)/python -m tests.benchmarks.bench_simulator

bench-sweep: .venv/ready-dev  ## simulated requests per second of a sweep on all cores, as a ratio to plain SimPy
	@$(BIN)/python -m tests.benchmarks.bench_sweep

bench-plan: .venv/ready  ## the plan's answer against brute force over the whole grid, on five random workloads
	@$(BIN)/python -m loadtests.bench_plan

bench-device: .venv/ready-dev  ## how exactly an emulated device keeps its pace
	@$(BIN)/python -m tests.benchmarks.bench_device

bench-gateway: .venv/ready-dev  ## what the gateway costs, as ratios to the replica directly and to haproxy
	@$(BIN)/python -m tests.benchmarks.bench_gateway

bench-split: .venv/ready  ## who gets which of two versions, counted over 180,000 requests through the real gateway
	@$(BIN)/python -m loadtests.bench_split

bench-queue: .venv/ready-dev  ## what the queue carries, as ratios to Celery on Redis and to huey on SQLite
	@$(INSTALL) --editable '.[bench]'
	@$(BIN)/python -m loadtests.bench_queue

chaos-queue: .venv/ready-dev  ## is nothing lost? 100,000 jobs, 60 kills, a full disk, a clock that is set; on both brokers
	@$(BIN)/python -m loadtests.chaos --broker sqlite
	@$(BIN)/python -m loadtests.chaos --broker redis

clean:  ## remove .venv, runs and caches
	rm -rf .venv runs build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rung needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "$(PYTHON) cannot make a virtual environment. On Debian: apt-get install python3-venv"; exit 1; }

.venv/ready: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing rung into .venv: once, about a minute."
	@$(INSTALL) --editable .
	@touch $@

.venv/ready-dev: .venv/ready
	@echo "Installing what the tests need: once."
	@$(INSTALL) --editable '.[dev]'
	@touch $@
