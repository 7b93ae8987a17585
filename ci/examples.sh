#!/usr/bin/env bash
# Runs every example, and looks for one line of what it must print.
set -euo pipefail
cd "$(dirname "$0")/.."

build=(cargo build --quiet --examples --all-features)
"${build[@]}"
target=${CARGO_TARGET_DIR:-$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')}

seen=" "
expect() { # example, a regular expression for one whole line, arguments ...
    local example=$1 line=$2 output
    shift 2
    seen+="$example "
    output=$(timeout 60 "$target/debug/examples/$example" "$@" 2>&1 </dev/null) || {
        printf 'FAILED: %s gave exit code %d and said\n%s\n' "$example" $? "$output" >&2
        exit 1
    }
    # A bar that is drawn over itself is one line to a terminal.
    tr '\r' '\n' <<<"$output" | grep -Eqx -- "$line" || {
        printf 'FAILED: %s did not say %s, but\n%s\n' "$example" "$line" "$output" >&2
        exit 1
    }
    echo "$example: ok"
}

expect fib 'pid [0-9]+ says 55'
expect background '12 \* 12 = 144'
expect timeout 'its process was killed by SIGKILL'
expect cancel_clean_up 'second task: stopped half-way, all tidy'
expect panic 'message: "two" is not a number: invalid digit found in string'
expect blocking '5133 primes below 50000 and 4459 more below 100000: 9592'
expect smol 'ten naps of 100 ms on smol, together: 45'
expect progress 'all done, the sum is 780'
expect task_progress '17984 primes below 200000'
expect connections 'still here -> \[[0-9]+\] STILL HERE' --demo
expect shared_table '100 tasks found [0-9]+ rows in 64 MB; none had more than [0-9]{1,4} kB of its own'
expect generations '[0-9]+ tasks, none lost or wrong; the last one saw version 4'
expect server 'GET /crash -> HTTP/1\.1 500 .* was killed by SIGABRT( \(core dumped\))?' --demo
expect server 'GET /6 -> HTTP/1\.1 200 OK \| 6 \* 6 = 36' --demo

for file in examples/*.rs; do
    example=$(basename "$file" .rs)
    [[ $seen == *" $example "* ]] || {
        echo "FAILED: nobody expects anything of $file" >&2
        exit 1
    }
done
