# make demo       train 16-bit addition, find and test its quiet features, write runs/demo/report.html
# make test       run the quick tests: one of every promise, under three minutes on two cores
# make test-slow  run the others
# make test-all   run both, and every family of models of docs/any_model.md
# make test-tl4   run a slice of the quick tests under transformer-lens 4, in an environment of its own (.venv-tl4)
# make bench      run every benchmark, write benchmarks/results/
# make check      ruff, pyright, quick tests
# make docs       build the documentation into site/, links checked, without a network
# make notebooks  run the tutorials as notebooks, docs/notebooks/*.ipynb (needs a Chromium for the figures)
# make lock       remake requirements/constraints.txt
# make dist       build wheel and sdist into dist/ (docs/releasing.md)

PYTHON ?= python3
BIN := .venv/bin
PINS := pyproject.toml requirements/constraints.txt scripts/bootstrap.py
SOURCES := $(shell find qfl_interp tasks analyses -name '*.py' -o -name 'page.*')
DEMO := runs/demo
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
# What depends on TransformerLens: models, hooks, bridges, and a lens of each kind on a run and on a suite.
TL4 := 4.3.0
TL4_TESTS := $(addprefix tests/models/test_,hooked_transformer.py bridge.py hooks.py model.py) \
    tests/runs/test_suite.py tests/analyses/test_suite_lenses.py \
    tests/training/test_given_models.py

# Without byte code, importing transformer-lens takes 15 s each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-all test-tl4 bench check docs notebooks lock dist clean
.DELETE_ON_ERROR:

demo: $(DEMO)/report.html
	@echo "The report is $(DEMO)/report.html"

$(DEMO)/report.html: .venv/.stamp-test scripts/demo.py $(SOURCES)
	$(BIN)/python scripts/demo.py $(DEMO)

test: .venv/.stamp-test
	$(PYTEST) -m "not slow"

test-slow: .venv/.stamp-test
	$(PYTEST) -m slow

test-all: .venv/.stamp-test
	QFL_FAMILIES=all $(PYTEST)

test-tl4: .venv-tl4/.stamp-test
	.venv-tl4/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not tl3" $(TL4_TESTS)

bench: .venv/.stamp-test
	$(BIN)/python -m benchmarks

check: .venv/.stamp-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pyright
	$(PYTEST) -m "not slow"

docs: .venv/.stamp-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

notebooks: .venv/.stamp-test
	$(BIN)/python scripts/notebooks.py

.venv/.stamp-test: $(PINS)
	$(PYTHON) scripts/bootstrap.py test
	@touch $@

.venv/.stamp-dev: $(PINS) .venv/.stamp-test
	$(PYTHON) scripts/bootstrap.py test dev
	@touch $@

.venv-tl4/.stamp-test: $(PINS) Makefile
	$(PYTHON) scripts/bootstrap.py --transformer-lens $(TL4) test
	@touch $@

lock: .venv/.stamp-dev
	$(BIN)/python -m uv pip compile pyproject.toml requirements/pinned.in --extra test --extra dev --extra loggers --extra s3 \
	    --python-version 3.11 --no-annotate --no-header --quiet \
	    $$($(BIN)/python -m pip config get global.find-links 2>/dev/null | sed 's/^/--find-links /') \
	    | sed 's/+cpu$$//' > requirements/constraints.txt

dist: .venv/.stamp-test
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist

clean:
	rm -rf dist .venv .venv-tl4 .pytest_cache .ruff_cache
