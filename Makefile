PYTHON := python3
VENV   := .venv
READY  := $(VENV)/ready
BIN    := $(VENV)/bin

# More arguments for the training job: make train ARGS="--quick"
ARGS :=

.PHONY: train test lint format clean
.DELETE_ON_ERROR:

train: $(READY)
	$(BIN)/python -m benchmarks.train $(ARGS)

test: lint
	$(BIN)/pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# torch goes first and alone, so that nothing else decides which build of it is fetched.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
