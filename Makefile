# Everyday tasks. `make` alone lists them.

# Debian keeps ip, nft and nginx in sbin, which is not on every user's path.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:$(HOME)/.cargo/bin

# cargo-nextest if installed: it limits how many end-to-end tests run at once (.config/nextest.toml).
nextest := $(wildcard $(addsuffix /cargo-nextest,$(subst :, ,$(PATH))))
tests := $(if $(nextest),nextest run,test --tests)

micro_benches = $(patsubst benches/benches/%.rs,--bench %,\
	$(filter-out %/two-node.rs %/control-plane.rs,$(wildcard benches/benches/*.rs)))

.PHONY: help playground test lint bench bench-control-plane bench-micro release fuzz clean

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

playground: setup-playground ## See a two-node mesh work on this machine (ONCE=1: run through and exit)
	cargo build -p ztunnel -p playground
	target/debug/playground $(if $(ONCE),--once)

# The end-to-end suites run target/debug/ztunnel, so it is built before them. Everything is compiled before
# scripts/privileged, which may take the network away.
test: setup-test ## Run all tests, the end-to-end suites included
	cargo build --workspace
	cargo $(tests) --workspace --no-run
	scripts/privileged cargo $(tests) --workspace
	cargo test --workspace --doc

lint: setup-lint ## Check formatting and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

bench: setup-bench release ## Measure two nodes side by side with other proxies
	cargo bench -p benches --bench two-node --no-run
	scripts/privileged cargo bench -p benches --bench two-node

bench-control-plane: setup-test release ## Measure what following a control plane costs
	cargo bench -p benches --bench control-plane --no-run
	scripts/privileged cargo bench -p benches --bench control-plane

bench-micro: setup-build ## Run the micro-benchmarks
	cargo bench -p benches $(or $(micro_benches),$(error no micro-benchmarks in benches/benches))

release: setup-build ## Build target/release/ztunnel
	cargo build --release -p ztunnel

fuzz: setup-build ## Fuzz the parsers (SECONDS=60 each; CRATE=, TARGET= to choose); needs nightly and cargo-fuzz
	scripts/fuzz "$(SECONDS)" "$(CRATE)" "$(TARGET)"

clean: ## Remove everything that was built
	cargo clean
	rm -rf */fuzz/target

setup-%:
	@scripts/setup $*
