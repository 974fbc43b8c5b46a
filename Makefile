# SPDX-License-Identifier: Apache-2.0
# setup build run test lint bench install clean; `make` alone builds.

DESTDIR =
PREFIX = /usr/local

# rustup's cargo is not always on PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin

dist := target/dist
release := target/x86_64-unknown-linux-gnu/release
programs := husk husk-vmm containerd-shim-husk-v2
lab := tests/lab/run

.PHONY: build setup run test unit suites lint bench install clean kernel programs image

build: kernel image
	@cp -u deploy/containerd/*.toml $(dist)/

# Packages, a compiler of Rust. Quick and silent when nothing is missing.
setup:
	@deploy/setup

kernel:
	@guest-kernel/build $(dist)/vmlinux

programs:
	@cargo build --quiet --release --locked --workspace --bins
	@mkdir -p $(dist)
	@for program in $(programs); do \
	    cmp -s $(release)/$$program $(dist)/$$program || \
	    install -m 755 $(release)/$$program $(dist)/$$program; done

image: programs
	@$(release)/rootfs-builder --agent $(release)/husk-agent --output $(dist)/guest.img
	@$(release)/rootfs-builder --agent $(release)/husk-agent --output $(dist)/guest-debug.img \
	    --debug "$$(command -v busybox)"

# One container through containerd, host and guest side by side.
run: setup build
	@$(lab) -- tests/lab/demo

test: setup build unit suites

unit:
	@cargo test --quiet --locked --workspace

# All that needs a VM.
suites:
	@tests/lab/collect-tests
	@tests/lab/run-suites

lint:
	@cargo fmt --all --check
	@cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@cargo clippy --quiet --locked -p husk-tests --test '*' -- -D warnings
	@shellcheck -S warning .ci/run deploy/setup guest-kernel/build tests/lab/run tests/lab/image tests/lab/containerd \
	    tests/lab/init tests/lab/start tests/lab/session tests/lab/sample-image tests/lab/systemd-image \
	    tests/lab/demo tests/lab/collect-tests tests/lab/run-tests tests/lab/run-suites \
	    deploy/installer/install deploy/installer/payload deploy/installer/image
	@shellcheck -S warning -s sh deploy/installer/node
	@deploy/kubernetes/check

bench: setup build
	@tests/lab/collect-tests
	@$(lab) --icount -- husk-bench --json target/bench.json

install:
	@test -x $(dist)/husk -a -r $(dist)/vmlinux || { echo "run 'make build' first" >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/husk
	install -m 755 $(programs:%=$(dist)/%) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(dist)/vmlinux $(dist)/guest.img $(dist)/*.toml $(DESTDIR)$(PREFIX)/share/husk

# What was built before stays in the cache: ${XDG_CACHE_HOME:-~/.cache}/husk.
clean:
	rm -rf target
