# make run and make test are all a fresh machine needs: each makes .venv first (see .ci/setup).
RECIPE ?= nano
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test setup lint docs bench coverage mutants lock sbom clean help
.DEFAULT_GOAL := run

run: $(VENV)/.run ## bring a recipe's run up to date; it says first what it takes (nano: 14 to 47 minutes, 1 GB)
	@$(BIN)/openafm run $(RECIPE) $(ARGS)

test: lint ## style, types, import layers, then the tests on all cores (17 minutes on two old ones, 1 GB for a while): make test ARGS=tests/recipe
	@echo "tests: 16 minutes on two AVX2 cores for all of them, up to 1 GB in the temporary folder meanwhile"
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

lint: $(VENV)/.dev ## style, types, import layers and known vulnerabilities only (half a minute)
	@echo "lint: style, types, import layers and known vulnerabilities, about half a minute"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@bash .ci/audit

docs: $(VENV)/.dev ## the documentation as a site in build/docs/site (10 s, no network): make docs, then open its index.html
	@$(BIN)/python docs/site/build.py

setup: $(VENV)/.dev ## .venv with everything that run and test need (1 to 7 minutes, 2 GB)

bench: $(VENV)/.bench ## one benchmark (minutes), or all (an hour or so): make bench NAME=palettize ARGS=--json
	@failed=; for name in $(or $(NAME),$(filter-out harness texts heldout,$(basename $(notdir $(wildcard benchmarks/*.py))))); do \
		$(BIN)/openafm bench $$name $(ARGS) || failed="$$failed $$name"; done; \
	if [ -n "$$failed" ]; then echo "bench: failed:$$failed"; exit 1; fi

coverage: $(VENV)/.dev ## branch coverage of recipe, data, training, compression and serving by their tests, an hour (needs the extra audit)
	@$(BIN)/python -m pytest $(foreach part,recipe data training compression serving,tests/$(part) --cov=openafm.$(part)) \
		tests/evaluation/suite tests/test_cli.py --cov-branch --cov-report=term $(ARGS)

mutants: $(VENV)/.dev ## mutation testing of losses, optimizers, schedules, dedup, decontamination (hours): ARGS='schedules'
	@$(BIN)/python tests/reliability/mutants.py $(ARGS)

lock: ## requirements.lock: every package of a run with its hashes, as pip chooses them on this system (minutes, 1 GB)
	@bash .ci/lock

sbom: $(VENV)/.dev ## sbom.json: what .venv is made of, in CycloneDX's form (needs cyclonedx-bom)
	@$(BIN)/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --of JSON --output-reproducible -o sbom.json

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

clean: ## remove .venv, builds and caches; runs/ and downloads stay
	rm -rf $(VENV) build dist src/*.egg-info src/openafm/*/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.%: pyproject.toml constraints.txt .ci/setup setup.py $(wildcard native/* native/html/*)
	@bash .ci/setup $*
