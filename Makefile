# Makefile: the few commands of the project. `make run` plays, `make test` proves.
#
# Rules of this room
#   1. A clean clone needs python3 >= 3.11 with venv and headers, gcc and make; the rest is installed
#      into $(VENV). What is missing is named in one line.
#   2. Every build has its own place: release in the tree, checked and asan under build/. Their tests
#      say which core they ran on, and fail when it is not the one meant.
#   3. A test that fails beside others is tried again alone, and named (tests/tools/again.py).
#   4. Nothing here is needed to use Relay as a library: `pip install` does that without make.

PYTHON ?= python3
VENV   ?= .venv
STAMPS := build/stamps/$(notdir $(VENV))

PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check
PYTEST := $(VENV)/bin/pytest
ROOMS  := setup.py $(wildcard relay/*.pyx relay/_core/*.pxd relay/_core/*.h relay/_swarm/*.pxd relay/_swarm/*.h)
LIBS    = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libstdc++.so.6)

.PHONY: setup run test soak bench lint checked asan docs clean

define REQUIREMENTS
import importlib.util, os, shutil, sys, sysconfig
def need(met, what, package):
    if not met:
        sys.exit("relay needs %s; on Debian: apt-get install %s" % (what, package))
need(sys.version_info >= (3, 11), "Python 3.11 or newer, this is " + sys.version.split()[0], "python3")
need(importlib.util.find_spec("ensurepip"), "Python's venv module", "python3-venv")
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
need(os.path.exists(header), "Python.h, looked for " + header, "python3-dev")
need(shutil.which(os.environ.get("CC", "gcc").split()[0]), "a C compiler (gcc)", "gcc libc6-dev")
endef
export REQUIREMENTS

setup: $(STAMPS)/core

$(PY):
	@command -v $(PYTHON) >/dev/null || \
	  { echo "relay needs Python 3.11 or newer; on Debian: apt-get install python3" >&2; exit 1; }
	@$(PYTHON) -c "$$REQUIREMENTS"
	$(PYTHON) -m venv $(VENV)

# The packages, and the project itself as an editable install (which builds the release core once).
$(STAMPS)/packages: pyproject.toml | $(PY)
	@$(PY) -c "$$REQUIREMENTS"
	$(PIP) 'setuptools>=77' 'Cython>=3.1'
	RELAY_BUILD=release $(PIP) --no-build-isolation -e '.[dev,media]'
	@mkdir -p $(@D) && touch $@

# The core again whenever a room of it changes: seconds, and without asking for packages.
$(STAMPS)/core: $(STAMPS)/packages $(ROOMS)
	RELAY_BUILD=release $(PY) setup.py --quiet build_ext --inplace
	@touch $@

# A .venv that was removed takes its stamps with it.
ifeq ($(wildcard $(PY)),)
$(STAMPS)/packages: $(PY)
endif

run: setup
	$(VENV)/bin/relay demo

# Two halves at once: tests on the network and with clients wait for clocks and sockets most of the
# time, so several of them wait together; the others compute meanwhile and give way to them.
WAITING := -n 6 --dist worksteal

# $(call beside_others,CACHE,WORDS): pytest with these words, several at once; 1 is "tests failed".
define beside_others
	rm -rf $(1); $(PYTEST) -o cache_dir=$(1) $(WAITING) $(2) || \
	  { [ $$? -eq 1 ] && $(PY) tests/tools/again.py $(1) $(2); }
endef

test: setup
ifeq ($(strip $(ARGS)),)
	$(MAKE) --no-print-directory -j2 --output-sync=line test-network test-rest
else
	RELAY_EXPECT_BUILD=release $(PYTEST) $(ARGS)
endif
	$(MAKE) --no-print-directory checked
	$(PYTEST) benchmarks --benchmark-disable

.PHONY: test-network test-rest
test-network: export RELAY_EXPECT_BUILD = release
test-network:
	$(call beside_others,build/cache/network,tests/network tests/clients)

test-rest:
	RELAY_EXPECT_BUILD=release nice -n 10 $(PYTEST) -n 2 --dist worksteal --ignore=tests/network --ignore=tests/clients

soak: setup
	$(PYTEST) -m soak --timeout 3600 $(ARGS)

bench: setup
	$(PYTEST) benchmarks $(ARGS)
	$(PY) benchmarks/edge.py --short || [ $$? -eq 1 ]  # a missed goal is shown; it breaks no build
	$(PY) benchmarks/backbone.py --short || [ $$? -eq 1 ]

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy examples
	$(VENV)/bin/pyright

# $(call build_core,KIND): a copy of the package with its own core in build/KIND/lib.
define build_core
	@mkdir -p build/$(1)/lib && find build/$(1)/lib -name '*.py' -delete
	RELAY_BUILD=$(1) $(PY) setup.py --quiet build --build-base build/$(1) \
	  --build-lib build/$(1)/lib --build-temp build/$(1)/tmp
endef

checked: export RELAY_EXPECT_BUILD = checked
checked: setup
	$(call build_core,checked)
	export PYTHONPATH=$(CURDIR)/build/checked/lib; \
	  $(call beside_others,build/cache/checked,-m "core and not soak" $(ARGS))

# libstdc++ is preloaded too: libzmq throws, and the sanitizer must find the real throw.
asan: setup
	@if [ ! -e "$(firstword $(LIBS))" ]; then \
	  echo "skipped: libasan is missing; on Debian: apt-get install libgcc-12-dev"; exit 0; \
	else $(MAKE) --no-print-directory asan-tests; fi

.PHONY: asan-tests
asan-tests:
	$(call build_core,asan)
	LD_PRELOAD="$(LIBS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  PYTHONMALLOC=malloc PYTHONPATH=$(CURDIR)/build/asan/lib RELAY_EXPECT_BUILD=asan \
	  $(PYTEST) -m "core and not soak" $(ARGS)

$(STAMPS)/docs: $(STAMPS)/packages
	$(PIP) --no-build-isolation -e '.[docs]'
	@touch $@

docs: setup $(STAMPS)/docs
	$(PY) -m sphinx -E -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Build products only; .venv stays.
clean:
	rm -rf build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find relay tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f relay/*.so relay/*.c
