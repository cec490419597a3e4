# One command sets up a clean machine and runs the demo or the tests. Each step does only what is
# missing, prints what it installs, and is not interactive.
#
#   PYTHON=python3.12     another Python, 3.11 or later
#   CRIU_PREFIX=DIR       another directory for a private CRIU (see tools/install-criu)
#   ARGS='-k dump -x'     more arguments for pytest
#   PORT=8080             another port for make docs-serve

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CRIU_PREFIX ?=
ARGS ?=
# The Debian suites of make test-wheels.
SUITES ?= bookworm trixie forky
# The port of make docs-serve.
PORT ?= 8000
# The date of the files of a release.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
VENV := .venv

# The sources of the extension module.
BUILD_INPUTS := build_ffi.py setup.py pyproject.toml \
	$(wildcard include/*.h native/*.c native/*.h)

# The programs that tests run, each with its Debian package.
TEST_TOOLS := ip:iproute2 nft:nftables iptables:iptables ps:procps runc:runc crun:crun \
	busybox:busybox-static openssl:openssl mkfs.ext2:e2fsprogs podman:podman

# The programs that create and run guests, each with its Debian package.
VM_TOOLS := qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs

# The same for guests of another architecture, with a cross compiler.
ARM64_TOOLS := qemu-system-aarch64:qemu-system-arm qemu-aarch64-static:qemu-user-static \
	arch-test:arch-test aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu

# The programs that build the wheels, each with its Debian package.
WHEEL_TOOLS := debootstrap:debootstrap curl:curl

# Other releases of libcriu for the tests of the one build: release:suite. The crun of Debian 12 is
# built without CRIU, so that of Debian 13 is installed too; and crit, if the suite has it.
TEST_LIBRARIES := 3.17:bookworm 4.1:trixie:crun 4.2:forky 4.3:experimental

# The PATH of an ordinary user lacks the directories of administration programs.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# sudo is used only if needed, and not by root.
define FIND_SUDO
sudo=()
find_sudo() {
	if [[ $$(id -u) != 0 ]] && command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
		sudo=(sudo)
	fi
}
endef

# CRIU needs root. Without root and sudo the program is started anyway, and reports the missing
# privilege. Files that root writes in an ordinary user's checkout are given to the user afterwards.
define AS_ROOT
$(FIND_SUDO)
hand_back() {
	sudo -n chown -hR --from=0:0 "$$(id -u):$$(id -g)" .
}
as_root() {
	find_sudo
	if (($${#sudo[@]})); then
		trap hand_back EXIT
		sudo env $${CI:+CI="$$CI"} "$$@"
	else
		"$$@"
	fi
}
endef

# Installs packages by apt; without apt, prints the missing packages.
define INSTALL_PACKAGES
$(FIND_SUDO)
install_packages() {
	find_sudo
	local apt=("$${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq)
	if ! command -v apt-get >/dev/null; then
		echo "missing (by their Debian names): $$*; install them with your system's tool" >&2
		return 1
	elif [[ $$(id -u) != 0 ]] && (($${#sudo[@]} == 0)); then
		echo "missing, and neither root nor a usable sudo. Run as root:" >&2
		echo "    apt-get update && apt-get install -y --no-install-recommends $$*" >&2
		return 1
	fi
	echo "installing with apt: $$*"
	# A failure of a third-party source is ignored.
	"$${apt[@]}" update || true
	"$${apt[@]}" install -y --no-install-recommends "$$@" >/dev/null
}
endef

# Python 3.11 or later, with venv and headers.
define PYTHON_IS_FIT
import ensurepip, os, sys, sysconfig, venv
sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
endef
export PYTHON_IS_FIT

# Prints errors, but no warnings: these concern pip's own configuration.
PIP_INSTALL = $(VENV)/bin/pip install -qq --disable-pip-version-check --no-input

# The requirements of an extra in pyproject.toml, including the extras that it names.
define REQUIREMENTS
import re, sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
def requirements(name):
    for each in extras[name]:
        own = re.fullmatch(r"pycriu-native\[(.*)\]", each)
        yield from [deep for inner in own[1].split(",") for deep in requirements(inner)] if own else [each]
print(*requirements(sys.argv[1]), sep="\n")
endef
export REQUIREMENTS

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: CRIU_MUST_RUN := yes
demo: $(VENV)/.installed ## dump and restore a live process, step by step (two minutes at first)
	@$(AS_ROOT)
	as_root $(VENV)/bin/python examples/demo.py

.PHONY: test
test: test-tools test-libraries build ## run the tests (20 minutes); prints the tests that this machine cannot run, with reasons
	@$(AS_ROOT)
	echo "running the tests: about 20 minutes on two processors"
	as_root $(VENV)/bin/python -m tests.halves $(ARGS)

.PHONY: test-unit
test-unit: test-libraries build ## run the tests that need neither root nor a working CRIU
	@$(VENV)/bin/python -m pytest tests/unit $(ARGS)

.PHONY: test-migration
test-migration: test-tools test-libraries build ## run all tests of failing migrations (some minutes)
	@$(AS_ROOT)
	as_root $(VENV)/bin/python -m pytest --long tests/unit/test_migration.py \
		tests/integration/test_migration.py tests/integration/test_migration_failures.py $(ARGS)

# Address and undefined-behaviour sanitizers, for all tests without privileges. A test counts leaks:
# LeakSanitizer does not distinguish leaks of the extension from those of Python.
SANITIZED := build/sanitized
.PHONY: test-sanitized
test-sanitized: test-libraries build ## run the unit tests of the C code and of messages under sanitizers
	@rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	# Without caches of Python, which programs beside this one write.
	tar -c --exclude=__pycache__ --exclude='*.so' build_ffi.py setup.py pycriu_native_main.py pyproject.toml README.md \
		LICENSE include native pycriu_native tests docs tools | tar -x -C $(SANITIZED)
	set -a
	. ./.criu
	python=$$PWD/$(VENV)/bin/python
	$$python -c 'import setuptools' 2>/dev/null || $(PIP_INSTALL) setuptools
	cd $(SANITIZED)
	PYCRIU_NATIVE_SANITIZE=address,undefined $$python setup.py -q build_ext --inplace
	# Tests of the compiler's checks of declarations, and of other releases, run without sanitizers.
	# Reports are files, because pytest captures the output of an aborted process.
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) \
		ASAN_OPTIONS=detect_leaks=0:log_path=$$PWD/report \
		UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:log_path=$$PWD/report PYTHONPATH=$$PWD \
		$$python -m pytest -p no:cacheprovider -q $(ARGS) \
		tests/unit/test_lib.py tests/unit/test_properties.py tests/unit/test_exchange.py \
		tests/unit/test_values.py tests/unit/test_refusals.py tests/unit/test_iters.py \
		tests/unit/test_trust.py tests/unit/test_incomplete_sets.py \
		tests/unit/test_pagemap.py ||
		{ cat report.* 2>/dev/null; exit 1; }

# Every fault, at 200 random instants of each kind, on this machine. If its kernel does not support
# pre-dumps, their faults are tested in a guest, which takes half an hour. The page includes the last
# counts of make soak.
INSTANTS ?= 200
RELIABILITY := build/reliability
define RELIABILITY_PAGE
rows=($(RELIABILITY)/here.json)
for more in $(RELIABILITY)/guest/rows.json $(RELIABILITY)/soak.json; do
	[[ ! -e $$more ]] || rows+=("$$more")
done
$(VENV)/bin/python -m tests.integration.faults.reliability docs/reliability.md "$${rows[@]}"
endef
.PHONY: reliability
reliability: test-tools vm-tools build ## run the fault tests and write docs/reliability.md
	@$(AS_ROOT)
	mkdir -p $(RELIABILITY)
	rm -f $(RELIABILITY)/here.json $(RELIABILITY)/guest/rows.json
	as_root env PYCRIU_NATIVE_INSTANTS=$(INSTANTS) PYCRIU_NATIVE_FAULT_ROWS=$(RELIABILITY)/here.json \
		$(VENV)/bin/python -m pytest -q --timeout=3600 $(ARGS) tests/integration/faults/test_faults.py \
		tests/integration/faults/test_faults_files.py tests/integration/faults/test_faults_limits.py \
		tests/integration/faults/test_faults_random.py tests/integration/faults/test_faults_deadlines.py \
		tests/integration/faults/test_faults_pre_dump.py
	grep -q '"pre_dump"' $(RELIABILITY)/here.json ||
		as_root $(VENV)/bin/python -m tools.vm trixie --limit 10800 --results $(RELIABILITY)/guest -- \
			env PYCRIU_NATIVE_INSTANTS=$(INSTANTS) PYCRIU_NATIVE_FAULT_ROWS=/results/rows.json \
			PYCRIU_NATIVE_TEST_PATIENCE=200 PYTHONDONTWRITEBYTECODE=1 python3 -m pytest -v \
			-p no:cacheprovider --timeout=10800 --color=no tests/integration/faults/test_faults_pre_dump.py
	$(RELIABILITY_PAGE)

.PHONY: reliability-page
reliability-page: build ## write docs/reliability.md from the results of the last runs
	@$(RELIABILITY_PAGE)

# Kills of a job at random instants, with a resumption after each, four kinds of random signals, and
# power failures of its file system.
KILLS ?= 1000
SIGNALS ?= 50
POWER_LOSSES ?= 100
.PHONY: test-jobs
test-jobs: build ## kill jobs at 1,000 random instants, signal them at 200, cut power at 100, compare results (an hour)
	@$(AS_ROOT)
	as_root env PYCRIU_NATIVE_JOB_KILLS=$(KILLS) PYCRIU_NATIVE_JOB_SIGNALS=$(SIGNALS) \
		PYCRIU_NATIVE_JOB_POWER_LOSSES=$(POWER_LOSSES) \
		$(VENV)/bin/python -m pytest -q -s --timeout=36000 $(ARGS) tests/integration/test_jobs.py \
		tests/integration/test_job_signals.py tests/integration/test_job_power_loss.py -k random

# The programs of SLURM, unpacked but not installed: installed packages would start its daemons.
SLURM := build/slurm
SLURM_PACKAGES := slurmctld slurmd slurm-client munge
.PHONY: test-slurm
test-slurm: build $(SLURM)/root ## run jobs on a SLURM cluster: limits, preemption, scancel (8 minutes)
	@$(AS_ROOT)
	as_root env PYCRIU_NATIVE_SLURM=$(SLURM)/root PYCRIU_NATIVE_TEST_PATIENCE=200 \
		$(VENV)/bin/python -m pytest --timeout=1200 tests/slurm $(ARGS)

$(SLURM)/root:
	@$(FIND_SUDO)
	find_sudo
	echo "unpacking SLURM into $@"
	mkdir -p $(SLURM)/packages/partial
	"$${sudo[@]}" apt-get -qq update || true
	"$${sudo[@]}" apt-get -qq -y install --download-only --reinstall --no-install-recommends \
		-o Dir::Cache::archives=$$PWD/$(SLURM)/packages $(SLURM_PACKAGES) >/dev/null
	rm -rf $@.partial
	for package in $(SLURM)/packages/*.deb; do
		dpkg -x "$$package" $@.partial
	done
	mv $@.partial $@

.PHONY: test-systemd
test-systemd: build ## run jobs as units of a systemd that boots in namespaces (5 minutes)
	@$(AS_ROOT)
	$(INSTALL_PACKAGES)
	[[ -x /lib/systemd/systemd ]] && type -P systemctl >/dev/null || install_packages systemd
	as_root env PYCRIU_NATIVE_SYSTEMD=1 PYCRIU_NATIVE_TEST_PATIENCE=200 \
		$(VENV)/bin/python -m pytest --timeout=1200 tests/systemd $(ARGS)

.PHONY: soak
soak: build ## make 10,000 calls; memory, descriptors, children and threads must not grow
	@$(AS_ROOT)
	as_root env PYCRIU_NATIVE_SOAK=10000 PYCRIU_NATIVE_FAULT_ROWS=$(RELIABILITY)/soak.json \
		$(VENV)/bin/python -m pytest -q $(ARGS) tests/integration/test_soak.py

.PHONY: snapshot-kills
snapshot-kills: build ## kill each process of started copies a thousand times; no process may remain
	@$(AS_ROOT)
	as_root env PYCRIU_NATIVE_SNAPSHOT_KILLS=1000 \
		$(VENV)/bin/python -m pytest -q $(ARGS) tests/integration/test_snapshots_kills.py

.PHONY: valgrind
valgrind: build ## make a thousand calls under valgrind
	@$(INSTALL_PACKAGES)
	type -P valgrind >/dev/null || install_packages valgrind
	PYTHONMALLOC=malloc PYTHONPATH=$$PWD valgrind --quiet --num-callers=20 --error-exitcode=9 \
		--leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite \
		--suppressions=tests/memcheck/cpython.supp $(VENV)/bin/python tests/memcheck/calls.py

# Seconds for each target; FUZZ=answers runs only one. The corpus starts with a real dump if CRIU works.
FUZZ ?= answers logs statistics images sets archives manifests transfers configuration runc pagemaps
SECONDS_OF_FUZZ ?= 10
.PHONY: fuzz
fuzz: build ## fuzz all readers of external bytes, guided by coverage
	@$(AS_ROOT)
	$(VENV)/bin/python -c 'import atheris' 2>/dev/null || {
		echo "installing the fuzz packages into $(VENV)"
		$(PIP_INSTALL) 'atheris>=3'
	}
	mkdir -p build/fuzz
	as_root $(VENV)/bin/python -m tests.fuzz.real build/fuzz/real || echo "going on without it" >&2
	for target in $(FUZZ); do
		echo "$$target"
		as_root $(VENV)/bin/python -m tests.fuzz.fuzz "$$target" build/fuzz/real \
			-artifact_prefix=build/fuzz/ -max_total_time=$(SECONDS_OF_FUZZ) 2>build/fuzz/$$target.log ||
			{ tail -40 build/fuzz/$$target.log >&2; exit 1; }
		grep -a 'DONE ' build/fuzz/$$target.log
	done

.PHONY: dist
dist: build $(VENV)/.extra-lint ## build a source archive, and from it a wheel for Python 3.11 and later
	@set -a
	. ./.criu
	rm -f dist/*.tar.gz dist/*.whl
	$(VENV)/bin/python -m build --outdir dist . >/dev/null
	ls dist/*.tar.gz dist/*-cp311-abi3-*.whl

# The build runs in a Debian 11 root file system, so the wheels support glibc 2.28 and later.
.PHONY: wheels
wheels: wheel-tools $(VENV)/.extra-release ## build the wheels with libcriu and with criu into dist/wheels (half an hour at first)
	@$(AS_ROOT)
	as_root env PYTHON=$(VENV)/bin/python SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) tools/wheels/build dist/wheels

.PHONY: test-wheels
test-wheels: ## test the wheels in new Debian roots without a compiler, with each Python
	@tools/wheels/test dist/wheels $(SUITES)

.PHONY: test-wheels-arm64
test-wheels-arm64: vm-tools arm64-tools build ## test the aarch64 wheels in a guest
	@$(AS_ROOT)
	as_root env PYTHON=$(VENV)/bin/python tools/wheels/test dist/wheels trixie-arm64

.PHONY: release
release: wheel-tools $(VENV)/.extra-release ## build all files of a release into dist/release: twice, compared, checked
	@$(AS_ROOT)
	as_root env PYTHON=$(VENV)/bin/python SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) tools/wheels/release dist/release

.PHONY: lint
lint: build $(VENV)/.extra-lint ## run ruff and strict mypy
	@failed=0
	$(VENV)/bin/ruff check || failed=1
	$(VENV)/bin/ruff format --check || failed=1
	$(VENV)/bin/mypy --strict || failed=1
	exit $$failed

# The numbers are compared with Debian's pycriu (in Debian 12 in the package criu) and with CRIU 4.3 of
# make test-libraries. Features that this kernel lacks are measured in a guest, if make demo-vm has
# created one.
BENCH_PYCRIU := build/bench/pycriu
.PHONY: bench
bench: build ## run the benchmarks (15 minutes; ARGS=--quick: 3 minutes)
	@$(AS_ROOT)
	mkdir -p $(BENCH_PYCRIU)
	if [[ ! -d $(BENCH_PYCRIU)/usr ]]; then
		(cd $(BENCH_PYCRIU) && { apt-get download -qq python3-pycriu || apt-get download -qq criu; } &&
			dpkg -x ./*.deb .) >/dev/null 2>&1 || echo "going on without pycriu" >&2
	fi
	set -a
	. ./.criu
	as_root env CRIU_LIBDIR="$$CRIU_LIBDIR" CRIU_INCLUDEDIR="$$CRIU_INCLUDEDIR" \
		$(VENV)/bin/python -m benchmarks.run $(ARGS)

.PHONY: bench-page
bench-page: $(VENV)/.extra-bench ## write docs/performance.md from the results of the last make bench
	@$(VENV)/bin/python -m benchmarks.page

# No build is needed: pages are read from the sources. A broken link or a missing page is an error.
.PHONY: docs
docs: $(VENV)/.extra-docs ## build the documentation site into build/site
	@$(VENV)/bin/python -m tools.docs_site build
	# With --quiet mkdocs does not count warnings, so --strict would have no effect.
	$(VENV)/bin/python -m mkdocs build --strict --clean --config-file build/mkdocs.yml >build/docs.log 2>&1 ||
		{ cat build/docs.log >&2; exit 1; }
	echo "built build/site; read it with: make docs-serve"

# Browsers do not load a search index over file://.
.PHONY: docs-serve
docs-serve: docs ## build the site, and serve it on http://127.0.0.1:8000/ until Ctrl-C
	@$(VENV)/bin/python -m http.server --bind 127.0.0.1 --directory build/site $(PORT)

.PHONY: build
build: $(VENV)/.installed $(VENV)/.extra-test ## create the virtual environment with the library and the test packages

# Three runs at a time, because most tests wait most of the time. build/fresh has the complete output;
# printed are the steps, skipped tests with reasons, and failures.
FRESH := build/fresh
.PHONY: test-fresh
test-fresh: ## run demo and tests in new Debian 12, 13 and forky roots, as root and by sudo (two hours)
	@mkdir -p $(FRESH)
	run() {
		local name="$$*" status=0
		local log=$(FRESH)/$${name// /-}.log
		tools/fresh-root "$$@" &>"$$log" || status=$$?
		grep -E '^(fresh-root: |skipped [0-9]+: |FAILED |ERROR )|^=+ .* in [0-9.]+s' "$$log" || true
		((status == 0)) || echo "failed: $$name: $$log" >&2
		return "$$status"
	}
	export -f run
	printf '%s\n' 'bookworm demo test demo' 'trixie --user demo test demo' 'forky demo test demo' \
		'trixie demo test demo' 'bookworm --user demo test-unit' 'forky --user demo test-unit' |
		xargs --max-procs=3 --replace bash -c 'run {}'

# The libraries and programs that CRIU's tests are compiled with.
ZDTM_PACKAGES := gcc curl xz-utils protobuf-compiler protobuf-c-compiler libprotobuf-c-dev \
	libaio-dev libcap-dev libbpf-dev libselinux1-dev libmnl-dev libnl-3-dev libnl-route-3-dev
# The flavors of CRIU's tests: h (host), ns (own namespaces), uns (also a user namespace).
FLAVORS ?= h ns
.PHONY: test-zdtm
test-zdtm: test-tools build ## run CRIU's own test suite with criu and with this library, and compare (an hour)
	@$(INSTALL_PACKAGES)
	$(AS_ROOT)
	dpkg-query -W $(ZDTM_PACKAGES) &>/dev/null || install_packages $(ZDTM_PACKAGES)
	$(VENV)/bin/python -c 'import yaml' 2>/dev/null || $(PIP_INSTALL) pyyaml
	as_root $(VENV)/bin/python -m tools.zdtm $(FLAVORS) $(ARGS)

# Guests consist of Debian packages, are stored in build/vm, and are emulated in software.
.PHONY: test-vm
test-vm: vm-tools build ## run tests/integration in guests with other kernels and CRIUs; write docs/kernels.md (hours)
	@$(AS_ROOT)
	as_root $(VENV)/bin/python -m tools.vm.suite all -- $(ARGS)

.PHONY: test-vm-smoke
test-vm-smoke: vm-tools build ## run the tests of pre-copy and a few others in one guest
	@$(AS_ROOT)
	as_root $(VENV)/bin/python -m tools.vm.suite smoke

.PHONY: test-arm64-smoke
test-arm64-smoke: vm-tools arm64-tools build ## run a few tests on arm64, in one guest
	@$(AS_ROOT)
	as_root $(VENV)/bin/python -m tools.vm.suite smoke-arm64

.PHONY: test-arm64
test-arm64: vm-tools arm64-tools build ## run the tests on arm64: 4K and 16K pages, without and with PAC (hours)
	@$(AS_ROOT)
	as_root $(VENV)/bin/python -m tools.vm.suite arm64 -- $(ARGS)

# As GCC and as Debian name them. The results are not executed.
CROSS := aarch64:arm64 powerpc64le:ppc64el riscv64:riscv64 loongarch64:loong64
.PHONY: cross
cross: build ## compile the extension for other architectures, into build/cross
	@$(INSTALL_PACKAGES)
	machines=()
	for machine in $(CROSS); do
		machines+=("$${machine%:*}")
		gcc=$${machine%:*}-linux-gnu-gcc
		"$$gcc" -E -include stdio.h -x c /dev/null &>/dev/null ||
			install_packages "gcc-$${machine%:*}-linux-gnu" "libc6-dev-$${machine#*:}-cross" || true
	done
	PYTHON=$(VENV)/bin/python tools/cross-build "$${machines[@]}"

.PHONY: demo-vm
demo-vm: vm-tools build ## run the demo in a guest, for machines that cannot checkpoint
	@$(AS_ROOT)
	as_root $(VENV)/bin/python -m tools.vm trixie -- python3 examples/demo.py

.PHONY: clean
clean: ## remove all built files (tools/install-criu --uninstall removes CRIU)
	@rm -rf build dist ./*.egg-info .criu pycriu_native/_native/*.so \
		pycriu_native/_native/namespace_init $(VENV) \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The steps of the set-up -----------------------------------------------------

.PHONY: build-tools
build-tools:
	@$(INSTALL_PACKAGES)
	missing=()
	gcc -E -include stdio.h -x c /dev/null >/dev/null 2>&1 || missing+=(gcc libc6-dev)
	$(PYTHON) -c "$$PYTHON_IS_FIT" >/dev/null 2>&1 || missing+=(python3 python3-venv python3-dev)
	(($${#missing[@]} == 0)) || install_packages "$${missing[@]}"
	$(PYTHON) -c "$$PYTHON_IS_FIT" || {
		echo "$(PYTHON) cannot be used: Python 3.11 or later with venv and headers is needed; name one with PYTHON=" >&2
		exit 1
	}

.PHONY: vm-tools arm64-tools wheel-tools
vm-tools: TOOLS = $(VM_TOOLS)
arm64-tools: TOOLS = $(ARM64_TOOLS)
wheel-tools: TOOLS = $(WHEEL_TOOLS)
vm-tools arm64-tools wheel-tools:
	@$(INSTALL_PACKAGES)
	missing=()
	for tool in $(TOOLS); do
		type -P "$${tool%:*}" >/dev/null || missing+=("$${tool#*:}")
	done
	(($${#missing[@]} == 0)) || install_packages "$${missing[@]}"

# Tests whose program is missing are skipped, so a failure here does not stop the run.
.PHONY: test-tools
test-tools:
	@$(INSTALL_PACKAGES)
	missing=()
	for tool in $(TEST_TOOLS); do
		type -P "$${tool%:*}" >/dev/null || missing+=("$${tool#*:}")
	done
	(($${#missing[@]} == 0)) || install_packages "$${missing[@]}" ||
		echo "going on without: $${missing[*]}" >&2

# Status 3 is a criu that cannot run on this kernel: its library is sufficient.
.PHONY: test-libraries
test-libraries: .criu
	@. ./.criu
	for library in $(TEST_LIBRARIES); do
		IFS=: read -r release suite with <<<"$$library"
		prefix=/opt/pycriu-native-$$release
		[[ ! -e $$prefix && $$CRIU_VERSION != "$$release"* ]] || continue
		echo "installing libcriu $$release into $$prefix, for the tests"
		tools/install-criu --suite "$$suite" --prefix "$$prefix" $${with:+--with "$$with"} \
			--unpack python3-pycriu \
			>/dev/null 2>&1 ||
			[[ $$? = 3 ]] || echo "going on without libcriu $$release" >&2
	done

# This runs each time, and takes a fraction of a second: the kernel can have changed. The file is
# written only if its content changes, so an unchanged one causes no new build. Status 3 is a machine
# that can build and test, but not checkpoint.
.criu: FORCE | build-tools
	@tools/install-criu --record $@ $(if $(CRIU_PREFIX),--prefix '$(CRIU_PREFIX)') || {
		status=$$?
		[[ $$status = 3 && "$(CRIU_MUST_RUN)" != yes ]] || exit $$status
	}

.PHONY: FORCE
FORCE:

$(VENV)/.made: | build-tools
	@echo "creating the virtual environment $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(BUILD_INPUTS) .criu | $(VENV)/.made
	@echo "building the library and installing it into $(VENV) (a minute)"
	set -a
	. ./.criu
	$(PIP_INSTALL) -e .
	touch $@

# Only the packages of an extra: an installation by its name would build the library again.
$(VENV)/.extra-%: pyproject.toml | $(VENV)/.made
	@echo "installing the $* packages into $(VENV)"
	$(VENV)/bin/python -c "$$REQUIREMENTS" $* | $(PIP_INSTALL) -r /dev/stdin
	touch $@
