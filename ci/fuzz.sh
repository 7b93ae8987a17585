#!/usr/bin/env bash
# Fuzzes what reads the bytes of workers, from the inputs in fuzz/corpus on. What it finds stays in fuzz/artifacts.
#
#     ci/fuzz.sh [seconds for each target]
#     ci/fuzz.sh --merge   adds to the corpus what was found worth keeping since, and nothing twice
#
# It builds with the stable compiler: coverage without a sanitizer needs no other. With a nightly one and cargo-fuzz,
# `cargo +nightly fuzz run value` does the same with AddressSanitizer.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
# With a target of its own the flags are not for build scripts, which nobody links with a fuzzer.
RUSTFLAGS="--cfg fuzzing $(tr -s '\n ' ' ' <<<"$coverage")" cargo build --quiet --release --target "$host"

for target in value frames; do
    program=target/$host/release/$target found=target/found/$target
    mkdir -p "$found" "artifacts/$target" "corpus/$target"
    if [[ ${1:-} == --merge ]]; then
        # By lines that are reached, not by how often: a few hundred small inputs say the same as thousands.
        "$program" -set_cover_merge=1 -use_counters=0 -max_len=512 -verbosity=0 "corpus/$target" "$found"
        continue
    fi
    log=target/$target.log
    # What takes more than ten seconds hangs.
    "$program" -max_total_time="${1:-60}" -timeout=10 -rss_limit_mb=1024 -max_len=4096 -len_control=20 \
        -artifact_prefix="artifacts/$target/" -print_final_stats=1 "$found" "corpus/$target" >"$log" 2>&1 </dev/null || {
        tail -n 40 "$log" >&2
        echo "FAILED: $target, see fuzz/artifacts/$target" >&2
        exit 1
    }
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, none did harm"
done
