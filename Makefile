# Every target sets up what it needs: a virtual environment in .venv with the package and its tools.
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
DATASET ?= mnist
SEED ?= 0
SEEDS ?= 1
IMPORTANCE ?= 1000
KNN ?= 5
FAULTS ?= 200
FUZZ ?= 100000
BIN := .venv/bin
VAE := $(BIN)/vae
# What 'vae train' calls its folder after: of a path, its last part.
BASENAME := import os, sys; print(os.path.basename(os.path.abspath(sys.argv[1])).removesuffix(".npz"))
NAME = $(shell $(PYTHON) -c '$(BASENAME)' '$(DATASET)')

demo: Z_DIM ?= 4
demo: EPOCHS ?= 5
demo: OUT ?= outputs/demo
train results-z%: EPOCHS ?= 50
train: Z_DIM ?= 2
train: OUT ?= outputs/$(NAME)-z$(Z_DIM)

.PHONY: help
help: ## Show this list
	@echo "make TARGET [Z_DIM=2] [EPOCHS=50] [DATASET=mnist] [OUT=outputs/...] [SEED=0] [PRECISION=fp32|bf16]"
	@awk -F ':.*## ' '/^[a-z0-9 %-]+:.*## / {printf "  %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: .venv/installed ## Make .venv with the package and its development tools

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	@echo "Installing into .venv: PyTorch takes some minutes, and on Linux with its CUDA libraries about 6 GB" >&2
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

TRAIN = $(VAE) train --resume -z $(Z_DIM) -e $(EPOCHS) -d '$(DATASET)' --seed $(SEED) \
    $(if $(PRECISION),--precision $(PRECISION)) -o '$(OUT)'

# All six commands on one run; figures and tables lie beside the weights.
define all_six
$(TRAIN)
set -o pipefail; $(VAE) test '$(OUT)' | tee '$(OUT)/test.tsv'
$(VAE) encode '$(OUT)' -o '$(OUT)/codes.csv'
$(VAE) sample '$(OUT)' --from train -o '$(OUT)/samples.png'
$(VAE) scatter '$(OUT)'
$(VAE) curves '$(OUT)'
endef

.PHONY: demo
demo: install ## Train z_dim 4 for 5 epochs, then use all six commands, into outputs/demo
	$(all_six)

.PHONY: train
train: install ## Train, or go on training, into outputs/DATASET-zZ_DIM
	$(TRAIN)

# Seeds 0 to SEEDS - 1: runs outputs/mnist-z2, outputs/mnist-z2-seed1 and so on. What was trained or measured is not again.
# Here OUT is what all names begin with. KNN= leaves out the neighbours, which need labels; IMPORTANCE= the likelihood,
# whose 1,000 draws an image took 40 minutes of one core.
MEASURES = measures-$(IMPORTANCE)-$(KNN).json
RESULTS = $(or $(OUT),outputs/$(NAME))
further_seeds = $(if $(shell [ '$(SEEDS)' -ge 1 ] 2> /dev/null && echo yes),,$(error SEEDS=$(SEEDS) is no number from 1 on))\
    $(shell i=1; while [ $$i -lt $(SEEDS) ]; do echo $$i; i=$$((i + 1)); done)
runs_of = '$(RESULTS)-z$(1)' $(further_seeds:%='$(RESULTS)-z$(1)-seed%')

.PHONY: results results-z2 results-z4
results: results-z2 results-z4 ## The tutorial's results: z_dim 2 and 4, SEEDS=1 each, with figures and a table
	$(VAE) curves $(call runs_of,2) $(call runs_of,4) -o '$(RESULTS)-curves.png'
	$(BIN)/python tests/benchmarks/results.py $(MEASURES) $(call runs_of,2) $(call runs_of,4) > '$(RESULTS)-results.md'
	cat '$(RESULTS)-results.md'

results-z2 results-z4: results-z%: install ## One of them; IMPORTANCE=1000 draws an image for the likelihood
	$(MAKE) --no-print-directory demo Z_DIM=$* EPOCHS=$(EPOCHS) OUT='$(RESULTS)-z$*' SEED=0
	for seed in $(further_seeds); do \
	    $(MAKE) --no-print-directory train Z_DIM=$* EPOCHS=$(EPOCHS) OUT='$(RESULTS)-z$*-seed'$$seed SEED=$$seed || exit 1; \
	done
	measures='$(RESULTS)-z$*/$(MEASURES)'; \
	if ! test "$$measures" -nt '$(RESULTS)-z$*/state.safetensors'; then \
	    $(VAE) test '$(RESULTS)-z$*' $(if $(KNN),--knn $(KNN)) $(if $(IMPORTANCE),--importance-samples $(IMPORTANCE)) \
	        --json > "$$measures.part" && \
	    mv "$$measures.part" "$$measures" || { rm -f "$$measures.part"; exit 1; }; \
	fi

.PHONY: test
test: install ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: coverage
coverage: install ## Run them and say which lines they reach, which takes longer
	$(BIN)/python -m pytest --cov -n 2 --dist worksteal

.PHONY: soak
soak: install ## Attack it for longer: kill FAULTS=200 trainings, read FUZZ=100000 damaged files
	SOAK_FAULTS=$(FAULTS) SOAK_FUZZ=$(FUZZ) SOAK_SEED=$(SEED) $(BIN)/python -m pytest -m soak -rP

.PHONY: bench
bench: .venv/bench ## Measure vae beside the tutorial's loop and pythae; QUICK=1 takes 2 minutes at most
	$(BIN)/python tests/benchmarks/run.py $(if $(QUICK),--quick) $(if $(BF16),--bf16)

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

.PHONY: lint
lint: install ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: clean
clean: ## Remove .venv and caches; outputs stay
	rm -rf .venv dist .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
