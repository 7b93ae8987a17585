//! What the compiler refuses, and what it says then: a sentence that a person can act on. Each source is refused for
//! its one fault, which the corrected source beside it proves.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// A program whose tasks are these.
fn program(items: &str, body: &str) -> String {
    format!(
        "#![allow(unused)]\nuse tokio_run_in_process::*;\n{items}\nfn main() {{\n    block_on(async {{ {body} }});\n}}\n"
    )
}

/// The folder where Cargo put this test, and beside it the libraries.
fn libraries() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// The libraries of a crate, newest first.
fn builds_of(name: &str) -> Vec<PathBuf> {
    let prefix = format!("lib{name}-");
    let mut found: Vec<PathBuf> = std::fs::read_dir(libraries())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new("rlib")))
        .filter(|path| path.file_name().and_then(OsStr::to_str).is_some_and(|file| file.starts_with(&prefix)))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().and_then(|metadata| metadata.modified()).ok()));
    found
}

/// Compiles a program up to its machine code, since some refusals come that late, and gives what the compiler said.
fn compile_with(libraries: &[(&str, &Path)], source: &str) -> Result<String, String> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("refusals-{}-{number}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("main.rs"), source).unwrap();
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(&folder).args(["--edition", "2024", "--crate-type", "bin", "--emit=obj", "--color=never"]);
    command.arg("-L").arg(format!("dependency={}", self::libraries().display()));
    for (name, path) in libraries {
        command.arg("--extern").arg(format!("{name}={}", path.display()));
    }
    let output = command.arg("main.rs").output().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// The newest builds that a program can be compiled with: the folder may hold some of another compiler, or flags.
fn usable() -> &'static (PathBuf, PathBuf) {
    static USABLE: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    USABLE.get_or_init(|| {
        let mut said = String::new();
        for ours in builds_of("tokio_run_in_process") {
            for serde in builds_of("serde") {
                // The two belong together if a derived type may be an argument.
                let source = program(
                    "#[derive(serde::Serialize, serde::Deserialize)] struct Point(u8);",
                    "run_in_process(async |point: Point| point, Point(1)).await.unwrap()",
                );
                match compile_with(&[("tokio_run_in_process", &ours), ("serde", &serde)], &source) {
                    Ok(_) => return (ours, serde),
                    Err(text) => said = text,
                }
            }
        }
        panic!("no build of the library can be used:\n{said}")
    })
}

fn compile(source: &str) -> Result<String, String> {
    let (ours, serde) = usable();
    compile_with(&[("tokio_run_in_process", ours), ("serde", serde)], source)
}

/// `wrong` is refused with one error that says all of `words`; `right` is not refused.
fn refused(wrong: &str, words: &[&str], right: &str) {
    if let Err(text) = compile(right) {
        panic!("the corrected program is refused:\n{text}");
    }
    let text = compile(wrong).expect_err("the program is not refused");
    for word in words {
        assert!(text.contains(word), "nothing about {word:?} in:\n{text}");
    }
    // Long types are not to be in the way of the sentence.
    assert!(text.lines().count() < 100, "too long to be read:\n{text}");
}

const ADD: &str = "async fn add(a: u64, b: u64) -> u64 { a + b }";

#[test]
fn s11_wrong_arguments_are_refused() {
    let right = program(ADD, "run_in_process(add, (1, 2)).await");
    let arguments = |arguments: &str| program(ADD, &format!("run_in_process(add, {arguments}).await"));
    refused(&arguments("(1, 2, 3)"), &["expected a tuple with 2 elements, found one with 3 elements"], &right);
    refused(&arguments("1"), &["expected `(u64, u64)`, found integer"], &right);
    refused(&arguments("()"), &["expected `(u64, u64)`, found `()`"], &right);
    refused(&arguments("(1, \"2\".to_owned())"), &["expected `u64`, found `String`"], &right);
    let task = |call: &str| program(ADD, &format!("Task::new().{call}.await"));
    refused(&task("open(add, 1)"), &["expected `(u64, u64)`, found integer"], &task("open(add, (1, 2))"));
    let plain = "fn twice(n: u64) -> u64 { 2 * n }";
    refused(
        &program(plain, "run_blocking_in_process(twice, (1, 2)).await"),
        &["expected `u64`, found `(", "run_blocking_in_process"],
        &program(plain, "run_blocking_in_process(twice, 1).await"),
    );
}

#[test]
fn s11_a_plain_function_is_told_where_it_belongs() {
    let plain = "fn add(a: u64, b: u64) -> u64 { a + b }";
    refused(
        &program(plain, "run_in_process(add, (1, 2)).await"),
        &["cannot run in a process", "a plain (not async) function runs with `run_blocking_in_process`"],
        &program(plain, "run_blocking_in_process(add, (1, 2)).await"),
    );
}

#[test]
fn a_closure_that_captures_is_refused() {
    let number = |call: &str| program("", &format!("let captured = 5_u64; {call}.await"));
    let says = ["a function given to run_in_process must not capture anything", "pass what it needs as arguments"];
    refused(
        &number("run_in_process(async move |n: u64| n + captured, 1)"),
        &says,
        &number("run_in_process(async |n: u64, captured: u64| n + captured, (1, captured))"),
    );
    refused(
        &number("open_blocking_in_process(move |n: u64| n + captured, 1)"),
        &says,
        &number("open_blocking_in_process(|n: u64, captured: u64| n + captured, (1, captured))"),
    );
    // What is not `Copy` is refused earlier, and no less clearly.
    let text = |call: &str| program("", &format!("let captured = String::new(); {call}.await"));
    let says =
        ["cannot run in a process", "a closure must not capture anything: what it needs goes into its arguments"];
    refused(
        &text("run_in_process(async move |n: usize| n + captured.len(), 1)"),
        &says,
        &text("run_in_process(async |n: usize, captured: String| n + captured.len(), (1, captured))"),
    );
    refused(
        &text("run_blocking_in_process(move |n: usize| n + captured.len(), 1)"),
        &says,
        &text("run_blocking_in_process(|n: usize, captured: String| n + captured.len(), (1, captured))"),
    );
}

#[test]
fn a_function_pointer_is_refused() {
    let items = "fn twice(n: u64) -> u64 { 2 * n }";
    refused(
        &program(items, "run_blocking_in_process(twice as fn(u64) -> u64, 1).await"),
        &["must not be a function pointer: name the function itself"],
        &program(items, "run_blocking_in_process(twice, 1).await"),
    );
}

#[test]
fn a_type_without_serde_is_refused() {
    let items = |derives: &str| {
        format!(
            "{derives} struct Words(Vec<String>);
             async fn count(words: Words) -> usize {{ words.0.len() }}
             async fn split(text: String) -> Words {{ Words(vec![text]) }}"
        )
    };
    let derives = "#[derive(serde::Serialize, serde::Deserialize)]";
    for call in ["run_in_process(count, Words(vec![])).await", "run_in_process(split, String::new()).await"] {
        let says = ["`Words: serde::Serialize` is not satisfied", "consider adding `#[derive(serde::Serialize)]`"];
        refused(&program(&items(""), call), &says, &program(&items(derives), call));
    }
    let call = "run_in_process(count, Words(vec![])).await";
    let only = program(&items("#[derive(serde::Serialize)]"), call);
    refused(&only, &["`Words: serde::de::DeserializeOwned` is not satisfied"], &program(&items(derives), call));
}
