# `make check` only reads; `make fix` writes.
.DEFAULT_GOAL := help
.PHONY: help run check fix test soak tools sbom bench bench-cluster bench-archive advise-proof test-container drill fuzz-api

help: ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

run: ## Run the server on port 4000, with its data under ./data.
	cargo run --release --locked

check: ## Formatting, lints, and dependencies where cargo-deny and cargo-audit are installed. Changes nothing.
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo 'cargo-deny is not installed: dependencies not checked'; fi
	@if cargo audit --version >/dev/null 2>&1; then cargo audit; else echo 'cargo-audit is not installed: advisories not checked'; fi

fix: ## Format, apply what the lints suggest, and regenerate the generated pages.
	cargo clippy --locked --all-targets --fix --allow-dirty --allow-staged
	cargo fmt
	BLESS=1 cargo test --locked --test config --test advise --test docs
	BLESS=1 cargo test --locked --test cli the_documentation

test: tools ## All tests. Installs the tools they need.
	cargo test --locked

sbom: ## Write target/fastpaca.cdx.json: what a release is made of, with licences and checksums (CycloneDX). Needs jq.
	@mkdir -p target
	.ci/sbom >target/fastpaca.cdx.json

soak: tools ## The long fault suite: 30 kill cycles and as many of every other fault.
	FASTPACA_TEST_CYCLES=30 cargo test --locked --test faults -- --include-ignored --nocapture
	FASTPACA_TEST_CYCLES=30 cargo test --locked --test cluster -- --nocapture
	FASTPACA_TEST_CYCLES=30 cargo test --locked --test archive -- --nocapture

tools: ## Install what the tests call: strace, promtool, curl, ip, nft, faketime, Postgres, PgBouncer, nginx, docker-compose, kubectl, chromium, python3, node, tsc.
	@.ci/tools

bench: ## Measure one node, each figure beside its floor.
	cargo bench --locked --bench server --bench raft --bench journal

bench-cluster: ## Measure three nodes beside one: appends, reads, kill -9, graceful stops, a replaced node.
	cargo bench --locked --bench cluster

bench-archive: tools ## Measure appends with and without an archive, and a backlog beside a bare COPY.
	cargo bench --locked --bench archive

advise-proof: ## Hold what `fastpaca advise plan` predicts beside what the server takes (about 5 minutes).
	cargo bench --locked --bench advise

test-container: ## Build the image on bases made here, and run it as docs/deployment.md says. Needs root, Docker, debootstrap, dnsmasq.
	docker/test/container
	FASTPACA_IMAGE=$${FASTPACA_IMAGE:-fastpaca-test} docker/test/hosts

drill: ## Three containers under load: kill, cut off, replace, restart. Nothing may be lost. Needs root, Docker, debootstrap, python3.
	docker/test/drill

fuzz-api: ## Requests made from the API document by schemathesis, against a running server (2 minutes).
	tests/fuzz/run
