# `make demo` and `make test` do everything, set-up included. PYTHON and TORCH_INDEX may be given.
PYTHON ?= python3
DEVICE ?= cpu
SEED ?= 0
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: demo test test-slow test-slurm bench-data bench-gpu parity lint format venv constraints clean

demo: venv
	$(BIN)/vitscale demo --device $(DEVICE) --seed $(SEED)

test: venv
	$(BIN)/python -m pytest -m "not slow and not slurm"

test-slow: venv
	$(BIN)/python -m pytest -m slow

# Starts a real Slurm of three hosts on this machine: needs root on Debian, and installs Slurm there.
test-slurm: venv
	command -v slurmctld slurmd munged > /dev/null || apt-get install -y -qq slurm-wlm munge iproute2 > /dev/null || { apt-get update -qq && apt-get install -y -qq slurm-wlm munge iproute2 > /dev/null; }
	$(BIN)/python -m pytest -m slurm

bench-data: venv .venv-peers/stamp
	$(BIN)/python tests/benchmarks/bench_data.py --python .venv-peers/bin/python $(ARGS)

# On a machine with a GPU; timm and transformers are measured beside it where they are in .venv. ARGS=--tiny runs on a CPU.
bench-gpu: venv
	$(BIN)/python tests/benchmarks/gpu.py $(ARGS)

parity: .venv-parity/stamp
	PYTHONPATH=. .venv-parity/bin/python tests/benchmarks/peers/parity.py

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: .venv/stamp

# An editable install of exactly the versions in constraints.txt, made again when either file changes.
.venv/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vitscale needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); give another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv) or give another: make PYTHON=..." >&2; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[test]'
	touch $@

# What the data pipeline is measured beside, in an environment of its own because its dependencies clash with ours.
.venv-peers/stamp: tests/benchmarks/peers.txt
	rm -rf .venv-peers
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Whose models ours are compared with, with a torch of theirs.
.venv-parity/stamp: tests/benchmarks/peers/requirements.txt
	rm -rf .venv-parity
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $<
	touch $@

# After a change of dependencies: write the versions that are installed now.
constraints:
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf .venv .venv-peers .venv-parity dist build
