# All the set-up there is: Python and make. Everything lands in .venv, models and build.
PYTHON ?= python3
MODEL ?= sample

BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
FOLDER := models/$(notdir $(MODEL))
# The lower bounds of pyproject.toml. Their wheels end with Python 3.12; newer ones begin with newer versions.
MINIMUM := $(shell $(PYTHON) -c 'import sys; print("numpy==1.26.0 onnxruntime==1.20.0 tokenizers==0.22.2" if sys.version_info < (3, 13) else "pip")')
MINIMUM_TESTS := $(addprefix tests/runtime/test_,encoder.py tokenizer.py processes.py)
# What takes long and does not depend on how the runtime was installed.
THE_SAME_ON_A_WHEEL := aws_lambda.py cpu.py faults.py fuzz.py openai_api.py other_processors.py
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile
SOURCES := $(shell find runtime export -name '*.py')

.PHONY: quickstart test lint wheel-check bench clean

# Export a checkpoint and score an example with it. MODEL is `sample`, a hub id or a folder.
quickstart: $(FOLDER)/e5onnx.json
	$(BIN)/e5onnx similarity $(FOLDER)

$(FOLDER)/e5onnx.json: $(SOURCES) | .venv/export
	$(BIN)/e5onnx export $(MODEL) $(FOLDER) --force

# Everything that must hold.
test: lint
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)
	$(MAKE) --no-print-directory wheel-check

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The wheel, with its three dependencies and without the export's, passes the runtime's tests on folders exported before.
wheel-check: .venv/dev
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(PYTHON) -m venv --clear build/wheel/venv
	build/wheel/venv/bin/python $(PIP_INSTALL) build/wheel/*.whl pytest pytest-xdist hypothesis
	build/wheel/venv/bin/python -m pytest $(SIDE_BY_SIDE) tests/runtime $(addprefix --ignore=tests/runtime/test_,$(THE_SAME_ON_A_WHEEL))
	build/wheel/venv/bin/python $(PIP_INSTALL) $(MINIMUM) && build/wheel/venv/bin/python -m pytest $(SIDE_BY_SIDE) $(MINIMUM_TESTS)

# Every benchmark, then the pictures: under 20 minutes on 2 cores once the environments of the other programs exist.
bench: .venv/dev
	$(BIN)/python $(PIP_INSTALL) 'matplotlib>=3.8'
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.ceiling
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.footprint
	$(BIN)/python -m benchmarks.aws_lambda
	$(BIN)/python -m benchmarks.plots

.venv/export: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --editable '.[export,sample]'
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --editable '.[export,sample,dev]'
	touch .venv/export $@

clean:
	rm -rf .venv build models
