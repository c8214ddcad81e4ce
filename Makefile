# Everything a checkout needs, on a fresh Debian 12 as well: `make demo` and `make test` set up what is missing.
# Every step is done once; what is there already is left alone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# bcc is the distribution's and only its own Python has it: a python3 of pyenv or conda in PATH will not do.
PYTHON := /usr/bin/python3
VENV := .venv
INSTALLED := $(VENV)/.installed

# 19 is what is tried most. llvmlite reads the bitcode of any LLVM up to its own, 22.
CLANG_VERSIONS := 19 22 21 20 18 17 16
CLANG = $(shell for v in $(CLANG_VERSIONS); do command -v clang-$$v && break; done)
MACHINE := $(shell uname -m)
CFLAGS := -O2 -g0 -target bpf -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I/usr/include/$(MACHINE)-linux-gnu
ifeq ($(MACHINE),x86_64)
CFLAGS += -DFFPF_STORES_IN_ORDER
endif
BITCODE := $(patsubst bpf_src/%.c,ffpf_bpf/compiler/bitcode/%.bc,$(wildcard bpf_src/*.c))

# What runs: bcc, libpcap. What builds: clang, libbpf-dev, linux-libc-dev. What demo and tests call: the rest
# (sysctl is of procps, capinfos of tshark, ethtool is for benchmarks, of xdp-tools are xdp-filter and xdp-loader). clang is added by the recipe, as one of several versions.
PACKAGES := python3-bpfcc python3-venv libpcap0.8 libbpf-dev linux-libc-dev bpftool iproute2 ethtool procps tcpdump tshark \
	xdp-tools

# What the virtual machines need besides. virtiofsd came with QEMU up to Debian 12, and is a package of its own since.
VM_PACKAGES = qemu-system-x86 busybox-static kmod debian-archive-keyring \
	$(shell apt-cache show virtiofsd &> /dev/null && echo virtiofsd)

ROOT := $(filter 0,$(shell id -u))
SUDO := $(if $(ROOT),,sudo)
# Through sudo nothing that belongs to root is left in the user's checkout, where it would be in the way.
AS_ROOT := $(if $(ROOT),,sudo env PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/var/cache/ffpf-hypothesis \
	PYTEST_ADDOPTS="-p no:cacheprovider")
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600
SAY := @printf '  %-8s %s\n'

.PHONY: help
help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.* ## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: packages $(INSTALLED) ## install missing Debian packages and make .venv

.PHONY: build
build: setup $(BITCODE) ## compile bpf_src/ to bitcode

.PHONY: demo
demo: build ## show a flow on live traffic, in ten seconds (root)
	$(SAY) demo examples/demo.py
	@$(AS_ROOT) $(VENV)/bin/python examples/demo.py

.PHONY: test
test: build ## run the whole test suite (root)
	$(SAY) pytest 'tests that need no root, side by side'
	@$(AS_ROOT) $(VENV)/bin/pytest -q -n 2 -m 'not root'
	$(SAY) pytest 'tests that load programs, as root'
	@$(AS_ROOT) $(VENV)/bin/pytest -q -m root

# KERNELS="6.1 6.12" takes some of the matrix, PYTEST="tests/test_grab.py -k whole" other tests, whose output is shown.
.PHONY: test-vm
test-vm: PACKAGES += $(VM_PACKAGES)
test-vm: build ## run the kernel tests in virtual machines, on a matrix of kernels (root)
	$(SAY) vm '$(or $(KERNELS),all kernels), two at a time'
	@$(AS_ROOT) $(VENV)/bin/python -m tests.vm $(KERNELS) $(if $(PYTEST),-- $(PYTEST))

# Static checks and fast tests side by side.
.PHONY: check
check: build ## check format, lint, types and layers, and run the tests that need no root, but for slow ones
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target check-tests check-code

.PHONY: check-code
check-code: build
	$(SAY) ruff 'format and lint'
	@$(VENV)/bin/ruff format --check --quiet && $(VENV)/bin/ruff check --quiet
	$(SAY) mypy 'strict'
	@$(VENV)/bin/mypy --no-error-summary ffpf_bpf examples benchmarks
	$(SAY) layers lint-imports
	@$(VENV)/bin/lint-imports > $(VENV)/.layers || { cat $(VENV)/.layers; exit 1; }

.PHONY: check-tests
check-tests:
	$(SAY) pytest 'tests that need no root, but for slow ones'
	@$(VENV)/bin/pytest -q -n 2 -m 'not root and not slow'

.PHONY: check-vagrant
check-vagrant: PACKAGES += vagrant
check-vagrant: build
	$(SAY) vagrant 'validate'
	@$(VENV)/bin/pytest -q -k vagrant tests/test_make.py

.PHONY: bench
bench: build ## run the benchmarks (root)
	$(SAY) bench benchmarks.all
	@$(AS_ROOT) $(VENV)/bin/python -m benchmarks.all

.PHONY: clean
clean: ## remove all that is made here, .venv included
	$(SAY) clean 'build products, caches, $(VENV)'
	@rm -rf $(VENV) *.egg-info build dist ffpf_bpf/compiler/bitcode \
		.hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +

# Asked each time, for it is quick and a stamp would not notice a package that was removed since.
.PHONY: packages
packages:
	@missing=; \
	for package in $(PACKAGES); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2> /dev/null)" = installed ] || missing+=" $$package"; \
	done; \
	[ -n "$(CLANG)" ] || missing+=' clang'; \
	[ -n "$$missing" ] || exit 0; \
	[ -n "$(ROOT)" ] || command -v sudo > /dev/null || { echo "missing:$$missing; run as root, or install sudo" >&2; exit 1; }; \
	printf '  %-8s %s\n' apt 'update'; \
	$(APT) update; \
	if [[ "$$missing" == *' clang' ]]; then \
		for v in $(CLANG_VERSIONS); do apt-cache show clang-$$v &> /dev/null && break; done; \
		missing+="-$$v"; \
	fi; \
	printf '  %-8s %s\n' apt "install$$missing"; \
	said=$$($(APT) install -y --no-install-recommends $$missing 2>&1 < /dev/null) || { echo "$$said" >&2; exit 1; }

$(INSTALLED): pyproject.toml | packages
	$(SAY) venv '$(VENV), with the system packages of $(PYTHON)'
	@$(PYTHON) -m venv --system-site-packages $(VENV)
	$(SAY) pip "install -e '.[dev]'"
	@$(VENV)/bin/pip install -qq --disable-pip-version-check --no-input --root-user-action=ignore -e '.[dev]'
	@touch $@

ffpf_bpf/compiler/bitcode/%.bc: bpf_src/%.c $(wildcard bpf_src/*.h) Makefile | packages
	$(SAY) clang $<
	@mkdir -p $(@D)
	@$(CLANG) $(CFLAGS) -emit-llvm -c $< -o $@
