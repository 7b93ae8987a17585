#!/usr/bin/env bash
# Type-checks and lints the library for macOS on Debian, without a Mac and without installing anything.
#
# The standard library of the target is compiled from source, so compiler and source must be an exact pair:
# Debian's `rustc-web` and `rust-web-src` are one. They are unpacked once into a private folder; remove that
# folder to get newer ones. Nothing is linked, so no Apple SDK is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-apple-darwin
feature_sets=(--all-features --features=default)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tokio-run-in-process/rustc-web

# A check that did not run must not look like one that passed; where nobody reads the words, it fails.
unavailable() {
    if [[ ${CI:-} == true ]]; then
        echo "FAILED: no macOS check: $1" >&2
        exit 1
    fi
    echo "SKIPPED: no macOS check: $1"
    exit 0
}

# Downloads the compiler, and what it needs and this machine lacks, into $work/deb. `set -e` is off in here,
# because the caller asks whether it worked.
download() {
    local package queue=(rustc-web rust-web-src rust-web-clippy) wanted=()
    while ((${#queue[@]})); do
        package=${queue[0]}
        queue=("${queue[@]:1}")
        [[ " ${wanted[*]-} " == *" $package "* ]] && continue
        if [[ $package == lib* && $package != libstd-rust-* ]] &&
            [[ $(dpkg-query -W -f '${db:Status-Status} ' "$package" 2>/dev/null) == *"installed "* ]]; then
            continue
        fi
        if ! apt-cache "${apt[@]}" show --no-all-versions "$package" >/dev/null 2>&1; then
            [[ $package == rust-web-clippy ]] && continue # older releases have no clippy for it
            return 1
        fi
        wanted+=("$package")
        # Shared libraries only (the LLVM of the day among them): a C compiler is there if cargo works at all.
        mapfile -t -O "${#queue[@]}" queue < <(apt-cache "${apt[@]}" depends --important "$package" |
            sed -n 's/^[ |]*\(Pre\)*Depends: \(lib[^ ]*\)$/\2/p')
    done
    (cd "$work/deb" && apt-get "${apt[@]}" -qq download "${wanted[@]}")
}

unpack() {
    local deb root=$work/root
    mkdir -p "$work"/{deb,root,lists/partial,archives/partial}
    apt=(-o APT::Sandbox::User=) # `_apt` cannot write to a private folder
    if ! download 2>"$work/log"; then
        # Unknown packages or stale lists. Lists of our own: the machine's need root, and are not ours to change.
        apt+=(-o Dir::State::lists="$work/lists" -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives")
        { apt-get "${apt[@]}" -qq update && download; } >>"$work/log" 2>&1 || {
            cat "$work/log" >&2
            unavailable "rustc-web cannot be downloaded"
        }
    fi
    for deb in "$work"/deb/*.deb; do
        dpkg-deb -x "$deb" "$root"
    done
    # Of the compiler's source only the standard library is used; the rest is half of the folder.
    find "$root"/usr/src/*/ -mindepth 1 -maxdepth 1 ! -name library -exec rm -rf {} +
    # Whole or not at all, so that an interrupted run leaves no half of a compiler; another run may have been first.
    [[ -d $cache ]] || mv -T "$root" "$cache"
}

if [[ $(uname) == Darwin ]]; then
    for features in "${feature_sets[@]}"; do
        cargo check --locked --lib "$features"
    done
    exit
fi

# For the machine, not for the target: they would reach the standard library, too.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

if [[ ! -d $cache ]]; then
    for tool in apt-get apt-cache dpkg-deb dpkg-query; do
        command -v "$tool" >/dev/null || unavailable "this machine has no $tool"
    done
    mkdir -p "$(dirname "$cache")"
    work=$(mktemp -d "$cache.XXXXXX") # beside its destination, so that `mv` is a rename
    trap 'rm -rf "$work"' EXIT
    unpack
fi

driver=$(echo "$cache"/usr/lib/*/librustc_driver-*.so)
triplet=$(basename "$(dirname "$driver")")
export LD_LIBRARY_PATH=$cache/usr/lib/$triplet:$cache/lib/$triplet${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export RUSTC=$cache/usr/bin/rustc
export RUSTC_BOOTSTRAP=1 # `-Z` on a stable compiler

options=(--locked --lib -Z "build-std=std,panic_abort" --target "$target" --target-dir target/darwin)
for features in "${feature_sets[@]}"; do
    echo "$target, $("$RUSTC" --version), $features"
    if [[ -x $cache/usr/bin/cargo-clippy ]]; then
        "$cache/usr/bin/cargo-clippy" clippy "${options[@]}" "$features" -- -D warnings
    else
        # This release has no clippy for that compiler: its warnings are what is left.
        RUSTFLAGS="-D warnings" cargo check "${options[@]}" "$features"
    fi
done
