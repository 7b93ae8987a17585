//! Call chains: addresses where the panic is, names where it is printed.

use std::fmt;

use crate::model::{Frame, PanicReport};

/// The return addresses above this call, innermost first. Costs microseconds: nothing is looked up.
pub(crate) fn addresses() -> Vec<u64> {
    let mut addresses = Vec::with_capacity(64);
    backtrace::trace(|frame| {
        addresses.push(frame.ip() as u64);
        addresses.len() < 128
    });
    addresses
}

impl PanicReport {
    /// The call chain in the worker, innermost first, from the panic up to the task. Names are looked up when this is
    /// called, in this program, which is of the same image as the worker; with full debug information that can take
    /// hundreds of milliseconds.
    ///
    /// ```
    /// #[inline(never)]
    /// async fn fails() {
    ///     panic!("no")
    /// }
    ///
    /// tokio_run_in_process::block_on(async {
    ///     let error = tokio_run_in_process::run_in_process(fails, ()).await.unwrap_err();
    ///     let frames = error.panic().unwrap().frames();
    ///     assert!(frames.iter().any(|frame| frame.function.contains("fails")));
    /// })
    /// .unwrap();
    /// ```
    pub fn frames(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for &address in &self.addresses {
            // The instruction before the return address is the call.
            let Some(ip) = usize::try_from(address).ok().and_then(|ip| ip.checked_sub(1)) else { continue };
            backtrace::resolve(ip as *mut std::ffi::c_void, |symbol| {
                let Some(name) = symbol.name() else { return };
                let location = match (symbol.filename(), symbol.lineno()) {
                    (Some(file), Some(line)) => Some(format!("{}:{line}", file.display())),
                    _ => None,
                };
                frames.push(Frame { function: format!("{name:#}"), location });
            });
        }
        trim(frames)
    }
}

/// Leaves the machinery of panics and of this library out, if it is recognised.
fn trim(mut frames: Vec<Frame>) -> Vec<Frame> {
    let is_machinery = |frame: &Frame| {
        let name = frame.function.trim_start_matches('<');
        [
            "core::panicking::",
            "std::panicking::",
            "std::sys::backtrace::",
            "rust_begin_unwind",
            "__rustc::rust_begin_unwind",
        ]
        .iter()
        .any(|start| name.starts_with(start))
    };
    let is_ours = |frame: &Frame| {
        ["tokio_run_in_process::task::", "tokio_run_in_process::worker::"]
            .iter()
            .any(|part| frame.function.contains(part))
    };
    // The hook itself is ours and comes before the machinery.
    if let Some(first) = frames.iter().position(is_machinery) {
        let start = first + frames[first..].iter().take_while(|frame| is_machinery(frame)).count();
        frames.drain(..start);
    }
    if let Some(end) = frames.iter().position(is_ours).filter(|&end| end > 0) {
        frames.truncate(end);
    }
    frames
}

impl fmt::Display for PanicReport {
    /// The message, the place, and the call chain, for which the names are looked up now.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())?;
        if let Some(location) = self.location() {
            write!(f, " (at {location})")?;
        }
        for frame in self.frames() {
            write!(f, "\n    in {}", frame.function)?;
            if let Some(location) = frame.location {
                write!(f, " at {location}")?;
            }
        }
        Ok(())
    }
}
