# Two commands for a newcomer: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= tiny
WORKERS ?= 2

.PHONY: demo test check format api world hostile

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,study]"
	touch $@

demo: $(BIN)/.ready  ## one photograph, plain and Bayesian fine-tuning side by side, a page at the end
	$(BIN)/fewbayes demo --model $(MODEL) --output_dir runs/$(patsubst demo-tiny,demo,demo-$(MODEL))

test: $(BIN)/.ready  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

check: $(BIN)/.ready  ## the linter and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(BIN)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

api: $(BIN)/.ready  ## a page for every module, from the docstrings, in build/api
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python -m pdoc -o build/api fewbayes

world: $(BIN)/.ready  ## pretrain the embedded world from nothing (hours on two cores, minutes on a GPU)
	$(BIN)/python recipes/pretrain.py --work build/world

hostile: $(BIN)/.ready  ## every reader against files damaged by rule; the counts go to benchmarks/results
	OMP_NUM_THREADS=1 $(BIN)/python tests/hostile.py --output benchmarks/results/hostile.json
