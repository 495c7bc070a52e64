# Two commands do all the set-up on a fresh machine with Python 3.11 and git: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SECONDS ?= 3600
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo demo-ssh test test-slow test-browser browser test-gguf check format screenshots pngs bench soak bench-preview bench-links bench-faults bench-planner bench-learning bench-simulate bench-slow-link bench-silicon bench-tui debian clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo: $(VENV)/.agent ## make a cluster and a model, plan, apply, stream an answer, clean up
	$(BIN)/odctl demo

demo-ssh: $(VENV)/.agent debian ## the same over real sshds on loopback addresses
	$(BIN)/odctl demo --ssh

test: $(VENV)/.dev debian ## every test but the slow ones, labs in one process and the rest in another
	$(PYTEST) -m "not slow" -n 2 --dist loadgroup

test-slow: $(VENV)/.dev debian ## the minutes-long ones
	$(PYTEST) -m slow -s

test-browser: browser ## the UI in a headless Chromium
	$(PYTEST) -m browser tests/odctl/web

browser: $(VENV)/.browser ## Debian's Chromium (as root, 113 MB) and playwright, for test-browser and pngs

test-gguf: $(VENV)/.dev ## GGUF models of every quantisation and family against llama.cpp itself (after `make bench`)
	OMP_NUM_THREADS=1 $(PYTEST) -m slow tests/agent/engine/test_gguf_peer.py

check: $(VENV)/.dev ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## let ruff write what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: $(VENV)/.dev ## SVGs of the real app on a real lab cluster, into screenshots/
	$(BIN)/python -m tests.screenshots

pngs: $(VENV)/.dev ## PNGs of screenshots/ (PICTURES=files, all by default), by chromium or rsvg-convert
	$(BIN)/python -m tests.pngs $(PICTURES)

bench: $(VENV)/.dev ## ratios to llama.cpp and transformers (ROWS=names, once: builds the peers); writes docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.engine --rows "$(ROWS)"

soak: $(VENV)/.dev ## an hour of mixed load on a lab (SECONDS=3600): leaks, and answers without an end
	$(BIN)/python -m tests.benchmarks.soak --seconds $(SECONDS)

bench-preview: $(VENV)/.dev ## predicted against measured, 24 plans on slowed hosts (root; CLUSTERS=names); writes docs/preview-accuracy.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.preview --clusters "$(CLUSTERS)"

bench-simulate: $(VENV)/.dev ## one trace on a lab and in the simulator, side by side; writes docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.simulate

bench-links: $(VENV)/.dev ## latency and all-reduce time per carrier between ranks; writes docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.links

bench-faults: $(VENV)/.dev ## time every kind of fault under load; writes docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.faults

bench-planner: $(VENV)/.dev ## time planning up to 50,000 hosts, and plan a public cluster; writes docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.planner

bench-learning: $(VENV)/.dev ## regret of learning to choose, replayed on public measured runs; writes docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.learning

bench-slow-link: $(VENV)/.dev ## a link becomes slow, and the plan leaves it (root: a namespace); writes docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.slow_link

bench-silicon: $(VENV)/.dev ## the calibrated cost model against public measured deployments; writes docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.silicon_fit

bench-tui: $(VENV)/.dev ## CPU, bytes and key-to-paint time of the fleet's screens up to 10,000 hosts; writes docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.tui

# sshd for the SSH tests, gcc for the fake NVML library. Without root or apt-get the tests that need them
# are skipped and say so.
debian:
	@.ci/debian-packages

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.agent: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[agent]'
	@touch $@

$(VENV)/.dev: $(VENV)/.agent pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[agent,dev]'
	@touch $@

$(VENV)/.browser: $(VENV)/.dev
	@.ci/debian-packages browser
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	@touch $@

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
