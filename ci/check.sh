#!/usr/bin/env bash
# Everything that must hold before a change goes in, beyond `cargo test --all-features`, in one order.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { # headline, command ...
    local headline=$1 start=$SECONDS
    shift
    printf '\n=== %s\n' "$headline"
    "$@" || {
        echo "FAILED after $((SECONDS - start)) s: $headline" >&2
        exit 1
    }
    echo "=== $headline: ok, $((SECONDS - start)) s (of $SECONDS s)"
}

# Flags that change the whole build get a target folder of their own, so that no run rebuilds for another.
forking=(cargo test --all-features --test fork)
huge_text=(cargo test --all-features --test fork --target-dir target/huge)
portable=(cargo test --all-features --target-dir target/portable)
# Not by a profile: Cargo builds tests to unwind whatever `panic` their profile asks for.
abort=(cargo test --all-features --test fork --target-dir target/abort -- in_an_abort_build)

# A filter that matches nothing passes; so ask first what it matches.
panic_abort() {
    local tests
    tests=$(RUSTFLAGS="-C panic=abort" "${abort[@]}" --list) || return
    [[ $tests == *": test"* ]] || { echo "no test is for an abort build" >&2 && return 1; }
    RUSTFLAGS="-C panic=abort" "${abort[@]}"
}

step "format" cargo fmt --check
step "lints, all features" cargo clippy --all-targets --all-features -- -D warnings
step "lints, default features" cargo clippy --all-targets -- -D warnings
step "tests, default features" cargo test
step "layers, self-test" ci/layers.sh --self-test
step "layers" ci/layers.sh
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features
step "forking tests, without warm workers" env TOKIO_RUN_IN_PROCESS_TEST_WARM=off "${forking[@]}"
step "forking tests, kernel with pidfd only" env TOKIO_RUN_IN_PROCESS_TEST_CAPS=pidfd "${forking[@]}"
step "forking tests, kernel without capabilities" env TOKIO_RUN_IN_PROCESS_TEST_CAPS=none "${forking[@]}"
step "forking tests, code on huge pages" env RUSTFLAGS="-C link-arg=-Wl,-z,max-page-size=0x200000" "${huge_text[@]}"
step "tests, portable build" env RUSTFLAGS="--cfg tokio_run_in_process_portable" "${portable[@]}"
step "forking tests, panic=abort" panic_abort
step "soak, two minutes" env TOKIO_RUN_IN_PROCESS_TEST_SOAK=120 "${forking[@]}" g108
step "fuzzing, half a minute for each target" ci/fuzz.sh 30
step "examples" ci/examples.sh
step "lints, benchmark" cargo clippy --package table --package peers -- -D warnings
step "benchmark, a few iterations" env BENCH_QUICK=1 cargo bench
step "macOS" ci/darwin.sh
printf '\nall checks passed in %d s\n' "$SECONDS"
