//! Opt-in: signals that the program receives go on to its workers.

use std::{io, thread::JoinHandle, time::Duration};

use signal_hook::{
    iterator::{Handle, Signals},
    low_level::emulate_default_handler,
};

use super::{init::default_zygote, zygote::Zygote};
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

/// Relays SIGTERM, SIGHUP and SIGINT to the workers of the process-wide zygote: see [`Zygote::relay_signals`].
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
    default_zygote()?.relay_signals().map_err(|e| Error::Spawn {
        task: crate::error::TaskId { name: "relay".into(), pid: None },
        step: "relay signals".to_owned(),
        source: e.into(),
    })
}

impl Zygote {
    /// Relays every SIGTERM, SIGHUP and SIGINT that this program receives to the workers that run then.
    ///
    /// A signal that had its default action when this was called still ends the program, as it would have: after its
    /// workers are gone, or their grace period is over. One that the program handles (register your handlers before) is
    /// left to those handlers. Workers are in sessions of their own, so without a relay a Ctrl-C reaches the program
    /// only, and its end ends them.
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
        let default = RELAYED.map(|signal| signal::disposition(signal) == Disposition::Default);
        let mut signals = Signals::new(RELAYED.map(Signal::number))?;
        let handle = signals.handle();
        let zygote = self.clone();
        let thread = std::thread::Builder::new().name("relay-signals".to_owned()).spawn(move || {
            for number in signals.forever() {
                let relayed = Signal::from(number);
                zygote.relay(relayed);
                let at = RELAYED.iter().position(|&signal| signal == relayed);
                if at.is_some_and(|at| default[at]) {
                    zygote.wait_until_idle(zygote.0.config.grace_period);
                    let _ = emulate_default_handler(number);
                }
            }
        })?;
        Ok(Relay { handle, thread: Some(thread) })
    }

    fn relay(&self, signal: Signal) {
        let Ok(driver) = self.0.driver() else { return };
        let mut roster = driver.roster();
        for id in roster.ids(&self.0) {
            let _ = roster.signal(id, signal);
        }
    }

    /// Waits, on a thread of its own, until no worker is left, at most `limit`.
    fn wait_until_idle(&self, limit: Duration) {
        let Ok(driver) = self.0.driver() else { return };
        let start = std::time::Instant::now();
        while start.elapsed() < limit && !driver.roster().ids(&self.0).is_empty() {
            std::thread::sleep(Duration::from_millis(2));
        }
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
