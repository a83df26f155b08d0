# The front door: every target installs what it needs on Debian 12 with Rust, as root or with sudo.
#
#   make demo                       the README's story on a throw-away cluster and a simulated ServiceNow
#   make test                       everything CI runs
#   make test-all                   the same, and the end-to-end tests on newer majors built from Debian's sources
#   make model [CASES=…]            random interleavings by the thousand: afterwards cache = instance
#   make soak [MINUTES=…]           many short sessions on a Postgres with assertions, built from Debian's sources
#   make deny [CHECKS=…]            licences, bans and sources of others' code; with CHECKS=advisories known holes, too
#   make install [PG_CONFIG=…]      a release build into that Postgres; make uninstall takes it away
#   make package [PG_CONFIG=…]      a Debian package of a release build, and an archive for PGXN, in target/package
#   make try-package                the same, and installs the Debian package in a fresh Debian
#   make book                       the documentation as a book, in target/book
#   make freeze                     before a version is tagged: keeps its SQL, which later versions update from
#   make bench [SECTIONS=…]         the README's figures, as ratios measured in one run

DEFAULT_PG_CONFIG := /usr/lib/postgresql/15/bin/pg_config
PG_CONFIG ?= $(DEFAULT_PG_CONFIG)
CARGO_TARGET_DIR ?= $(CURDIR)/target
PGRX_VERSION := 0.18.1
MDBOOK_VERSION := 0.4.52
DENY_VERSION := 0.20.2
CHECKS ?= licenses bans sources
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
PACKAGES := build-essential ca-certificates clang curl libclang-dev libssl-dev pkg-config sudo \
            $(if $(filter $(DEFAULT_PG_CONFIG),$(PG_CONFIG)),postgresql-15 postgresql-server-dev-15)
# What the tests take that run mappers and a pooler, with an environment of its own for Python.
ORM_PACKAGES := pgbouncer python3 python3-venv ruby ruby-activerecord ruby-pg
ORM_PYTHON := $(CARGO_TARGET_DIR)/orm-python
MAPPERS := django==5.2.19 'psycopg[binary]==3.3.9' sqlalchemy==2.1.9
# What the tests take that log in as people do.
BROWSER_PACKAGES := chromium chromium-driver
# What the loaders take that the figures are compared with, in an environment of their own.
BENCH_PACKAGES := python3 python3-venv
BENCH_PYTHON := $(CARGO_TARGET_DIR)/bench-python
LOADERS := 'dlt[postgres]==1.31.0' psycopg2-binary==2.9.13 requests==2.34.2
# Majors that are type-checked against the bindings that pgrx ships, without a server.
CHECKED_MAJORS := 16 17 18
# Majors whose source package Debian has in another suite, and what it takes to build them.
NEWER_MAJORS := 17 18
# The major that is built with assertions, and how many minutes it is kept busy.
SOAK_MAJOR := 15
MINUTES ?= 30
NEWER_PACKAGES := bison dpkg-dev flex perl

IS_ROOT := $(filter 0,$(shell id -u))
SUDO := $(if $(IS_ROOT),,sudo)
# Postgres does not run as root: then the tests inside a server run as Debian's user for it.
RUNAS := $(if $(IS_ROOT),--runas postgres --pgdata /tmp/servicenow_fdw-pgrx-test)
MAJOR = $(shell $(PG_CONFIG) --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
FEATURES = --no-default-features --features pg$(MAJOR)
CARGO_PGRX = env "PATH=$$PATH" "HOME=$$HOME" cargo pgrx

# pgrx looks here instead of in a file in the home directory.
export PGRX_PG_CONFIG_PATH = $(PG_CONFIG)
export PGRX_HOME = $(CARGO_TARGET_DIR)/pgrx
export PG_CONFIG CARGO_TARGET_DIR

PACKAGE_DIR := $(CARGO_TARGET_DIR)/package
DENY := $(CARGO_TARGET_DIR)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
MDBOOK := $(CARGO_TARGET_DIR)/mdbook-$(MDBOOK_VERSION)/bin/mdbook

.PHONY: demo test test-all model soak all install uninstall package try-package book freeze bench lint deny majors test-in-server install-debug packages orm-python browser pgrx

demo: install
	cargo run --quiet --release -p demo

# Clients of PGXN build, install and remove what they have downloaded by these names.
all: packages pgrx
	cargo build --release --lib $(FEATURES)
install: packages pgrx
	$(SUDO) $(CARGO_PGRX) install --release --pg-config $(PG_CONFIG) $(FEATURES)

uninstall:
	$(SUDO) rm -f "$$($(PG_CONFIG) --pkglibdir)/servicenow_fdw.so" \
	    "$$($(PG_CONFIG) --sharedir)"/extension/servicenow_fdw.control \
	    "$$($(PG_CONFIG) --sharedir)"/extension/servicenow_fdw--*.sql

# The paths of the machine are not in what is built, from Rust or from pgrx's C, and dates are the last commit's.
# (RUSTFLAGS take the place of the one that cargo pgrx sets itself. Of several prefixes the last one counts.)
REMAPPED := $(HOME)=~ $(if $(CARGO_HOME),$(CARGO_HOME)=~/.cargo) $(CURDIR)=. $(CARGO_TARGET_DIR)=target
package: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
package: export RUSTFLAGS = -Clink-arg=-Wl,--no-gc-sections $(addprefix --remap-path-prefix=,$(REMAPPED))
package: export CFLAGS += -ffile-prefix-map=$(CARGO_TARGET_DIR)=target
package: packages pgrx
	@$(MAKE) --no-print-directory packages PACKAGES="binutils dpkg-dev git"
	rm -rf $(PACKAGE_DIR)
	@# The bindings are formatted by what is found above them, and the numbers of their lines are in messages.
	mkdir -p $(CARGO_TARGET_DIR) && cp rustfmt.toml $(CARGO_TARGET_DIR)/
	$(CARGO_PGRX) package --pg-config $(PG_CONFIG) --out-dir $(PACKAGE_DIR)/files $(FEATURES)
	packaging/deb $(PACKAGE_DIR)/files $(PACKAGE_DIR)
	rm -rf $(PACKAGE_DIR)/files
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
	    git archive --format=zip --prefix=servicenow_fdw-$(VERSION)/ -o $(PACKAGE_DIR)/servicenow_fdw-$(VERSION).zip HEAD; \
	else \
	    echo "NOT PACKAGED: the archive for PGXN is made from a git checkout"; \
	fi
	@ls -l $(PACKAGE_DIR)

# The package in a fresh Debian: it is installed, the extension is made, and nothing is left of it when it is purged.
try-package: package
	@$(MAKE) --no-print-directory packages PACKAGES="debootstrap"
	$(SUDO) packaging/try $(PACKAGE_DIR)/postgresql-$(MAJOR)-servicenow-fdw_*.deb

# End-to-end tests wait more than they compute: more run at a time than there are cores.
TEST_END_TO_END = RUST_TEST_THREADS=$$((2 * $$(nproc))) cargo test -p tests

# The pages are tested without it.
book: $(MDBOOK)
	$(MDBOOK) build --dest-dir $(CARGO_TARGET_DIR)/book docs

$(MDBOOK):
	@$(MAKE) --no-print-directory packages PACKAGES="build-essential"
	cargo install mdbook --version $(MDBOOK_VERSION) --locked --no-default-features --features search \
	    --root $(CARGO_TARGET_DIR)/mdbook-$(MDBOOK_VERSION)

# The tests inside a server install a library of their own, so they come before the others.
test: packages pgrx lint majors test-in-server install-debug $(ORM_PYTHON)/ready browser
	cargo test -p servicenow -p servicenow-sim -p fuzz
	$(TEST_END_TO_END)

# Outside of the checkout, which another user may not be able to read: Postgres does not run as root. Whatever can be
# built is tested; a source package that cannot be had at the moment is said and left out.
test-all: test $(NEWER_MAJORS:%=test-pg%)
test-pg%: packages pgrx
	@$(MAKE) --no-print-directory packages PACKAGES="$(PACKAGES) $(NEWER_PACKAGES)"
	@prefix=/var/tmp/servicenow_fdw-postgres-$*; \
	if .ci/build-postgres $* "$$prefix"; then \
	    if .ci/can-upgrade $(PG_CONFIG) "$$prefix/bin/pg_config"; then \
	        export OLD_PG_CONFIG=$(PG_CONFIG); \
	    else \
	        echo "NOT TESTED: pg_upgrade to Postgres $*, which fails without the extension, too"; \
	    fi; \
	    $(MAKE) --no-print-directory test-on PG_CONFIG="$$prefix/bin/pg_config"; \
	elif [ $$? = 75 ]; then \
	    echo "NOT TESTED: the source package of Postgres $* cannot be had; it was type-checked only"; \
	else \
	    exit 1; \
	fi
test-on: install-debug $(ORM_PYTHON)/ready browser
	$(TEST_END_TO_END)

# The end-to-end tests run on it, too: make test-on PG_CONFIG=…. Slow, and what goes wrong says so itself.
CASSERT_PREFIX := /var/tmp/servicenow_fdw-postgres-$(SOAK_MAJOR)-cassert
soak: packages pgrx
	@$(MAKE) --no-print-directory packages PACKAGES="$(PACKAGES) $(NEWER_PACKAGES)"
	.ci/build-postgres $(SOAK_MAJOR) $(CASSERT_PREFIX) --enable-cassert CFLAGS=-O1
	@$(MAKE) --no-print-directory install-debug PG_CONFIG=$(CASSERT_PREFIX)/bin/pg_config
	PG_CONFIG=$(CASSERT_PREFIX)/bin/pg_config SOAK_MINUTES=$(MINUTES) \
	    cargo test -p tests --test soak -- --ignored --nocapture

# The model checks of `make test` go on for seconds, in a build that is not optimized; these for thousands of cases.
CASES ?= 3000
model:
	PROPTEST_CASES=$(CASES) cargo test --release -p servicenow --test mirror model:: -- --nocapture
	PROPTEST_CASES=$(CASES) cargo test --release -p servicenow --test mirror events:: -- --nocapture

# What has been released does not change any more: tests compare it with its sum, and update from it.
freeze: install-debug
	@! grep -q -e '--$(VERSION).sql$$' sql/released/SHA256SUMS || { echo "$(VERSION) is frozen already" >&2; exit 1; }
	cp "$$($(PG_CONFIG) --sharedir)/extension/servicenow_fdw--$(VERSION).sql" sql/released/
	cd sql/released && sha256sum *--$(VERSION).sql $(addprefix ../,$(notdir $(wildcard sql/*--*--$(VERSION).sql))) >> SHA256SUMS

# SECTIONS chooses some of them, see bench/main.rs.
bench: install $(BENCH_PYTHON)/ready
	BENCH_PYTHON=$(BENCH_PYTHON)/bin/python cargo run --quiet --release -p bench -- $(SECTIONS)

$(BENCH_PYTHON)/ready: Makefile
	@$(MAKE) --no-print-directory packages PACKAGES="$(BENCH_PACKAGES)"
	python3 -m venv --clear $(BENCH_PYTHON)
	$(BENCH_PYTHON)/bin/pip install --quiet --disable-pip-version-check $(LOADERS)
	touch $@

$(ORM_PYTHON)/ready: Makefile
	@$(MAKE) --no-print-directory packages PACKAGES="$(ORM_PACKAGES)"
	python3 -m venv --clear $(ORM_PYTHON)
	$(ORM_PYTHON)/bin/pip install --quiet --disable-pip-version-check $(MAPPERS)
	touch $@
orm-python: $(ORM_PYTHON)/ready

browser:
	@$(MAKE) --no-print-directory packages PACKAGES="$(BROWSER_PACKAGES)"

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Not with the others: it takes minutes to build. CHECKS=advisories fetches RustSec's database from GitHub.
deny: $(DENY)
	$(DENY) --locked --workspace check $(CHECKS)

$(DENY):
	@$(MAKE) --no-print-directory packages PACKAGES="build-essential"
	cargo install cargo-deny --version $(DENY_VERSION) --locked --root $(CARGO_TARGET_DIR)/cargo-deny-$(DENY_VERSION)

majors: $(CHECKED_MAJORS:%=check-pg%)
check-pg%:
	DOCS_RS=1 RUSTC_WRAPPER=$(CURDIR)/.ci/docsrs-wrapper CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/majors \
	    cargo check --no-default-features --features pg$*

test-in-server: $(PGRX_HOME)/config.toml
	rm -rf /tmp/servicenow_fdw-pgrx-test
	cargo pgrx test $(RUNAS) pg$(MAJOR)
	rm -rf /tmp/servicenow_fdw-pgrx-test

$(PGRX_HOME)/config.toml: | pgrx
	mkdir -p $(PGRX_HOME)
	cargo pgrx init --pg$(MAJOR)=$(PG_CONFIG) --no-run

install-debug:
	$(SUDO) $(CARGO_PGRX) install --pg-config $(PG_CONFIG) $(FEATURES)

packages:
	@missing=""; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	    $(SUDO) apt-get update -qq && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

pgrx: | packages
	@cargo pgrx --version 2>/dev/null | grep -q ' $(PGRX_VERSION)$$' || \
	    cargo install cargo-pgrx --version $(PGRX_VERSION) --locked
