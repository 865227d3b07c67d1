//! A backend without the core in between: for a crate's tests of its own protocol, request by
//! request.
//!
//! What the store must not do here is a panic: these are for tests.

#![allow(clippy::panic, clippy::expect_used, reason = "for tests, which report by panicking")]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sync_core::backend::{
    Attempt, Backend, Claim, Ended, Grant, Held, Nonce, Renewal, Session, Sighting, Ticket, Updated,
};
use sync_core::{Coordinator, Kind, LockGuard, Name, OsRng, Rng};
use tokio::time::{Instant, sleep, timeout};

/// A TTL that no test outlives.
pub const TTL: Duration = Duration::from_secs(10);

/// How long the core would wait for an answer here.
const ANSWERED_WITHIN: Duration = Duration::from_millis(500);

/// One session on a backend, driven as the core would drive it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use sync_conformance::driver::{self, Driver};
/// use sync_core::backend::Ended;
/// use sync_core::{Namespace, memory};
///
/// let store = memory::Store::new();
/// let a = Driver::on(store.backend(&Namespace::default()), driver::TTL).await;
/// let b = Driver::on(store.backend(&Namespace::default()), driver::TTL).await;
/// let (first, second) = (driver::lock("a"), driver::lock("a"));
/// let grant = a.held(&first).await;
/// b.blocked(&second).await;
/// assert_eq!(a.end(&first).await, Ended::Released);
/// assert!(b.acquire(&second).await.token > grant.token);
/// # }
/// ```
#[derive(Clone)]
pub struct Driver {
    /// What is driven.
    pub backend: Arc<dyn Backend>,
    /// Its one session.
    pub session: Session,
}

impl Driver {
    /// A session with this TTL.
    ///
    /// # Panics
    /// When the store opens none.
    pub async fn on(backend: impl Backend, ttl: Duration) -> Self {
        let backend: Arc<dyn Backend> = Arc::new(backend);
        let session = backend.open(ttl).await.expect("a session");
        Self { backend, session }
    }

    /// One try.
    ///
    /// # Panics
    /// When it fails.
    pub async fn attempt(&self, claim: &Claim) -> Attempt {
        self.backend.try_claim(&self.session, claim, None, false).await.expect("an answer")
    }

    /// One try that is granted.
    ///
    /// # Panics
    /// When it is not.
    pub async fn held(&self, claim: &Claim) -> Grant {
        match self.attempt(claim).await {
            Attempt::Held(grant) => grant,
            other => panic!("not held: {other:?}"),
        }
    }

    /// One try that finds the name taken.
    ///
    /// # Panics
    /// When it does not.
    pub async fn blocked(&self, claim: &Claim) -> Ticket {
        match self.attempt(claim).await {
            Attempt::Blocked(ticket) => ticket,
            other => panic!("not blocked: {other:?}"),
        }
    }

    /// Ends a claim of which each attempt was answered.
    ///
    /// # Panics
    /// When it fails.
    pub async fn end(&self, claim: &Claim) -> Ended {
        self.backend.end(&self.session, claim, None, false).await.expect("an answer")
    }

    /// Ends a claim by what it was granted with.
    ///
    /// # Panics
    /// When it fails.
    pub async fn release(&self, claim: &Claim, grant: &Grant) -> Ended {
        self.backend.end(&self.session, claim, Some(grant), false).await.expect("an answer")
    }

    /// One more try with the place that an earlier one took.
    ///
    /// # Panics
    /// When it fails.
    pub async fn again(&self, claim: &Claim, place: &Ticket) -> Attempt {
        self.backend.try_claim(&self.session, claim, Some(place), false).await.expect("an answer")
    }

    /// Ends a claim of which some attempt was not answered.
    ///
    /// # Panics
    /// When it fails.
    pub async fn abandon(&self, claim: &Claim) -> Ended {
        self.backend.end(&self.session, claim, None, true).await.expect("an answer")
    }

    /// Tries as the core does until the claim is held.
    ///
    /// # Panics
    /// When a try fails for good.
    pub async fn acquire(&self, claim: &Claim) -> Grant {
        let mut ticket = None;
        loop {
            match self.backend.try_claim(&self.session, claim, ticket.as_ref(), false).await {
                Ok(Attempt::Held(grant)) => return grant,
                Ok(Attempt::Blocked(place)) => {
                    let wait = self.backend.wait(&self.session, claim, &place);
                    let look = place.look_after.unwrap_or(Duration::MAX);
                    let _ = timeout(look, wait).await;
                    ticket = Some(place);
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// A nonce of its own.
///
/// # Panics
/// When the system has no randomness.
#[must_use]
pub fn nonce() -> Nonce {
    let mut bytes = [0; 16];
    OsRng::new().fill(&mut bytes).expect("randomness");
    Nonce::from_bytes(bytes)
}

/// What `text` names.
///
/// # Panics
/// When it is no name.
#[must_use]
pub fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// The record of a node with this id, as the core would write it.
#[must_use]
pub fn record(id: &str, nonce: Nonce) -> Vec<u8> {
    format!(r#"{{"id":"{id}","nonce":"{}"}}"#, nonce.to_hex()).into_bytes()
}

/// A claim with a nonce of its own.
///
/// # Panics
/// When `of` is no name.
#[must_use]
pub fn claim(kind: Kind, of: &str, queue: bool) -> Claim {
    let nonce = nonce();
    Claim::new(kind, name(of), nonce, record("node", nonce).into(), queue)
}

/// A claim to a lock, in line if it is taken.
///
/// # Panics
/// When `of` is no name.
#[must_use]
pub fn lock(of: &str) -> Claim {
    claim(Kind::Lock, of, true)
}

/// Runs `work` as the core does: bounded, and dropped when the time is over.
pub async fn bounded<T>(work: impl Future<Output = T>) -> Option<T> {
    timeout(ANSWERED_WITHIN, work).await.ok()
}

/// Repeats `work` as the core does until it succeeds.
///
/// # Panics
/// When it has not within `limit`.
pub async fn eventually<T, E: fmt::Debug>(
    limit: Duration,
    mut work: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let until = Instant::now() + limit;
    loop {
        let last = bounded(work()).await;
        if let Some(Ok(done)) = last {
            return done;
        }
        assert!(
            Instant::now() < until,
            "it did not come about within {limit:?}: {:?}",
            last.map(Result::err)
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// `follower` watches the election `of`, which nobody leads, while `leader` takes it, changes its
/// record, gives it back and takes it again; gives what was seen last.
///
/// # Panics
/// When a change is missed, or told later than `within`.
pub async fn follow(leader: &Driver, follower: &Driver, of: &str, within: Duration) -> Sighting {
    let (name, claimed) = (name(of), claim(Kind::Leader, of, true));
    let mut seen = follower.backend.holder(Kind::Leader, &name).await.expect("an answer");
    assert!(seen.holder.is_none());
    let mut grant = None;
    for step in 0..4 {
        let watch = follower.backend.watch(Kind::Leader, &name, &seen.version);
        let change = async {
            sleep(Duration::from_millis(100)).await;
            match step {
                0 => grant = Some(leader.held(&claimed).await),
                1 => {
                    let new = record("new", claimed.nonce).into();
                    let new = Claim::new(Kind::Leader, name.clone(), claimed.nonce, new, true);
                    let grant = grant.as_ref().expect("it was granted");
                    let updated = leader.backend.update(&leader.session, &new, grant).await;
                    updated.expect("an answer");
                }
                2 => drop(leader.end(&claimed).await),
                _ => drop(leader.held(&claim(Kind::Leader, of, true)).await),
            }
            Instant::now()
        };
        let (sighting, changed) = tokio::join!(watch, change);
        assert!(changed.elapsed() < within, "step {step}");
        let sighting = sighting.expect("an answer");
        assert_eq!(sighting.holder.is_none(), step == 2);
        assert_ne!(sighting.version, seen.version);
        seen = sighting;
    }
    seen
}

/// Makes every request that a backend makes: `a` leads, `b` stands in line, follows and succeeds it.
/// `meanwhile` is what happens to the store half-way.
///
/// # Panics
/// When a request fails, or says something else than it must.
pub async fn run_through(a: &Driver, b: &Driver, meanwhile: impl AsyncFnOnce()) {
    let (first, second) = (claim(Kind::Leader, "a", true), claim(Kind::Leader, "a", true));
    let grant = a.held(&first).await;
    let place = b.blocked(&second).await;
    b.blocked(&claim(Kind::Leader, "a", false)).await;
    let of = name("a");
    let seen = b.backend.holder(Kind::Leader, &of).await.expect("it may be read");
    let renamed = record("new", first.nonce).into();
    let renamed = Claim::new(Kind::Leader, name("a"), first.nonce, renamed, true);
    let (watched, updated) = tokio::join!(
        b.backend.watch(Kind::Leader, &of, &seen.version),
        a.backend.update(&a.session, &renamed, &grant),
    );
    watched.expect("it may be watched");
    assert!(matches!(updated, Ok(Updated::Done(_))), "{updated:?}");
    meanwhile().await;
    let held = [Held { claim: first.clone().into(), grant }];
    let renewed = a.backend.renew(&a.session, &held).await;
    assert!(matches!(renewed, Ok(Renewal::Alive { .. })), "{renewed:?}");
    a.abandon(&first).await;
    bounded(b.backend.wait(&b.session, &second, &place)).await.expect("it is woken");
    b.held(&second).await;
    assert_eq!(b.end(&second).await, Ended::Released);
}

/// So many locks, all held at once.
///
/// # Panics
/// When one cannot be had.
pub async fn hold_many(sync: &Coordinator, count: usize) -> Vec<LockGuard> {
    let acquiring: Vec<_> = (0..count)
        .map(|number| {
            let lock = sync.lock(format!("n{number}"));
            tokio::spawn(async move { lock.acquire().await.expect("it is free") })
        })
        .collect();
    let mut guards = Vec::with_capacity(count);
    for acquired in acquiring {
        guards.push(acquired.await.expect("no panic"));
    }
    guards
}
