# The front door: every target installs what it needs on Debian 12 with Rust.
#
#   make demo                       the README's story on a throw-away cluster and a simulated ServiceNow
#   make test                       everything CI runs
#   make install [PG_CONFIG=…]      a release build into that Postgres
#   make bench                      the figures of the README, as ratios measured in one run

PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
PGRX_VERSION := 0.18.1
PACKAGES := build-essential clang curl libclang-dev pkg-config postgresql-15 postgresql-server-dev-15
MAJORS_CHECKED := 16 17 18

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
MAJOR = $(shell $(PG_CONFIG) --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
FEATURES = --no-default-features --features pg$(MAJOR)

# pgrx asks for it here instead of in a file in the home directory.
export PGRX_PG_CONFIG_PATH = $(PG_CONFIG)
export PG_CONFIG

.PHONY: demo test install bench packages pgrx lint majors install-dev

demo: install
	cargo run --quiet --release -p demo

install: packages pgrx
	cargo build --release --lib $(FEATURES)
	$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" cargo pgrx install --release --pg-config $(PG_CONFIG) $(FEATURES)

test: packages pgrx lint majors install-dev
	cargo test -p servicenow -p servicenow-sim
	cargo test -p tests

bench: install
	cargo run --quiet --release -p bench

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Majors that are not installed are type-checked against the bindings that pgrx ships.
majors: $(MAJORS_CHECKED:%=check-pg%)
check-pg%:
	DOCS_RS=1 RUSTC_WRAPPER=$(CURDIR)/.ci/docsrs-wrapper CARGO_TARGET_DIR=$(CURDIR)/target/majors \
	    cargo check --no-default-features --features pg$*

install-dev:
	$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" cargo pgrx install --pg-config $(PG_CONFIG) $(FEATURES)

packages:
	@missing=""; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	    $(SUDO) apt-get update -qq && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

pgrx:
	@cargo pgrx --version 2>/dev/null | grep -q ' $(PGRX_VERSION)$$' || \
	    cargo install cargo-pgrx --version $(PGRX_VERSION) --locked
