//! Panics of a task: the hook keeps what the payload does not carry (place and call chain).

use std::{any::Any, cell::Cell, panic::PanicHookInfo};

use super::{farewell, is_worker};
use crate::{
    model::{PanicReport, Terminal},
    sys::trace,
};

thread_local! {
    /// The last panic of this thread.
    static LAST: Cell<Option<Box<PanicReport>>> = const { Cell::new(None) };
    /// Of the zygote's threads, this one runs code of the user's.
    static CATCHES: Cell<bool> = const { Cell::new(false) };
}

/// In a zygote: the next panic of this thread will be caught, and reported.
pub(super) fn catch_next() {
    CATCHES.set(true);
    forget_last();
}

/// Installs the hook, before the program's own one, which still runs. Done once, by the zygote, for all its workers.
pub(crate) fn install_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !is_worker() && !CATCHES.get() {
            return previous(info);
        }
        let report = Box::new(report(info));
        if cfg!(panic = "abort") && is_worker() {
            // There is no unwinding to wait for: this is the last chance to say it.
            previous(info);
            farewell::say(Terminal::Panicked(report));
        }
        LAST.set(Some(report));
        previous(info);
    }));
}

fn report(info: &PanicHookInfo<'_>) -> PanicReport {
    let location = info.location().map(|place| place.to_string());
    let thread = std::thread::current().name().map(str::to_owned);
    PanicReport::new(message(info.payload()), location, thread, trace::addresses())
}

fn message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "<non-string>".to_owned(),
    }
}

/// Forgets an earlier panic of this thread that somebody caught.
pub(super) fn forget_last() {
    LAST.set(None);
}

/// The report of a panic that was caught on this thread. The payload is leaked: its destructor could panic again.
pub(super) fn caught<B>(payload: Box<dyn Any + Send>) -> Terminal<B> {
    if payload.is::<super::cancel::CancelPayload>() {
        return Terminal::Cancelled;
    }
    let message = message(&*payload);
    std::mem::forget(payload);
    // Long messages are cut, this one too.
    let bare = PanicReport::new(message, None, None, Vec::new());
    let report = match LAST.take() {
        Some(report) if report.message == bare.message || bare.message == "<non-string>" => report,
        // Re-raised with `resume_unwind`, or the task replaced the hook.
        _ => Box::new(bare),
    };
    Terminal::Panicked(report)
}
