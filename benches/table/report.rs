//! Where everything goes that is found out: lines of the table, and named numbers for the verdict and the charts.

use std::{collections::BTreeMap, fs, io, path::PathBuf, process::Command};

/// The table so far.
#[derive(Default)]
pub(crate) struct Report {
    text: String,
    numbers: BTreeMap<String, f64>,
}

impl Report {
    /// Prints a line and keeps it.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref().trim_end();
        println!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// A headline with the names of its columns.
    pub(crate) fn head(&mut self, line: impl AsRef<str>) {
        self.line("");
        self.line(line.as_ref());
        self.line("-".repeat(line.as_ref().trim_end().chars().count()));
    }

    /// Keeps a number for the verdict and the charts.
    pub(crate) fn found(&mut self, name: impl Into<String>, value: f64) {
        self.numbers.insert(name.into(), value);
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.numbers.get(name).copied().filter(|value| value.is_finite())
    }

    /// Writes the table and the charts into each of the folders.
    pub(crate) fn write(&self, folders: &[PathBuf], charts: &[(&str, String)]) -> io::Result<()> {
        for folder in folders {
            fs::create_dir_all(folder)?;
            fs::write(folder.join("table.txt"), &self.text)?;
            for (name, chart) in charts {
                fs::write(folder.join(name), chart)?;
            }
            println!("written to {}", folder.display());
        }
        Ok(())
    }
}

/// What the numbers were taken on.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let kernel = read("/proc/sys/kernel/osrelease");
    let rustc =
        Command::new("rustc").arg("--version").output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let rustc = rustc.unwrap_or_default();
    let rustc = rustc.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cpus} CPUs ({}), {} {}, {rustc}",
        model.unwrap_or("model unknown"),
        std::env::consts::OS,
        kernel.trim().split('-').next().unwrap_or_default()
    )
}
