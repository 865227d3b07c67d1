//! The signal that a claim is no longer safe to use: once, with its reason, readable by anyone.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::mutant;
use crate::name::{Kind, Name};
use crate::observer::{Event, What};
use crate::options::Environment;
use crate::token::FencingToken;

/// Why a claim ended.
///
/// ```
/// assert_eq!(sync_core::Cause::Deadline.as_str(), "deadline");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// No renewal succeeded in time: none was answered, or the store refused them. Why, a warning in
    /// the log says, and the error of a later release, resign or update, or of
    /// [`Lock::run`](crate::Lock::run). Told before the store can grant the name to anyone else.
    Deadline,
    /// The store ended the session, or an operator did. Told as soon as it was seen.
    Session,
    /// The key was removed or overwritten from outside. Told as soon as it was seen.
    Key,
    /// The holder gave it back.
    Released,
    /// The coordinator was shut down.
    Closed,
}

impl Cause {
    /// One word for logs and scripts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Deadline => "deadline",
            Cause::Session => "session",
            Cause::Key => "key",
            Cause::Released => "released",
            Cause::Closed => "closed",
        }
    }
}

/// Why and when a claim ended.
///
/// ```no_run
/// # async fn example(guard: sync_core::LockGuard) {
/// let lost = guard.revoked().await;
/// tracing::warn!(%lost, "stopping");
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revocation {
    /// Why.
    pub cause: Cause,
    /// When, on the coordinator's clock. For [`Cause::Deadline`] that is the deadline itself.
    pub at: Moment,
}

impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.cause {
            Cause::Deadline => "no renewal succeeded before the deadline",
            Cause::Session => "the session was ended from outside",
            Cause::Key => "the key was removed or overwritten from outside",
            Cause::Released => "it was released",
            Cause::Closed => "the coordinator was shut down",
        })
    }
}

/// What is known of one acquisition, and whether it is still safe to use: a view that can be
/// cloned and kept, and that cannot release.
///
/// A [`LockGuard`](crate::LockGuard) and an [`Elected`](crate::Elected) dereference to it.
///
/// ```no_run
/// # async fn example(guard: sync_core::LockGuard) {
/// let hold = guard.hold();
/// tokio::spawn(async move {
///     println!("over: {}", hold.revoked().await);
/// });
/// # }
/// ```
#[derive(Clone)]
pub struct Hold(Arc<State>);

struct State {
    environment: Environment,
    kind: Kind,
    name: Name,
    granted: OnceLock<FencingToken>,
    /// Nanoseconds of the deadline's moment; zero before the grant. Only moves later.
    deadline: AtomicU64,
    revoked: OnceLock<Revocation>,
    /// Orders what changes the two above; reading them needs no lock.
    changing: Mutex<()>,
    signal: CancellationToken,
}

impl Hold {
    /// The name that is held.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name.as_str()
    }

    /// This acquisition's fencing token. Send it along with what is done under the claim.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        // A hold is shown to users only once granted.
        self.0.granted.get().copied().unwrap_or(FencingToken::new(0))
    }

    /// Whether the claim is safe to use at this very moment. Reads the clock each time, so that a
    /// process that was stopped and continued gets `false` before any timer has run.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.revocation().is_none()
    }

    /// Until when the claim is safe to use if no further renewal is answered.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        Moment::from_nanos(self.0.deadline.load(Ordering::Acquire))
    }

    /// For how long the claim is safe to use if no further renewal is answered; zero once it is not.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        match self.is_valid() {
            true => self.deadline().since(self.0.environment.clock.now()),
            false => Duration::ZERO,
        }
    }

    /// Why the claim ended, if it has. Reads the clock like [`is_valid`](Hold::is_valid).
    #[must_use]
    pub fn revocation(&self) -> Option<Revocation> {
        let revoked = self.0.revoked.get().copied();
        if revoked.is_some() || mutant::on(mutant::FLAG_ONLY) {
            return revoked;
        }
        if self.0.environment.clock.now() < self.deadline() {
            return None;
        }
        self.latch()
    }

    /// Resolves once the claim is no longer safe to use, and says why. May be awaited any number
    /// of times, by any number of tasks, before or after the fact.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn revoked(&self) -> Revocation {
        loop {
            if let Some(revocation) = self.revocation() {
                if mutant::on(mutant::NEVER_REVOKED) {
                    std::future::pending::<()>().await;
                }
                return revocation;
            }
            // The look at the deadline is here, not only in the session's task, so that the
            // signal comes even if the runtime that drives the session is gone.
            let looks = !mutant::on(mutant::FLAG_ONLY);
            tokio::select! {
                biased;
                () = self.0.signal.cancelled() => {}
                () = self.0.environment.clock.sleep_until(self.deadline()), if looks => {}
            }
        }
    }

    /// A token that is cancelled when the claim is no longer safe to use, for code that takes one.
    /// Cancelling it oneself has no effect on the claim.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        self.0.signal.child_token()
    }

    /// Whether it has been granted, whatever became of it since.
    pub(crate) fn is_granted(&self) -> bool {
        self.0.deadline.load(Ordering::Acquire) > 0
    }

    /// Resolves when the claim was revoked, granted or not. It looks at no clock.
    pub(crate) async fn told(&self) {
        self.0.signal.cancelled().await;
    }

    /// The view of a claim that is wanted and not yet granted.
    pub(crate) fn wanted(environment: Environment, kind: Kind, name: Name) -> Self {
        Self(Arc::new(State {
            environment,
            kind,
            name,
            granted: OnceLock::new(),
            deadline: AtomicU64::new(0),
            revoked: OnceLock::new(),
            changing: Mutex::new(()),
            signal: CancellationToken::new(),
        }))
    }

    /// Makes the grant visible, unless the claim was revoked before or the deadline has passed
    /// already.
    pub(crate) fn grant(&self, token: FencingToken, deadline: Moment) -> bool {
        let _changing = self.lock();
        let now = self.0.environment.clock.now();
        if self.0.revoked.get().is_some() || now >= deadline || self.0.granted.set(token).is_err() {
            return false;
        }
        self.observe(now, What::Granted { deadline });
        self.0.deadline.store(deadline.as_nanos(), Ordering::Release);
        true
    }

    /// Moves the deadline, unless the claim is over: a late answer revives nothing.
    pub(crate) fn extend(&self, deadline: Moment) {
        let _changing = self.lock();
        let now = self.0.environment.clock.now();
        let over = self.0.revoked.get().is_some() || now >= self.deadline();
        if over && !mutant::on(mutant::LATE_REPLY_REVIVES) || deadline <= self.deadline() {
            return;
        }
        self.observe(now, What::Extended { deadline });
        self.0.deadline.store(deadline.as_nanos(), Ordering::Release);
    }

    /// Ends the claim for `cause` unless it has ended before; says which of the causes counts.
    pub(crate) fn revoke(&self, cause: Cause) -> Revocation {
        let changing = self.lock();
        let now = self.0.environment.clock.now();
        let granted = self.0.granted.get().is_some();
        let revocation = *self.0.revoked.get_or_init(|| {
            let overdue = granted && now >= self.deadline() && !mutant::on(mutant::FLAG_ONLY);
            let revocation = if overdue {
                Revocation { cause: Cause::Deadline, at: self.deadline() }
            } else {
                Revocation { cause, at: now }
            };
            if granted {
                self.observe(revocation.at, What::Revoked { cause: revocation.cause });
            }
            revocation
        });
        drop(changing);
        if !mutant::on(mutant::NEVER_REVOKED) {
            self.0.signal.cancel();
        }
        revocation
    }

    /// The first look past the deadline.
    fn latch(&self) -> Option<Revocation> {
        self.0.granted.get()?;
        if mutant::on(mutant::LATE_REPLY_REVIVES) {
            return Some(Revocation { cause: Cause::Deadline, at: self.deadline() });
        }
        let changing = self.lock();
        // An extension may have come between the look and the lock.
        if self.0.environment.clock.now() < self.deadline() {
            return None;
        }
        drop(changing);
        Some(self.revoke(Cause::Deadline))
    }

    fn observe(&self, at: Moment, what: What) {
        let State { kind, name, .. } = &*self.0;
        let event = Event { kind: *kind, name: name.clone(), token: self.token(), at, what };
        let observer = &self.0.environment.observer;
        if mutant::on(mutant::TOLD_AFTER) {
            let observer = Arc::clone(observer);
            std::thread::spawn(move || observer.observe(&event));
            return;
        }
        observer.observe(&event);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.0.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("kind", &self.0.kind)
            .field("name", &self.0.name)
            .field("token", &self.0.granted.get())
            .field("revoked", &self.0.revoked.get())
            .finish_non_exhaustive()
    }
}
