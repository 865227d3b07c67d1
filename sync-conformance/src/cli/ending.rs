//! That the example has to end, and by when.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// From being lost or told to stop to the exit, whether or not the store answers. The promise is
/// 2 s; a busy machine may need the rest.
const LAST_WORDS: Duration = Duration::from_millis(1_600);

/// Whether somebody told the example to stop, and by when it exits with what status.
#[derive(Debug)]
pub(super) struct Ending {
    told: watch::Sender<Option<u8>>,
    last: watch::Sender<Option<(Instant, u8)>>,
}

impl Ending {
    pub(super) fn new() -> Self {
        Self { told: watch::Sender::new(None), last: watch::Sender::new(None) }
    }

    /// One that is told by SIGINT and SIGTERM.
    pub(super) fn on_signals() -> io::Result<Arc<Self>> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let ending = Arc::new(Self::new());
        let telling = Arc::clone(&ending);
        tokio::spawn(async move {
            let signal = tokio::select! {
                biased;
                _ = interrupt.recv() => Signal::INT,
                _ = terminate.recv() => Signal::TERM,
            };
            telling.tell(super::command::by_signal(signal.as_raw()));
        });
        Ok(ending)
    }

    /// Stop, and exit with `code`.
    pub(super) fn tell(&self, code: u8) {
        self.begin(code);
        self.told.send_replace(Some(code));
    }

    /// From now on there are [`LAST_WORDS`] left, then comes the exit with `code`. The first
    /// counts.
    pub(super) fn begin(&self, code: u8) {
        self.last.send_if_modified(|last| {
            let first = last.is_none();
            if first {
                *last = Some((Instant::now() + LAST_WORDS, code));
            }
            first
        });
    }

    /// What [`told`](Ending::told) would say now.
    pub(super) fn is_told(&self) -> Option<u8> {
        *self.told.borrow()
    }

    /// Resolves once told to stop, with the exit status for that.
    pub(super) async fn told(&self) -> u8 {
        some(&self.told).await
    }

    /// Resolves when the time for an orderly end is over.
    pub(super) async fn overdue(&self) -> u8 {
        let (at, code) = some(&self.last).await;
        sleep_until(at).await;
        code
    }
}

async fn some<T: Copy>(value: &watch::Sender<Option<T>>) -> T {
    let mut value = value.subscribe();
    loop {
        if let Some(value) = *value.borrow_and_update() {
            return value;
        }
        if value.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_reason_to_end_sets_the_time() {
        let ending = Ending::new();
        let began = Instant::now();
        ending.begin(125);
        tokio::time::advance(Duration::from_secs(1)).await;
        ending.tell(143);
        assert_eq!(ending.told().await, 143);
        assert_eq!(ending.overdue().await, 125);
        assert!(began.elapsed() <= LAST_WORDS + Duration::from_millis(2));
    }
}
