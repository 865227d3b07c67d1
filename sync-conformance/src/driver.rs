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

use crate::proxy::Proxy;

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

    /// Changes the record of a claim that was granted.
    ///
    /// # Panics
    /// When it fails.
    pub async fn update(&self, claim: &Claim, grant: &Grant) -> Updated {
        self.backend.update(&self.session, claim, grant).await.expect("an answer")
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

/// The same claim with the record of a node with this id.
#[must_use]
pub fn renamed(claim: &Claim, id: &str) -> Claim {
    let record = record(id, claim.nonce).into();
    Claim::new(claim.kind, claim.name.clone(), claim.nonce, record, claim.queue)
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
                    let grant = grant.as_ref().expect("it was granted");
                    leader.update(&renamed(&claimed, "new"), grant).await;
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

/// A follower of the election `of` is told of nothing while `work` is done, nor soon after.
///
/// # Panics
/// When it is.
pub async fn not_told(follower: &Driver, of: &str, seen: &Sighting, work: impl Future) {
    let name = name(of);
    let watch = follower.backend.watch(Kind::Leader, &name, &seen.version);
    let soon_after = async {
        work.await;
        sleep(Duration::from_millis(200)).await;
    };
    tokio::select! {
        biased;
        sighting = watch => panic!("nothing has changed: {sighting:?}"),
        () = soon_after => {}
    }
}

/// Leads the election `of`, which nobody leads, and changes its record: from the version that is
/// known and from no other, until it is given back. `stands` looks at what is in the store after a
/// change. Gives a change that comes too late.
///
/// # Panics
/// When a change is made that must not be, or is not made that must be.
pub async fn change_record(
    leader: &Driver,
    of: &str,
    mut stands: impl AsyncFnMut(&Claim, &Grant),
) -> (Claim, Grant) {
    let first = claim(Kind::Leader, of, true);
    let (second, third) = (renamed(&first, "second"), renamed(&first, "third"));
    let grant = leader.held(&first).await;
    let Updated::Done(version) = leader.update(&second, &grant).await else {
        panic!("not updated")
    };
    let again = leader.update(&second, &grant).await;
    assert!(matches!(again, Updated::Done(now) if now == version), "it finds itself done");
    let late = leader.update(&third, &grant).await;
    assert!(matches!(late, Updated::Stale(now) if now == version), "a late one undoes nothing");
    let seen = leader.backend.holder(Kind::Leader, &first.name).await.expect("an answer");
    assert_eq!(seen.version, version, "what an observer is told");
    let newer = Grant { version, ..grant.clone() };
    stands(&second, &newer).await;

    let Updated::Done(version) = leader.update(&third, &newer).await else { panic!("not updated") };
    let newest = Grant { version, ..newer };
    let again = leader.backend.try_claim(&leader.session, &first, None, true).await;
    assert!(
        matches!(&again, Ok(Attempt::Held(now)) if now.token == grant.token),
        "a repeated attempt finds what it did: {again:?}"
    );
    stands(&third, &newest).await;
    assert_eq!(leader.release(&first, &grant).await, Ended::Released, "whatever the version");
    assert!(matches!(leader.update(&second, &newest).await, Updated::NotOurs));
    (second, newest)
}

/// Tries for the lock `of` while the network keeps what is sent, and abandons that: the claim, whose
/// attempt arrives by [`Proxy::let_through`].
///
/// # Panics
/// When the attempt is not kept, or the abandon finds it.
pub async fn abandon_what_is_kept(driver: &Driver, proxy: &Proxy, of: &str) -> Claim {
    driver.end(&lock("warm")).await;
    let late = lock(of);
    proxy.hold();
    assert!(bounded(driver.attempt(&late)).await.is_none(), "it is kept");
    assert!(proxy.held() > 0);
    // On another connection, since this one has answered nothing.
    assert_eq!(driver.abandon(&late).await, Ended::NotOurs);
    late
}

/// Holds and renews by a connection that falls silent meanwhile: new ones go through.
///
/// # Panics
/// When the first renewal after that is answered, or the second is not.
pub async fn renew_past_a_silence(driver: &Driver, proxy: &Proxy) {
    let claim = lock("a");
    let grant = driver.held(&claim).await;
    let held = [Held { grant: grant.clone(), claim: claim.clone().into() }];
    let renew = || bounded(driver.backend.renew(&driver.session, &held));
    renew().await.expect("an answer").expect("it lives");
    proxy.hold();
    assert!(renew().await.is_none());
    let renewal = renew().await.expect("an answer on another");
    assert!(matches!(renewal, Ok(Renewal::Alive { .. })), "{renewal:?}");
    assert_eq!(driver.release(&claim, &grant).await, Ended::Released);
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
    let renamed = renamed(&first, "new");
    let (watched, updated) = tokio::join!(
        b.backend.watch(Kind::Leader, &of, &seen.version),
        a.update(&renamed, &grant),
    );
    watched.expect("it may be watched");
    assert!(matches!(updated, Updated::Done(_)), "{updated:?}");
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
