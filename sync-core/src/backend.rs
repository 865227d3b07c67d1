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

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;

use crate::error::StoreError;
use crate::name::{Kind, Name};
use crate::token::FencingToken;

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

/// What [`Backend::losses`] gives.
///
/// ```
/// // Of a store that cannot tell.
/// let losses: sync_core::backend::Losses = Box::pin(tokio_stream::pending());
/// ```
pub type Losses = Pin<Box<dyn Stream<Item = Loss> + Send>>;

/// What a store is and what it can do.
///
/// ```
/// use std::time::Duration;
/// use sync_core::backend::{Expiry, Profile};
///
/// let profile = Profile::new("redis", "127.0.0.1:6379", Expiry::Claim)
///     .ttl(Duration::from_millis(100)..=Duration::from_secs(3600))
///     .rounding(Duration::from_millis(1));
/// assert_eq!(profile.store, "redis");
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Profile {
    /// The store's name, for errors and logs.
    pub store: String,
    /// Where it is, without credentials.
    pub endpoint: String,
    /// What the store lets expire.
    pub expiry: Expiry,
    /// Shortest TTL it can keep.
    pub shortest_ttl: Duration,
    /// Longest TTL it can keep.
    pub longest_ttl: Duration,
    /// By how much the store may round an expiry to its earlier side. Taken off each deadline.
    pub rounding: Duration,
    /// Whether waiters are served in the order they came.
    pub fair: bool,
}

impl Profile {
    /// A fair store with TTLs from a second to a day.
    #[must_use]
    pub fn new(store: impl Into<String>, endpoint: impl Into<String>, expiry: Expiry) -> Self {
        Self {
            store: store.into(),
            endpoint: endpoint.into(),
            expiry,
            shortest_ttl: Duration::from_secs(1),
            longest_ttl: Duration::from_secs(24 * 3600),
            rounding: Duration::ZERO,
            fair: true,
        }
    }

    /// Sets the TTLs that the store can keep.
    #[must_use]
    pub fn ttl(mut self, ttl: std::ops::RangeInclusive<Duration>) -> Self {
        (self.shortest_ttl, self.longest_ttl) = ttl.into_inner();
        self
    }

    /// Sets by how much the store may round an expiry to its earlier side.
    #[must_use]
    pub fn rounding(mut self, rounding: Duration) -> Self {
        self.rounding = rounding;
        self
    }

    /// Says that waiters are not served in order.
    #[must_use]
    pub fn unfair(mut self) -> Self {
        self.fair = false;
        self
    }
}

/// What a store lets expire, and so whose deadline a claim has.
///
/// ```
/// use sync_core::backend::{Backend, Expiry};
/// use sync_core::{Namespace, memory};
///
/// let backend = memory::Store::new().backend(&Namespace::default());
/// assert_eq!(backend.profile().expiry, Expiry::Session);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// The session (etcd's lease, Consul's session): a claim lives as long as its session, and
    /// [`Renewal::Alive`] extends them together.
    Session,
    /// Each claim for itself (a Redis key): [`Grant::ttl`] and [`Renewed::Extended`] say for how
    /// long. A session of such a store never ends by itself.
    Claim,
}

/// A session that a store has opened.
///
/// ```
/// use std::time::Duration;
/// use sync_core::backend::Session;
///
/// let session = Session::new("694d9a1c", Duration::from_secs(15));
/// assert!(!format!("{session:?}").contains("694d9a1c"));
/// ```
#[derive(Clone)]
pub struct Session {
    /// What the store calls it. A secret where whoever knows it can end it: never logged.
    pub id: Arc<str>,
    /// The TTL that the store granted, which may differ from the one that was asked for.
    pub ttl: Duration,
}

impl Session {
    /// A session as the store granted it.
    #[must_use]
    pub fn new(id: impl Into<Arc<str>>, ttl: Duration) -> Self {
        Self { id: id.into(), ttl }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// 128 random bits that stand for one acquisition. Kept out of logs.
///
/// ```
/// use sync_core::backend::Nonce;
///
/// let nonce = Nonce::from_bytes([0xab; 16]);
/// assert_eq!(Nonce::from_hex(&nonce.to_hex()), Some(nonce));
/// assert_eq!(format!("{nonce:?}"), "Nonce(..)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// The nonce of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// As 32 hexadecimal digits in lower case.
    #[must_use]
    pub fn to_hex(self) -> String {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";
        let digit = |half: u8| char::from(DIGITS[usize::from(half & 15)]);
        let mut hex = String::with_capacity(32);
        for byte in self.0 {
            hex.extend([digit(byte >> 4), digit(byte)]);
        }
        hex
    }

    /// Reads what [`to_hex`](Nonce::to_hex) wrote, and nothing else.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != 32 || !hex.bytes().all(lower) {
            return None;
        }
        Some(Self(u128::from_str_radix(hex, 16).ok()?.to_be_bytes()))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// One name wanted or held by one session. Repeats of an attempt carry the very same claim.
///
/// ```
/// use std::sync::Arc;
/// use sync_core::backend::{Claim, Nonce};
/// use sync_core::{Kind, Name};
///
/// let record = Arc::from(*br#"{"id":"web-1"}"#);
/// let claim =
///     Claim::new(Kind::Leader, Name::parse("scheduler")?, Nonce::from_bytes([1; 16]), record, true);
/// assert_eq!(claim.name.as_str(), "scheduler");
/// # Ok::<(), sync_core::InvalidName>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Claim {
    /// Lock or leadership.
    pub kind: Kind,
    /// Which one.
    pub name: Name,
    /// This acquisition and no other.
    pub nonce: Nonce,
    /// What others read of the holder, at most [`LONGEST_RECORD`](crate::LONGEST_RECORD) bytes.
    pub record: Arc<[u8]>,
    /// Whether to stand in line if the name is taken.
    pub queue: bool,
}

impl Claim {
    /// A claim, for those who drive a backend without the core.
    #[must_use]
    pub fn new(kind: Kind, name: Name, nonce: Nonce, record: Arc<[u8]>, queue: bool) -> Self {
        Self { kind, name, nonce, record, queue }
    }
}

/// Without the record, in which the nonce stands.
impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// What a store said when it granted a claim.
///
/// ```
/// use sync_core::FencingToken;
/// use sync_core::backend::{Grant, Version};
///
/// // As a store says it that numbers its changes, and whose sessions expire.
/// let revision = 42_u64;
/// let grant = Grant {
///     token: FencingToken::new(revision),
///     version: Version::new(revision.to_be_bytes()),
///     ttl: None,
/// };
/// ```
#[derive(Debug, Clone)]
pub struct Grant {
    /// The acquisition's fencing token.
    pub token: FencingToken,
    /// The version of the record that stands in the store now.
    pub version: Version,
    /// For how long, with [`Expiry::Claim`]; `None` with [`Expiry::Session`].
    pub ttl: Option<Duration>,
}

/// A claim together with its grant, as renewals name it.
///
/// ```
/// use sync_core::backend::Held;
///
/// fn version(held: &Held) -> &[u8] {
///     held.grant.version.as_bytes()
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Held {
    /// The claim.
    pub claim: Arc<Claim>,
    /// What the store said when it granted it; the version is the latest that is known.
    pub grant: Grant,
}

/// A state of a record, opaque to the core: a revision, an index, or the bytes themselves.
///
/// ```
/// use sync_core::backend::Version;
///
/// assert_ne!(Version::new(7_u64.to_be_bytes()), Version::new(8_u64.to_be_bytes()));
/// assert_eq!(Version::new(*b"record").as_bytes(), b"record");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Version(Arc<[u8]>);

impl Version {
    /// The version that these bytes stand for.
    #[must_use]
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes it was made from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({} bytes)", self.0.len())
    }
}

/// A place in a line, or the lack of one.
///
/// ```
/// use std::time::Duration;
/// use sync_core::backend::Ticket;
///
/// // "Ask again in a second, sooner if a message comes."
/// let look_after = Some(Duration::from_secs(1));
/// let ticket = Ticket { look_after, place: "line/7".into(), ..Ticket::default() };
/// assert!(ticket.not_before.is_zero());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Ticket {
    /// No sooner than this is another try worth it.
    pub not_before: Duration,
    /// After this another try is due whatever [`Backend::wait`] says. `None`: only on its word.
    pub look_after: Option<Duration>,
    /// The backend's own note of the place.
    pub place: Arc<str>,
}

/// What came of one try.
///
/// ```
/// use sync_core::backend::{Attempt, Ticket};
///
/// let taken = Attempt::Blocked(Ticket::default());
/// assert!(!matches!(taken, Attempt::Held(_)));
/// ```
#[derive(Debug, Clone)]
pub enum Attempt {
    /// The claim is held.
    Held(Grant),
    /// Somebody else holds the name. With [`Claim::queue`] the claim now stands in line.
    Blocked(Ticket),
    /// This nonce has been abandoned by the backend, for good: come back with a fresh one.
    Anew,
    /// The session has ended: come back with a fresh one.
    SessionEnded,
}

/// What came of a renewal.
///
/// ```
/// use std::time::Duration;
/// use sync_core::backend::{Nonce, Renewal, Renewed};
///
/// let lost = Nonce::from_bytes([1; 16]);
/// let ttl = Duration::from_secs(15);
/// let renewal = Renewal::Alive { ttl, claims: vec![(lost, Renewed::Lost)] };
/// ```
#[derive(Debug, Clone)]
pub enum Renewal {
    /// The session lives.
    Alive {
        /// The session's TTL as granted anew.
        ttl: Duration,
        /// What is known of each claim. With [`Expiry::Session`] only losses matter here.
        claims: Vec<(Nonce, Renewed)>,
    },
    /// The session has ended, and with it all its claims.
    Ended,
}

/// What a renewal says of one claim.
///
/// ```
/// use std::time::Duration;
/// use sync_core::backend::Renewed;
///
/// assert_ne!(Renewed::Extended(Duration::from_secs(15)), Renewed::Lost);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// It lives for this long from when the request was sent.
    Extended(Duration),
    /// Its key no longer names its nonce.
    Lost,
}

/// What came of changing a record.
///
/// ```
/// use sync_core::backend::{Updated, Version};
///
/// let changed = Updated::Done(Version::new(8_u64.to_be_bytes()));
/// ```
#[derive(Debug, Clone)]
pub enum Updated {
    /// The record was changed (or was the same already): its version now.
    Done(Version),
    /// The claim is this nonce's, but another version stands there: this one.
    Stale(Version),
    /// The claim is no longer this nonce's.
    NotOurs,
}

/// What came of ending a claim.
///
/// ```
/// use sync_core::backend::Ended;
///
/// let keys_deleted = 1;
/// let ended = if keys_deleted > 0 { Ended::Released } else { Ended::NotOurs };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was held or queued, and is no longer.
    Released,
    /// It was neither.
    NotOurs,
}

/// What happened to a session or a claim from outside.
///
/// ```
/// use sync_core::backend::{Loss, Nonce};
///
/// // An operator has deleted the key of one claim; the others live on.
/// let loss = Loss::Claim(Nonce::from_bytes([1; 16]));
/// assert_ne!(loss, Loss::Session);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The session has ended.
    Session,
    /// The claim's key was removed, or no longer names its session and nonce.
    Claim(Nonce),
}

/// Who holds a name, as a store shows it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use sync_core::backend::Backend;
/// use sync_core::{Kind, Name, Namespace, memory};
///
/// let backend = memory::Store::new().backend(&Namespace::default());
/// let sighting = backend.holder(Kind::Leader, &Name::parse("scheduler")?).await?;
/// assert!(sighting.holder.is_none());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Sighting {
    /// Differs whenever the holder or its record does, also for "nobody".
    pub version: Version,
    /// The holder, if there is one.
    pub holder: Option<Sighted>,
}

/// A holder as a store shows it.
///
/// ```
/// use sync_core::backend::{Sighted, Sighting, Version};
///
/// // A foreign client's value: no token that anybody knows of.
/// let record = b"host-a".to_vec();
/// let version = Version::new(record.clone());
/// let sighting = Sighting { version, holder: Some(Sighted { record, token: None }) };
/// ```
#[derive(Clone)]
pub struct Sighted {
    /// The bytes that stand there, whoever wrote them; bounded by the backend to
    /// [`LONGEST_RECORD`](crate::LONGEST_RECORD).
    pub record: Vec<u8>,
    /// The holder's token where there is one.
    pub token: Option<FencingToken>,
}

/// Without the record, in which the holder's nonce stands.
impl fmt::Debug for Sighted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sighted").field("token", &self.token).finish_non_exhaustive()
    }
}
