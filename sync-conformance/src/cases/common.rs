//! What several files of cases need.

use std::future::Future;
use std::sync::Arc;

use sync_core::backend::{Attempt, Claim, Grant};
use sync_core::{BootClock, Cause, Clock, Environment, Error, ErrorKind, Hold, Kind, Moment, Name};
use tokio::time::timeout;

use crate::context::Context;
use crate::failed::Failed;

/// The outcome of `work`, which must come within [`Context::long`]: else it is said what has not
/// happened.
pub(super) async fn soon<T>(
    ctx: &Context,
    what: &str,
    work: impl Future<Output = T>,
) -> Result<T, Failed> {
    let limit = ctx.long();
    Ok(timeout(limit, work).await.map_err(|_| format!("not within {limit:?}: {what}"))?)
}

/// Why the claim was lost, once its holder is told.
pub(super) async fn told(ctx: &Context, hold: &Hold) -> Result<Cause, Failed> {
    Ok(soon(ctx, "the holder is told", hold.revoked()).await?.cause)
}

/// The kind of the error that something failed with; `None` if it did not.
pub(super) fn kind<T>(outcome: Result<T, Error>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}

/// The present moment on the clock that coordinators have unless told otherwise.
pub(super) fn now() -> Moment {
    BootClock::new().now()
}

/// A claim of the lock `x` as the core would make it.
pub(super) fn claim() -> Result<Arc<Claim>, Failed> {
    let nonce = Environment::default().nonce()?;
    let record = format!(r#"{{"id":"x","since":1,"nonce":"{}"}}"#, nonce.to_hex());
    let record = Arc::from(record.into_bytes());
    Ok(Arc::new(Claim::new(Kind::Lock, Name::parse("x")?, nonce, record, false)))
}

/// What was granted.
pub(super) fn granted(attempt: Attempt) -> Result<Grant, Failed> {
    match attempt {
        Attempt::Held(grant) => Ok(grant),
        other => Err(format!("not granted: {other:?}"))?,
    }
}

/// Runs a case on a runtime of one thread, so that a [`std::thread::sleep`] is to it what SIGSTOP
/// is to a process: no timer fires, nothing is renewed, nothing runs.
pub(super) async fn on_one_thread<F, Fut>(case: F) -> Result<(), Failed>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), Failed>>,
{
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(case())
    };
    tokio::task::spawn_blocking(run).await?
}
