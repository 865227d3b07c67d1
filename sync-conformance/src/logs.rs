//! What is logged, for tests that look at it.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Metadata, Subscriber};

/// Everything that this thread logs while the guard lives, spans and fields of every level and of
/// every library.
///
/// ```
/// let (logs, _guard) = sync_conformance::logs::capture();
/// tracing::warn!(target: "sync_redis::probe", policy = "volatile-lru", "it may evict");
/// tracing::warn!(target: "hyper", "other");
/// let ours = "WARN sync_redis::probe message=it may evict policy=\"volatile-lru\"\n";
/// assert_eq!(logs.of("sync_"), ours);
/// assert!(logs.text().contains("other"));
/// ```
#[must_use]
pub fn capture() -> (Logs, DefaultGuard) {
    // Where there is but one, tracing asks the thread that comes by first whether a place in the
    // code is logged at all; and that may be another test's, which logs nothing.
    static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
    ANOTHER.get_or_init(|| Dispatch::new(Logs::default()));
    let logs = Logs::default();
    let guard = tracing::subscriber::set_default(logs.clone());
    (logs, guard)
}

/// An error with all its causes, as somebody may log it.
///
/// ```
/// let error = std::io::Error::other("a cause");
/// assert!(sync_conformance::logs::shown(&error).contains("a cause"));
/// ```
#[must_use]
pub fn shown(error: &dyn Error) -> String {
    let mut shown = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(shown, " {inner} {inner:?}");
        cause = inner.source();
    }
    shown
}

/// What was logged. See [`capture`].
///
/// ```
/// assert_eq!(sync_conformance::logs::Logs::default().text(), "");
/// ```
#[derive(Clone, Default)]
pub struct Logs(Arc<Mutex<String>>);

impl Logs {
    /// All of it so far, a line for each event and each span: level, target and fields.
    #[must_use]
    pub fn text(&self) -> String {
        self.lock().clone()
    }

    /// The events and spans whose target begins like this.
    #[must_use]
    pub fn of(&self, target: &str) -> String {
        let text = self.lock();
        let told_by = |line: &&str| line.split(' ').nth(1).is_some_and(|by| by.starts_with(target));
        text.split_inclusive('\n').filter(told_by).collect()
    }

    fn note(&self, metadata: &Metadata<'_>, fields: impl FnOnce(&mut Line)) {
        // Written before the lock is taken: what is shown may log as well.
        let mut line = Line(format!("{} {}", metadata.level(), metadata.target()));
        fields(&mut line);
        line.0.push('\n');
        self.lock().push_str(&line.0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

impl Subscriber for Logs {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.note(span.metadata(), |line| span.record(line));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        let mut line = Line("- -".to_owned());
        values.record(&mut line);
        line.0.push('\n');
        self.lock().push_str(&line.0);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.note(event.metadata(), |line| event.record(line));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // One line each, whatever is told.
        let value = format!("{value:?}").replace('\n', "\\n");
        let _ = write!(self.0, " {field}={value}");
    }
}
