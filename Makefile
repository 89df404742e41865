# Bulkhead. Every target sets up what it needs (Debian, root); caches are outside the checkout, in
# ${BULKHEAD_CACHE:-~/.cache/bulkhead}.

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:/usr/local/go/bin:$(PATH)

.PHONY: help demo test bench fuzz build install lint shell clean

help:
	@echo 'make demo     pull an image, run a pod in its own microVM, look at it, take it away'
	@echo 'make test     the tests; closes with "N passed, N failed, N skipped"'
	@echo 'make bench    figures: phases of a start, memory, latencies (BENCH="--peer qemu")'
	@echo 'make fuzz     the parsers of what guests, images, registries and clients say, a minute each (FUZZ="600 spdy")'
	@echo 'make build    what a node runs, in target/dist-release'
	@echo 'make install  the same, to DESTDIR and PREFIX (/usr)'
	@echo 'make lint     formatting, clippy, documentation, dependencies, import circles: as CI wants them'
	@echo 'make shell    a shell in the test host'

demo:
	@tests/setup.sh test
	@tests/demo.sh

test:
	@tests/setup.sh test
	@tests/run.sh $(TEST)

bench:
	@tests/setup.sh test
	@tests/bench.sh $(BENCH)

fuzz:
	@tests/setup.sh build
	@tests/fuzz.sh $(FUZZ)

build:
	@tests/setup.sh build
	@packaging/build.sh release

install: build
	@packaging/install.sh

lint:
	@tests/setup.sh build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --quiet
	@tests/deny.sh
	cargo run --locked --quiet -p bulkhead-circles
	@guest-kernel/test-check-config.sh
	@for script in $$(git ls-files '*.sh' .ci/run); do bash -n $$script || exit 1; done

shell:
	@tests/setup.sh test
	@tests/host/run.sh --shell

clean:
	cargo clean
