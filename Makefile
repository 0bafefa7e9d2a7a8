# One word for each habit; `make help` lists them. Everything sets itself up: only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
NEWEST := .venv-newest
AUDIT := .venv-audit
BENCH := .venv-bench
# Tests that start no Ray share the cores; the others have the machine for themselves.
WITHOUT_RAY := -n auto --maxprocesses 4 -m 'not (cluster or own_cluster or alone or faults or machines)'
WITH_RAY := -m '(cluster or own_cluster or alone) and not (faults or machines)'

.PHONY: help setup train test coverage test-lowest test-newest faults cluster-test fuzz audit-deps check format bench bench-smoke clean

help: ## list these words
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

setup: $(READY) ## make the virtual environment with the pinned working set

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

train: $(READY) ## run the main job: draw chest phantoms, shard, train, evaluate
	$(BIN)/python jobs/train.py

test: $(READY) ## run all tests
	$(BIN)/python -m pytest $(WITHOUT_RAY)
	$(BIN)/python -m pytest $(WITH_RAY)

coverage: $(READY) ## run all tests, which takes a quarter longer, and print their coverage
	$(BIN)/python -m pytest $(WITHOUT_RAY) --cov=lungseg_ray --cov-report=
	$(BIN)/python -m pytest $(WITH_RAY) --cov=lungseg_ray --cov-append --cov-report=term:skip-covered

# The page of docs/input.md contains byte counts of files that the imaging libraries write, so it fits one set of them.
test-lowest: $(LOWEST)/.ready ## run the tests without Ray, on the lowest versions of the dependencies that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest $(WITHOUT_RAY) \
		--ignore tests/models/test_menu.py \
		--deselect tests/corpus/test_input_page.py::test_the_page_shows_what_comes_out

# PyTorch is the pinned one: wheels as old as its bound bring gigabytes of GPU libraries.
$(LOWEST)/.ready: pyproject.toml constraints.txt tests/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[dev]'
	@touch $(LOWEST)/.ready

test-newest: ## run all tests on the newest versions of Ray and of the other dependencies, PyTorch aside
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		"$$(grep '^torch==' constraints.txt)" "$$(grep '^torchvision==' constraints.txt)" -e '.[dev]'
	$(NEWEST)/bin/python -c "import ray; print('Ray', ray.__version__)"
	$(NEWEST)/bin/python -m pytest $(WITHOUT_RAY) \
		--deselect tests/corpus/test_input_page.py::test_the_page_shows_what_comes_out
	$(NEWEST)/bin/python -m pytest $(WITH_RAY)

faults: $(READY) ## kill, stop and starve real processes; an hour and a quarter, prints the table of docs/reliability.md
	$(BIN)/python -m pytest -m faults

cluster-test: $(READY) ## run jobs on clusters whose nodes come and go; half an hour
	$(BIN)/python -m pytest -m machines

fuzz: $(READY) ## try damaged files on decoders and tables for a quarter of an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --minutes 15

audit-deps: $(READY) ## list the licences of all packages, and known vulnerabilities where PyPI can be asked
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9' 'pip-licenses>=5'
	$(AUDIT)/bin/pip-licenses --python $(BIN)/python --from=mixed --order=license --partial-match \
		--fail-on 'AGPL;Affero'
	$(AUDIT)/bin/pip-audit --progress-spinner off \
		--path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

check: $(READY) ## linter, formatting, types, import rules, docstrings, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

format: $(READY) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) $(BENCH)/.ready ## measure everything in docs/performance.md, in an hour; goes on where it was interrupted
	$(BIN)/python -m benchmarks.everything --peers $(BENCH)/bin/python
	$(BIN)/python -m benchmarks.page
	$(BIN)/python -m benchmarks.scaling

# The peers need other versions of some packages than those of the pinned set.
$(BENCH)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	@touch $(BENCH)/.ready

bench-smoke: $(READY) ## measure speed against plain PyTorch, in two minutes
	$(BIN)/python -m benchmarks.smoke

clean: ## delete what these words made, but no run
	rm -rf $(VENV) $(LOWEST) $(NEWEST) $(AUDIT) $(BENCH) data/phantom .mypy_cache .ruff_cache .pytest_cache
