# Everything starts here: `make demo`, `make test`, `make bench`, `make docs`.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
SOURCES := sdk indexes rerankers connectors
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: install demo test format lint types layers tests notebooks bench docs clean

# One process at a time: several terminals may share this checkout.
install:
	@flock .install.lock $(MAKE) --no-print-directory .venv/.links

.venv/.ready: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt 'setuptools>=77' wheel numpy pybind11
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

# The editable tree is made of links, one a file: it is laid again when the list of files changes.
.venv/.links: .venv/.ready .venv/.files
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.PHONY: .venv/.files
.venv/.files: .venv/.ready
	@find $(SOURCES) -name '*.py' | sort > $@.new; \
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

demo: install
	$(RUN) -m reperio.cli demo

test: format lint types layers tests notebooks

format: install
	$(BIN)/ruff format --check .

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy
	rm -rf build/types build/lib
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target build/types .
	$(BIN)/pyright --warnings

layers: install
	$(BIN)/lint-imports

tests: install
	$(BIN)/pytest -n 2 --dist loadgroup

notebooks: install
	$(RUN) notebooks/run.py

bench: install
	$(RUN) -m benchmarks

docs: install
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build site .demo .cache *.egg-info
