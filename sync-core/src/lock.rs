//! The face of a lock.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::pin;
use std::time::Duration;

use crate::claim::Claimed;
use crate::error::Error;
use crate::handle::Wanting;
use crate::mutant;
use crate::node::{Holder, Node};
use crate::revocation::Hold;

/// A handle on one lock: mutual exclusion across processes. Cheap to clone; nothing is sent before
/// it is used.
///
/// A lock is not reentrant: a second [`acquire`](Lock::acquire) by whoever holds it waits like any
/// other.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sync_core::Error> {
/// # let sync = sync_core::memory::Store::new().connect(&Default::default())?;
/// use std::time::Duration;
///
/// let lock = sync.lock("nightly-report").wait(Duration::from_secs(5));
/// let guard = lock.acquire().await?;
/// assert!(lock.try_acquire().await?.is_none());
/// guard.release().await
/// # }
/// ```
#[derive(Clone)]
pub struct Lock {
    wanting: Wanting,
}

impl Lock {
    pub(crate) fn new(wanting: Wanting) -> Self {
        Self { wanting }
    }

    /// How long a dead holder blocks others, instead of the coordinator's TTL.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { wanting: self.wanting.ttl(ttl) }
    }

    /// How long to wait for a name that is taken, instead of the coordinator's wait. Zero tries
    /// once.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        Self { wanting: self.wanting.wait(wait) }
    }

    /// Who the holder is to others, instead of the coordinator's node.
    #[must_use]
    pub fn node(self, node: Node) -> Self {
        Self { wanting: self.wanting.node(node) }
    }

    /// Gives this handle and its clones a session of their own, so that they do not share the fate
    /// of the coordinator's other claims. Costs renewals of its own.
    #[must_use]
    pub fn dedicated_session(self) -> Self {
        Self { wanting: self.wanting.dedicated_session() }
    }

    /// The lock's name.
    #[must_use]
    pub fn id(&self) -> &str {
        self.wanting.id()
    }

    /// The key that stands in the store while the lock is held, for other tools.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) when the name cannot be one.
    pub fn key(&self) -> Result<String, Error> {
        self.wanting.key()
    }

    /// Waits for the lock, first come, first served, for as long as the wait allows. A store that
    /// cannot be reached is tried again until then.
    ///
    /// # Errors
    /// [`Timeout`](crate::ErrorKind::Timeout) when the wait is used up while somebody else holds
    /// it, [`Unreachable`](crate::ErrorKind::Unreachable) or [`Unknown`](crate::ErrorKind::Unknown)
    /// when it is used up without an answer of the store; at once
    /// [`Invalid`](crate::ErrorKind::Invalid), [`Denied`](crate::ErrorKind::Denied),
    /// [`Foreign`](crate::ErrorKind::Foreign) and [`Closed`](crate::ErrorKind::Closed).
    ///
    /// # Cancel safety
    /// Dropping the future at any point leaves nothing behind: a request under way is carried to
    /// its answer in the background, and what it won is given back.
    pub async fn acquire(&self) -> Result<LockGuard, Error> {
        Ok(LockGuard::new(self.wanting.claim().await?))
    }

    /// Takes the lock if it is free; `None` if somebody else holds it or waits for it.
    ///
    /// # Errors
    /// As [`acquire`](Lock::acquire), except that nothing is waited for.
    ///
    /// # Cancel safety
    /// As [`acquire`](Lock::acquire).
    pub async fn try_acquire(&self) -> Result<Option<LockGuard>, Error> {
        Ok(self.wanting.try_claim().await?.map(LockGuard::new))
    }

    /// Runs `body` under the lock, and stops it (drops its future) when the lock is lost. The lock
    /// is released only after the body has ended.
    ///
    /// Synchronous code inside the body cannot be stopped: let it look at
    /// [`is_valid`](Hold::is_valid), and send the [token](Hold::token) along.
    ///
    /// # Errors
    /// As [`acquire`](Lock::acquire); and [`Lost`](crate::ErrorKind::Lost) when the lock was lost
    /// before the body had ended.
    ///
    /// # Cancel safety
    /// Dropping the future drops the body first and releases then, in the background.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sync_core::Error> {
    /// # let sync = sync_core::memory::Store::new().connect(&Default::default())?;
    /// let lock = sync.lock("nightly-report");
    /// let report = lock.run(|hold| async move { format!("token {}", hold.token()) }).await?;
    /// assert_eq!(report, "token 1");
    /// # Ok(()) }
    /// ```
    pub async fn run<T, F, Fut>(&self, body: F) -> Result<T, Error>
    where
        F: FnOnce(Hold) -> Fut,
        Fut: Future<Output = T>,
    {
        let claimed = self.wanting.claim().await?;
        let hold = claimed.entry.hold.clone();
        match until_revoked(&claimed, body(hold.clone())).await {
            Some(output) => {
                finish(claimed, "release").await;
                Ok(output)
            }
            None => Err(claimed.into_lost(&self.wanting.what("run under"))),
        }
    }

    /// Who holds the lock now, as the store tells it. What is read may be over by the time it is
    /// used: decide nothing by it.
    ///
    /// # Errors
    /// [`Unreachable`](crate::ErrorKind::Unreachable), [`Unknown`](crate::ErrorKind::Unknown),
    /// [`Denied`](crate::ErrorKind::Denied), [`Invalid`](crate::ErrorKind::Invalid),
    /// [`Closed`](crate::ErrorKind::Closed).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn holder(&self) -> Result<Option<Holder>, Error> {
        self.wanting.holder().await
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// A lock that is held: see [`Hold`] for what can be asked of it.
///
/// Dropping it releases in the background and never blocks;
/// [`release`](LockGuard::release) is the checked way. Where the runtime ends before that is done,
/// the TTL frees the name: [`shutdown`](crate::Coordinator::shutdown) before `main` returns.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sync_core::Error> {
/// # let sync = sync_core::memory::Store::new().connect(&Default::default())?;
/// let guard = sync.lock("nightly-report").acquire().await?;
/// let (token, hold) = (guard.token(), guard.hold());
/// guard.release().await?;
/// assert!(!hold.is_valid());
/// assert_eq!(hold.revoked().await.cause, sync_core::Cause::Released);
/// # Ok(()) }
/// ```
#[must_use = "the lock is released when its guard is dropped"]
pub struct LockGuard {
    claimed: Claimed,
}

impl LockGuard {
    fn new(claimed: Claimed) -> Self {
        Self { claimed }
    }

    /// A view that can be cloned and outlives the guard.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.claimed.entry.hold.clone()
    }

    /// Gives the lock back and waits for the store to say so.
    ///
    /// From its first poll on the guard is no longer valid.
    ///
    /// # Errors
    /// [`Lost`](crate::ErrorKind::Lost) when it was not held any more;
    /// [`Unknown`](crate::ErrorKind::Unknown) when the store has not answered within the release
    /// timeout: it goes on in the background.
    /// [`Closed`](crate::ErrorKind::Closed) when a shutdown has released it.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop it.
    pub async fn release(self) -> Result<(), Error> {
        self.claimed.release("release").await
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockGuard").field(&**self).finish()
    }
}

impl Deref for LockGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.claimed.entry.hold
    }
}

/// The body's output; `None` if the claim was lost before it had ended. The body is gone either
/// way, and the claim is not released yet.
pub(crate) async fn until_revoked<T>(
    claimed: &Claimed,
    body: impl Future<Output = T>,
) -> Option<T> {
    let hold = &claimed.entry.hold;
    let body = pin!(body);
    claimed.entry.has_body();
    if mutant::on(mutant::RELEASE_BEFORE_END) && claimed.entry.begin_end() {
        claimed.entry.spawn_end();
    }
    tokio::select! {
        biased;
        _ = hold.revoked(), if !mutant::on(mutant::BODY_RUNS_ON) => None,
        output = body => (hold.is_valid() || mutant::on(mutant::BODY_BELIEVED)).then_some(output),
    }
}

/// Releases after a body that ended in time: its work was done under the claim, whatever the store
/// says now.
pub(crate) async fn finish(claimed: Claimed, verb: &'static str) {
    if let Err(error) = claimed.release(verb).await {
        tracing::warn!(%error, "the work is done; its name was not given back cleanly");
    }
}
