#!/usr/bin/env bash
# Checks who may use whom under src/, and where `unsafe`, tokio and the operating system may be named.
#
#     ci/layers.sh              checks this repository
#     ci/layers.sh --self-test  checks that every rule finds its fault and that clean code passes
#
# It reads tokens, not lines: comments and strings are dropped, and use-trees are expanded.
set -euo pipefail
export LC_ALL=C # awk counts bytes

check() { # the folder that contains src/
    (cd "$1" && find src -name '*.rs' | sort | xargs awk "$rules") || return 1
}

# shellcheck disable=SC2016 # the dollars are awk's
rules='
BEGIN {
    may["model"] = ""
    may["sys"] = may["wire"] = "model"
    may["task"] = may["error"] = "model wire"
    may["pass"] = "model sys wire"
    may["worker"] = "model sys wire task pass error"
    may["zygote"] = "model sys wire worker"
    may["parent"] = "model sys wire task pass error zygote"
    may["lib"] = "model sys wire task pass error worker zygote parent"
}

FNR == 1 { finish(); start() }
{ read($0); last = FNR }
END { finish(); exit bad }

function start(   parts, k) {
    file = FILENAME
    n = block = string = 0
    k = split(substr(file, 5), parts, "/")
    room = parts[1]; sub(/\.rs$/, "", room)
    depth_of_file = (file == "src/lib.rs") ? 0 : (parts[k] == "mod.rs") ? k - 1 : k
}

function fault(line, rule,   text) {
    text = file ":" line ": " rule
    if (text != said) print text
    said = text; bad = 1
}

# Appends the tokens of one line; a comment or a string may go on in the next one.
function read(s,   t) {
    while (s != "") {
        if (block) {
            if (!match(s, /\/\*|\*\//)) return
            block += (substr(s, RSTART, 2) == "/*") ? 1 : -1
        } else if (string) {
            if (!match(s, string == 1 ? "\\\\.|\"" : hashes)) return
            if (substr(s, RSTART, 1) != "\\") string = 0
        } else if (match(s, /^[ \t]+/)) {
        } else if (s ~ /^\/\//) { return
        } else if (match(s, /^\/\*/)) { block = 1
        } else if (match(s, /^[bc]?r#*"/)) {
            hashes = substr(s, 1, RLENGTH); gsub(/[bcr"]/, "", hashes); hashes = "\"" hashes; string = 2
        } else if (match(s, /^"/)) { string = 1
        } else if (match(s, /^\047(\\[^ux]|\\[ux][^\047]*|[^\\\047]|[^ -~]+)\047/)) { # a character; else a lifetime
        } else if (match(s, /^[A-Za-z_][A-Za-z0-9_]*|^::|^[0-9][A-Za-z0-9_]*|^./)) {
            t = substr(s, 1, RLENGTH)
            tok[++n] = t; line_of[n] = FNR
        }
        s = substr(s, RSTART + RLENGTH)
    }
}

function finish(   i, k, braces, inline, opened) {
    if (file == "") return
    if (last > 500) fault(last, "more than 500 lines")
    else if (last > 400) print "warning: " file " has " last " lines (at most 500)"
    tok[n + 1] = tok[n + 2] = tok[n + 3] = ""
    if (!(room in may)) fault(1, "not in a room")
    for (i = 1; i <= n; i++) {
        if (tok[i] == "{") {
            braces++
            if (tok[i - 2] == "mod") opened[++inline] = braces
        } else if (tok[i] == "}") {
            if (inline && opened[inline] == braces) inline--
            braces--
        } else if (tok[i] == "unsafe") {
            if (room != "sys" && room != "task") fault(line_of[i], "unsafe outside src/sys/ and src/task.rs")
        } else if (tok[i] == "tokio") {
            if (room !~ /^(parent|worker|pass|lib)$/) fault(line_of[i], "tokio outside src/parent/, src/worker/ and src/pass/")
        } else if (tok[i] == "target_os") {
            if (room != "sys") fault(line_of[i], "cfg(target_os) outside src/sys/")
        } else if (tok[i + 1] != "::") {
            continue
        } else if (tok[i] == "crate" || tok[i] == "std") {
            expand(i + 2, tok[i])
        } else if (tok[i] == "super" && room != "lib") {
            for (k = 1; tok[i + 1] == "::" && tok[i + 2] == "super"; k++) i += 2
            if (depth_of_file + inline - k <= 0) fault(line_of[i], "super:: leaves the room: say crate::")
        }
    }
}

# Judges every path of the use-tree that starts at token i; returns the first token after it.
function expand(i, path) {
    if (tok[i] == "{") {
        for (i++; i <= n && tok[i] != "}";) {
            i = expand(i, path)
            if (tok[i] == "as") i += 2
            if (tok[i] == ",") i++
        }
        return i + 1
    }
    path = path "::" tok[i]
    if (tok[i + 1] == "::" && tok[i + 2] ~ /^[A-Za-z_{*]/) return expand(i + 2, path)
    judge(path, line_of[i])
    return i + 1
}

function judge(path, line,   p) {
    split(path, p, "::")
    if (p[1] == "std") {
        if (room == "model" && (p[2] ~ /^(fs|net)$/ || path ~ /^std::process(::(Command|self|\*).*)?$/))
            fault(line, "model does no I/O, so not " path)
    } else if (room == "lib" || p[2] == room) {
    } else if (!(p[2] in may) || p[2] == "lib") {
        fault(line, path " is in no room: name the room that owns it")
    } else if (index(" " may[room] " ", " " p[2] " ") == 0) {
        fault(line, room " may not import crate::" p[2])
    } else if (room == "parent" && p[2] == "zygote" && p[3] != "serve") {
        fault(line, "parent may import only crate::zygote::serve, not " path)
    }
}
'

self_test() {
    local tree failures=0 tests=0 # no case may stand in a pipeline: a subshell would keep its counts
    tree=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$tree'" EXIT

    plant() { # file; the code comes on stdin
        rm -rf "$tree/src"
        mkdir -p "$tree/$(dirname "$1")"
        cat >"$tree/$1"
    }
    expect() { # exit code, output
        local found code=0
        found=$(check "$tree") || code=$?
        tests=$((tests + 1))
        if [[ $code != "$1" || $found != "$2" ]]; then
            printf 'self-test: expected\n  %s\nfound\n  %s\n' "$2" "$found" >&2
            failures=$((failures + 1))
        fi
    }
    finds() { # file, line, rule; the code comes on stdin
        plant "$1"
        expect 1 "$1:$2: $3"
    }
    passes() {
        plant "$1"
        expect 0 ""
    }

    # Who may import whom: every pair of rooms, against the table of the design, written a second time.
    local from to allowed
    while read -r from allowed; do
        for to in model sys wire task pass error worker zygote parent; do
            local file=src/$from/mod.rs rule="$from may not import crate::$to"
            [[ $from == task || $from == error || $from == lib ]] && file=src/$from.rs
            if [[ " $allowed $from " == *" $to "* ]]; then
                passes "$file" <<<"use crate::$to::serve;"
            else
                finds "$file" 1 "$rule" <<<"use crate::$to::serve;"
            fi
        done
    done <<'TABLE'
model
sys model
wire model
task wire model
error model wire
pass wire sys model
worker pass task wire sys model error
zygote worker wire sys model
parent zygote pass task error wire sys model
lib model sys wire task pass error worker zygote parent
TABLE

    # Paths in every shape.
    finds src/wire/frame.rs 3 "wire may not import crate::sys" <<<$'use crate::{\n    model::{A, b::C},\n    sys::{D, E as F},\n};'
    finds src/wire/frame.rs 1 "wire may not import crate::sys" <<<'use crate::{model as m, sys as s};'
    # shellcheck disable=SC2016 # the dollar is Rust's
    finds src/wire/frame.rs 1 "wire may not import crate::sys" <<<'fn f() -> u8 { $crate::sys::g::<u8>() }'
    finds src/wire/frame.rs 1 "crate::Error is in no room: name the room that owns it" <<<'use crate::Error;'
    finds src/wire/frame.rs 1 "crate::* is in no room: name the room that owns it" <<<'use crate::*;'
    finds src/parent/driver.rs 1 "parent may import only crate::zygote::serve, not crate::zygote::table" <<<'use crate::zygote::{serve, table};'
    finds src/parent/driver.rs 1 "parent may import only crate::zygote::serve, not crate::zygote" <<<'use crate::zygote;'
    finds src/sys/mod.rs 1 "super:: leaves the room: say crate::" <<<'use super::wire;'
    finds src/sys/linux.rs 2 "super:: leaves the room: say crate::" <<<$'use super::a;\nuse super::super::wire;'
    finds src/sys/linux.rs 2 "super:: leaves the room: say crate::" <<<$'mod m { use super::super::a; }\nuse super::super::wire;'
    finds src/other.rs 1 "not in a room" <<<''

    # What may be named where.
    finds src/wire/job.rs 2 "unsafe outside src/sys/ and src/task.rs" <<<$'#![deny(unsafe_code)]\nunsafe fn f() {}'
    finds src/zygote/mod.rs 1 "tokio outside src/parent/, src/worker/ and src/pass/" <<<'fn f() { tokio::spawn(g()); }'
    finds src/error.rs 1 "tokio outside src/parent/, src/worker/ and src/pass/" <<<'use ::tokio as t;'
    finds src/worker/mod.rs 1 "cfg(target_os) outside src/sys/" <<<'#[cfg(all(unix, target_os = "linux"))] mod a;'
    finds src/model/a.rs 1 "model does no I/O, so not std::fs::File" <<<'use std::{fmt, fs::File};'
    finds src/model/a.rs 1 "model does no I/O, so not std::net" <<<'use std::net;'
    finds src/model/a.rs 1 "model does no I/O, so not std::process::Command::new" <<<'fn f() { std::process::Command::new("a"); }'
    finds src/sys/a.rs 501 "more than 500 lines" < <(seq 501 | sed 's/.*/;/')
    local lines
    for lines in 401 500; do
        plant src/sys/a.rs < <(seq "$lines" | sed 's/.*/;/')
        expect 0 "warning: src/sys/a.rs has $lines lines (at most 500)"
    done
    passes src/sys/a.rs < <(seq 400 | sed 's/.*/;/')

    # What only looks like a fault.
    passes src/wire/frame.rs <<'RUST'
//! crate::sys, unsafe, tokio::spawn
/* unsafe /* nested */ crate::parent
   tokio::spawn */
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)]
pub(crate) fn f<'a>(s: &'a str) -> char { '"' /* unsafe */ }
const A: &str = "#[tokio::main] \" unsafe \
    crate::sys"; // unsafe
const B: &[u8] = br#"unsafe " crate::sys"#;
const C: [char; 6] = ['\'', '\\', '\u{1F600}', '\x7f', 'a', '"'];
const G: (char, char) = ('é','"'); const H: &str = "unsafe"; const I: (char, &str) = ('\"', "unsafe");
const D: &str = r"\"; const E: u8 = b'"'; const F: r#type = 0x1f;
mod tests { use super::*; fn t() { if true { super::f("unsafe"); } } }
use super::control; use std::{fs, net}; use crate::{model::*, wire::payload};
RUST
    passes src/sys/mod.rs <<<'#[cfg(target_os = "linux")] unsafe fn f() { use std::process::Command; }'
    passes src/task.rs <<<'unsafe impl Send for A {} mod tests { use super::A; }'
    passes src/lib.rs <<<'pub use crate::Error as E; fn f() { tokio::spawn(g()); }'
    for from in parent worker pass; do
        passes src/$from/a.rs <<<'use tokio::sync;'
    done
    passes src/model/exit.rs <<<'use std::process::ExitStatus;'

    ((failures == 0)) || exit 1
    echo "self-test: $tests cases as expected"
}

case ${1:-} in
--self-test) self_test ;;
"") check "$(dirname "$0")/.." && echo "layers: no fault" ;;
*) echo "usage: $0 [--self-test]" >&2 && exit 2 ;;
esac
