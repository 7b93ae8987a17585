#!/usr/bin/env bash
# Runs all tests N times in a row (default 10), to find what fails only sometimes. For hours of every outcome in one
# program: `TOKIO_RUN_IN_PROCESS_TEST_SOAK=36000 cargo test --all-features --test fork g108`, in seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

runs=${1:-10}
[[ $runs =~ ^[1-9][0-9]*$ ]] || { echo "usage: $0 [RUNS]" >&2 && exit 2; }
for ((run = 1; run <= runs; run++)); do
    printf '\n=== run %d of %d\n' "$run" "$runs"
    cargo test --all-features || {
        echo "FAILED: run $run of $runs" >&2
        exit 1
    }
done
printf '\n%d runs passed in %d s\n' "$runs" "$SECONDS"
