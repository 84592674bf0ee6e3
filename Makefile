# make run and make test are all a fresh machine needs: each makes .venv first (see .ci/setup).
RECIPE ?= nano
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test setup lint bench clean
.DEFAULT_GOAL := run

run: $(VENV)/.run ## bring a recipe's run up to date: make run RECIPE=tiny ARGS='--until teacher'
	@$(BIN)/openafm run $(RECIPE) $(ARGS)

test: lint ## style, types, import layers, then the tests: make test ARGS=tests/recipe
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev ## style, types and import layers only
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

setup: $(VENV)/.dev ## .venv with everything that run and test need

bench: $(VENV)/.bench ## one benchmark, or all: make bench NAME=palettize ARGS=--json
	@for name in $(or $(NAME),$(filter-out harness,$(basename $(notdir $(wildcard benchmarks/*.py))))); do \
		$(BIN)/openafm bench $$name $(ARGS) || exit 1; done

clean: ## remove .venv, builds and caches; runs/ and downloads stay
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.%: pyproject.toml constraints.txt .ci/setup
	@bash .ci/setup $*
