//! What a store answers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;

use super::claim::{Grant, Nonce, Version};
use crate::token::FencingToken;

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
    /// After this another try is due whatever [`Backend::wait`](super::Backend::wait) says.
    /// `None`: only on its word.
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
    /// Somebody else holds the name. With [`Claim::queue`](super::Claim::queue) the claim now stands in line.
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
        /// What is known of each claim. With [`Expiry::Session`](super::Expiry::Session) only losses matter here.
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

/// What [`Backend::losses`](super::Backend::losses) gives.
///
/// ```
/// // Of a store that cannot tell.
/// let losses: sync_core::backend::Losses = Box::pin(tokio_stream::pending());
/// ```
pub type Losses = Pin<Box<dyn Stream<Item = Loss> + Send>>;

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
