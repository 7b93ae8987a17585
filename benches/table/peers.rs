//! The other crates, each measured by a process of its own: see `benches/peers`.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

/// Crate as it is named to `peers`, name in the table, and whether it is a crate that a warm task must beat.
pub(crate) const PEERS: [(&str, &str, bool); 6] = [
    ("mem-isolate", "mem-isolate 0.1.6", true),
    ("zygote", "zygote 0.1.2, spawn() and run", true),
    ("procspawn", "procspawn 1.0.2", true),
    ("procspawn-pool", "procspawn 1.0.2 Pool", false),
    ("tokio", "re-exec, tokio::process (the peers' program)", false),
    ("cold-full", "run, cold, in a program with tokio `full`", false),
];

/// A process that measures one of them.
pub(crate) struct Peer {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// Builds the program that measures them, and says where it is.
pub(crate) fn build() -> Result<PathBuf, String> {
    eprintln!("building the peers ...");
    built("peers", |command| command)
}

/// Builds a program of this workspace with what `more` adds, and says where it is.
pub(crate) fn built(name: &str, more: impl FnOnce(&mut Command) -> &mut Command) -> Result<PathBuf, String> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let output = more(command.args(["build", "--release", "--package", name]))
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(crate::ROOT)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo does not run: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo build of {name}: {}", output.status));
    }
    let output = String::from_utf8_lossy(&output.stdout);
    let mut paths = output.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name).then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    paths.next_back().ok_or_else(|| format!("cargo did not say where {name} is"))
}

impl Peer {
    pub(crate) fn start(program: &Result<PathBuf, String>, arguments: &[&str]) -> Result<Self, String> {
        let mut child = Command::new(program.as_ref().map_err(Clone::clone)?)
            .args(arguments)
            // Cargo's; it would slow down what they execute.
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("does not start: {error}"))?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().map(BufReader::new).ok_or("no pipe")?;
        Ok(Self { child, orders, answers })
    }

    pub(crate) fn ask(&mut self, order: &str) -> Result<Vec<u64>, String> {
        let orders = self.orders.as_mut().ok_or("ended")?;
        writeln!(orders, "{order}").map_err(|error| format!("takes no orders: {error}"))?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| format!("does not answer: {error}"))?;
        match line.trim().split_once(' ') {
            _ if line.trim() == "ok" => Ok(Vec::new()),
            Some(("ok", numbers)) => {
                numbers.split(' ').map(|n| n.parse().map_err(|_| format!("said {n:?} for a number"))).collect()
            }
            Some(("error", error)) => Err(error.to_owned()),
            _ => Err("ended half-way".to_owned()),
        }
    }

    pub(crate) fn latencies(&mut self, n: usize, pause: Duration) -> Result<Vec<Duration>, String> {
        let times = self.ask(&format!("latency {n} {}", pause.as_nanos()))?;
        Ok(times.into_iter().map(Duration::from_nanos).collect())
    }

    /// Tasks per second.
    pub(crate) fn rate(&mut self, in_flight: usize, time: Duration) -> Result<f64, String> {
        match *self.ask(&format!("rate {in_flight} {}", time.as_nanos()))?.as_slice() {
            [done, elapsed] => Ok(done as f64 / Duration::from_nanos(elapsed).as_secs_f64()),
            _ => Err("two numbers are wanted".to_owned()),
        }
    }

    /// Lets it touch so much memory.
    pub(crate) fn memory(&mut self, bytes: usize) -> Result<(), String> {
        self.ask(&format!("memory {bytes}")).map(drop)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends with its orders.
        self.orders = None;
        let _ = self.child.wait();
    }
}
