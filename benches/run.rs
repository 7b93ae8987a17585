//! Runs the benchmark, which is a package of its own (`benches/table`): here it would be built with all that the tests
//! ask of tokio, and a program that asks for less has quicker workers.

use std::{
    env,
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["run", "--quiet", "--release", "--package", "table", "--"])
        .args(env::args_os().skip(1))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("the benchmark: {status}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("cargo does not run: {error}");
            ExitCode::FAILURE
        }
    }
}
