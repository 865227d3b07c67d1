//! Leases: how they are kept alive, and what is told of what hangs on them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Error, LeaseKeepAliveStream, LeaseKeeper};
use sync_core::backend::{Loss, Nonce, Renewal};
use sync_core::connection::Pending;
use sync_core::reuse::Slots;
use sync_core::watches::Watches;
use sync_core::{Clock, Moment, StoreError};
use tokio::sync::mpsc::UnboundedSender;

use crate::dial::{Connector, Link, over, sent};
use crate::error::Failure;
use crate::mutant;

/// The library's words for an answer that there is no such lease.
const LEASE_GONE: &str = "lease not found";

/// An open session.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: i64,
    ttl: Duration,
    /// Not there while a renewal uses it: one that is given up takes its stream along.
    keeper: Mutex<Option<Keeper>>,
    losses: Mutex<Option<UnboundedSender<Loss>>>,
    slots: Mutex<Slots>,
    /// Whose keys a request may delete that has not been answered.
    leaving: Mutex<BTreeSet<Nonce>>,
    pub(crate) watches: Watches,
}

/// A stream of renewals. Its answers name no request: one at a time is sent on it.
struct Keeper {
    link: Link,
    requests: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Lease {
    pub(crate) fn new(id: i64, ttl: Duration) -> Self {
        let (keeper, losses, slots, leaving, watches) = Default::default();
        Self { id, ttl, keeper, losses, slots, leaving, watches }
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Renews, on the stream that there is or on a new one.
    pub(crate) async fn renew(&self, connector: &Arc<Connector>) -> Result<Renewal, StoreError> {
        let keeper = lock(&self.keeper).take();
        if let Some(keeper) = keeper.filter(|keeper| !keeper.link.health().is_broken()) {
            match self.renew_on(keeper, connector.clock()).await {
                // It was broken; another may do, as long as there is time.
                Err(failure) if failure.wants_another_member() => {}
                Err(failure) if failure.wants_fresh_token() => {}
                other => return other.map_err(Failure::into_store),
            }
        }
        let link = connector.link().await?;
        let login = link.connection.login();
        let mut opened = self.keep_alive(&link, connector.clock()).await;
        if let Err(failure) = &opened
            && failure.wants_fresh_token()
        {
            let refreshed = over(link.request(), link.connection.refresh_token(login).await);
            refreshed.map_err(Failure::into_store)?;
            opened = self.keep_alive(&link, connector.clock()).await;
        }
        match opened.map_err(Failure::into_store)? {
            Some(keeper) => {
                self.renew_on(keeper, connector.clock()).await.map_err(Failure::into_store)
            }
            None => Ok(Renewal::Ended),
        }
    }

    /// Opens a stream; `None` if the lease is gone. The library keeps for itself what the first
    /// answer says of the TTL.
    async fn keep_alive(
        &self,
        link: &Link,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Keeper>, Failure> {
        let patience = Patience::new(self.ttl, link, clock);
        let opened = match link.connection.lease().keep_alive(self.id).await {
            Ok(opened) => Ok(Some(opened)),
            Err(Error::LeaseKeepAliveError(text)) if text == LEASE_GONE => Ok(None),
            Err(error) => Err(error),
        };
        let opened = patience.over(opened)?;
        Ok(opened.map(|(requests, answers)| Keeper { link: link.clone(), requests, answers }))
    }

    async fn renew_on(
        &self,
        mut keeper: Keeper,
        clock: &Arc<dyn Clock>,
    ) -> Result<Renewal, Failure> {
        let patience = Patience::new(self.ttl, &keeper.link, clock);
        let answer = match keeper.requests.keep_alive().await {
            Ok(()) => keeper.answers.message().await,
            Err(error) => Err(error),
        };
        let ended = || Error::LeaseKeepAliveError("the stream of renewals has ended".into());
        let answer = patience.over(answer.and_then(|answer| answer.ok_or_else(ended)))?;
        if answer.id() != self.id {
            keeper.link.health().break_off();
            return Err(Failure::Lost(Error::Internal("the answer is to another lease".into())));
        }
        let told = u64::try_from(answer.ttl()).unwrap_or(0);
        let ttl @ 1.. = mutant::ttl(told, self.ttl.as_secs()) else { return Ok(Renewal::Ended) };
        *lock(&self.keeper) = Some(keeper);
        Ok(Renewal::Alive { ttl: Duration::from_secs(ttl), claims: Vec::new() })
    }

    /// Sends what is told of this lease there.
    pub(crate) fn tell(&self, losses: UnboundedSender<Loss>) {
        *lock(&self.losses) = Some(losses);
    }

    pub(crate) fn lost(&self, loss: Loss) {
        if let Some(losses) = &*lock(&self.losses) {
            // Nobody listens any more: then nobody needs it.
            let _ = losses.send(loss);
        }
    }

    /// Which key is whose.
    pub(crate) fn slots(&self) -> MutexGuard<'_, Slots> {
        lock(&self.slots)
    }

    /// A request is sent that deletes the key of a claim that is not to end by it.
    pub(crate) fn leaving(&self, nonce: Nonce) {
        lock(&self.leaving).insert(nonce);
    }

    /// Whether such a request may arrive yet.
    pub(crate) fn is_leaving(&self, nonce: Nonce) -> bool {
        lock(&self.leaving).contains(&nonce)
    }

    /// It has been answered, or it does not matter any more.
    pub(crate) fn left(&self, nonce: Nonce) {
        lock(&self.leaving).remove(&nonce);
    }

    /// The lease is closed: nothing is told of it any more, and its stream ends.
    pub(crate) fn end(&self) {
        self.watches.end();
        *lock(&self.losses) = None;
        *lock(&self.keeper) = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end();
    }
}

/// A renewal under way. Given up after half of the time that it has, it distrusts the connection
/// even if others are answered there: a member that is cut off from the leader answers reads, too.
/// Sooner, it is given up because the session ends, which says nothing.
struct Patience<'a> {
    link: &'a Link,
    pending: Option<Pending<'a>>,
    clock: &'a Arc<dyn Clock>,
    until: Moment,
}

impl<'a> Patience<'a> {
    fn new(ttl: Duration, link: &'a Link, clock: &'a Arc<dyn Clock>) -> Self {
        Self { link, pending: Some(sent(link)), clock, until: clock.now() + ttl / 12 }
    }

    fn over<T>(mut self, answer: Result<T, Error>) -> Result<T, Failure> {
        let pending = self.pending.take().unwrap_or_else(|| self.link.look());
        over(pending, answer)
    }
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        let over = self.clock.now() >= self.until && !mutant::on(mutant::SILENCE_TRUSTED);
        if self.pending.is_some() && over {
            self.link.health().break_off();
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("link", &self.link).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
