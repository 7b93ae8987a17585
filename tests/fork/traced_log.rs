//! A `tracing` subscriber that notes what it is told, and blocks or panics when it is asked to.

use std::{
    cell::RefCell,
    fmt::Write as _,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio_run_in_process::{Stdio, Task, flush_traced};
use tracing::{Event, Metadata, Subscriber, field, span};
use tracing_core::span::Current;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// One event, as the subscriber had it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) level: String,
    pub(crate) target: String,
    pub(crate) message: String,
    pub(crate) task: String,
    pub(crate) stream: String,
    pub(crate) pid: u64,
    pub(crate) cut: bool,
    pub(crate) dropped: u64,
    pub(crate) parent: Option<u64>,
}

impl field::Visit for Seen {
    fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => write!(self.message, "{value:?}").unwrap(),
            "reason" | "error" => {}
            other => panic!("a field {other}"),
        }
    }

    fn record_str(&mut self, field: &field::Field, value: &str) {
        match field.name() {
            "task" => self.task = value.to_owned(),
            "stream" => self.stream = value.to_owned(),
            other => panic!("a field {other}"),
        }
    }

    fn record_u64(&mut self, field: &field::Field, value: u64) {
        match field.name() {
            "pid" => self.pid = value,
            "dropped" => self.dropped = value,
            other => panic!("a field {other}"),
        }
    }

    fn record_bool(&mut self, field: &field::Field, value: bool) {
        assert_eq!(field.name(), "cut");
        self.cut = value;
    }
}

pub(crate) static SEEN: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
/// Events wait for it to be false.
pub(crate) static BLOCKED: AtomicBool = AtomicBool::new(false);
pub(crate) static WAITING: AtomicBool = AtomicBool::new(false);

static SPANS: Mutex<Vec<&'static Metadata<'static>>> = Mutex::new(Vec::new());
/// How many handles to spans were dropped.
pub(crate) static CLOSES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static ENTERED: RefCell<Vec<span::Id>> = const { RefCell::new(Vec::new()) };
}

/// Notes what comes, in `SEEN` or in a list of its own.
pub(crate) struct Log(pub(crate) Option<&'static Mutex<Vec<Seen>>>);

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tokio_run_in_process") || metadata.is_span()
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut spans = SPANS.lock().unwrap();
        spans.push(attributes.metadata());
        span::Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut seen = Seen {
            level: event.metadata().level().to_string(),
            target: event.metadata().target().to_owned(),
            parent: event.parent().map(span::Id::into_u64),
            ..Seen::default()
        };
        event.record(&mut seen);
        while BLOCKED.load(SeqCst) {
            WAITING.store(true, SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!seen.message.starts_with("please panic"), "as asked");
        self.0.unwrap_or(&SEEN).lock().unwrap().push(seen);
    }

    fn enter(&self, id: &span::Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.clone()));
    }

    fn exit(&self, _: &span::Id) {
        ENTERED.with_borrow_mut(Vec::pop);
    }

    fn try_close(&self, _: span::Id) -> bool {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        assert_ne!(thread, "run-in-process", "the driver runs no code of the program");
        CLOSES.fetch_add(1, SeqCst);
        false
    }

    fn current_span(&self) -> Current {
        let Some(id) = ENTERED.with_borrow(|entered| entered.last().cloned()) else { return Current::none() };
        let metadata = SPANS.lock().unwrap()[usize::try_from(id.into_u64()).unwrap() - 1];
        Current::new(id, metadata)
    }
}

pub(crate) fn install() {
    tracing::subscriber::set_global_default(Log(None)).unwrap();
}

pub(crate) fn seen() -> MutexGuard<'static, Vec<Seen>> {
    SEEN.lock().unwrap()
}

/// All that was told since the last time, once it has all been told.
pub(crate) fn take() -> Vec<Seen> {
    assert!(flush_traced(10 * SECOND));
    std::mem::take(&mut *seen())
}

/// The lines of one stream.
pub(crate) fn lines(seen: &[Seen], stream: &str) -> Vec<String> {
    seen.iter().filter(|seen| seen.stream == stream).map(|seen| seen.message.clone()).collect()
}

pub(crate) fn traced() -> Task {
    Task::new().stdout(Stdio::traced()).stderr(Stdio::traced())
}

pub(crate) fn talks() -> u32 {
    println!("one");
    eprintln!("two");
    println!("three");
    std::process::id()
}
