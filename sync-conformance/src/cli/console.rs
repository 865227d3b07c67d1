//! What is said on standard error.

use std::fmt::Display;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use sync_core::{Error, ErrorKind};
use tokio::sync::oneshot;

use super::{FAILED, USAGE};

/// How long a line may hold up what comes next.
const PATIENCE: Duration = Duration::from_millis(200);

type Line = (String, oneshot::Sender<()>);

/// Standard error, written by a thread of its own: a pipe that nobody reads must keep neither
/// COMMAND alive nor the example from its end.
pub(super) struct Console {
    program: String,
    lines: mpsc::Sender<Line>,
}

impl Console {
    pub(super) fn new(program: String) -> Self {
        let (lines, incoming) = mpsc::channel::<Line>();
        std::thread::spawn(move || {
            for (line, written) in incoming {
                // With standard error gone there is nobody to tell.
                let _ = std::io::stderr().write_all(line.as_bytes());
                let _ = written.send(());
            }
        });
        Self { program, lines }
    }

    /// One line for an event, beginning at column one.
    pub(super) async fn event(&self, event: impl Display) {
        self.say(format!("{event}\n")).await;
    }

    /// What went wrong, for a person.
    pub(super) async fn complain(&self, what: impl Display) {
        self.say(format!("{}: {what}\n", self.program)).await;
    }

    /// Says what went wrong and gives the exit status for it.
    pub(super) async fn failed(&self, what: impl Display, error: &std::io::Error) -> u8 {
        self.complain(format_args!("{what}: {error}")).await;
        FAILED
    }

    /// Says what one of the crates reports and gives the exit status for it.
    pub(super) async fn error(&self, error: &Error) -> u8 {
        self.complain(error).await;
        if error.kind() == ErrorKind::Invalid { USAGE } else { FAILED }
    }

    async fn say(&self, line: String) {
        let (written, done) = oneshot::channel();
        if self.lines.send((line, written)).is_ok() {
            let _ = tokio::time::timeout(PATIENCE, done).await;
        }
    }
}
