//! What a store says of itself.

use std::time::Duration;

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
    /// What to do about a TTL that is too short; may be empty.
    pub too_short: &'static str,
    /// What to do about a TTL that is too long; may be empty.
    pub too_long: &'static str,
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
            too_short: "",
            too_long: "",
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

    /// Sets what to do about a TTL that is too short, and about one that is too long.
    #[must_use]
    pub fn advise(mut self, too_short: &'static str, too_long: &'static str) -> Self {
        (self.too_short, self.too_long) = (too_short, too_long);
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
    /// [`Renewal::Alive`](super::Renewal::Alive) extends them together.
    Session,
    /// Each claim for itself (a Redis key): [`Grant::ttl`](super::Grant::ttl) and
    /// [`Renewed::Extended`](super::Renewed::Extended) say for how long. A session of such a store
    /// never ends by itself.
    Claim,
}
