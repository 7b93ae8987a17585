//! A panic as it crosses from the worker to the parent.

use serde::{Deserialize, Serialize};

/// Longest message that is kept; a worker's text is input and is bounded.
const MAX_TEXT: usize = 64 * 1024;
/// Most addresses of a call chain.
const MAX_FRAMES: usize = 128;

/// A panic of a task, as its worker reported it: [`Error::Panicked`](crate::Error::Panicked) holds one.
///
/// The text comes from the worker; treat it like any other output of the task.
///
/// ```
/// async fn fails() {
///     panic!("no")
/// }
///
/// tokio_run_in_process::block_on(async {
///     let error = tokio_run_in_process::run_in_process(fails, ()).await.unwrap_err();
///     let report = error.panic().unwrap();
///     assert_eq!(report.message(), "no");
///     println!("at {}", report.location().unwrap());
/// })
/// .unwrap();
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PanicReport {
    pub(crate) message: String,
    pub(crate) location: Option<String>,
    pub(crate) thread: Option<String>,
    pub(crate) addresses: Vec<u64>,
}

impl PanicReport {
    pub(crate) fn new(
        mut message: String,
        location: Option<String>,
        thread: Option<String>,
        mut addresses: Vec<u64>,
    ) -> Self {
        truncate(&mut message);
        addresses.truncate(MAX_FRAMES);
        Self { message, location, thread, addresses }
    }

    /// Brings a report that came over the wire within the same bounds as one made here.
    pub(crate) fn bounded(self) -> Self {
        let short = |text: Option<String>| text.map(|mut text| (truncate(&mut text), text).1);
        Self::new(self.message, short(self.location), short(self.thread), self.addresses)
    }

    /// The panic's message; `<non-string>` if the payload was neither `&str` nor `String`.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where the panic happened, as `file:line:column`. `None` if it was re-raised with
    /// [`resume_unwind`](std::panic::resume_unwind) or the task replaced the panic hook.
    pub fn location(&self) -> Option<&str> {
        self.location.as_deref()
    }

    /// The name of the thread that panicked, if it had one.
    pub fn thread(&self) -> Option<&str> {
        self.thread.as_deref()
    }
}

impl std::fmt::Debug for PanicReport {
    /// Without the call chain, whose names are looked up when the report is displayed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("PanicReport");
        debug.field("message", &self.message).field("location", &self.location).field("thread", &self.thread);
        debug.finish_non_exhaustive()
    }
}

fn truncate(text: &mut String) {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" [...]");
    }
}

/// One function of a panic's call chain, innermost first: see
/// [`PanicReport::frames`](crate::PanicReport::frames).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// The function's path, demangled, without its hash.
    pub function: String,
    /// `file:line` if the program carries debug information.
    pub location: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_bounded() {
        let report = PanicReport::new("ä".repeat(MAX_TEXT), None, None, vec![1; 1000]);
        assert!(report.message.len() < MAX_TEXT + 10);
        assert!(report.message.ends_with("[...]"));
        assert_eq!(report.addresses.len(), MAX_FRAMES);
        let wild = PanicReport {
            message: "x".repeat(MAX_TEXT * 2),
            location: Some("y".repeat(MAX_TEXT * 2)),
            thread: None,
            addresses: vec![],
        };
        assert!(wild.bounded().location.unwrap().len() < MAX_TEXT + 10);
    }
}
