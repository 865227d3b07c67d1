//! What a store is asked about: sessions, claims, and what it granted them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{Kind, Name};
use crate::token::FencingToken;

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
        format!("{:032x}", u128::from_be_bytes(self.0))
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
    /// For how long, with [`Expiry::Claim`](super::Expiry::Claim); `None` with
    /// [`Expiry::Session`](super::Expiry::Session).
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
