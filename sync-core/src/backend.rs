//! The contract between the core and a store.
//!
//! The core knows deadlines, guards, retries, the local queue and cancellation. A backend knows
//! its store's protocol and nothing of these. The verbs are those of coordination, not of
//! storage, so that each store can use what it has: leases, sessions, scripts, watches, messages.
//!
//! # What the core does with a backend
//!
//! * It bounds every call by a time of its own and then **drops the call's future**: a caller that
//!   goes away does not interrupt a request. A dropped call counts as unanswered, so a backend
//!   needs no time limits of its own, but should distrust the connection that a dropped call was
//!   using. [`wait`](Backend::wait) and [`watch`](Backend::watch) are dropped at any time, and
//!   [`renew`](Backend::renew) when its session is to be closed: that says nothing of the
//!   connection.
//! * It has at most one [`renew`](Backend::renew) of a session under way, and for each claim at
//!   most one of [`try_claim`](Backend::try_claim), [`update`](Backend::update) and
//!   [`end`](Backend::end).
//! * Time counts from before a call, so whatever a backend does first (connecting, loading a
//!   script) makes the deadline earlier, never later.
//!
//! # A claim from try to end, as the core drives it
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use sync_core::backend::{Attempt, Backend, Claim, Ended, Held, Nonce, Renewal};
//! use sync_core::{Kind, Name, Namespace, memory};
//!
//! let backend = memory::Store::new().backend(&Namespace::default());
//! let session = backend.open(Duration::from_secs(15)).await?;
//! let (name, nonce) = (Name::parse("nightly-report")?, Nonce::from_bytes([1; 16]));
//! let claim = Arc::new(Claim::new(Kind::Lock, name, nonce, Arc::from(*b"{}"), true));
//!
//! let Attempt::Held(grant) = backend.try_claim(&session, &claim, None, false).await? else {
//!     unreachable!("nobody else is here");
//! };
//! let held = Held { claim: Arc::clone(&claim), grant };
//! let renewal = backend.renew(&session, &[held.clone()]).await?;
//! assert!(matches!(renewal, Renewal::Alive { .. }));
//! let ended = backend.end(&session, &claim, Some(&held.grant), false).await?;
//! assert_eq!(ended, Ended::Released);
//! backend.close(&session).await?;
//! # Ok(()) }
//! ```

mod answer;
mod claim;
mod profile;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

pub use self::answer::{
    Attempt, Ended, Loss, Losses, Renewal, Renewed, Sighted, Sighting, Ticket, Updated,
};
pub use self::claim::{Claim, Grant, Held, Nonce, Session, Version};
pub use self::profile::{Expiry, Profile};
use crate::error::StoreError;
use crate::name::{Kind, Name};

/// A store, as the core drives it. See the [module](self) for what the core promises, and
/// `docs/writing-a-backend.md` for how the shared suite proves an implementation.
///
/// [`memory`](crate::memory) is a complete example.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// What this store is and what it can do. Must not change.
    fn profile(&self) -> &Profile;

    /// The key that stands in the store while `name` is held, for other tools; where each claim has
    /// a key of its own, the prefix that they share. Must be injective over kind and name, and the
    /// same in every process with the same namespace.
    fn key(&self, kind: Kind, name: &Name) -> String;

    /// Opens a session: the unit of liveness. The store must end it, and with it every claim
    /// made on it, at the earliest once `ttl` (as granted) has passed since the last renewal.
    ///
    /// Each attempt must use an identity of its own: a delayed duplicate of an earlier attempt
    /// must not bring a closed session back.
    async fn open(&self, ttl: Duration) -> Result<Session, StoreError>;

    /// Closes a session and frees what it held. Closing one that has ended is a success.
    ///
    /// It is the last call about the session and about every claim that was made on it: claims
    /// of a session that has ended get no [`end`](Backend::end). Where a store punishes a session
    /// that ends while it holds (Consul's lock-delay), what it still holds is to be freed first.
    async fn close(&self, session: &Session) -> Result<(), StoreError>;

    /// Renews a session and what is held on it, in as few requests as the store allows.
    ///
    /// The answer must stem from requests that were sent after this call began. A claim that
    /// must be called [`Renewed::Lost`] is one whose key no longer names its nonce. What the store
    /// did not tell is left out, and `Err` says nothing of any claim: both mean *unknown*, and the
    /// deadline goes on counting.
    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError>;

    /// Tries to take a claim, once.
    ///
    /// Must be idempotent by the claim's nonce: repeated after an answer that was lost, it finds
    /// its own earlier success and reports the same token. Must grant to one nonce at a time, with
    /// a token greater than every earlier one of that kind and name. `ticket` is what the latest
    /// attempt of this nonce was given. Without [`Claim::queue`] a blocked attempt must leave
    /// nothing behind.
    ///
    /// `unanswered` says that some earlier attempt of this nonce was never answered. A grant
    /// counts only if the store's own answer names this claim's key and nonce.
    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        unanswered: bool,
    ) -> Result<Attempt, StoreError>;

    /// Resolves when another try of a blocked claim may be worth it. A hint: resolving early or
    /// without cause costs a request, and the core tries again at
    /// [`Ticket::look_after`] at the latest, so not resolving costs time. Never safety.
    ///
    /// A change between the answer that gave the ticket and this call must not be missed.
    /// Must not resolve at once again and again: a store that fails is met with
    /// an error from [`try_claim`](Backend::try_claim), on which the core backs off.
    async fn wait(&self, session: &Session, claim: &Claim, ticket: &Ticket);

    /// Replaces the record of a held claim by [`Claim::record`], without a new token, if the
    /// version that stands in the store is `grant.version`.
    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError>;

    /// Ends a claim: releases it, leaves the line, or abandons what was never answered. After a
    /// success the claim neither holds nor queues; and where `unanswered` is set, no earlier
    /// attempt of this nonce, however late it arrives, can bring it into being while the session
    /// lives.
    ///
    /// Must compare before it deletes: what another nonce or another client holds is left alone.
    /// Must be idempotent: the core repeats it until it is answered.
    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError>;

    /// What happens to this session and its claims from outside, as soon as the store tells.
    /// Pending for ever where the store cannot tell. Called once for a session, right after it
    /// was opened; must reconnect by itself.
    fn losses(&self, session: &Session) -> Losses;

    /// Who holds the name now: a read that misses nothing which was acknowledged before it.
    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError>;

    /// Resolves with the next sighting whose version differs from `seen`. Intermediate ones may be
    /// left out, the last one may not. An error is followed by another call.
    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError>;
}
