//! Opt-in: signals that the program receives go on to its workers.

use std::{
    io,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use signal_hook::{
    iterator::{Handle, Signals},
    low_level::emulate_default_handler,
};

use super::{
    init::{default_zygote, process_wide},
    zygote::Zygote,
};
use crate::{
    error::Error,
    model::Signal,
    sys::signal::{self, Disposition},
};

const RELAYED: [Signal; 3] = [Signal::TERM, Signal::HUP, Signal::INT];

/// Relays signals for as long as it lives: made by [`relay_signals`] and [`Zygote::relay_signals`].
#[must_use = "dropping it ends the relay; `forget` keeps it for the life of the program"]
pub struct Relay {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Relay")
    }
}

/// Relays SIGTERM, SIGHUP and SIGINT to the workers of the process-wide zygote, whichever that is when a signal comes
/// ([`set_default_zygote`](crate::set_default_zygote)), and of those that were it before: see [`Zygote::relay_signals`].
///
/// # Errors
///
/// As [`Zygote::relay_signals`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// tokio_run_in_process::init()?;
/// tokio_run_in_process::relay_signals()?.forget();
/// # Ok(()) }
/// ```
pub fn relay_signals() -> Result<Relay, Error> {
    default_zygote()?.0.check_owner()?;
    relay(process_wide).map_err(|e| Error::Spawn {
        task: crate::error::TaskId { name: "relay".into(), pid: None },
        step: "relay signals".to_owned(),
        source: e.into(),
    })
}

impl Zygote {
    /// Relays every SIGTERM, SIGHUP and SIGINT that this program receives to the workers that run then. In a worker, SIGTERM
    /// and SIGINT end the task as always; SIGHUP kills it at once, unless it took that over
    /// ([`worker::signal`](crate::worker::signal())).
    ///
    /// A signal that had its default action when this was called still ends the program, as it would have: after its
    /// workers are gone, or the longest of their grace periods is over. One that the program handles (register your
    /// handlers before) is left to those handlers. Workers are in sessions of their own, so without a relay a Ctrl-C
    /// reaches the program only, and its end ends them.
    ///
    /// It uses `signal-hook`, whose handlers stand beside those of `tokio::signal`, and one thread.
    ///
    /// # Errors
    ///
    /// If a handler or the thread cannot be made.
    ///
    /// ```
    /// let zygote = tokio_run_in_process::Zygote::builder().start().unwrap();
    /// let relay = zygote.relay_signals().unwrap();
    /// // ... run the program ...
    /// drop(relay); // from here on the signals are the program's alone
    /// ```
    pub fn relay_signals(&self) -> io::Result<Relay> {
        self.0.check_owner().map_err(io::Error::other)?;
        let zygote = self.clone();
        relay(move || vec![zygote.clone()])
    }

    fn relay(&self, signal: Signal) {
        let Ok(driver) = self.0.driver() else { return };
        let mut roster = driver.roster();
        for id in roster.ids(&self.0) {
            let _ = roster.signal(id, signal);
        }
    }

    /// How long its workers may take to end, if there are any.
    fn longest_grace(&self) -> Option<Duration> {
        self.0.driver().ok()?.roster().longest_grace(&self.0)
    }
}

/// Relays to the workers of these, asked for at every signal.
fn relay(zygotes: impl Fn() -> Vec<Zygote> + Send + 'static) -> io::Result<Relay> {
    let default = RELAYED.map(|signal| signal::disposition(signal) == Disposition::Default);
    let mut signals = Signals::new(RELAYED.map(Signal::number))?;
    let handle = signals.handle();
    let thread = std::thread::Builder::new().name("relay-signals".to_owned()).spawn(move || {
        for number in signals.forever() {
            let relayed = Signal::from(number);
            let zygotes = zygotes();
            zygotes.iter().for_each(|zygote| zygote.relay(relayed));
            let at = RELAYED.iter().position(|&signal| signal == relayed);
            if at.is_some_and(|at| default[at]) {
                wait_until_idle(&zygotes);
                let _ = emulate_default_handler(number);
            }
        }
    })?;
    Ok(Relay { handle, thread: Some(thread) })
}

/// Waits, on a thread of its own, until no worker is left, or those that are have had their time.
fn wait_until_idle(zygotes: &[Zygote]) {
    let start = Instant::now();
    while zygotes.iter().filter_map(Zygote::longest_grace).max().is_some_and(|grace| start.elapsed() < grace) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Relay {
    /// Relays for the life of the program.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
